"""A progress bar on stderr, drawn only while somebody looks on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(rows: Iterable[T], total: int | None, what: str = "scanning") -> Iterator[T]:
    """Pass rows on while a bar shows how many of ``total`` came by, at what rate, and how long the rest will take."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:.0f}/s", style="progress.data.speed")

    columns = [TextColumn(what), BarColumn(), MofNCompleteColumn(), Rate(), Remaining()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(rows, total=total)
