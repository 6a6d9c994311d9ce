"""Verdicts on the terminal."""

from __future__ import annotations

import sys
from typing import Any

from outclass.decide.threshold import Threshold
from outclass.guard import Guard
from outclass.records import Verdict
from outclass.report.best import Best
from outclass.scan import Scan
from outclass.words.negatives import Negatives

SHOWN = 40  # rows of the table on a terminal; a pipe or a file gets them all
FAILED_SHOWN = 10


class VerdictTable:
    """Prints verdicts.

    To a pipe or file: every verdict as it comes, one aligned line each. To a terminal: at the end, all of them while
    they are few, else the most OOD and the most ID ones.
    """

    def __init__(self, p_values: bool = False) -> None:
        self.p_values = p_values
        self.head = ("verdict", "ood_score", *(["p_value"] * p_values), "similarity", "label", "looks like", "image")
        self.stream = not sys.stdout.isatty()
        self._n = 0
        self._first: list[Verdict] = []
        self._failed: list[Verdict] = []
        self._most_ood = Best(SHOWN // 2)
        self._most_id = Best(SHOWN // 2)

    def add(self, verdict: Verdict) -> None:
        """Take one verdict."""
        self._n += 1
        if self.stream:
            if self._n == 1:
                print(plain_line(self.head))
            print(plain_line(verdict_cells(verdict, self.p_values)))
            return
        if len(self._first) < SHOWN:
            self._first.append(verdict)
        if verdict.ood_score is not None:
            self._most_ood.add(verdict.ood_score, self._n, verdict)
            self._most_id.add(-verdict.ood_score, self._n, verdict)
        elif len(self._failed) < FAILED_SHOWN:
            self._failed.append(verdict)

    def close(self) -> None:
        """Print what a terminal shows."""
        if self.stream:
            return
        if self._n <= SHOWN:
            self._print("", self._first)
            return
        self._print(f"the {SHOWN // 2} most OOD of {self._n} images", [row for _, row in self._most_ood.rows()])
        self._print(f"the {SHOWN // 2} most ID", [row for _, row in self._most_id.rows()])
        if self._failed:
            self._print("not read (the first)", self._failed)

    def _print(self, title: str, verdicts: list[Verdict]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for name in self.head:
            table.add_column(
                name, justify="right" if name in ("ood_score", "p_value", "similarity") else "left", overflow="fold"
            )
        for verdict in verdicts:
            cells = verdict_cells(verdict, self.p_values)
            style = {"OOD": "bold red", "ID": "green", "error": "yellow"}.get(cells[0].removesuffix(" fdr"), "")
            table.add_row(Text(cells[0], style=style), *(Text(cell) for cell in cells[1:]))
        Console().print(table)


def summary_line(scan: Scan, seconds: float, guard: Guard, read: int) -> str:
    """One sentence about a whole scan, which read so many images in those seconds."""
    parts = [f"{scan.n} image{'' if scan.n == 1 else 's'}"]
    if guard.threshold:
        parts.append(f"{scan.n_id} ID, {scan.n_ood} OOD")
        parts.append(limit_line(guard.threshold))
    if scan.n_failed:
        parts.append(f"{scan.n_failed} could not be read")
    if scan.ignored:
        parts.append(f"{scan.ignored} other file{'' if scan.ignored == 1 else 's'} ignored")
    rate = f" ({read / seconds:.0f} images/s)" if seconds > 0 and read > 1 else ""
    return "; ".join(parts) + f"; {seconds:.1f} s{rate}"


def limit_line(threshold: Threshold) -> str:
    """What decides, and where it comes from."""
    limit = "the threshold of its class" if threshold.by_class else f"{threshold.value:.4g}"
    return f"ood_score > {limit} is OOD ({threshold.source} threshold)"


def words_line(negatives: Negatives) -> str:
    """One sentence about the words that the classes are weighed against."""
    about = negatives.about()
    if negatives.source == "user":
        return f"negatives: {', '.join(negatives.names[:8])}{' ...' if len(negatives.names) > 8 else ''}"
    removed = ", ".join(f"{n} {why}" for why, n in about["removed"].items())
    line = f"negatives: {about['words']} words of WordNet" + (
        f"; left out because they mean a class: {removed}" * bool(removed)
    )
    if negatives.leaks and negatives.leaks.broad:
        names = ", ".join(negatives.leaks.broad)
        line += f"; {names}: so broad that words for kinds of it stay, and little can be unknown to it"
    return line


def say(text: str, style: str = "") -> None:
    """One note on stderr."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(text, style=style))


def verdict_cells(verdict: Verdict, p_values: bool) -> tuple[str, ...]:
    """What the screen shows of a verdict."""
    name = verdict.id.translate(CONTROL)
    if verdict.error is not None:
        return ("error", "", *([""] * p_values), "", "", "", f"{name}  ({verdict.error.translate(CONTROL)})")
    decision = {True: "OOD", False: "ID", None: "-"}[verdict.is_ood] + (" fdr" if verdict.fdr_rejected else "")
    # A known class needs no other word; without a decision both are worth a look.
    other = "" if verdict.is_ood is False else verdict.nearest_negative or ""
    score = verdict.ood_score or 0.0
    shown = f"{score:.4f}" if abs(score) >= 1e-3 or not score else f"{score:.2e}"  # not a column of -0.0000
    p_value = [f"{verdict.p_value:.4f}" if verdict.p_value is not None else ""] * p_values
    return (decision, shown, *p_value, f"{verdict.similarity:.4f}", verdict.label or "", other, name)


def plain_line(cells: tuple[Any, ...]) -> str:
    """Such cells in columns, for what is no terminal."""
    *numbers, label, other, name = cells[1:]
    return f"{cells[0]:7} {' '.join(f'{number:>10}' for number in numbers)}  {label:20} {other:20} {name}"


# A file name must not move the cursor or start a new row.
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
