"""Figures of detectors over several draws of what they learned from, and in every bootstrap sample of the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from outclass.benchmark.draws import Draw
from outclass.benchmark.table import MEAN
from outclass.decide.metrics import auroc, fpr95_id_positive, fpr95_ood_positive
from outclass.decide.repeated import Replicates
from outclass.report.shot_table import ShotRow

Floats = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]
Key: TypeAlias = tuple[str, int]  # detector, shots

METRICS = (auroc, fpr95_id_positive, fpr95_ood_positive)


@dataclass
class Gauge:
    """Measures detectors on the images of every draw, and in every bootstrap sample of them.

    Attributes:
        draws: what was drawn and is tested.
        n_id: ID images.
        n_ood: OOD images of each set.
        figures: detector and shots -> (draws, sets, metrics).
        replicated: detector and shots -> (sets, draws, replicates) AUROC.
    """

    draws: Sequence[Draw]
    n_id: int
    n_ood: Mapping[str, int]
    figures: dict[Key, Exact] = field(default_factory=dict)
    replicated: dict[Key, Exact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replicates = Replicates.draw(self.n_id, list(self.n_ood.values()), len(self.draws))

    def of_tested(self, scores: Sequence[Floats]) -> list[list[Floats]]:
        """Scores of all images, ID first -> for each draw, those of its tested ID images and of each OOD set."""
        known, *unknown = scores
        return [[known[draw.tested], *unknown] for draw in self.draws]

    def take(self, key: Key, scores: Sequence[Sequence[Floats]]) -> None:
        """Measure.

        Args:
            key: detector and shots.
            scores: for each draw, (t,) of its tested ID images and then (m,) of each OOD set.
        """
        figures, replicated = [], []
        for draw, (known, *unknown) in zip(self.draws, scores, strict=True):
            figures.append([[metric(known, one) for metric in METRICS] for one in unknown])
            replicated.append(
                [self.replicates.auroc(known, draw.tested, one, at) for at, one in enumerate(unknown)]
            )  # fmt: skip
        self.figures[key] = np.array(figures)
        self.replicated[key] = np.array(replicated).swapaxes(0, 1)

    def rows(self, reference: str) -> tuple[ShotRow, ...]:
        """All rows; the best mean AUROC at the most shots first."""

        def best(name: str) -> float:
            most = max(shots for one, shots in self.figures if one == name)
            return float(self.figures[name, most][:, :, 0].mean())

        by_name = sorted({name for name, _ in self.figures}, key=lambda name: (-best(name), name))
        return tuple(
            row
            for name in by_name
            for key in sorted(one for one in self.figures if one[0] == name)
            for row in self._rows(key, reference)
        )

    def _rows(self, key: Key, reference: str) -> Iterator[ShotRow]:
        base = (reference, 0)
        columns = [*range(len(self.n_ood)), slice(None)]
        for name, column in zip((*self.n_ood, MEAN), columns, strict=True):
            each, of_base = (self.figures[one][:, column, :] for one in (key, base))
            one, other = (self.replicated[which][column] for which in (key, base))
            if name == MEAN:
                each, of_base = each.mean(axis=1), of_base.mean(axis=1)
                one, other = one.mean(axis=0), other.mean(axis=0)
            means = each.mean(axis=0)
            gain = None if key == base else self.replicates.gain(one, other, means[0] - of_base[:, 0].mean())
            yield ShotRow(
                detector=key[0],
                shots=key[1],
                ood_set=name,
                n_seeds=len(self.draws),
                n_id=min(len(draw.tested) for draw in self.draws),
                n_ood=sum(self.n_ood.values()) if name == MEAN else self.n_ood[name],
                auroc=float(means[0]),
                auroc_sd=float(each[:, 0].std(ddof=1)) if len(self.draws) > 1 else None,
                fpr95_id_positive=float(means[1]),
                fpr95_ood_positive=float(means[2]),
                gain=float(gain.difference) if gain else None,
                gain_low=gain.low if gain else None,
                gain_high=gain.high if gain else None,
                gain_p_value=gain.p_value if gain else None,
            )
