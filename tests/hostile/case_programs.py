"""Small programs that broke the core once, each with the value that is right: `python -m case_programs NAME OWNER`.

Each is run in a process of its own by test_hostile_cases.py, as what breaks a rule here may crash.
"""

from __future__ import annotations

import gc
import sys

import cases_dying
import cases_errors
import cases_lifecycle
import cases_messages
import cases_threads
import hostile_tools as tools
from case_tools import CASES, UVLOOP_ONLY

__all__ = ["CASES", "UVLOOP_ONLY", "cases_dying", "cases_errors", "cases_lifecycle", "cases_messages", "cases_threads"]


def main() -> None:
    name, owner_name = sys.argv[1:]
    owner = tools.start_owner(owner_name)
    CASES[name](owner)
    gc.collect()
    tools.finish_owner(owner)
    print("passed")


if __name__ == "__main__":
    main()
