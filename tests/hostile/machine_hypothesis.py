"""The world of machine.py as a Hypothesis state machine, which finds a short way to what it found.

    python -m machine_hypothesis OWNER EXAMPLES

A crash cannot be made shorter by it: then what was done last stands on standard error.
"""

from __future__ import annotations

import faulthandler
import os
import sys

import machine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

# Threads, signals and trace functions are left to machine.py: what they do is not the same each time.
NAMES = sorted({each.__name__ for each in machine.TOP} - {"crowd", "with_signal", "with_trace"})
OWNER = ["uvloop"]


class Machine(RuleBasedStateMachine):
    """Each step is an operation, with a seed for what the objects do meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        faulthandler.dump_traceback_later(60, exit=True)
        os.write(2, b"\na world\n")
        self.world: machine.World | None = machine.World(OWNER[0], 0)

    @rule(name=st.sampled_from(NAMES), seed=st.integers(0, 2**32 - 1))
    def operate(self, name: str, seed: int) -> None:
        assert self.world is not None
        os.write(2, f"{name} {seed}\n".encode())
        self.world.random.seed(seed)
        self.world.operate(getattr(machine.World, name))
        assert not self.world.violations, "\n".join(self.world.violations)

    def teardown(self) -> None:
        world, self.world = self.world, None
        if world is not None:
            machine.end_world(world)
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    OWNER[0] = sys.argv[1]
    machine.prepare()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=int(sys.argv[2]),
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print("nothing found")


if __name__ == "__main__":
    main()
