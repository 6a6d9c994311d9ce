"""Which published array is compared with what of ours, and which are not, and why.

The names are those of tests/golden/arrays.json, which holds every array of the reference runs; the end that says how
many classes there are (``_K10``, ``_cls3``) is left out here.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Score:
    """A published score: published = ``factor`` * our ``ood_score`` ** ``power`` + ``offset``.

    Attributes:
        detector: our name.
        params: of our detector.
        factor: minus where the published number is an ID confidence; else what the reference scales by, given as a
            function where it depends on the number of classes.
        power: 2 where the reference leaves a distance squared; for detectors that learn from images only.
        offset: what is added to it, the same for all images; likewise.
        labelled: the reference knows the classes of the images that it learns from.
        renormalised: the reference divides the vectors by their length again (they are off by 1e-8).
        clamp: the reference keeps every p within [clamp, 1 - clamp]; only rows where that changes nothing compare.
        negatives: how the reference orders the candidates (``NEGATIVES`` in test_golden_negatives.py).
    """

    detector: str
    params: dict[str, Any] = field(default_factory=dict)
    factor: float | Callable[[int], float] = 1.0
    power: int = 1
    offset: float = 0.0
    labelled: bool = True
    renormalised: bool = False
    clamp: float = 0.0
    negatives: str = ""


@dataclass(frozen=True)
class Other:
    """A published array that is no score: ``test`` names the test function that compares it."""

    test: str


LATER = "learns from ID images what no detector of ours learns yet: a later issue"
NO_IMAGES_LEFT_OUT = "learns from the first 32 images; ours, as the paper's, from all that it is given"
CONSTANT = "plus a number that is the same for all images"
TOTAL = "counts the spread of all images together; ours, as the paper's, is that within classes"
RIDGE = "adds 1e-6 to the summed squares before inverting them, which moves its scores beyond their own tolerance"
STREAM = "depends on the images before it (streaming): compared in test_streaming_golden.py"
NO_DETECTOR = "no detector of ours computes it: a variant that the reference's code offers beside its method"

MCM_CODE = {"renormalised": True}
UP = {"factor": -1.0}  # the published number is an ID confidence
SCALED, SCALED_UP = {"factor": 100.0}, {"factor": -100.0}  # of logits = 100 * cosine


def gap(runners_up: int, factor: float = 1.0) -> Score:
    return Score("logitgap", {"runners_up": runners_up}, factor)


def gen(factor: Any, gamma: float = 0.1, largest: int = 100, temperature: float = 0.01, clamp: float = 0.0) -> Score:
    params = {"gamma": gamma, "largest": largest, "temperature": temperature}
    return Score("gen", params, factor, clamp=clamp)


def knn(k: int, factor: float = 1.0, power: int = 1, renormalised: bool = True) -> Score:
    return Score("knn", {"k": k}, factor, power, renormalised=renormalised)


def mahalanobis(shrinkage: str, factor: float = 1.0, labelled: bool = True) -> Score:
    return Score("mahalanobis", {"shrinkage": shrinkage}, factor, labelled=labelled)


def kde(bandwidth: float) -> Score:
    """scikit-learn's logarithm of the density in 64 dimensions, its constant included."""
    return Score("kde", {"kappa": 1 / bandwidth**2}, -1.0, offset=-32 * math.log(2 * math.pi * bandwidth**2))


def grouped(detector: str) -> dict[str, Score | Other | str]:
    def score(groups: int, temperature: float = 0.01, negatives: str = "mined") -> Score:
        params = {"groups": groups, "temperature": temperature}
        return Score(detector, params, -1.0, renormalised=True, negatives=negatives)

    return {
        "selected_idx_noun350_adj150": Other("test_the_published_words_are_mined"),
        "selected_idx_noun500": Other("test_the_published_words_are_mined"),
        "quantile_sim": Other("test_nearness_is_the_published_quantile"),
        "score_G5": score(5),
        "score_G10": score(10),
        "score_G5_noun500": score(5, negatives="nouns"),
        "score_G5_all500": score(5, negatives="all"),
        "score_G1_forward": score(1),
        "score_G1_grouping": score(1),
        "score_G5_T0.05": score(5, 0.05),
        "perm_n74_G5": Other("test_published_permutations_are_used"),
        "perm_n74_G10": Other("test_published_permutations_are_used"),
        "perm_n75_G5": Other("test_published_permutations_are_used"),
        "perm_n500_G5": Other("test_published_permutations_are_used"),
        "perm_n74_G1": Other("test_published_permutations_are_used"),
    }


