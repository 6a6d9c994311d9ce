"""Monitor: verdicts of a stream in, the running OOD rate and drift out."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from outclass import stored
from outclass.decide.checks import check_share
from outclass.decide.cusum import Cusum
from outclass.decide.martingale import MOST, Martingale
from outclass.decide.running_rate import rate_interval
from outclass.errors import MismatchError, NotReadyError
from outclass.guard import Guard
from outclass.records import Verdict
from outclass.report.best import Best

RECENT = 500  # images that "what is new" speaks of
NAMED = 10  # words, classes and images that it names
CALIBRATE = "outclass calibrate FOLDER --guard FILE -o my.guard (or --classes ... in place of --guard FILE)"
UNCALIBRATED = (
    "drift needs a calibrated guard, whose calibration images say what is usual; without one there is the running OOD "
    f"rate only. Calibrate one: {CALIBRATE}; in Python guard.calibrate(FOLDER)"
)
STALE = (
    "these verdicts have no p-values, although the guard was calibrated when the monitor was made: its classes have "
    "changed since. Calibrate it again (guard.recalibrate()) and make a new Monitor"
)


@dataclass(frozen=True, slots=True)
class Alarm:
    """The stream has changed.

    Attributes:
        test: ``martingale``, which raises a false alarm with probability at most ``alarm_rate`` in all, or ``cusum``,
            a heuristic.
        image: number of the image at which it came, from 1, unread ones left out.
        text: one sentence.
        new: what the OOD images among the last 500 look like, see ``Monitor.state``.
    """

    test: Literal["martingale", "cusum"]
    image: int
    text: str
    new: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def details(self) -> list[str]:
        """What is new, in parts of a sentence, without the images' ids."""
        parts = []
        if self.new["ood"]:
            parts.append(f"OOD among the last {self.new['images']:,} images: {self.new['ood']:,}")
        for what, title in (("negatives", "they look like"), ("labels", "nearest of the known classes")):
            if self.new[what]:
                parts.append(f"{title}: {', '.join(f'{name} ({count})' for name, count in self.new[what].items())}")
        return parts


