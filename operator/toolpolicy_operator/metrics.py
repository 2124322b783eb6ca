"""What the operator counts, for Prometheus: ``toolpolicy_operator_…``."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from toolpolicy_operator.tasks import Task

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """One registry of its own, so that several operators fit into one test."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tasks = Counter(
            "toolpolicy_operator_reconciliations", "Tasks done, by kind and outcome", ["task", "outcome"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "toolpolicy_operator_reconciliation_seconds", "Duration of a task", ["task"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._reviews = Counter(
            "toolpolicy_operator_admissions", "Admission reviews, by path and outcome", ["path", "outcome"],
            registry=self.registry,
        )  # fmt: skip
        self._review_seconds = Histogram(
            "toolpolicy_operator_admission_seconds", "Duration of an admission review", ["path"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A value that is asked for whenever metrics are."""
        Gauge(f"toolpolicy_operator_{name}", text, registry=self.registry).set_function(value)

    def reconciled(self, task: Task, outcome: str, seconds: float) -> None:
        self._tasks.labels(task.what.value, outcome).inc()
        self._seconds.labels(task.what.value).observe(seconds)

    def reviewed(self, path: str, outcome: str, seconds: float) -> None:
        self._reviews.labels(path, outcome).inc()
        self._review_seconds.labels(path).observe(seconds)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition that the scraper asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
