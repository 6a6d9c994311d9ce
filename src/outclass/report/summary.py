"""What ``summary.json`` and the head of the report say of a scan."""

from __future__ import annotations

import datetime
from typing import Any

from outclass import __version__
from outclass.encoders.base import EncoderInfo
from outclass.images.sources import printable
from outclass.judge import Judge
from outclass.scan import Scan


def summarise(
    judge: Judge,
    info: EncoderInfo,
    scanned: Scan,
    seconds: float,
    started: datetime.datetime,
    command: str | None = None,
    read_now: int | None = None,
) -> dict[str, Any]:
    """Who judged, by what threshold, and how many images of each kind there were, as plain JSON.

    Args:
        judge: of the guard.
        info: of its encoder.
        scanned: the scan, at its end.
        seconds: it took.
        started: when.
        command: that made it, where there was one.
        read_now: images that were read in those seconds; None = all that could be read.
    """
    detector, threshold = judge.detector, judge.threshold
    read = scanned.n - scanned.n_failed
    read_now = read if read_now is None else read_now
    return {
        "outclass": __version__,
        "command": command,
        "source": printable(scanned.source.root),
        "classes": list(judge.names),
        "templates": list(judge.class_set.templates),
        "context": None if judge.class_set.context is None else len(judge.class_set.context),
        "encoder": {"name": info.name, "fingerprint": info.fingerprint},
        "detector": {"name": detector.info.name, "title": detector.info.title, "params": detector.params},
        "negatives": judge.negatives and judge.negatives.about(),
        "threshold": threshold.value if threshold else None,
        "threshold_source": threshold.source if threshold else None,
        "threshold_by_class": (
            dict(zip(judge.names, threshold.by_class, strict=True)) if threshold and threshold.by_class else None
        ),
        "calibration": judge.calibrated.about(judge.names) if judge.calibrated else None,
        "images": scanned.n,
        "id": scanned.n_id,
        "ood": scanned.n_ood,
        "undecided": read - scanned.n_id - scanned.n_ood,
        "failed": scanned.n_failed,
        "ignored": scanned.ignored,
        "seconds": round(seconds, 3),
        "images_per_second": round(read_now / seconds, 2) if seconds else None,
        "started": started.isoformat(timespec="seconds"),
    }
