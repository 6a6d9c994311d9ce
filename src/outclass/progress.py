"""A progress bar on stderr, drawn only while somebody looks on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(
    rows: Iterable[T], total: int | None, what: str = "scanning", size: Callable[[T], int] = lambda row: 1
) -> Iterator[T]:
    """Pass rows on while a bar shows how many of ``total`` came by, at what rate, and how long the rest will take.

    Args:
        rows: whatever comes by.
        total: how many things there are in all; None = nobody knows.
        what: is being done with them.
        size: how many things a row holds.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:.0f}/s", style="progress.data.speed")

    columns = [TextColumn(what), BarColumn(), MofNCompleteColumn(), Rate(), Remaining()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        for row in rows:
            yield row
            bar.advance(task, size(row))
