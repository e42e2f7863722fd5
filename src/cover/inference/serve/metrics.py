"""What does a server do, in Prometheus' terms? A registry for each server, so that several can live in one process."""

from __future__ import annotations

from collections.abc import Callable


class Metrics:
    """Counters and histograms of one server; `render` is what `/metrics` answers."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        slow = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        self._requests = Counter("cover_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "cover_request_seconds", "From a request's head to its answer", ["route"], buckets=slow, registry=self.registry
        )
        self._stage = Histogram("cover_stage_seconds", "Of a prediction", ["stage"], buckets=slow, registry=self.registry)
        self._forward = Histogram("cover_forward_seconds", "Of a forward pass", buckets=slow, registry=self.registry)
        counts = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self._files = Histogram("cover_pack_samples", "Files and plans that share a forward pass", buckets=counts, registry=self.registry)
        self._frames = Histogram("cover_pack_frames", "Frames of a forward pass", buckets=counts, registry=self.registry)
        self._gauge = Gauge

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        self._gauge(name, text, registry=self.registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """One request more."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """How long `upload`, `decode` and `model` or `explain` took for one file, waiting included."""
        self._stage.labels(name).observe(seconds)

    def forward(self, samples: int, frames: int, seconds: float) -> None:
        """One forward pass more."""
        self._files.observe(samples)
        self._frames.observe(frames)
        self._forward.observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The text and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST
