"""Watching a stream of verdicts: the running OOD rate, drift, and what is done when it comes."""

from outclass.monitor.drift import Alarm, Monitor

__all__ = ["Alarm", "Monitor"]
