"""Lines of plugins, for people."""

from __future__ import annotations

import os
import traceback

from ..plugins._checks import is_inside


def own_place(path: str | None, error: BaseException, *, or_any: bool = False) -> str | None:
    """The line that an error came from, of the plugin with this path, as `10-a.py:3`; None if none of its own has to do with
    it. `or_any`: then that of whoever raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.endswith(".pyx")]
    own = [frame for frame in frames if path is not None and is_inside(frame.filename, path)]
    for frame in (own or (frames if or_any else []))[-1:]:
        return f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return None
