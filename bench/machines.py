"""What one mail costs each part of a site of several machines: `python bench/machines.py`.

smtp_load sends mails to a gateway, `mqcore run --from smtp:... --to amqp:...`; RabbitMQ keeps them in a quorum queue, on the
disk that TMPDIR says; a relay, `mqcore run --from amqp:... --to smtp:...`, brings them to smtp-sink. Printed is the processor
time of each for one mail, in us, the median of some rounds: what a mail costs, times the mails of a second, are the processors
that a site needs. It is all on this machine, so how long it takes says nothing about a site. It needs RabbitMQ and Postfix's
smtp-sink.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time

from building import HERE, build_program
from servers import mqcore, running, smtp_sink
from test_smtp import CONNECTIONS, processor_time

sys.path += map(str, (tests := HERE.parent / "tests", tests / "partners"))
import pika
from broker import Broker

ROUNDS = 7
SETTLES = 0.5
"""Seconds until all have heard, and said, all that there is."""


def main() -> None:
    """Print the table."""
    load = build_program("smtp_load")
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker())
        place = f"amqp://guest:guest@127.0.0.1:{broker.port}?queue=q"
        sink = stack.enter_context(smtp_sink())
        gateway, port = stack.enter_context(mqcore("--to", place, "--one-recipient"))
        command = [sys.executable, "-P", "-m", "mqcore", "run", "--from", place, "--to", f"smtp://127.0.0.1:{sink}"]
        relay = stack.enter_context(running(command, sink))
        connection = stack.enter_context(contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url))))
        channel = connection.channel()

        def waiting() -> int:
            count: int = channel.queue_declare("q", passive=True).method.message_count
            return count

        processes = {"gateway": gateway.pid, "broker": broker.pid, "relay": relay.pid}
        print("a mail of", *(f"{name:>8}" for name in processes))
        for size, mails in ((1 << 10, 4000), (50 << 10, 1000)):
            taken: dict[str, list[float]] = {name: [] for name in processes}
            for _ in range(ROUNDS + 1):
                before = {name: processor_time(pid) for name, pid in processes.items()}
                subprocess.run([load, "-p", *map(str, (port, CONNECTIONS, mails, 100, size))], check=True)
                while waiting():
                    time.sleep(0.05)
                time.sleep(SETTLES)
                for name, pid in processes.items():
                    taken[name].append((processor_time(pid) - before[name]) / mails / 1000)
            print(f"{size >> 10:6} KB", *(f"{statistics.median(each[1:]):8.0f}" for each in taken.values()), flush=True)


if __name__ == "__main__":
    main()
