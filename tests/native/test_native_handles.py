"""The handle table: no handle is ever given out twice, and slots are used again in the order in which they were let go."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cython_tools import build_driver

CHUNK = 1024


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Makes tables, by a module that is built against the mqcore that is tested."""
    return build_driver(tmp_path_factory.mktemp("handles"), Path(__file__).with_name("handles_driver.pyx")).Driver


@pytest.fixture
def table(driver):
    """One that nobody has used before."""
    made = [driver()]
    while made[-1].counts != (0, 0):
        made.append(driver())
    yield made[-1]
    for each in made:
        each.close()


def slot_in(handle):
    return handle >> 32 & 0xFFFFFF


def test_slots_are_used_again_first_in_first_out(table):
    first = [table.take() for _ in range(CHUNK)]
    order = random.Random(1).sample(first, len(first))
    for handle in order:
        table.free(handle)
        assert not table.is_live(handle)
    again = [table.take() for _ in range(CHUNK)]
    assert list(map(slot_in, again)) == list(map(slot_in, order))
    assert not set(again) & set(first)
    for handle in again:
        table.free(handle)


def test_no_handle_comes_twice(table):
    chance, live, seen = random.Random(2), [], set()
    for _ in range(50_000):
        if live and chance.random() < 0.5:
            table.free(live.pop(chance.randrange(len(live))))
        else:
            handle = table.take()
            assert handle not in seen and handle >> 56 == table.number
            seen.add(handle)
            live.append(handle)
    assert all(table.is_live(handle) == (handle in live) for handle in seen)
    for handle in live:
        table.free(handle)


def test_a_slot_whose_generations_are_used_up_is_retired(table):
    everything = [table.take() for _ in range(CHUNK)]
    old = table.age(everything[0], 3)
    seen = {old}
    for _ in range(2):
        table.free(old)
        old = table.take()
        assert slot_in(old) == slot_in(everything[0]) and old not in seen
        seen.add(old)
    table.free(old)
    new = table.take()  # all others are in use, so the table grows
    assert slot_in(new) != slot_in(everything[0])
    assert table.counts == (2 * CHUNK, 1)
    assert not any(table.is_live(handle) for handle in seen)
    for handle in (*everything[1:], new):
        table.free(handle)


def test_the_table_grows_and_what_it_has_stays(table):
    handles = [table.take() for _ in range(20 * CHUNK)]
    assert len(set(handles)) == len(handles) and all(map(table.is_live, handles))
    assert table.counts[0] >= 20 * CHUNK
    for handle in handles:
        table.free(handle)


def test_a_table_is_used_again_with_other_handles(driver):
    first = driver()
    old = [first.take() for _ in range(10)]
    for handle in old:
        first.free(handle)
    number = first.number
    first.close()
    second = driver()
    assert second.number == number
    assert not set(old) & {second.take() for _ in range(3 * CHUNK)}
    second.close()


def test_any_number_may_be_looked_up(table):
    chance = random.Random(3)
    for handle in [0, 1, 2**64 - 1, *(1 << bit for bit in range(64)), *(chance.getrandbits(64) for _ in range(100_000))]:
        assert not table.is_live(handle)
