"""The goals, each a bound on what mqcore costs beside something that was measured in the same run.

One place for all of them. A run fails where a cost is beyond its goal by more than the room that it has (the short form: where
that cost is no time): for noise, for slower machines where the goal is a time, or on the way to a goal that is not reached yet.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """At most `factor` x the cost of `than`, or `plus` more than that; without `than`, at most `plus`.

    With `above`, what both cost above that contender is compared: what they share with it cannot be saved. In the unit
    of the row: ns for each piece of work, or bytes.
    """

    than: str = ""
    factor: float = 1.0
    plus: float = 0.0
    above: str = ""
    room: float = 1.3

    def allows(self, costs: dict[str, float], room: float) -> float:
        """The most that mqcore may cost in a round where the others cost that much, with `room` times the goal."""
        than = costs.get(self.than, 0.0)
        if self.plus:
            return than + room * self.plus
        shared = costs.get(self.above, 0.0)
        return shared + room * self.factor * (than - shared)

    def text(self, unit: str) -> str:
        """As the table has it."""
        if not self.than:
            return f"{self.plus:,.9g} {unit}"
        if self.plus:
            return f"{self.than} + {self.plus:,.9g} {unit}"
        return f"{self.factor:.4g} x {self.than}" + (f", above the {self.above}" if self.above else "")


WAYS_TO_ASK = ("ctl held", "ctl held --limit 10000", "ctl held --plugin", "top's request", "a scrape, over HTTP",
               "the status page")  # fmt: skip
PHASES = ("posted", "io", "timer", "timeout", "resume", "stop", "sweep")

GOALS = {
    "a scrape, 100 plugins, 5 hooks": Goal(plus=2e6, room=2.0),
    "a scrape, 3 plugins, 100k held": Goal(plus=1e6, room=2.0),
    **{f"{way}, a million held": Goal(plus=1, room=2.0) for way in WAYS_TO_ASK},
    **{f"{way}, 100 plugins, 5 hooks": Goal(plus=1, room=2.0) for way in ("top's request", "the status page")},
    "the 100 oldest of a million held messages": Goal(plus=1e6),
    "the counts of 100 plugins with 5 hooks each": Goal(plus=1e6),
    **{f"{phase} phase": Goal(plus=10) for phase in PHASES},
    "run_many, 10 plugins": Goal("floor", 1.10),
    "run, 1 plugin": Goal("floor", plus=45),
    "stream, 10 plugins": Goal("run_many + async for", 1.3),
    "stream, 10 plugins, ordered": Goal("run_many + async for", 1.3),
    "stream, a source that waits for the loop": Goal("source + run_many", 1.1, room=2.0),
    "100k held": Goal(plus=400, room=2.0),
    "100k held, Python subclass": Goal(plus=400, room=2.0),
    "100k held, beyond the message": Goal(plus=64),
    "100k held, beside 10k": Goal("10k held", 1.20),
    "1M held, beside 10k": Goal("10k held", 1.20),
    "a coroutine hook that never waits": Goal(plus=500 if sys.version_info >= (3, 12) else 1_200, room=2.0),
    "a coroutine hook that waits once": Goal("task awaiting a future", 0.7, room=1.5),  # 3.13: just so; 3.15: not yet
    "3 of 13 plugins have the hook": Goal("3 plugins", 1.05),
    "3 of 103 plugins have the hook": Goal("3 plugins", 1.05),
    "3 of 1,003 plugins have the hook": Goal("3 plugins", 1.05),
    "30 retries": Goal("10 retries", 1.20),
    "100 retries": Goal("10 retries", 1.20),
    "1,000 retries": Goal("10 retries", 1.20),
    "start and fire": Goal("uvloop", 1 / 4),
    "start and stop": Goal("uvloop", 1 / 8),
    "ping-pong": Goal("uvloop", 0.7, above="floor", room=2.0),
    "1,000 sockets in turn": Goal("uvloop", 0.7, above="floor", room=2.0),
    "1,000 sockets at once": Goal("uvloop", 0.7, above="floor", room=2.0),
    "ping-pong, beside libuv": Goal("libuv from C", 1.05),
    "1,000 sockets in turn, beside libuv": Goal("libuv from C", 1.05),
    "1,000 sockets at once, beside libuv": Goal("libuv from C", 1.05),
    "mbox to null:, 0 plugins": Goal("standard library", 1.1),
    "mbox to null:, 10 plugins": Goal("standard library", 1.1),
    # A disk may be ten times slower in one round than in the next.
    "mbox to Maildir, 0 plugins": Goal("standard library", 0.8, room=4.0),
    "mbox to Maildir, 10 plugins": Goal("standard library", 0.8, room=4.0),
    "mbox to Maildir in memory, 0 plugins": Goal("standard library", 1.0),
    "mbox to Maildir in memory, 10 plugins": Goal("standard library", 1.0),
    # Of the calls of the system alone, the same ones cost a half more or less from round to round.
    "a Maildir in memory, 16 mails at a time, processor time": Goal("bare system calls", 1.5, room=1.6),
    "a Maildir in memory, one mail at a time, processor time": Goal("bare system calls", 2.0, room=1.6),
    "a Maildir on disk, 16 mails at a time, processor time": Goal("bare system calls", 1.5, room=2.0),
    "a Maildir on disk, one mail at a time, processor time": Goal("bare system calls", 1.5, room=2.0),
    "from SMTP to a Maildir in memory, processor time": Goal("smtp-sink + bare system calls", 1.5, room=1.6),
    "from SMTP to a Maildir on disk, processor time": Goal("smtp-sink + bare system calls", 1.5, room=2.5),
    "100k messages, beside 10k": Goal("10k messages", 1.10),
    "100 mails a connection": Goal("smtp-sink", 1 / 0.9, room=1.5),
    "100 mails a connection, pipelined": Goal("smtp-sink", 1 / 0.9, room=1.5),
    "1 mail a connection": Goal("smtp-sink", 1 / 0.9, room=1.5),
    "100 mails a connection, all on, processor time": Goal("all off", 1.02, room=1.05),
    "with a supervisor, processor time": Goal("one process", 1.02, room=1.05),
    "two workers": Goal("1 worker", 1 / 1.8, room=1.8),  # where what sends the mails has a core of its own; else room for that
    "two workers, a plugin that computes": Goal("1 worker", 1 / 1.8, room=1.3),
    # Out of reach where the bare uvloop protocol in the same row, which calls no plugin, is above it, or just below.
    "100 mails a connection, processor time": Goal("aiosmtpd", 1 / 8, room=1.8),
    "100 mails a connection, pipelined, processor time": Goal("aiosmtpd", 1 / 8, room=1.4),
    "1 mail a connection, processor time": Goal("aiosmtpd", 1 / 8, room=1.8),
    # What mqcore publishes and takes are mails, which could go through plugins. The client in C makes nothing of what it takes:
    # at 1 KB, twice what that costs is out of reach, so there mqcore is compared with what people would use in its place.
    "publish raw 1 KB bodies, processor time": Goal("librabbitmq", 2.5, room=1.5),
    "publish raw 50 KB bodies, processor time": Goal("librabbitmq", 2.0, room=1.5),
    "consume raw 1 KB bodies, processor time": Goal("aio-pika", 1 / 15),
    "consume raw 50 KB bodies, processor time": Goal("librabbitmq", 2.5, room=1.5),
    "relay raw 1 KB bodies, processor time": Goal("librabbitmq", 2.0, room=1.5),
    "relay raw 50 KB bodies, processor time": Goal("librabbitmq", 2.5, room=1.5),
    "consume, two workers, a plugin that computes": Goal("1 worker", 1 / 1.8, room=1.3),
    "run_many, 10 native plugins": Goal("floor", 1.25, room=1.5),
    **{f"get, {size}": Goal("email", 1 / 5) for size in ("4 KB", "1 MB")},
    **{f"add on top, {size}": Goal("email", 1 / 20) for size in ("4 KB", "1 MB")},
    "hold, give back from a native timer": Goal(plus=300, room=2.0),
    "10 native plugins hold, in two threads": Goal("one thread", 1 / 1.8, room=1.5),
    "10 native plugins compute, in two threads": Goal("one thread", 1 / 1.8, room=1.5),
    # Instructions, which the clock's noise does not touch: what they were when this was written, on the slowest CPython.
    "run_many, 10 plugins, instructions": Goal("floor", plus=50, room=2.0),
    "run, 1 plugin, instructions": Goal("floor", plus=460, room=1.1),
    "hold and give back, instructions": Goal(plus=3_600, room=1.1),
    # All that an operator may turn on, but for lines in the log, costs 1 % of the instructions of a path, and 2 % of SMTP in.
    "run_many, 10 plugins, watched, instructions": Goal("not watched", 1.01, room=1.005),
    "hold and give back, watched, instructions": Goal("not watched", 1.01, room=1.005),
    "run_many, 10 native plugins, instructions": Goal("floor", plus=111, room=1.1),
    "hold, give back from a native timer, instructions": Goal(plus=3_050, room=1.1),
    "start and stop a timer, instructions": Goal(plus=1_900, room=1.1),
    "ping-pong, instructions": Goal("libuv from C", plus=500, room=1.1),
    "100 sockets at once, instructions": Goal("libuv from C", 0.88, room=1.03),
}
