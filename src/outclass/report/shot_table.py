"""Few-shot figures as rows and as tables to look at: a line a detector, a column a number of shots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

MARK = "*"  # behind the name of a set with a note
Figure = Literal["auroc", "gain", "fpr95_id_positive", "fpr95_ood_positive"]
TITLES: Mapping[Figure, str] = {
    "auroc": "AUROC, higher is better: mean over the draws ± their standard deviation",
    "gain": "gain in AUROC over {reference}, with its 95 % interval",
    "fpr95_id_positive": "FPR95 in %, ID positive, lower is better: mean over the draws",
    "fpr95_ood_positive": "FPR95 in %, OOD positive, lower is better: mean over the draws",
}


@dataclass(frozen=True, slots=True)
class ShotRow:
    """One detector after so many images of each class, on one OOD set or on average over the sets.

    Attributes:
        detector: its name.
        shots: images of each class it learned from; 0 = it learns from none.
        ood_set: the set's name; ``mean`` = the unweighted mean over the sets.
        n_seeds: draws.
        n_id: ID images tested in a draw; the fewest, where near-duplicates of shots make draws differ.
        n_ood: OOD images; in a mean their sum.
        auroc: mean over the draws.
        auroc_sd: standard deviation over the draws; None with one.
        fpr95_id_positive, fpr95_ood_positive: means over the draws, see ``decide.metrics``.
        gain: mean over the draws of its AUROC minus that of the reference on the same images; None for the reference.
        gain_low, gain_high: 95 % bootstrap interval over images and draws, see ``decide.repeated``.
        gain_p_value: of "there is no gain", (0, 1]; two-sided.
    """

    detector: str
    shots: int
    ood_set: str
    n_seeds: int
    n_id: int
    n_ood: int
    auroc: float
    auroc_sd: float | None
    fpr95_id_positive: float
    fpr95_ood_positive: float
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    gain_p_value: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields in their documented order."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class ShotTables:
    """Few-shot rows, looked at by OOD set.

    Attributes:
        rows: the detectors in the order of the lines.
        reference: the detector that gains are counted from.
        shots: images of each class, ascending.
        gaps: (detector, shots) -> why it could not learn from so few.
        notes: OOD set -> what a reader must know of it.
    """

    rows: Sequence[ShotRow]
    reference: str
    shots: tuple[int, ...]
    gaps: Mapping[tuple[str, int], str]
    notes: Mapping[str, str]

    @property
    def sets(self) -> list[str]:
        """The mean first, then the OOD sets; the mean of one set is that set."""
        *names, mean = dict.fromkeys(row.ood_set for row in self.rows)
        return names if len(names) == 1 else [mean, *names]

    @property
    def detectors(self) -> list[str]:
        """In the order of the lines; those that could learn from no number of shots last."""
        return list(dict.fromkeys([*(row.detector for row in self.rows), *(name for name, _ in self.gaps)]))

    def row(self, detector: str, shots: int, ood_set: str) -> ShotRow | None:
        """The row of a cell; None where there is none."""
        wanted = (detector, shots, ood_set)
        return next((row for row in self.rows if (row.detector, row.shots, row.ood_set) == wanted), None)

    def curve(self, detector: str, ood_set: str) -> list[ShotRow]:
        """Rows of a detector that learns, by ascending shots; empty for one that does not."""
        found = (self.row(detector, k, ood_set) for k in self.shots)
        return [row for row in found if row is not None]

    def cells(self, ood_set: str, figure: Figure) -> tuple[list[str], list[list[str]]]:
        """Head and lines; ``-`` = could not learn from so few, empty = learns from no image, or from some only."""
        columns = [
            (k, {name: self._said(name, k, ood_set, figure) for name in self.detectors}) for k in (0, *self.shots)
        ]
        columns = [(k, said) for k, said in columns if any(said.values())]
        head = ["detector", *(f"{k} shot{'s' if k != 1 else ''}" for k, _ in columns)]
        return head, [[name, *(said[name] for _, said in columns)] for name in self.detectors]

    def _said(self, detector: str, shots: int, ood_set: str, figure: Figure) -> str:
        row = self.row(detector, shots, ood_set)
        return _cell(row, figure) if row else "-" if (detector, shots) in self.gaps else ""

    def title(self, ood_set: str) -> str:
        """What a table is of, with its n."""
        row = next(row for row in self.rows if row.ood_set == ood_set)
        name = f"{ood_set}{MARK if ood_set in self.notes else ''}"
        others = len(self.sets) - 1
        over = f"{name} of {others} OOD sets" if ood_set == self.sets[0] and others else name
        return f"{over} (n = {row.n_id:,} ID and {row.n_ood:,} OOD images, {row.n_seeds} draws)"

    def legend(self) -> list[str]:
        """What the figures are, the notes of the sets, and why cells are empty."""
        gaps: dict[tuple[str, str], list[int]] = {}
        for (name, k), why in self.gaps.items():
            gaps.setdefault((name, why), []).append(k)
        return [
            "k shots: k images of each class to learn from; 0: learns from no image. All are tested on the same images",
            f"gain: over {self.reference}, which learns from no image; 95 % interval: bootstrap over images and draws",
            *(f"{name}{MARK}: {note}" for name, note in self.notes.items()),
            *(f"- {name}, shots {', '.join(map(str, ks))}: {why}" for (name, why), ks in gaps.items()),
        ]

    def to_markdown(self) -> str:
        """Every set's AUROC, gain and FPR95, with the legend."""
        text = []
        for ood_set in self.sets:
            text += [f"## {_escaped(self.title(ood_set))}", ""]
            for figure, title in TITLES.items():
                head, lines = self.cells(ood_set, figure)
                text += [title.format(reference=f"`{self.reference}`"), ""]
                text += ["| " + " | ".join(head) + " |", "|" + "|".join(["---", *["---:"] * (len(head) - 1)]) + "|"]
                text += ["| " + " | ".join([f"`{line[0]}`", *line[1:]]) + " |" for line in lines]
                text.append("")
        return "\n".join([*text, *(f"{_escaped(line)}  " for line in self.legend())]) + "\n"


def _cell(row: ShotRow, figure: Figure) -> str:
    if figure == "auroc":
        return f"{row.auroc:.3f}" + ("" if row.auroc_sd is None else f" ±{row.auroc_sd:.3f}")
    if figure == "gain":
        return "" if row.gain is None else f"{row.gain:+.3f} ({row.gain_low:+.3f} to {row.gain_high:+.3f})"
    return f"{100 * getattr(row, figure):.1f}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
