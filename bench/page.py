"""Writes the page of figures: `python bench/page.py RESULTS.json... FOLDER`.

It makes FOLDER/performance.md and a plot for each group of rows in FOLDER/performance/, from what `--benchmark-json` wrote:
one run, or a run for each CPython, which are shown side by side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charts import Row, as_text, draw

HEAD = """\
# Performance

What mqcore costs, beside a floor and beside what people would use in its place. The *base* of a row is the floor, a loop
in C over the same functions or the bare system calls; or where there is none, a peer. Base, mqcore and peers take turns in
many rounds, so that noise hits all alike. The *ratio* is mqcore's cost as a multiple of the base's, the median over the
rounds; its *spread* is half the range of their middle half. The goals are the project's own. How all this is measured:
[bench/README.md](../bench/README.md).

"""

MADE = """\

This page is made by

```sh
scripts/dev page
```
"""

GROUPS = {
    "dispatch": "One message through plugins that all pass it on. To read an async source beside `run_many` of all messages in"
    " one go is no floor that can be reached: one loop by hand, `async for message in source: hook.run(message)`, which yields"
    " nothing, already takes more than 1.1 x that (its row says how much), and an async generator that yields message and"
    " outcome as much as the stream, which also has what is held in flight.",
    "hold and give back": "One message taken by a plugin and given back, with so many held at once.",
    "memory": "Resident memory of one message that is held, in a fresh process.",
    "native": "One message through native plugins, beside a loop in C over the same functions; through chains of both kinds;"
    " taken by a native plugin and given back by its timer; and by two dispatchers in two threads, beside one that does the"
    " work of both.",
    "timers": "One timer.",
    "fds": "One byte: its socket is ready, the callback reads it, and in a ring writes it to the next socket. 0.7 x uvloop"
    " was no possible goal for what is built on libuv: *libuv from C*, a callback in C that takes the GIL and calls the same"
    " Python function, is the least that it can cost, and misses it too. (Calling watchers straight from libuv's callback, and"
    " keeping the GIL until all that are ready were called, gained a hundredth, which did not make up for a second way to call"
    " them.) Over TCP, *uvloop, a protocol* reads and writes by transports, and picows a frame of WebSocket each time.",
    "stalls": "The longest turn of the loop, in processor time of its thread, while 40,000 callbacks of 20 us each that are"
    " all due at once are called in one phase of a tick. uvloop calls all in one turn.",
    "growth": "One message, with many held, many plugins that lack the hook, or many retries; the base has few.",
    "asking": "To ask once for what is held (`dispatcher.held(limit=100)`) or for all that is counted (`dispatcher.stats()`),"
    " on the loop that moves the messages. The base is the same of 1,000 held messages; or making as many rows of numbers that"
    " are there.",
    "the command": "One mail of 1,000 bytes, moved by `mqcore run` from an mbox that has many; the start not included.",
    "receiving by SMTP": "One mail of 1 KB received by `mqcore run --from smtp:... --to null:`, over 16 connections at once,"
    " through ten plugins with three hooks each: by the clock, and the processor time that the server took, system calls"
    " included. smtp-sink, which is a part of Postfix, and the *bare uvloop protocol*, which always says the same, call no"
    " plugins, and no peer stores anything. What the bare protocol takes is the least that a server on uvloop can. Without"
    " pipelining most of a mail's time goes to the system calls for its four replies: there smtp-sink, which is C, is not eight"
    " times as fast as aiosmtpd, and the bare protocol hardly or not, so that goal is out of reach. Two workers need two"
    " cores, and what sends the mails needs one, too: on a machine with two, they are twice as fast as one only where a mail"
    " costs the server much more than its sender, as with *a plugin that computes*: it makes 3,000 hashes of each mail, which"
    " takes 2 ms or more, about a hundred times what its sender takes.",
    "latency of a mail by SMTP": "From when a mail of 1 KB is due until its last reply, without pipelining, at half of the"
    " highest rate of which the server is capable: the median, and what 1 % and 0.1 % exceed; where a connection has to be made"
    " first, that counts. A plugin that holds it does so for 5 ms.",
    "RabbitMQ": "One raw message of a quorum queue, published, consumed, or relayed from one queue to another: the processor"
    " time of the whole client. Publishes are persistent, mandatory and confirmed, with 1,000 on the way; 1,000 messages are"
    " prefetched, and acknowledged in groups; a relay acknowledges what is confirmed. mqcore consumes by `mqcore run --from"
    " amqp:... --to null:` and relays by `... --to amqp:...&format=mime`, without plugins; it publishes by a `Gateway`, from a"
    " source that has the mails in memory. So its messages are mails, with ids, in all three. The base is a client in C, for"
    " which they are bytes; what the peers do with them is as little. FastStream cannot acknowledge in groups. A large body is"
    " copied once, from where it was read to where it stays until it is done with. *Two workers* are measured by the clock,"
    " from a full queue until the plugin is done with the last message; it makes 3,000 hashes of each, in 2 ms or more,"
    " and many times what the broker takes, so that on two cores neither it nor anybody else is the limit.",
    "storing in a Maildir": "A mail of 1 KB in a new Maildir, and on the disk: the processor time of the process, in user code"
    " and in the system. The base is a program in C that makes the same calls of the system and nothing else; the standard"
    " library stores one mail at a time. *From SMTP to a Maildir* is the whole way, through ten plugins: a mail comes by SMTP"
    " from one of 16 clients, is on the disk, and only then the client is told so. Its base is the processor time of two"
    " programs in C together, of which one, smtp-sink, receives and keeps nothing, and the other makes the calls that storing"
    " takes, always for 16 mails in one go; with *null:* the mail is received and not stored. What Postfix takes for the same"
    " is printed by `python bench/delivering.py`.",
    "start of the command": "`mqcore run` from an empty mbox to `null:`, from the start of the process to its end.",
    "memory of the command": "The peak of the resident memory of `mqcore run`, interpreter included.",
    "instructions": "One piece of the same work, in instructions of the processor.",
}

Runs = dict[str, dict[str, Any]]


def read(paths: list[str]) -> Runs:
    """What each run wrote, by its CPython."""
    runs = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    return {f"CPython {run['machine_info']['python_version']}": run for run in runs}


def groups_of(runs: Runs) -> dict[str, dict[str, list[Row]]]:
    """The rows of each group, by run. Groups come in the order of GROUPS, others after them; rows as the bench has them."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for name, run in runs.items():
        for row in run["rows"]:
            groups.setdefault(row["group"], {}).setdefault(name, []).append(row)
    return {name: groups[name] for name in dict.fromkeys((*GROUPS, *groups)) if name in groups}


