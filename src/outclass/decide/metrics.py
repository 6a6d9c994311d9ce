"""How well ``ood_score`` tells OOD from ID images, and how well labels and p-values hold.

Every function takes ``id_scores`` and ``ood_scores``: ood_score of images that are known to be ID and OOD, (n,) and
(m,), finite numbers, **higher = more OOD**. Equal scores are one point of every curve and no point is dropped. An empty
side, NaN and infinities raise UsageError. The number of images belongs beside every figure: AUPR and plain accuracy
depend on the ratio of ID to OOD images, and no image set says anything of images of another kind.

Few or tied scores keep their exact value instead of an interpolated one. With a constant score: AUROC 0.5, FPR95 1 both
ways, AUPR-in and AUPR-out (average precision) the share of that side, best detection accuracy 0.5, AUTC 0.5. With fewer
than 20 images of the positive side FPR95 is the false-positive rate at a true-positive rate of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from outclass.decide.counts import Counts, Floats, Side, checked
from outclass.errors import UsageError


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve, one for every threshold that changes anything.

    Attributes:
        x: (k,) float64, [0, 1], ascending.
        y: (k,) float64, [0, 1].
        thresholds: (k,) float64, on ood_score.
    """

    x: Floats
    y: Floats
    thresholds: Floats


@dataclass(frozen=True, slots=True)
class Metrics:
    """What one detector makes of one set of ID and one set of OOD images; each figure is described at its function.

    Attributes:
        n_id: number of ID images.
        n_ood: number of OOD images.
        auroc: 0.5 = chance, 1 = best.
        aupr_in: ID positive, average precision; 1 = best.
        aupr_out: OOD positive, average precision; 1 = best.
        aupr_in_trapezoid: ID positive, trapezoid rule.
        aupr_out_trapezoid: OOD positive, trapezoid rule.
        fpr95_id_positive: share of OOD images that pass where 95 % of ID images pass; 0 = best.
        fpr95_ood_positive: share of ID images flagged where 95 % of OOD images are flagged; 0 = best.
        best_detection_accuracy: balanced, at the best threshold; 0.5 = chance, 1 = best.
        best_plain_accuracy: share of all images, at the best threshold; 1 = best.
        autc: 0 = best, 0.5 = no separation.
    """

    n_id: int
    n_ood: int
    auroc: float
    aupr_in: float
    aupr_out: float
    aupr_in_trapezoid: float
    aupr_out_trapezoid: float
    fpr95_id_positive: float
    fpr95_ood_positive: float
    best_detection_accuracy: float
    best_plain_accuracy: float
    autc: float

    def to_dict(self) -> dict[str, int | float]:
        """The fields in their documented order."""
        return asdict(self)