TABLE: dict[str, dict[str, Score | Other | str]] = {
    "mcm": {
        "mcm_T1": Score("mcm", **MCM_CODE),
        "msp_T0.01": Score("msp", **MCM_CODE),
        "mcm_T0.03": Score("mcm", {"temperature": 0.03}, **MCM_CODE),
        "maxlogit": Score("max_logit", **MCM_CODE),
        "energy_T1": Score("energy", {"temperature": 1.0}, **MCM_CODE),
        "energy_T0.01": Score("energy", **MCM_CODE),
        "entropy_T1": Score("entropy", {"temperature": 1.0}, **MCM_CODE),
        "entropy_T0.01": Score("entropy", **MCM_CODE),
        "var_T1": NO_DETECTOR,
        "var_T0.01": NO_DETECTOR,
        "maha_bs1": TOTAL,
        "maha_bs32_buggy": "a fault of the reference: class means are right only for batches of one image",
    },
    "neglabel": grouped("neglabel")
    | {"score_G1_forward": "a fault of the reference: one group gives the sum of the raw logits, without a softmax"},
    "csp": grouped("csp")
    | {"template_mean_raw_then_normalise": Other("test_templates_are_joined_in_the_published_order")},
    "logitgap": {
        "logitgap_N1_scale1": gap(1),
        "logitgap_N2_scale1": gap(2),
        "logitgap_N5_scale1": gap(5),
        "logitgap_N9_scale1": gap(9),
        "logitgap_N20_scale1": gap(20),  # more than there are: all of them
        "logitgap_N2_scale100": gap(2, 100.0),
        "logitgap_N5_scale100": gap(5, 100.0),
        "margin_scale1": Score("margin", {"temperature": 1.0}),
        "margin_scale100": Score("margin"),
        "gen_scale1": gen(1.0, temperature=1.0),
        "gen_scale100": gen(1.0),
        "MCM_scale1": Score("mcm"),
        "MCM_scale100": Score("msp"),
        "max-logit_scale1": Score("max_logit"),
        "energy_scale1": Score("energy", {"temperature": 1.0}),
        "MCM_maxlogit_scale1": NO_DETECTOR,
        "logitgap_softmax_scale1": NO_DETECTOR,
        "logitgap_exp_scale1": NO_DETECTOR,
        "logitgap_square_scale1": NO_DETECTOR,
    },
    "pytorch_ood": {
        "MCM_T1.0": Score("mcm", renormalised=True),
        "MCM_T0.01": Score("msp", renormalised=True),
        "MaxSoftmax": Score("msp"),
        "MaxLogit": Score("max_logit", **SCALED),
        "EnergyBased": Score("energy", **SCALED),
        "EnergyBased_t100": Score("energy", {"temperature": 1.0}, **SCALED),  # T = 100 on logits
        "Entropy": Score("entropy", clamp=1e-7),
        "GEN": gen(lambda k: 1 / k, clamp=1e-7),  # the mean over the classes; ours is the published sum
        "GEN_M5": gen(lambda k: 1 / min(k, 5), largest=5, clamp=1e-7),
        "Mahalanobis": RIDGE,
        "RMD": RIDGE,
        "KNN_k1": knn(1),
        "KNN_k5": knn(5),
        "KNN_k10": knn(10),
        "KNN_k25": knn(25),
        "ViM_d32": Score("vim", {"dim": 32}),
        "ViM_d16": Score("vim", {"dim": 16}),
        "SHE": LATER,
        "NNGuide_k10": Score("nnguide", {"k": 10}, renormalised=True),
        "NNGuide_k1": Score("nnguide", {"k": 1}, renormalised=True),
        "fDBD": LATER,
        "KLMatching": LATER,
    },
    "openood": {
        "maxlogit": Score("max_logit", **SCALED_UP),
        "ebo": Score("energy", **SCALED_UP),
        "gen_g0.1_M100": gen(-1.0),
        "gen_g0.1_M5": gen(-1.0, largest=5),
        "gen_g0.5_M100": gen(-1.0, gamma=0.5),
        "template_normalise_mean_normalise": Other("test_templates_are_joined_in_the_published_order"),
        "mds": mahalanobis("none", -1.0),
        "rmds": Score("relative_mahalanobis", {"shrinkage": "none"}, -1.0),
        "knn_K1": knn(1, -1.0, 2, renormalised=False),
        "knn_K5": knn(5, -1.0, 2, renormalised=False),
        "knn_K10": knn(10, -1.0, 2, renormalised=False),
        "knn_K25": knn(25, -1.0, 2, renormalised=False),
        "vim_d32": Score("vim", {"dim": 32}, -1.0),
        "vim_d16": Score("vim", {"dim": 16}, -1.0),
        "residual_d32": Score("residual", {"dim": 32}, -1.0),
        "residual_d16": Score("residual", {"dim": 16}, -1.0),
        "nnguide_K10_alpha1": Score("nnguide", {"k": 10}, -1.0),
        "nnguide_K1_alpha1": Score("nnguide", {"k": 1}, -1.0),
        "nnguide_K10_alpha0.01": NO_IMAGES_LEFT_OUT,
        "she": LATER,
        "klm": LATER,
        "fdbd": LATER,
    },
    "vim_benchmark": {
        "MSP": Score("msp", **UP),
        "MaxLogit": Score("max_logit", **SCALED_UP),
        "Energy": Score("energy", **SCALED_UP),
        "Energy_React": LATER,
        "ViM": Score("vim", {"dim": 32}, -1.0),
        "Residual": Score("residual", {"dim": 32}, -1.0),
        "Mahalanobis": mahalanobis("none", -1.0),
    },
    "reneg_oodlab": {
        "mcm_paper": Score("mcm", **UP),
        "mcm_openood_vlm_tau1": Score("msp", **UP),
        "mcm_append_neg_mean": NO_DETECTOR,
        "neglabel_G5": Score("neglabel", {"groups": 5}, -1.0, negatives="mined"),
        "neglabel_G1": Score("neglabel", {"groups": 1}, -1.0, negatives="mined"),
        "neglabel_G10": Score("neglabel", {"groups": 10}, -1.0, negatives="mined"),
        "adaneg_*": STREAM,
        "tanl_*": STREAM,
        "pred__*": STREAM,
        "thr__*": STREAM,
        "n_admit__*": STREAM,
        "sel_last__*": STREAM,
    },
    "sklearn": {
        "ocsvm_decision": Score("one_class_svm", {"nu": 0.1, "gamma": "scale"}, -1.0),
        "ocsvm_score_samples": f"ocsvm_decision {CONSTANT}",
        "ledoitwolf_classwise": mahalanobis("ledoit_wolf"),
        "ledoitwolf_global": mahalanobis("ledoit_wolf", labelled=False),
        "oas_global": mahalanobis("oas", labelled=False),
        "empirical_global": mahalanobis("none", labelled=False),
        "*_shrinkage": "scikit-learn's own number, on the way to the scores that are compared",
        "knn_cosine_k1": knn(1, 0.5, 2),
        "knn_cosine_k5": knn(5, 0.5, 2),
        "knn_cosine_k10": knn(10, 0.5, 2),
        "kde_exact_bw0.1": kde(0.1),
        "kde_exact_bw0.3": kde(0.3),
        "kde_bw*": "scikit-learn's tree stops early and is off by up to 4; kde_exact is the sum",
        "lof_n20_score_samples": Score("lof", {"k": 20}, -1.0),
        "lof_n5_score_samples": Score("lof", {"k": 5}, -1.0),
        "lof_*_decision": f"lof_*_score_samples {CONSTANT}",
        "iforest_*": NO_DETECTOR,
    },
}


