"""Detectors against each other: ID images and OOD sets, encoded once, scored by all, measured and pictured."""

from outclass.benchmark.few_shot import FewShot, evaluate_few_shot
from outclass.benchmark.measure import Evaluation, evaluate

__all__ = ["Evaluation", "FewShot", "evaluate", "evaluate_few_shot"]