class Monitor:
    """Follows the verdicts of one stream, in their order. Any thread may call any method.

    Three things are followed. The share of images decided as OOD, with an interval that may be looked at after every
    image. A conformal test martingale, which raises an alarm with probability at most ``alarm_rate`` in all as long
    as the stream is drawn in the same way as the calibration images, in an order that has nothing to do with what
    they show; for the frames of a video nothing holds. And CUSUM, a heuristic that finds slow changes sooner.

    An alarm stays until ``restart``. With another class list or calibration make another monitor.

    Args:
        guard: whose verdicts come; without a calibration there is no drift, only the rate.
        alarm_rate: probability of ever raising an alarm although nothing changed, (0, 1).
        level: of the interval, (0, 1).
        seed: ties of scores are broken by chance, the same way for the same seed.
        frames: the images are frames of a video, which resemble each other; then nothing is promised, and alarms and
            state say so.

    Raises:
        UsageError: a number out of range.
    """

    def __init__(
        self, guard: Guard, alarm_rate: float = 0.01, level: float = 0.95, seed: int = 0, frames: bool = False
    ) -> None:
        self.alarm_rate, self.level = check_share(alarm_rate, "alarm_rate"), check_share(level, "level")
        self.seed, self.frames = seed, frames
        self.maker = _maker(guard)
        # CUSUM's limit is for p-values against all images, so that those by class, of fewer, would not reach it.
        self._calibration = replace(guard.calibrated.calibration, groups=None) if guard.calibrated else None
        self._lock = threading.RLock()
        self.restart()

    def restart(self) -> None:
        """Begin anew: after an alarm was looked into, or the stream's source was changed on purpose.

        After a false alarm the next one is likelier than ``alarm_rate``: the calibration images that the stream did not
        fit are the same ones. Calibrate on more images, or on some of the stream, and make another monitor.
        """
        with self._lock:
            self.images = self.ood = self.failed = self.undecided = 0
            self._recent: deque[tuple[str, str | None, str | None, float, bool | None]] = deque(maxlen=RECENT)
            self._martingale = self._cusum = None
            if self._calibration is not None:
                self._martingale = Martingale(self._calibration.scores, self.alarm_rate, self.seed)
                self._cusum = Cusum(len(self._calibration.scores))

    @property
    def full(self) -> bool:
        """So many images were followed, without an alarm, that no more are remembered: ``restart``."""
        return self._martingale is not None and self._martingale.full and self._martingale.alarm_at is None

    def update(self, verdicts: Iterable[Verdict]) -> list[Alarm]:
        """Take verdicts, in the order of the stream.

        Args:
            verdicts: of the monitor's guard itself, not of ``guard.stream()``, whose scores move with its memory;
                images that could not be read are counted and left out.

        Returns:
            The alarms that they raised: each test raises one until ``restart``.

        Raises:
            NotReadyError: the guard has lost the calibration that it had.
        """
        alarms = []
        with self._lock:
            for verdict in verdicts:
                alarms += self._take(verdict)
        return alarms

    def _take(self, verdict: Verdict) -> list[Alarm]:
        score = verdict.ood_score
        if score is None or not math.isfinite(score):
            self.failed += 1
            return []
        if self._martingale and verdict.p_value is None:
            raise NotReadyError(STALE)
        self.images += 1
        self.ood += verdict.is_ood is True
        self.undecided += verdict.is_ood is None
        self._recent.append((verdict.id, verdict.label, verdict.nearest_negative, score, verdict.is_ood))
        if not self._martingale or not self._cusum or self._calibration is None:
            return []
        before = self._martingale.alarm_at, self._cusum.alarm_at
        self._martingale.update([score])
        self._cusum.update(self._calibration.p_values([score]))
        raised: list[Literal["martingale", "cusum"]] = []
        raised += ["martingale"] if self._martingale.alarm_at != before[0] else []
        raised += ["cusum"] if self._cusum.alarm_at != before[1] else []
        return [Alarm(test, self.images, self._said(test), self._new()) for test in raised]

    def _said(self, test: Literal["martingale", "cusum"]) -> str:
        if test == "cusum":
            return (
                f"at image {self.images:,} CUSUM, a heuristic, says that there are more unusual images than in the "
                "calibration"
            )
        promise = f"without a change this is said with probability at most {self.alarm_rate:g}"
        return f"drift: at image {self.images:,} the images are no longer like the calibration images; " + (
            "of the frames of a video this is no more than a hint" if self.frames else promise
        )

    def state(self) -> dict[str, Any]:
        """What is known so far, as plain JSON.

        Returns:
            ``images`` judged, ``ood``, ``undecided`` and ``failed`` ones; ``ood_rate`` with ``interval`` at ``level``
            (None without a decision); ``drift``, None where the guard is not calibrated, with the reason in
            ``no_drift``; ``new``: of the OOD ones among the last 500 images the most frequent ``negatives`` and
            ``labels`` with their counts and the ``most_ood`` ids with their ``ood_score``.

            ``drift`` holds ``alarm`` (raised or not), ``alarm_image``, ``alarm_rate``, ``promised`` (that rate holds:
            no video), ``log10_capital`` (an alarm at -log10 of the alarm rate), ``calibration_images``, ``full`` (too
            many images: restart) and ``cusum`` (``value``, ``limit``, ``alarm_image``).
        """
        with self._lock:
            decided = self.images - self.undecided
            low, high = rate_interval(self.ood, decided, self.level)
            return {
                "images": self.images,
                "ood": self.ood,
                "undecided": self.undecided,
                "failed": self.failed,
                "ood_rate": self.ood / decided if decided else None,
                "interval": [low, high] if decided else None,
                "level": self.level,
                "drift": self._drift(),
                "no_drift": None if self._martingale else UNCALIBRATED,
                "new": self._new(),
            }

    def _drift(self) -> dict[str, Any] | None:
        test, cusum = self._martingale, self._cusum
        if not test or not cusum:
            return None
        return {
            "alarm": test.alarm_at is not None,
            "alarm_image": test.alarm_at,
            "alarm_rate": test.alarm_rate,
            "promised": not self.frames,
            "log10_capital": test.log_capital / math.log(10),
            "calibration_images": test.n_calibration,
            "full": test.full,
            "cusum": {
                "value": cusum.value,
                "limit": cusum.limit,
                "alarm_image": cusum.alarm_at,
            },
        }

    def _new(self) -> dict[str, Any]:
        rows = [row for row in self._recent if row[4]]
        best: Best = Best(NAMED)
        for order, (id_, label, negative, score, is_ood) in enumerate(rows):
            best.add(score, order, Verdict(id_, label, ood_score=score, is_ood=is_ood, nearest_negative=negative))
        return {
            "images": len(self._recent),
            "ood": len(rows),
            "negatives": _most(row[2] for row in rows),
            "labels": _most(row[1] for row in rows),
            "most_ood": [
                {"id": one.id, "ood_score": one.ood_score, "nearest_negative": one.nearest_negative}
                for _, one in best.rows()
            ],
        }

    def describe(self) -> str:
        """The rate and the drift in words, a sentence a line."""
        now = self.state()
        if now["ood_rate"] is None:
            rate = f"{now['images']:,} images"
        else:
            low, high = (100 * edge for edge in now["interval"])
            rate = (
                f"{now['images']:,} images, {now['ood']:,} OOD: {100 * now['ood_rate']:.2f} % "
                f"({100 * self.level:g} % interval {low:.2f} to {high:.2f} %)"
            )
        drift = now["drift"]
        if drift is None:
            return f"{rate}\nno drift is looked for: the guard is not calibrated; do it with {CALIBRATE}"
        if drift["alarm"]:
            said = f"drift: alarm since image {drift['alarm_image']:,}"
        elif drift["full"]:
            said = f"drift: none in {MOST:,} images, and no more are remembered: restart"
        else:
            said = f"drift: no alarm; capital {_amount(drift['log10_capital'])} of {1 / self.alarm_rate:g}"
        cusum = drift["cusum"]
        since = f", reached at image {cusum['alarm_image']:,}" if cusum["alarm_image"] else ""
        return f"{rate}\n{said}; CUSUM (heuristic) {cusum['value']:.2f} of {cusum['limit']:.2f}{since}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that ``load`` needs to go on as if nothing had happened: one file, safetensors and JSON.

        Raises:
            UsageError: the place cannot be written to.
        """
        with self._lock:
            about: dict[str, Any] = {
                "maker": self.maker,
                "alarm_rate": self.alarm_rate,
                "level": self.level,
                "seed": self.seed,
                "frames": self.frames,
                "counts": [self.images, self.ood, self.failed, self.undecided],
                "recent": [list(row) for row in self._recent],
            }
            arrays: dict[str, Any] = {}
            if self._martingale and self._cusum:
                about["martingale"], arrays = self._martingale.state()
                about["cusum"] = [self._cusum.images, self._cusum.value, self._cusum.alarm_at]
        stored.save(path, "monitor", about, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str], guard: Guard) -> Self:
        """Read a monitor back.

        Args:
            path: what ``save`` wrote.
            guard: the one whose verdicts it followed.

        Raises:
            UsageError: no such file.
            MismatchError: it is no monitor, is damaged, or followed a guard of other classes, calibration or threshold.
        """
        about, arrays = stored.load(path, "monitor")
        try:
            if about["maker"] != _maker(guard):
                raise MismatchError(
                    f"the monitor {os.fspath(path)!r} followed a guard of another encoder, class list, detector, "
                    "calibration or threshold; its rate and drift say nothing of this one. Load it with that guard, or "
                    "make a new Monitor"
                )
            monitor = cls(guard, about["alarm_rate"], about["level"], about["seed"], about["frames"])
            monitor.images, monitor.ood, monitor.failed, monitor.undecided = map(int, about["counts"])
            monitor._recent.extend((id_, *rest) for id_, *rest in about["recent"])
            if monitor._cusum:
                monitor._martingale = Martingale.restore(about["martingale"], arrays)
                monitor._cusum.images, monitor._cusum.value, monitor._cusum.alarm_at = about["cusum"]
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, MismatchError):
                raise
            raise MismatchError(f"{os.fspath(path)!r} is a damaged monitor: {type(error).__name__} {error}") from error
        return monitor


def _maker(guard: Guard) -> str:
    """A fingerprint of what makes scores and decisions comparable."""
    about = (
        guard.encoder.info.fingerprint,
        guard.classes,
        guard.detector.info.name,
        sorted(guard.detector.params.items()),
        guard.threshold,
        guard.calibrated.calibration.scores.tobytes() if guard.calibrated else None,
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def _most(names: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(name for name in names if name is not None).most_common(NAMED))


def _amount(log10: float) -> str:
    return f"{10**log10:.3g}" if log10 < 6 else f"10^{log10:.0f}"
