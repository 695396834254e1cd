"""How a run ends, for people and programs."""

from __future__ import annotations

import json
import sys

from ..mail.report import OK, UNREACHABLE, Report
from .output import complain, drop


def tell_end(report: Report, *, as_json: bool) -> int:
    """Print what it did, say what went wrong, and return the exit code."""
    try:
        print_figures(report, as_json=as_json)
    except BrokenPipeError:
        raise
    except OSError as error:  # the disk is full, which may be what the report tells of
        complain(f"cannot write to standard output: {error.strerror}", OK)
        drop(1)
    return tell_error(report)


def tell_error(report: Report) -> int:
    """Say what went wrong, and return the exit code."""
    if report.error is not None:
        complain(report.error, UNREACHABLE)
    return report.exit_code


def print_figures(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        from .tables import print_report  # takes rich with it, which takes a while

        print_report(report)
    sys.stdout.flush()
