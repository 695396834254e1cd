"""The timing wheel, against a sorted list, over times that no test can wait for."""

from __future__ import annotations

from pathlib import Path

import pytest
from cython_tools import build_driver
from effort import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

LEVELS = 8
# Around the bounds of levels, and anywhere.
AHEAD = st.one_of(
    st.integers(0, 200),
    st.builds(lambda level, off: max(0, 64**level + off), st.integers(1, 7), st.integers(-2, 2)),
    st.integers(0, 2**44),
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """The class Driver, built against the mqcore that is tested."""
    return build_driver(tmp_path_factory.mktemp("wheel"), Path(__file__).with_name("wheel_driver.pyx")).Driver


def test_against_a_sorted_list(driver):
    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.now = 1_000_000
            self.wheel = driver(self.now)
            self.waiting = {}  # number -> tick, in the order of insertion
            self.due = []

        @precondition(lambda self: len(self.waiting) + len(self.due) < 100)
        @rule(ahead=AHEAD, late=st.integers(0, 10))
        def insert(self, ahead, late):
            number = next(each for each in range(100) if each not in self.waiting and each not in self.due)
            tick = self.now + ahead - (late if ahead == 0 else 0)
            self.wheel.insert(number, tick)
            if tick <= self.now:
                self.due.append(number)
            else:
                self.waiting[number] = tick

        @precondition(lambda self: self.waiting or self.due)
        @rule(data=st.data())
        def remove(self, data):
            number = data.draw(st.sampled_from([*self.waiting, *self.due]))
            self.wheel.remove(number)
            if number in self.due:
                self.due.remove(number)
            else:
                del self.waiting[number]

        def passed(self, now):
            self.now = max(now, self.now)
            come = sorted((tick, place, number) for place, (number, tick) in enumerate(self.waiting.items()) if tick <= now)
            for _, _, number in come:
                del self.waiting[number]
                self.due.append(number)

        @rule(ahead=AHEAD)
        def turn(self, ahead):
            self.wheel.turn(self.now + ahead)
            self.passed(self.now + ahead)

        @rule()
        def turn_back(self):
            """A clock that stands still, or worse."""
            self.wheel.turn(self.now - 1)

        @rule()
        def take(self):
            assert self.wheel.take() == sorted(self.due, key=lambda number: number % 2)  # stable
            self.due.clear()

        @precondition(lambda self: self.waiting)
        @rule()
        def turn_as_the_alarm_rings(self):
            """It rings for what is due first, at most once more for each level."""
            first = min(self.waiting.values())
            for _ in range(LEVELS):
                tick = self.wheel.next_tick()
                assert self.now < tick <= first
                self.wheel.turn(tick)
                self.passed(tick)
                if tick == first:
                    break
            assert self.now == first

        @invariant()
        def nothing_waits_without_an_alarm(self):
            assert (self.wheel.next_tick() is None) == (not self.waiting)

        def teardown(self):
            assert self.wheel.drop_all() == len(self.waiting) + len(self.due)

    run_state_machine_as_test(Machine, settings=settings(max_examples=examples(300), stateful_step_count=60, deadline=None))
