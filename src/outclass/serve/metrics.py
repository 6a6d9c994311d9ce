"""What the service counts, in Prometheus' text format; a registry of its own, so two services never mix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outclass.records import Verdict

if TYPE_CHECKING:
    from outclass.serve.service import Service

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DECISIONS = {True: "ood", False: "id", None: "undecided"}


class Metrics:
    """Counters and histograms of one service; no label holds anything that a client may choose."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        about: dict[str, Any] = {"registry": self.registry, "namespace": "outclass"}
        self._images = Counter(
            "images", "Images answered, by decision: id, ood, undecided, failed.", ["decision"], **about
        )
        for decision in (*DECISIONS.values(), "failed"):  # the OOD rate is defined from the start
            self._images.labels(decision)
        self._failures = Counter("failures", "Requests refused or failed, by reason.", ["reason"], **about)
        self._seconds = Histogram(
            "request_seconds",
            "From the request's head to the answer's end.",
            ["route", "status"],
            buckets=SECONDS,
            **about,
        )
        self._sizes = Histogram("batch_images", "Images of one call of the encoder.", buckets=SIZES, **about)

    def batch(self, images: int) -> None:
        """Count a batch of the encoder."""
        self._sizes.observe(images)

    def verdicts(self, verdicts: Iterable[Verdict]) -> None:
        """Count what was said of images."""
        for verdict in verdicts:
            self._images.labels("failed" if verdict.error is not None else DECISIONS[verdict.is_ood]).inc()

    def failure(self, reason: str) -> None:
        """Count a request that was refused or failed."""
        self._failures.labels(reason).inc()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._seconds.labels(route, str(status)).observe(seconds)

    def watch(self, service: Service) -> None:
        """Show the state of a service beside the counts."""
        self.registry.register(State(service))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class State(Collector):
    """Gauges that are read off a service when somebody asks."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[Metric]:
        """What is now."""
        images, size = self.service.batcher.queued
        served = self.service.served
        for name, text, value in (
            ("queue_images", "Images that wait to be read.", images),
            ("queue_bytes", "Bytes of the images that wait to be read.", size),
            ("classes", "Known classes.", len(served.guard.classes)),
            ("guard_changes", "Changes of the served guard since the start.", self.service.changes),
        ):
            yield GaugeMetricFamily(f"outclass_{name}", text, value)
        yield from self._drift()
        info = GaugeMetricFamily("outclass_guard_info", "What is served.", labels=["version", "detector", "encoder"])
        guard = served.guard
        info.add_metric([served.version, guard.detector.info.name, guard.encoder.info.name], 1)
        yield info

    def _drift(self) -> Iterator[Metric]:
        """What is not known, as without a calibration, is left out: a 0 would say that all is well."""
        now = self.service.drift.state()
        low, high = now["interval"] or (None, None)
        drift = now["drift"] or {"log10_capital": None, "cusum": {"value": None, "limit": None}}
        for name, text, value in (
            ("drift_images", "Images that rate and drift speak of.", now["images"]),
            ("ood_rate", "Share of them that is OOD.", now["ood_rate"]),
            ("ood_rate_low", "Lower end of the rate's interval, valid at all times at once.", low),
            ("ood_rate_high", "Upper end of it.", high),
            ("drift_log10_capital", "Of the test martingale; an alarm at 2.", drift["log10_capital"]),
            ("drift_cusum", "CUSUM, a heuristic.", drift["cusum"]["value"]),
            ("drift_cusum_limit", "At which it says something.", drift["cusum"]["limit"]),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"outclass_{name}", text, value)
        if now["drift"]:
            alarm = GaugeMetricFamily("outclass_drift_alarm", "1 = the test said that images changed.", labels=["test"])
            alarm.add_metric(["martingale"], drift["alarm"])
            alarm.add_metric(["cusum"], drift["cusum"]["alarm_image"] is not None)
            yield alarm
