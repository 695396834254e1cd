"""A timeline as people read it, and who waits for the next one."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from ..mail import Connection, Gateway
from ..mail.timeline import Timeline, Tracer, add_tracer, remove_tracer
from .durations import write_duration
from .logs import printable


class NextTransaction(Tracer):
    """Waits for the next transaction of a client or connection, or of a mail that is no client's: `await it.ended_with`."""

    looks = True

    def __init__(self, gateway: Gateway, id: str | None, peer: str | None) -> None:
        self._gateway = gateway
        self._id = id
        self._peer = peer
        self.ended_with: asyncio.Future[Timeline] = asyncio.get_running_loop().create_future()
        add_tracer(gateway, self)

    def wants_from_connect(self, connection: Connection, id: str) -> bool:
        return self.wants(connection, id)

    def wants(self, connection: Connection | None, id: str) -> bool:
        wanted = id == self._id or (self._peer is not None and self._peer in _addresses(connection))
        if wanted:
            self.give_up()  # one is enough
        return wanted

    def ended(self, timeline: Timeline) -> None:
        if not self.ended_with.done():
            self.ended_with.set_result(timeline)

    def give_up(self) -> None:
        """No transaction that begins from now on is it."""
        remove_tracer(self._gateway, self)


def as_address(text: str) -> str:
    """An IP address in the form in which connections have it. Raises ValueError."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def _addresses(connection: Connection | None) -> Iterator[str]:
    """Of the client, and of the one whose mail it forwards."""
    if connection is None:
        return
    for text in (connection.peer, (connection.forwarded or {}).get("addr")):
        try:
            yield as_address(str(text))
        except ValueError:  # a Unix socket, or nothing is said
            continue


def lines_of(timeline: Mapping[str, Any]) -> Iterator[str]:
    """Of what `Timeline.as_dict` gives."""
    events = timeline["events"]
    names = [name for step in events for name in _names(step)]
    width = max(map(len, names), default=0)
    for event in events:
        if "reply" in event:
            yield f"reply {printable(event['reply'])}"
        elif event["calls"] or event["not_called"]:
            yield from map(printable, _lines_of_step(event, width))
    if timeline["left_out"]:
        yield f"and {timeline['left_out']} more steps or calls"
    if timeline["end"] is not None:
        yield f"no reply: {timeline['end']}"
    elif timeline["peer"] is None:
        yield f"settled: {', '.join(dict.fromkeys(timeline['verdicts'])) or 'not at all'}"


def _names(event: Mapping[str, Any]) -> list[str]:
    return [call["plugin"] for call in event.get("calls", ())]


def _lines_of_step(step: Mapping[str, Any], width: int) -> Iterator[str]:
    preposition = "from" if step["hook"] == "mq_smtp_in_mailfrom" else "for"
    yield step["hook"] + ("" if step["about"] is None else f"  {preposition} {step['about'] or '<>'}")
    indent = " " * (width + 4)
    for call in step["calls"]:
        notes = [*call["changes"], *([call["error"]] if call["error"] else [])]
        held = "" if call["held"] is None else f"held {_time(call['held'])}"
        times = ", ".join(filter(None, (_time(call["seconds"]), held)))
        first, *others = notes or [""]
        yield f"  {call['plugin']:{width}}  {call['verdict']:8}  {times:22}  {first}".rstrip()
        yield from (f"{indent}{'':8}  {'':22}  {note}" for note in others)
    if step["not_called"]:
        yield f"{indent}not called: {', '.join(step['not_called'])}"
    if step["outcome"] is None:
        yield f"{indent}not over yet"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else write_duration(seconds)
