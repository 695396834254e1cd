"""`python -m mqcore` is the command `mqcore`."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Run the command and return its exit code."""
    gc.disable()  # of what is imported nothing is garbage, and to look takes a tenth of the time
    from .cli import main

    gc.enable()
    return main()


if __name__ == "__main__":
    sys.exit(main())