def entry(run: str, key: str) -> Score | Other | str:
    """What the table says about an array; the reason as text where it is not compared."""
    base = re.sub(r"_(K|cls)\d+$", "", key)
    rows = TABLE[run]
    if base in rows:
        return rows[base]
    (found,) = [row for pattern, row in rows.items() if fnmatchcase(base, pattern)]
    return found


def all_arrays() -> dict[str, dict[str, tuple[float | None, float | None, str]]]:
    """Every published array: run -> name -> tolerance in float32, in float64, and which way it points."""
    return json.loads((GOLDEN / "arrays.json").read_text())


def scores(*detectors: str) -> list[tuple[str, str]]:
    """(run, name) of every published score that is compared with one of these detectors, or with any."""
    return [
        (run, key)
        for run, keys in all_arrays().items()
        for key in keys
        if isinstance(row := entry(run, key), Score) and (not detectors or row.detector in detectors)
    ]


@pytest.mark.parametrize("run", TABLE)
def test_the_table_covers_every_published_array(run):
    for key in all_arrays()[run]:
        assert entry(run, key)


@pytest.mark.parametrize("run", TABLE)
def test_every_row_of_the_table_is_a_published_array(run):
    bases = {re.sub(r"_(K|cls)\d+$", "", key) for key in all_arrays()[run]}
    for pattern in TABLE[run]:
        assert any(fnmatchcase(base, pattern) for base in bases), pattern


@pytest.mark.parametrize("run", TABLE)
def test_every_array_that_is_compared_is_here(run):
    compared = {key for key in all_arrays()[run] if not isinstance(entry(run, key), str)}
    assert {key.removesuffix("__f64") for key in np.load(GOLDEN / f"{run}.npz").files} == compared


@pytest.mark.parametrize("run", TABLE)
def test_scores_are_turned_the_way_the_reference_points(run):
    for key, (_, _, sign) in all_arrays()[run].items():
        if isinstance(row := entry(run, key), Score):
            factor = row.factor(10) if callable(row.factor) else row.factor
            assert sign == ("higher = OOD" if factor > 0 else "higher = ID"), key


@pytest.mark.parametrize("run", TABLE)
def test_the_names_are_those_of_the_reference_runs(run):
    root = Path(os.environ.get("OUTCLASS_SHARED") or Path(__file__).parents[2] / "shared") / "golden"
    if not root.is_dir():
        pytest.skip(f"no reference runs at {root}; OUTCLASS_SHARED names their parent")
    files = np.load(root / f"{run}.npz").files
    assert {key for key in files if not key.endswith("__f64")} == set(all_arrays()[run])
    for key, array in np.load(GOLDEN / f"{run}.npz").items():
        np.testing.assert_array_equal(array, np.load(root / f"{run}.npz")[key])
