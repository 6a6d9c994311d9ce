"""A boundary learned between known images and outliers: made up in the vector space, given as images, or both.

A linear boundary on the vectors themselves learns where these outliers happen to lie, and little of where others may:
measured, it loses to scores that see no outlier. So what is weighed here are distances, to the known images, to the
class texts and to the given outliers, and the outliers say how much each of them counts.
"""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Context, Detector, DetectorInfo, Floats, below, register, under
from outclass.detectors.distance import HINT, KNN, ImageDetector, Labels
from outclass.detectors.folds import FOLDS, by_appearance, folds
from outclass.detectors.logits import Array, MaxLogit
from outclass.detectors.mahalanobis import Mahalanobis
from outclass.detectors.neighbours import nearest
from outclass.errors import UsageError

log = logging.getLogger("outclass")

Exact: TypeAlias = npt.NDArray[np.float64]
Synthesis = Literal["npos", "vos", "none"]

FEWEST = 10  # images, known or outliers, that folds are made of
NEAREST = 5  # which given outlier an image's distance to them is measured to
MOST = 1000  # known images that outliers are made up from, a fold; and outliers made up
BOUNDARY = 0.25  # share of the known images, those farthest from the others
DRAWS = 10  # for each made-up outlier; the farthest is kept
CLASS_DRAWS = 10_000  # of each class's Gaussian, as published; the least likely are kept
RIDGE = 0.01  # keeps weights finite where a distance separates all; a tenth or ten times as much changes little

EQUAL = (
    "the outliers lie no farther from the known images than other known images do, so they do not say how much each "
    "distance counts; all count the same. Give outliers (--outliers) that are none of the classes"
)


