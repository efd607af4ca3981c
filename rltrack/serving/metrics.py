"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rltrack.serving.following import Follower

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class ServerMetrics:
    """The metrics of one server.

    Args:
        follower: Whose version is served.
    """

    def __init__(self, follower: Follower) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("rltrack_requests", "Requests for actions.", ["status"], registry=self._registry)
        self._errors = Counter("rltrack_errors", "Refused requests by kind.", ["kind"], registry=self._registry)
        self._seconds = Histogram(
            "rltrack_request_seconds", "Time of a request.", buckets=_BUCKETS, registry=self._registry
        )
        self._gauge("rltrack_model_version", "The version that is served.", lambda: follower.served.version)
        self._gauge(
            "rltrack_seconds_since_promotion",
            "How long the served version has been what is followed.",
            lambda: time.time() - follower.served.since,
        )
        self._gauge(
            "rltrack_registry_up", "Whether the registry answered the last time.", lambda: follower.is_reachable
        )
        self._gauge("rltrack_load_failures", "Versions that could not be loaded.", lambda: follower.failures)

    def count(self, status: int, kind: str | None, seconds: float) -> None:
        """Count a request for actions, and its error."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)
        if kind is not None:
            self._errors.labels(kind).inc()

    def text(self) -> bytes:
        """Return everything, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        Gauge(name, what, registry=self._registry).set_function(value)
