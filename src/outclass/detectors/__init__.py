"""Detectors: functions from vectors to ``ood_score``; higher = more OOD, for every one of them."""

from outclass.detectors.base import Context, Detector, DetectorInfo, all_detectors, make_detector, register

__all__ = ["Context", "Detector", "DetectorInfo", "all_detectors", "make_detector", "register"]