def machine_of(run: dict[str, Any]) -> str:
    """What a run was measured on, and when."""
    machine = run["machine_info"]
    cpu, versions = machine["cpu"], machine["versions"]
    return (
        f"mqcore {versions['mqcore']} ({run['commit_info']['id'][:8]}), {run['datetime'][:10]}; uvloop {versions['uvloop']}, "
        f"libuv {versions['libuv']}; {cpu['brand_raw']}, {cpu['count']} cores; {machine['system']} {machine['release']} "
        f"{machine['machine']}, Maildirs on {machine['file_system']}"
    )


def goals_of(run: dict[str, Any]) -> str:
    """How many goals are kept."""
    kept = [row["kept"] for row in run["rows"] if row["kept"] is not None]
    form = ", in the short form of the bench" if run["short"] else ""
    return f"{sum(kept)} of {len(kept)} goals kept{form}"


def table(group: dict[str, list[Row]]) -> Iterator[str]:
    """The rows of a group, those of one case below each other."""
    unit = next(iter(group.values()))[0]["unit"]
    timed = unit == "ns"
    yield f"| case | CPython | base | base, {unit} | mqcore, {unit} |{' a second |' * timed} ratio | spread | goal | kept |"
    yield f"|---|---|---|--:|--:|{'--:|' * timed}--:|--:|---|---|"
    cases = dict.fromkeys(row["case"] for rows in group.values() for row in rows)
    for case in cases:
        for run, row in [(run, row) for run, rows in group.items() for row in rows if row["case"] == case]:
            kept = {None: "", True: "yes", False: "**no**"}[row["kept"]]
            rate = f" {1e9 / row['mqcore_cost']:,.0f} |" if timed else ""
            yield (
                f"| {case} | {run.removeprefix('CPython ')} | {row['base']} | {as_text(row['base_cost'])} |"
                f" {as_text(row['mqcore_cost'])} |{rate} {row['ratio']:.2f} | {row['spread']:.1%} | {row['goal']} | {kept} |"
            )


def page(runs: Runs, plots: dict[str, str]) -> str:
    """The page, with the plot of each group."""
    lines = [f"* {name}: {goals_of(run)}. {machine_of(run)}" for name, run in runs.items()]
    parts = [HEAD, "\n".join(lines), "\n", MADE]
    for name, group in groups_of(runs).items():
        parts += [f"\n## {name.capitalize()}\n\n", GROUPS.get(name, ""), "\n\n", "\n".join(table(group)), "\n"]
        parts += [f"\n![{name}: the costs of mqcore, its base and its peers]({plots[name]})\n"]
    return "".join(parts)


def main(*arguments: str) -> None:
    """Draw the plots and write the page."""
    *results, folder = arguments
    runs = read(results)
    target = Path(folder, "performance")
    target.mkdir(parents=True, exist_ok=True)
    plots = {name: f"performance/{name.replace(' ', '-')}.svg" for name in groups_of(runs)}
    for name, group in groups_of(runs).items():
        draw(group, Path(folder, plots[name]))
    Path(folder, "performance.md").write_text(page(runs, plots), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
