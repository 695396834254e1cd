"""Ten thousand connections to the metrics port of a server that may open few files: the mail goes on."""

from __future__ import annotations

import functools
import re
import resource
import subprocess
import sys
import threading
import urllib.request

import pytest
from cli_tools import TEXT, serve

pytestmark = pytest.mark.slow

FILES = 160
MAILS = 300
CLIENTS = 4

# Begins so many connections, without waiting for any, and keeps as many as it may; then says so, and goes on with more.
FLOOD = """
import resource, socket, sys
port, said, count = int(sys.argv[1]), sys.argv[2].encode(), 10_000
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
room = min(count, hard - 50)
kept, begun = [], 0
while True:
    if len(kept) == room:
        kept.pop(0).close()
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(("127.0.0.1", port))
    kept.append(one)
    begun += 1
    if said and begun > 100:
        try:
            kept[-50].send(said)
        except OSError:  # it was refused, or is not connected yet
            pass
    if begun == count:
        print("begun", flush=True)
"""

SAYS = {
    "nothing": "",
    "half a request": "GET /metrics HTTP/1.1\r\nHost: loc",
    "requests, and reads nothing": "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20,
}


def send(server, failed):
    try:
        with server.client() as client:
            for _ in range(MAILS // CLIENTS):
                client.sendmail("a@example.org", ["b@example.org"], TEXT)
    except Exception as error:
        failed.append(error)


@pytest.mark.parametrize("says", SAYS)
def test_ten_thousand_connections(tmp_path, says):
    limited = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (FILES, FILES))
    options = ("--to", f"maildir:{tmp_path}/in", "--metrics", ":0")
    with serve(*options, preexec_fn=limited) as server:
        lines = iter(server.process.stderr.readline, "")
        url = next(found[1] for line in lines if (found := re.search(r"metrics at (http://\S+)", line)))
        port = url.rpartition(":")[2].rstrip("/")
        flood = subprocess.Popen([sys.executable, "-c", FLOOD, port, SAYS[says]], stdout=subprocess.PIPE)
        try:
            failed = []
            sending = [threading.Thread(target=send, args=(server, failed)) for _ in range(CLIENTS)]
            for each in sending:
                each.start()
            assert flood.stdout.readline() == b"begun\n"
            for each in sending:
                each.join(250)
            assert failed == [] and flood.poll() is None
        finally:
            flood.kill()
            flood.wait(30)
            flood.stdout.close()
        with urllib.request.urlopen(f"{url}metrics", timeout=60) as answer:  # whoever asks is answered again
            assert f"mqcore_mails_read_total {MAILS}\n".encode() in answer.read()
    assert server.figures["messages"]["stored"] == MAILS
    assert len(list((tmp_path / "in" / "new").iterdir())) == MAILS
