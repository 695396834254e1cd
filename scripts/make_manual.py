"""Write the man page and the shells' completions of the installed command to contrib/: `python scripts/make_manual.py`.

Needs the extra `[manual]`. To be run when the options of the command have changed; a test finds out.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import shtab

from mqcore.cli import parser
from mqcore.cli.about import SHELLS

CONTRIB = Path(__file__).resolve().parent.parent / "contrib"


def main() -> None:
    (CONTRIB / "completions").mkdir(exist_ok=True)
    (CONTRIB / "man").mkdir(exist_ok=True)
    for shell in SHELLS:
        (CONTRIB / "completions" / f"mqcore.{shell}").write_text(shtab.complete(parser(), shell=shell) + "\n")
    page = CONTRIB / "man" / "mqcore.1"
    about = ["--project-name", "mqcore", "--description", "move mail through plugins", "--manual-title", "mqcore"]
    function = ["--module", "mqcore.cli", "--function", "parser", "--prog", "mqcore"]
    command = [Path(sys.executable).with_name("argparse-manpage"), *function, *about, "--output", page]
    subprocess.run(command, check=True, timeout=60)


if __name__ == "__main__":
    main()
