"""Programs that may crash are run in a process of their own: how tests start them, and what the programs share."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from owners import OWNERS, Owner, assert_conserved

import mqcore

HERE = Path(__file__).resolve().parent


def run(module: str, *arguments: object, timeout: float = 120, dev: bool = True) -> str:
    """What `python -m module arguments` prints; the test fails when it crashes, hangs or ends with an error."""
    command = [sys.executable, *(["-X", "dev"] if dev else []), "-X", "faulthandler", "-m", module, *map(str, arguments)]
    environment = os.environ | {
        "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}",
        "PYTHONSAFEPATH": "1",
        "PYTHONWARNINGS": "default",
    }
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler tells where every thread is
            out, err = process.communicate()
            raise AssertionError(f"{' '.join(command)}: hangs\n{tail(out)}\n{tail(err)}") from None
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        how = f"killed by {signal.Signals(-process.returncode).name}" if process.returncode < 0 else "failed"
        raise AssertionError(f"{' '.join(command)}: {how}\n{tail(out)}\n{tail(err)}")
    return out


def tail(text: str) -> str:
    return text[-6000:]


def handles_and_holds() -> tuple[int, int]:
    """How many libuv handles are made and not freed yet, and how many holds are begun and not over."""
    left = []
    for name in ("handles", "holds"):
        counts = {
            getattr(module, name)
            for path, module in list(sys.modules.items())
            if path.startswith("mqcore.") and callable(getattr(module, name, None))
        }
        (count,) = counts
        made, gone = count()
        left.append(made - gone)
    return left[0], left[1]


def start_owner(name: str) -> Owner:
    return OWNERS[name]()


def finish_owner(owner: Owner) -> None:
    """The dispatchers' books are checked, they are closed, and nothing of them is left."""
    owner.finish()
    gc.collect()
    assert handles_and_holds() == (0, 0), f"handles and holds left: {handles_and_holds()}"


def books(dispatcher: Any) -> tuple[int, ...]:
    """`(continued, completed, failed, cancelled, held, running)`, after a look at rule 16."""
    assert_conserved(dispatcher)
    s = dispatcher.stats()
    return s.continued, s.completed, s.failed, s.cancelled, s.held, s.running


class Finalizer:
    """Calls a function when its last reference goes."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __del__(self) -> None:
        self.function()


__all__ = [
    "HERE",
    "Finalizer",
    "Owner",
    "assert_conserved",
    "books",
    "finish_owner",
    "handles_and_holds",
    "mqcore",
    "run",
    "start_owner",
]
