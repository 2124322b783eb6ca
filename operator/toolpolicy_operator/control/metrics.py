"""What the control API counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from toolpolicy_operator.control.app import ControlApi

PREFIX = "toolpolicy_operator_"


class ControlMetrics(Collector):
    """Register it: it reads the API's own counts at each scrape."""

    def __init__(self, api: ControlApi) -> None:
        self._api = api

    def collect(self) -> Iterator[Metric]:
        api = self._api
        answers = CounterMetricFamily(
            f"{PREFIX}control_requests", "Requests of the control API, by HTTP status.", labels=["status"]
        )
        for status, count in sorted(api.answers.items()):
            answers.add_metric([str(status)], count)
        yield answers
        reviews = CounterMetricFamily(
            f"{PREFIX}token_reviews", "TokenReviews: asked of the API server, and those it could not answer; requests "
            "sent away because reviews were booked out.", labels=["outcome"],
        )  # fmt: skip
        for outcome, count in api.reviews().items():
            reviews.add_metric([outcome], count)
        yield reviews
        relayed = CounterMetricFamily(f"{PREFIX}relayed_reports", "Reports for the Lease's holder.", labels=["outcome"])
        for outcome, count in api.relayed().items():
            relayed.add_metric([outcome], count)
        yield relayed
        yield GaugeMetricFamily(f"{PREFIX}reports", "Pods whose last report is known.", value=api.held())
