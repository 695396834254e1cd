"""The peak of a command's resident memory: `python peak.py COMMAND...` runs it and prints bytes.

In a process of its own, and a small one: Linux counts what the parent had at its own peak as the child's, since the child
was the parent's copy until it began the command.
"""

from __future__ import annotations

import os
import subprocess
import sys


def measure(command: list[str]) -> int:
    """Run a command, which must succeed, and whose output is dropped."""
    with open(os.devnull, "wb") as null:
        output = [(os.POSIX_SPAWN_DUP2, null.fileno(), 1)]
        process = os.posix_spawn(command[0], command, os.environ, file_actions=output)
    _, status, usage = os.wait4(process, 0)
    if status != 0:
        raise SystemExit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * 1024


def measure_apart(command: list[str], environment: dict[str, str]) -> int:
    """What `measure` finds, in a process of its own."""
    this = [sys.executable, "-S", __file__]
    done = subprocess.run([*this, *command], check=True, stdout=subprocess.PIPE, env=environment)
    return int(done.stdout)


if __name__ == "__main__":
    print(measure(sys.argv[1:]))