@register
class Outliers(ImageDetector):
    """A weighted sum of distances, with weights that tell known images from outliers best.

    The distances are the Mahalanobis distance to the known images, minus the largest cosine to a class text and, where
    images of none of the classes are given (``--outliers``), minus the distance to the 5th nearest of them. Logistic
    regression finds the weights; none may be negative, since each distance by itself is higher for what is OOD. Known
    images are measured by those of other folds, as new ones will be.

    Outliers are made up even where some are given: given ones are seldom of all kinds, and alone they would let the
    boundary open where they are not. Both sorts weigh the same, together as much as the known images.

    Args:
        synthesis: how outliers are made up. ``npos``: noise around the known images that are farthest from others, of
            which what ends farthest from all is kept. ``vos``: the least likely draws from a Gaussian of each class;
            in hundreds of dimensions these hardly lie farther out than images do, and measured no better than the
            best single distance. ``none``: only the given ones are learned from.
        noise: of ``npos``, its length in distances of the image from its neighbours; (0, 10]. (Published is 0.1 a
            dimension, about twice these distances with CLIP as with the bundled encoder.)
        seed: of all that is drawn.
    """

    info = DetectorInfo(
        name="outliers",
        title="Boundary against outliers",
        paper="after Tao et al., Non-Parametric Outlier Synthesis, ICLR 2023",
        equation="boundary sampling of section 3.1; the logistic head of section 3.2 on distances instead of a network",
        formula="ood_score = a |v - mean|_C - b max_k s_k - c |v - o_(5)| + d, |.|_C = Mahalanobis distance to the "
        "nearest class, o_(5) = 5th nearest given outlier; a, b, c >= 0 by logistic regression against outliers",
        needs=frozenset({"id_vectors"}),
        takes_outliers=True,
        classwise=True,
        hint=HINT,
    )
    parts: tuple[Detector, ...]  # what measures the distances
    weights: Exact  # (parts + 1,) of each distance, and what is added

    def __init__(self, synthesis: Synthesis = "npos", noise: float = 2.0, seed: int = 0) -> None:
        if synthesis not in get_args(Synthesis):
            raise UsageError(f"synthesis must be one of {', '.join(get_args(Synthesis))}; got {synthesis!r}")
        if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 < noise <= 10:
            raise UsageError(f"noise must lie in (0, 10], got {noise!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UsageError(f"seed must be a whole number from 0 on, got {seed!r}")
        self.synthesis, self.noise, self.seed = synthesis, float(noise), seed

    @property
    def params(self) -> dict[str, Any]:
        return {"synthesis": self.synthesis, "noise": self.noise, "seed": self.seed}

    @property
    def given_outliers(self) -> bool:
        return self.text is not None and len(self.parts) > 2

    def fit(self, context: Context) -> Self:
        """Learn from ``context.id_vectors`` and, where there are any, ``context.outlier_vectors``.

        Raises:
            UsageError: fewer than 10 of either, labels that are no classes of theirs, images that do not spread, or no
                outliers where none are to be made up.
        """
        self._given = context.outlier_vectors
        if self._given is None and self.synthesis == "none":
            raise UsageError(
                "with synthesis='none' the detector 'outliers' learns from given outliers alone, and there are none: "
                "guard.fit(folder, outliers=folder), outclass fit FOLDER --outliers FOLDER, or synthesis='npos'"
            )
        if self._given is not None and len(self._given) < FEWEST:
            raise UsageError(
                f"the detector 'outliers' needs at least {FEWEST} outliers, got {len(self._given)}: give more, or none "
                "and let them be made up"
            )
        return super().fit(context)

    def _check_number(self, n: int) -> None:
        super()._check_number(n)
        if n < FEWEST:
            raise UsageError(
                f"the detector 'outliers' measures known images by others and needs at least {FEWEST} of them, got "
                f"{n}: give more, or use --detector knn"
            )

    def _learn(self, vectors: Floats, labels: Labels | None) -> None:
        chance = np.random.default_rng(self.seed)
        shown = np.zeros(len(vectors), np.intp) if labels is None else by_appearance(labels)
        given = vectors[:0] if self._given is None else self._given
        # Known images are measured by what the other four fifths say: a distance to itself says nothing.
        known_fold = folds(shown, chance.permutation(len(shown)))
        given_fold = folds(np.zeros(len(given), np.intp), chance.permutation(len(given)))
        rows: list[Exact] = []
        kinds: list[npt.NDArray[np.intp]] = []  # 0 known, 1 given, 2 made up
        for fold in range(FOLDS):
            known, apart = known_fold != fold, given_fold != fold
            parts = self._measure(vectors[known], shown[known], given[apart])
            # An image whose class no other fold shows is a stranger to it, and no example of a known image.
            held_out = ~known & np.isin(shown, shown[known])
            made = self._made_up(vectors[known], shown[known], parts, chance)
            for kind, some in enumerate((vectors[held_out], given[~apart], made)):
                rows.append(_distances(parts, some))
                kinds.append(np.full(len(some), kind, np.intp))
        self.weights = _boundary(np.concatenate(rows), np.concatenate(kinds))
        self.parts = self._measure(vectors, shown, given)
        self._given = None

    def _measure(self, vectors: Floats, shown: Labels, given: Floats) -> tuple[Detector, ...]:
        """What measures distances to these known images and given outliers."""
        text = self._fitted()
        about = Context(text, ("",) * len(text), id_vectors=vectors, id_labels=shown)
        parts: tuple[Detector, ...] = Mahalanobis().fit(about), MaxLogit().fit(about)
        if len(given):
            parts += (KNN(NEAREST).fit(Context(text, about.names, id_vectors=given)),)
        return parts

    def _made_up(
        self, vectors: Floats, shown: Labels, parts: tuple[Detector, ...], chance: np.random.Generator
    ) -> Floats:
        """(m, d) float32 unit rows, about as many as known images."""
        if self.synthesis == "none":
            return vectors[:0]
        if self.synthesis == "vos":
            (gaussians, *_) = parts
            assert isinstance(gaussians, Mahalanobis)
            return vos(gaussians.whiten, gaussians.centres, min(len(vectors), MOST), chance)
        if len(vectors) > MOST:
            some = chance.permutation(len(vectors))[:MOST]
            vectors, shown = vectors[some], shown[some]
        neighbour = max(1, round(math.sqrt(len(vectors) / len(np.unique(shown)))))
        return npos(vectors, min(neighbour, len(vectors) - 1), self.noise, chance)

    def _score(self, vectors: Floats) -> Exact:
        return np.asarray(_distances(self.parts, vectors) @ self.weights[:-1] + self.weights[-1])

    def score_range(self) -> tuple[float, float]:
        self._fitted()
        (least, most), *_ = (part.score_range() for part in self.parts)
        low, high = [math.sqrt(least), -1.0, -2.0], [math.sqrt(most), 1.0, 0.0]
        weights, added = self.weights[:-1], self.weights[-1]
        n = len(weights)
        return float(weights @ low[:n] + added), float(weights @ high[:n] + added)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        state: dict[str, npt.NDArray[Any]] = {"text": self._fitted(), "weights": self.weights}
        for part in self.parts:
            own = {name: array for name, array in part.state().items() if name != "text"}
            state |= under(part.info.name, own)
        return state

    @classmethod
    def from_state(cls, params: dict[str, Any], state: dict[str, npt.NDArray[Any]]) -> Self:
        detector = cls(**params)
        detector.text, detector.weights = state["text"], state["weights"]
        kinds: tuple[type[Detector], ...] = (Mahalanobis, MaxLogit, KNN)
        parts = []
        for kind in kinds[: len(detector.weights) - 1]:
            parts.append(kind.from_state({}, {"text": detector.text, **below(kind.info.name, state)}))
        detector.parts = tuple(parts)
        return detector


def npos(known: Floats, neighbour: int, noise: float, chance: np.random.Generator) -> Floats:
    """Outliers around the known images that are farthest from the others.

    Args:
        known: (n, d) float32 unit rows; n from 2 on.
        neighbour: which nearest other image distances are measured to, 1 to n - 1.
        noise: length of the noise in distances of the image from its neighbours.
        chance: draws it.

    Returns:
        (m, d) float32 unit rows, n of them or a few more.
    """
    apart = _apart(known, known, neighbour + 1)  # each is its own nearest
    boundary = np.argsort(-apart, kind="stable")[: max(1, int(BOUNDARY * len(known)))]
    each, dim = math.ceil(len(known) / len(boundary)), known.shape[1]
    kept = []
    for row in boundary:
        drawn = chance.standard_normal((DRAWS * each, dim)) * (noise * apart[row] / math.sqrt(dim))
        drawn = _unit(drawn + known[row])
        kept.append(drawn[np.argsort(-_apart(drawn, known, neighbour), kind="stable")[:each]])
    return np.concatenate(kept)


def vos(whiten: Exact, centres: Exact, count: int, chance: np.random.Generator) -> Floats:
    """The least likely of many draws from the Gaussian of each class (Du et al., VOS, ICLR 2022).

    How likely a draw is depends on its length behind ``whiten`` alone, and its direction on nothing: so of all draws
    only the lengths are drawn, and directions for those that are kept.

    Args:
        whiten: (d, d), whiten whiten' = C^-1.
        centres: (c, d) means of the classes behind it.
        count: outliers wanted in all.
        chance: draws them.

    Returns:
        (m, d) float32 unit rows, ``count`` of them or a few more.
    """
    each, dim = math.ceil(count / len(centres)), len(whiten)
    lengths = np.sqrt(np.sort(chance.chisquare(dim, (len(centres), CLASS_DRAWS)), axis=1)[:, -each:])
    directions = chance.standard_normal((len(centres), each, dim))
    directions *= (lengths / np.linalg.norm(directions, axis=2))[:, :, None]
    drawn = (centres[:, None] + directions).reshape(-1, dim)
    return _unit(np.linalg.solve(whiten.T, drawn.T).T)


def _distances(parts: tuple[Detector, ...], vectors: Floats) -> Exact:
    """(n, parts) float64, each higher for what is OOD."""
    columns = [part.score(vectors).astype(np.float64) for part in parts]
    columns[0] = np.sqrt(columns[0])  # it is a squared one
    columns[2:] = [-column for column in columns[2:]]  # far from outliers is near what is known
    return np.stack(columns, axis=1)


def _boundary(rows: Exact, kinds: npt.NDArray[np.intp]) -> Exact:
    """The weights, none negative, of distances that tell known images from outliers best, and what is added.

    Logistic regression with a small ridge on distances in units of how those of known images spread. With two or three
    distances every choice of those with a weight above 0 can be tried.

    Args:
        rows: (n, p) distances.
        kinds: (n,) 0 for known images, another number for each sort of outliers.

    Returns:
        (p + 1,) float64.
    """
    sorts = [kinds == kind for kind in np.unique(kinds)]
    share = sum(one * ((1.0 if at == 0 else 1 / (len(sorts) - 1)) / 2 / one.sum()) for at, one in enumerate(sorts))
    middle, spread = rows[sorts[0]].mean(axis=0), rows[sorts[0]].std(axis=0)
    spread = np.maximum(spread, np.finfo(np.float32).eps)
    scaled, side = (rows - middle) / spread, np.where(sorts[0], -1.0, 1.0)
    p = rows.shape[1]
    best, least = np.zeros(p + 1), math.inf
    for size in range(p + 1):
        for chosen in itertools.combinations(range(p), size):
            found, loss = _logistic(scaled[:, chosen], side, np.asarray(share))
            if loss < least and (found[:-1] >= 0).all():
                best[:], least = 0, loss
                best[[*chosen, p]] = found
    if not best[:-1].any():
        log.warning(EQUAL)
        best[:-1] = 1
    best[:-1] /= spread
    best[-1] -= best[:-1] @ middle
    return best


def _logistic(rows: Exact, side: Exact, share: Exact) -> tuple[Exact, float]:
    """(n, p), (n,) of -1 and 1, (n,) that sum to 1 -> (p + 1,) weights and bias of the least loss, and the loss."""
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    ridge = np.full(rows.shape[1], RIDGE)
    ridge[-1] = 0

    def loss_of(weights: Exact) -> float:
        return float(share @ np.logaddexp(0, -side * (rows @ weights)) + ridge @ weights**2 / 2)

    weights = np.zeros(rows.shape[1])
    loss = loss_of(weights)
    for _ in range(100):  # Newton's method; a step that does not help is halved
        wrong = np.exp(-np.logaddexp(0, side * (rows @ weights)))
        slope = -rows.T @ (share * side * wrong) + ridge * weights
        curve = (rows * (share * wrong * (1 - wrong))[:, None]).T @ rows + np.diag(ridge + 1e-12)
        step = np.linalg.solve(curve, slope)
        while (after := loss_of(weights - step)) > loss:
            step /= 2
        if loss - after < 1e-15:
            break
        weights, loss = weights - step, after
    return weights, loss


def _apart(images: Floats, known: Floats, neighbour: int) -> Exact:
    """(n,) distance of each image to its ``neighbour``-th nearest among the known ones."""
    return np.concatenate([distances[:, -1] for _, distances, _ in nearest(images, known, neighbour)])


def _unit(rows: Array) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