def measure(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> Metrics:
    """All metrics that need no threshold, from scores sorted once.

    Args:
        id_scores: (n,) ood_score of ID images.
        ood_scores: (m,) ood_score of OOD images.

    Raises:
        UsageError: a side is empty, no list of numbers, or holds NaN or infinities.
    """
    return measure_counts(Counts.of(id_scores, ood_scores))


def measure_counts(counts: Counts) -> Metrics:
    """All metrics that need no threshold, of images that were counted already."""
    values = {metric.__name__: of_counts(counts) for metric, of_counts in OF_COUNTS.items()}
    return Metrics(counts.n_id, counts.n_ood, **values)


def roc_curve(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> Curve:
    """Receiver operating characteristic, OOD positive, from (0, 0) to (1, 1).

    Returns:
        x: false-alarm rate, the share of ID images with score > t. y: detection rate, the share of OOD images with
        score > t. Thresholds t descend from +inf; all others but the last, -inf, are scores that occur.
    """
    counts = Counts.of(id_scores, ood_scores)
    return Curve(*counts.flagged(), np.concatenate([[np.inf], counts.scores[-2::-1], [-np.inf]]))


def precision_recall_curve(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike, positive: Side = "ood") -> Curve:
    """Precision against recall; the point before the first image is (0, 1).

    Args:
        id_scores: (n,) ood_score of ID images.
        ood_scores: (m,) ood_score of OOD images.
        positive: ``ood``: what is found is score > t, t descends from +inf to -inf as in ``roc_curve``. ``id``: what is
            found is score <= t, t ascends from -inf to the largest score.

    Returns:
        x: recall, the share of the positive images that is found. y: precision, the share of positive ones in what is
        found.
    """
    counts = Counts.of(id_scores, ood_scores)
    if positive == "id":
        thresholds = np.concatenate([[-np.inf], counts.scores])
    elif positive == "ood":
        thresholds = np.concatenate([[np.inf], counts.scores[-2::-1], [-np.inf]])
    else:
        raise UsageError(f"positive must be 'ood' or 'id', got {positive!r}")
    return Curve(*counts.recall_precision(positive), thresholds)


def auroc(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Share of (ID, OOD) pairs in which the OOD image scores higher; a tie counts one half. The same for either side.

    Counted in whole numbers, so exact to the last digit (Hanley and McNeil 1982, the Mann-Whitney form).
    """
    return Counts.of(id_scores, ood_scores).auroc()


def aupr_in(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Area under precision-recall, ID positive: average precision, the sum of (R_i - R_{i-1}) P_i.

    As scikit-learn's ``average_precision_score``, MCM, NegLabel. Depends on the ratio of ID to OOD images.
    """
    return Counts.of(id_scores, ood_scores).aupr_in()


def aupr_out(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Area under precision-recall, OOD positive: average precision; see ``aupr_in``."""
    return Counts.of(id_scores, ood_scores).aupr_out()


def aupr_in_trapezoid(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Area under precision-recall, ID positive: trapezoid rule from the point (0, 1), as OpenOOD, ViM, pytorch-ood.

    Optimistic under ties (a constant score gives more than the share of ID images: Davis and Goadrich 2006), so give
    ``aupr_in`` and use this one to compare with published figures. Code of KNN-OOD starts at (0, 0) instead and so is
    lower by half the recall of its first point: 0.28 against 0.78 for a constant score.
    """
    return Counts.of(id_scores, ood_scores).aupr_in_trapezoid()


def aupr_out_trapezoid(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Area under precision-recall, OOD positive: trapezoid rule; see ``aupr_in_trapezoid``."""
    return Counts.of(id_scores, ood_scores).aupr_out_trapezoid()


def fpr95_id_positive(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """FPR at 95 % TPR, ID positive: the share of OOD images with score <= t.

    t is the smallest score with at least 95 % of ID images at score <= t: the first point with TPR >= 0.95, ties
    together, nothing interpolated. Published tables with CLIP have ID positive (MCM, GL-MCM, NegLabel, CSP, ...), yet
    their code may differ from this in small sets or under ties: MCM and its followers take the last of the points
    nearest to 0.95, which is a worse FPR when 0.95 n is a whole number; CLIPN interpolates (0.95 for a constant score);
    ViM keeps only floor(0.95 n) ID images; KNN-OOD counts ``>``, so that a constant score has an FPR of 0; OpenOOD
    drops points on a line.
    """
    return Counts.of(id_scores, ood_scores).fpr95_id_positive()


def fpr95_ood_positive(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """FPR at 95 % TPR, OOD positive: the share of ID images with score > t, the false alarms.

    t is the highest threshold with at least 95 % of OOD images at score > t: the first point with TPR >= 0.95, ties
    together, nothing interpolated. The convention of OpenOOD and pytorch-ood, not comparable with
    ``fpr95_id_positive``. OpenOOD drops points on a line and may then find 1.
    """
    return Counts.of(id_scores, ood_scores).fpr95_ood_positive()


def best_detection_accuracy(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Largest ``detection_accuracy`` over all thresholds; balanced, so chance and a constant score give 0.5.

    1 - detection error of Liang et al. (ODIN, ICLR 2018); Lee et al. (Mahalanobis, NeurIPS 2018). The threshold is
    chosen on the very images that are counted, which flatters small sets.
    """
    return Counts.of(id_scores, ood_scores).best_detection_accuracy()


def best_plain_accuracy(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Largest ``plain_accuracy`` over all thresholds; never below the share of the larger side.

    1 - ``detection_error`` of KNN-OOD's code (Sun et al., ICML 2022).
    """
    return Counts.of(id_scores, ood_scores).best_plain_accuracy()


def autc(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Area under the threshold curve: mean of the areas under false alarms and misses, over thresholds from 0 to 1.

    Humblot-Renaux et al., Beyond AUROC & co., CVPR-W 2023, with scores moved to [0, 1] by their smallest and largest
    value, as pytorch-ood does. Low is good; 0 = ID all at the low and OOD all at the high end. The only figure here
    that changes with the distances between scores, so one far-away image moves it. pytorch-ood raises on a constant
    score; here it is 0.5, the value wherever in [0, 1] all scores would lie.
    """
    return Counts.of(id_scores, ood_scores).autc()


OF_COUNTS: dict[Callable[..., float], Callable[[Counts], float]] = {
    auroc: Counts.auroc,
    aupr_in: Counts.aupr_in,
    aupr_out: Counts.aupr_out,
    aupr_in_trapezoid: Counts.aupr_in_trapezoid,
    aupr_out_trapezoid: Counts.aupr_out_trapezoid,
    fpr95_id_positive: Counts.fpr95_id_positive,
    fpr95_ood_positive: Counts.fpr95_ood_positive,
    best_detection_accuracy: Counts.best_detection_accuracy,
    best_plain_accuracy: Counts.best_plain_accuracy,
    autc: Counts.autc,
}


def detection_accuracy(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike, threshold: float) -> float:
    """Balanced accuracy at a threshold: the mean of the share of ID with score <= t and of OOD with score > t."""
    known, unknown = _right(id_scores, ood_scores, threshold)
    return float(known.mean() + unknown.mean()) / 2


def plain_accuracy(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike, threshold: float) -> float:
    """Share of all images on the right side of a threshold; depends on the ratio of ID to OOD images."""
    return float(np.concatenate(_right(id_scores, ood_scores, threshold)).mean())


def id_accuracy(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Share of ID images whose class is right; what is said of OOD images has no part in it.

    Args:
        labels: (n,) true classes of ID images, numbers or names.
        predicted: (n,) what was said, the same kind.

    Raises:
        UsageError: no images, other lengths, or numbers against names.
    """
    true, said = np.asarray(labels), np.asarray(predicted)
    if true.ndim != 1 or true.shape != said.shape or not true.size:
        raise UsageError(
            "labels and predicted must be one class for each ID image, shape (n,) with n >= 1; "
            f"got shapes {true.shape} and {said.shape}"
        )
    if (true.dtype.kind == "U") != (said.dtype.kind == "U"):
        raise UsageError("labels and predicted must both be class names or both be class numbers, got one of each")
    return float((true == said).mean())


def oscr(id_scores: npt.ArrayLike, correct: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Open-set classification rate: area under the share of ID that is kept and labelled right against OOD kept.

    Dhamija et al., Reducing Network Agnostophobia, NeurIPS 2018. It is ID accuracy x AUROC of the rightly labelled ID
    images: at most the ID accuracy, about half of it for a detector that knows nothing. Ties count one half, as in
    AUROC and pytorch-ood; by the paper's < and <= a constant score would have 0.

    Args:
        id_scores: (n,) ood_score of ID images.
        correct: (n,) bool, whether the class of each ID image is right.
        ood_scores: (m,) ood_score of OOD images.

    Raises:
        UsageError: as above, or ``correct`` is not one bool for each ID image.
    """
    known, unknown = checked(id_scores, "id_scores"), checked(ood_scores, "ood_scores")
    right = np.asarray(correct)
    if right.dtype != np.bool_ or right.shape != known.shape:
        raise UsageError(
            f"correct must be one bool for each of the {len(known)} ID images, got {right.dtype} of shape {right.shape}"
        )
    return float(right.mean() * auroc(known[right], unknown)) if right.any() else 0.0


@dataclass(frozen=True, slots=True)
class Uniformity:
    """How far p-values of ID images are from uniform; 0 = exactly uniform.

    Attributes:
        n: number of p-values.
        too_small: the most by which the share of p-values <= a exceeds a, over all a in [0, 1]: by so much more than
            asked for may alarms ring. 0 where p-values are valid; the one-sided Kolmogorov-Smirnov distance D+.
        too_large: the most by which that share falls short of a: by so much are alarms rarer than they could be.
        distance: the larger of both, the Kolmogorov-Smirnov distance.
    """

    n: int
    too_small: float
    too_large: float

    @property
    def distance(self) -> float:
        return max(self.too_small, self.too_large)


def p_value_uniformity(p_values: npt.ArrayLike, n_calibration: int | None = None) -> Uniformity:
    """Distance of p-values from the uniform distribution; only ``too_small`` speaks against a false-alarm rate.

    Chance alone makes that about 0.6 / sqrt(n) where every p-value has a calibration of its own. The p-values of one
    guard share its calibration images, whose chance stays however many images are judged: about
    0.6 * sqrt(1 / n + 1 / n_calibration).

    Args:
        p_values: (n,) of ID images that calibrated nothing, (0, 1]; small = OOD.
        n_calibration: the number of calibration images. Conformal p-values are whole multiples of
            1 / (n_calibration + 1); with it they are compared at these values alone. Without it their steps count as
            ``too_large``, by up to 1 / (n_calibration + 1); ``too_small`` is the same.

    Raises:
        UsageError: no p-values, or values outside [0, 1], or no multiples of 1 / (n_calibration + 1).
    """
    p = np.sort(checked(p_values, "p_values"))
    n = len(p)
    if p[0] < 0 or p[-1] > 1:
        raise UsageError(f"p_values must lie in [0, 1], got {p[0]:g} to {p[-1]:g}; p-values are no ood_score")
    if n_calibration is None:
        rank = np.arange(1, n + 1)
        above, below = (rank / n - p).max(), (p - (rank - 1) / n).max()
    else:
        steps = n_calibration + 1
        place = np.rint(p * steps)
        if np.abs(p * steps - place).max() > 0.01:
            raise UsageError(
                f"p-values calibrated with {n_calibration} images are multiples of 1/{steps}, which these are not; "
                "give the number of calibration images that they were made with, or none"
            )
        share = np.cumsum(np.bincount(place.astype(np.int64), minlength=steps + 1)) / n
        gap = share - np.arange(steps + 1) / steps
        above, below = gap.max(), -gap.min()
    return Uniformity(n, max(0.0, float(above)), max(0.0, float(below)))


def _right(
    id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike, threshold: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which ID and which OOD images a threshold decides rightly."""
    known, unknown = checked(id_scores, "id_scores"), checked(ood_scores, "ood_scores")
    if np.isnan(threshold):
        raise UsageError("a threshold is a number on ood_score (higher = more OOD), got NaN")
    return known <= threshold, unknown > threshold
