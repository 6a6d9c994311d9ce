"""What outliers teach, measured with `lite`: the table of docs/outliers.md.

    python bench/outliers.py    # prints it as Markdown; two minutes on two cores

Half of the ID images are learned from, the other half and OOD images are scored; AUROC, mean of five splits. Given
outliers are half of an OOD set and are never scored: for Tiny-ImageNet half of its classes, elsewhere half of its
images. Images come from OUTCLASS_SHARED (../shared) and are never written anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from evaluation import DATA
from sklearn.linear_model import LogisticRegression

from outclass import load_encoder, make_detector
from outclass.decide.metrics import auroc
from outclass.detectors.base import Context
from outclass.detectors.outliers import npos
from outclass.encoders.stream import encode_stream
from outclass.images.loader import Reader
from outclass.images.sources import Folder
from outclass.words.classes import ClassSet

SPLITS = 5
ALONE = ("max_logit", "mahalanobis", "probe:base=energy", "outliers", "outliers:synthesis=vos")
FAR = ("imagenet1k_near200", "textures_far", "scenes_far", "digits_far", "art_far")
# ID set -> OOD sets, and those of which half is given
TASKS = {
    "imagenette_id10": (FAR, ("imagenet1k_near200", "textures_far")),
    "tinyimagenet_id100": (("tinyimagenet_near50",), ("tinyimagenet_near50",)),
}

Score = Callable[[np.ndarray], np.ndarray]


def linear(known: np.ndarray, outliers: np.ndarray) -> Score:
    """A logistic regression on the vectors themselves, known images against outliers."""
    rows, side = np.concatenate([known, outliers]), np.repeat([0, 1], [len(known), len(outliers)])
    return LogisticRegression(C=10, max_iter=2000, class_weight="balanced").fit(rows, side).decision_function


def one_more_class(known: np.ndarray, labels: np.ndarray, chance: np.random.Generator) -> Score:
    """The same with the known classes, and one more of made-up outliers: how likely this is against all others."""
    made = npos(known, max(1, round(math.sqrt(len(known) / len(np.unique(labels))))), 2.0, chance)
    side = np.concatenate([labels, np.full(len(made), labels.max() + 1)])
    model = LogisticRegression(C=10, max_iter=2000).fit(np.concatenate([known, made]), side)

    def score(vectors: np.ndarray) -> np.ndarray:
        logits = model.decision_function(vectors)
        return logits[:, -1] - np.logaddexp.reduce(logits[:, :-1], axis=1)

    return score


def main() -> None:
    lite = load_encoder("lite")

    def encode(name: str) -> tuple[np.ndarray, np.ndarray]:
        batches = list(encode_stream(Folder(DATA / name), lite, Reader(lite.info.preprocess)))
        folders = np.array([id_.split("/")[0] for batch in batches for id_ in batch.ids])
        return np.concatenate([batch.vectors for batch in batches]), folders

    for id_set, (ood_sets, given_sets) in TASKS.items():
        rows, folders = encode(id_set)
        names, labels = np.unique(folders, return_inverse=True)
        text = ClassSet.build([name.replace("_", " ") for name in names], lite).vectors
        others = {name: encode(name) for name in ood_sets}
        found: dict[str, list[list[float]]] = {}
        for split in range(SPLITS):
            chance = np.random.default_rng(split)
            order = chance.permutation(len(rows))
            known, new = order[: len(order) // 2], order[len(order) // 2 :]
            context = Context(text, tuple(names), id_vectors=rows[known], id_labels=labels[known])
            scored, given = {}, {}
            for name, (vectors, of) in others.items():
                parts = np.unique(of) if len(ood_sets) == 1 else np.arange(len(of))
                half = np.isin(of if len(ood_sets) == 1 else parts, chance.permutation(parts)[: len(parts) // 2])
                scored[name], given[name] = vectors[~half], vectors[half]
            scores: dict[str, Score] = {name: make_detector(name).fit(context).score for name in ALONE}
            scores["linear, one more class of made-up outliers"] = one_more_class(rows[known], labels[known], chance)
            for name in given_sets:
                about = replace(context, outlier_vectors=given[name])
                scores[f"outliers, given {name}"] = make_detector("outliers").fit(about).score
                only = make_detector("outliers", synthesis="none").fit(about)
                scores[f"outliers:synthesis=none, given {name}"] = only.score
                scores[f"linear, given {name}"] = linear(rows[known], given[name])
            for name, score in scores.items():
                of_id = score(rows[new])
                found.setdefault(name, []).append([auroc(of_id, score(vectors)) for vectors in scored.values()])
        head = [f"{id_set} against", *ood_sets, "mean", "sd of splits"]
        print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for name, splits in found.items():
            means, spread = np.mean(splits, axis=0), np.std(np.mean(splits, axis=1))
            print(f"| {name} | " + " | ".join(f"{100 * one:.1f}" for one in [*means, means.mean(), spread]) + " |")
        print(f"\n{len(known)} known images, {len(new)} new, {[len(one) for one in scored.values()]} others")


if __name__ == "__main__":
    main()
