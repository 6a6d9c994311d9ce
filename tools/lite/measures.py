"""Zero-shot accuracy, AUROC and retrieval from vectors, all larger = better."""

from __future__ import annotations

import numpy as np


def auroc(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
    """Chance that an OOD score is above an ID score; ties count half."""
    scores = np.concatenate([id_scores, ood_scores])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # mean rank of equal scores, from 1
    n_id, n_ood = len(id_scores), len(ood_scores)
    return float((ranks[n_id:].sum() - n_ood * (n_ood + 1) / 2) / (n_id * n_ood))


def accuracy(vectors: np.ndarray, texts: np.ndarray, classes: list[str], labels: list[str]) -> float:
    """Share of images whose nearest text is their label."""
    return float((np.array(classes)[(vectors @ texts.T).argmax(1)] == np.array(labels)).mean())


def max_logit(vectors: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """OOD score: minus the largest cosine, (n,)."""
    return -(vectors @ texts.T).max(1)


def mcm(vectors: np.ndarray, texts: np.ndarray, scale: float) -> np.ndarray:
    """OOD score: minus the largest probability of a softmax over scale * cosine, (n,)."""
    logits = scale * vectors @ texts.T
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return -exponents.max(1) / exponents.sum(1)


def negative_labels(vectors: np.ndarray, texts: np.ndarray, others: np.ndarray, scale: float) -> np.ndarray:
    """OOD score in [-1, 0]: minus the share of the classes when K classes face m other words, each side averaged."""
    own = np.exp(scale * (vectors @ texts.T - 1)).sum(1) / len(texts)
    rest = np.exp(scale * (vectors @ others.T - 1)).sum(1) / len(others)
    return -own / (own + rest)


def recall(vectors: np.ndarray, texts: np.ndarray, owner: np.ndarray, k: int) -> float:
    """Share of texts whose own image (row ``owner``) is among the k nearest images."""
    cosines = texts @ vectors.T
    own = cosines[np.arange(len(texts)), owner]
    return float(((cosines > own[:, None]).sum(1) < k).mean())
