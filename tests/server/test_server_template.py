"""Text with numbers filled in: as `str` writes them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqcore.server._template import Template

NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans(), max_size=9)


@given(NUMBERS)
@example([0, 1, -1, 2**63 - 1, -(2**63), 1.5, 1e300, -1.7976931348623157e308, 5e-324, 0.1])
def test_numbers_are_as_python_writes_them(numbers):
    pieces = [f"\u00e4{place}% " for place in range(len(numbers))]
    lines = Template(pieces).fill(numbers).decode().split("\n")[:-1]
    assert [line.partition(" ")[0] + " " for line in lines] == pieces
    for line, number in zip(lines, numbers, strict=True):
        text = line.partition(" ")[2]
        assert len(text) < 33
        if isinstance(number, int):
            assert text == str(int(number))
        else:
            assert text == (str(number) if number else "0")


def test_what_cannot_be_filled_in():
    template = Template(["a ", "b "])
    assert template.count == 2
    assert template.fill(iter((1, 10**30))) == b"a 1\nb 1e+30\n"
    for numbers in ((), (1,), (1, 2, 3)):
        with pytest.raises(ValueError, match="2 places"):
            template.fill(numbers)
    for numbers in ((1, None), ("1", 2), 5, None):
        with pytest.raises(TypeError):
            template.fill(numbers)
    with pytest.raises(OverflowError):
        template.fill((1, 10**400))
    for pieces in (["\udc00"], [b"a"], [1], None, "ab"):
        with pytest.raises((TypeError, UnicodeEncodeError)):
            Template(pieces)
