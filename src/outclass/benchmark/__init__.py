"""Detectors against each other: ID images and OOD sets, encoded once, scored by all, measured and pictured."""

from outclass.benchmark.measure import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
