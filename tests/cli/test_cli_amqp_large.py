"""Large messages from a queue: memory stays within bounds, as no more is read while much is held."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from amqp_broker import Item, QueueBroker, serving
from mail_tools import write_plugin
from smtp_tools import run

from mqcore.amqp.client import Properties, encode_properties
from mqcore.mail.amqp.consumer import HELD_BYTES

pytestmark = pytest.mark.slow

SIZE = 16 << 20
COUNT = 14
MORE = 6
"""So many messages are there at most beside those: the one with which they are too much, one that is coming in, one that is
done with, in case that it comes again; and as much for what the allocator keeps."""

HOLDS = """
    def mq_smtp_in_message(context, message):
        context.start_timer(0.5, context.continue_, message)
        return True
    """


def peak(pid: int) -> int:
    """The most that a process had until now, in bytes."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@run
async def test_memory_stays_within_bounds_however_large_messages_are(tmp_path):
    """All of them may be on the way at once, and together they are much more than may be held."""
    write_plugin(tmp_path / "plugins", "50-holds", HOLDS)
    body = b"Subject: x\r\n\r\n".ljust(SIZE, b".")
    fields = (Properties(content_type="message/rfc822", message_id=f"m{number}") for number in range(COUNT))
    async with serving(QueueBroker()) as broker:
        assert isinstance(broker, QueueBroker)
        place = f"amqp://guest:guest@127.0.0.1:{broker.port}?queue=q&declare=no"
        command = [sys.executable, "-P", "-m", "mqcore", "run", "--from", place, "--to", "null:", "--plugins", "plugins"]
        process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path)
        try:
            await broker.until(lambda: broker.prefetches)
            before = peak(process.pid)
            broker.put("q", *(Item(body, encode_properties(each)) for each in fields))
            await broker.until(lambda: len(broker.acked) == COUNT, 60)
            grown = peak(process.pid) - before
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert HELD_BYTES <= grown < HELD_BYTES + MORE * SIZE < COUNT * SIZE, f"{grown >> 20} MB"
