"""What ``outclass watch`` shows: a page that renews itself on a terminal, a line an image elsewhere."""

from __future__ import annotations

import math
import sys
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from outclass.cli.show import limit_line, plain_line, say, verdict_cells

if TYPE_CHECKING:
    from outclass.guard import Guard
    from outclass.monitor import Monitor
    from outclass.monitor.timed import Timed
    from outclass.records import Verdict

SHOWN = 15  # verdicts on a terminal
STYLES = {"OOD": "bold red", "ID": "green", "error": "yellow"}


class Screen:
    """Takes verdicts with their latencies.

    Args:
        guard: whose verdicts come.
        timed: where images come from.
        monitor: what follows them.
        quiet: nothing is shown.
    """

    def __init__(self, guard: Guard, timed: Timed, monitor: Monitor, quiet: bool) -> None:
        self.guard, self.timed, self.monitor, self.quiet = guard, timed, monitor, quiet
        self.p_values = guard.calibrated is not None
        self.head = ("verdict", "ood_score", *(["p_value"] * self.p_values), "similarity", "label", "looks like")
        self.head += ("image",)
        self._rows: deque[tuple[float, tuple[str, ...]]] = deque(maxlen=SHOWN)
        self._live: Any = None

    def __enter__(self) -> Self:
        if self.quiet:
            return self
        timed = self.timed
        if timed.source.live:
            say(f"watching {timed.root}, a look every {getattr(timed.source, 'every', 0):g} s; Ctrl-C ends it")
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(get_renderable=self._page, refresh_per_second=4)
            self._live.__enter__()
        else:
            if hasattr(sys.stdout, "reconfigure"):
                sys.stdout.reconfigure(line_buffering=True)
            print(f"{'latency':>9}  {plain_line(self.head)}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def add(self, verdict: Verdict, seconds: float) -> None:
        """Show one verdict, which took so long."""
        if self.quiet:
            return
        row = verdict_cells(verdict, self.p_values)
        if self._live:
            self._rows.append((seconds, row))
        else:
            print(f"{_ms(seconds):>9}  {plain_line(row)}")

    def close(self) -> None:
        """The last word."""
        if self.quiet:
            return
        if not self._live:  # the page stays on the terminal
            say(self.monitor.describe())
            if self.timed.latencies:
                say(self._latency())
        if self.monitor.failed:
            say(f"{self.monitor.failed:,} could not be read")
        if self.guard.threshold:
            say(limit_line(self.guard.threshold))

    def _latency(self) -> str:
        half, most, longest = (_ms(self.timed.quantile(share)) for share in (0.5, 0.95, 1))
        return (
            f"latency: half within {half}, 95 % within {most}, longest {longest} (last {len(self.timed.latencies):,})"
        )

    def _page(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("latency", *self.head):
            numbers = ("latency", "ood_score", "p_value", "similarity")
            table.add_column(name, justify="right" if name in numbers else "left", overflow="ellipsis", no_wrap=True)
        for seconds, row in list(self._rows):
            table.add_row(_ms(seconds), Text(row[0], style=STYLES.get(row[0], "")), *(Text(cell) for cell in row[1:]))
        drift = self.monitor.state()["drift"]
        style = "bold red" if drift and drift["alarm"] else "bold"
        below = [Text(self.monitor.describe(), style=style)]
        if self.timed.latencies:
            below.append(Text(self._latency()))
        return Group(table, Text(), *below)


def _ms(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{1000 * seconds:,.0f} ms"
