"""Writes down what a broker says to the talk of test_amqp_fuzz.py, for the folder `recorded`.

    python tests/amqp/record.py PORT FILE [COMMAND...]

The broker is on this machine, and lets in the user guest with the password guest. It is listened to until nothing has come for
two seconds; or, with a command by which it closes the connection (as `rabbitmqctl close_all_connections "..."`), until it has.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path


def main() -> None:
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent)]
    from test_amqp_fuzz import Talk

    port, file, *command = sys.argv[1:]
    talk, pieces = Talk(), []
    with socket.create_connection(("127.0.0.1", int(port)), 2) as broker:
        while not talk.protocol.closed:
            broker.sendall(talk.protocol.take_output())
            try:
                piece = broker.recv(1 << 16)
            except TimeoutError:
                if not command:
                    break
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                command = []
                broker.settimeout(30)
                continue
            pieces.append(len(piece).to_bytes(4, "big") + piece)
            talk.say(piece)
    Path(file).write_bytes(b"".join(pieces))
    print(f"{file}: {len(pieces)} pieces, {len(talk.events)} events, the last {talk.events[-1]}")


if __name__ == "__main__":
    main()
