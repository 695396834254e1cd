"""The progress bar, on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ..mail import Gateway

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

INTERVAL = 0.2


@contextlib.asynccontextmanager
async def progress_bar(gateway: Gateway) -> AsyncIterator[None]:
    """Show how far the run is, if standard error is a terminal and rich is installed."""
    if not sys.stderr.isatty():
        yield
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        yield
        return

    columns = (
        TextColumn("{task.fields[read]:,} read, {task.fields[stored]:,} stored"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=gateway.total, read=0, stored=0)
        updates = asyncio.create_task(_update(bar, task, gateway))
        try:
            yield
        finally:
            updates.cancel()


async def _update(bar: Progress, task: TaskID, gateway: Gateway) -> None:
    counts = gateway.report.counts
    while True:
        bar.update(task, completed=gateway.done, read=counts.read, stored=counts.stored)
        await asyncio.sleep(INTERVAL)
