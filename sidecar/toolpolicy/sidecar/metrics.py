"""What Prometheus is told, under ``toolpolicy_*``, from a registry of our own.

A call only adds to plain dictionaries, whose keys a caller can't multiply: methods of the protocol, words of ours,
names from the catalogue up to a cap, rules of the policies. Prometheus' own objects are made when somebody asks.
Everything that already knows its number (sessions, buckets, the audit's head) is asked then too, see
:meth:`Metrics.gauge`.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from toolpolicy import __version__
from toolpolicy.policy.types import Decision

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

METHODS: Final = frozenset(
    {
        "tools/call",
        "tools/list",
        "resources/read",
        "resources/list",
        "resources/templates/list",
        "resources/subscribe",
        "resources/unsubscribe",
        "prompts/get",
        "prompts/list",
        "completion/complete",
        "logging/setLevel",
        "initialize",
        "server/discover",
        "ping",
        "subscriptions/listen",
        "tasks/get",
        "tasks/list",
        "tasks/cancel",
        "tasks/result",
    }
)
OTHER: Final = "other"
DECISION_SECONDS: Final[tuple[float, ...]] = (
    0.00001,
    0.000025,
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.01,
    0.1,
)
CALL_SECONDS: Final[tuple[float, ...]] = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    120.0,
)


class Histogram:
    """Counts per bucket and their sum; ``observe`` costs one bisection."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        rows: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((bound, float(running)))
        return rows


class Metrics:
    """One instance for a sidecar. ``max_tools``: how many tool names get a label of their own."""

    def __init__(self, max_tools: int = 200) -> None:
        self._max_tools = max_tools
        self._tools: set[str] = set()
        self._listed: Callable[[str], bool] = lambda name: False
        self._decisions: dict[tuple[str, str | None, str, str], int] = {}
        """By method, tool, action and code: one sum a call, taken apart when somebody asks."""
        self._would_deny: dict[tuple[str, str, str], int] = {}
        self._refused: dict[str, int] = {}
        self._upstream_errors: dict[str, int] = {}
        self._requests: dict[int, int] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._counters: dict[str, tuple[str, Callable[[], float]]] = {}
        self._infos: dict[str, tuple[str, Callable[[], dict[str, str]]]] = {}
        self._labelled: dict[str, tuple[str, str, Callable[[], dict[str, float]]]] = {}
        self._servers: dict[str, Metrics] = {}
        self.decision_seconds = Histogram(DECISION_SECONDS)
        """Seconds to judge a call; ``observe`` it."""
        self.call_seconds = Histogram(CALL_SECONDS)
        """Seconds from a call's being forwarded (a connection made for it included) to the answer's head."""

    def of_server(self, name: str) -> Metrics:
        """The metrics of one of several servers: what it reports carries the label ``server``."""
        return self._servers.setdefault(name, Metrics(self._max_tools))

    # What the way of a call reports

    def decided(self, method: str, tool: str | None, decision: Decision) -> None:
        """Count one decision."""
        key = (
            method if method in METHODS else OTHER,
            None if tool is None else tool if tool in self._tools else self._tool(tool),
            decision.action._value_,
            decision.code,
        )
        self._decisions[key] = self._decisions.get(key, 0) + 1
        for would in decision.would_deny:
            rule = would.rule
            policy = f"{rule.namespace}/{rule.policy}" if rule.namespace else rule.policy
            entry = (policy, rule.rule or "", would.action.value)
            self._would_deny[entry] = self._would_deny.get(entry, 0) + 1

    def refused(self, reason: str) -> None:
        """Count a request refused before it was a call; ``reason`` is a word of ours, never the caller's."""
        self._refused[reason] = self._refused.get(reason, 0) + 1

    def answered(self, status: int) -> None:
        """Count an answer to a client by its HTTP status."""
        self._requests[status] = self._requests.get(status, 0) + 1

    def upstream_error(self, kind: str) -> None:
        """Count a failure of the MCP server; ``kind`` is a word of ours (``connect``, ``timeout``, ``died``, …)."""
        self._upstream_errors[kind] = self._upstream_errors.get(kind, 0) + 1

    def follow(self, listed: Callable[[str], bool]) -> None:
        """Give tools of the server's catalogue, for which ``listed`` is true, labels of their own: the first
        ``max_tools`` that are called."""
        self._listed = listed

    def _tool(self, name: str) -> str:
        if len(self._tools) >= self._max_tools or len(name) > 128 or not self._listed(name):
            return OTHER
        self._tools.add(name)
        return name

    # What is asked when somebody scrapes

    def gauge(self, name: str, doc: str, read: Callable[[], float]) -> None:
        """A value to be read at each scrape; ``name`` without the prefix, with its unit."""
        self._gauges[name] = (doc, read)

    def counter(self, name: str, doc: str, read: Callable[[], float]) -> None:
        """A count kept elsewhere; ``name`` without prefix and ``_total``."""
        self._counters[name] = (doc, read)

    def counter_by(self, name: str, doc: str, label: str, read: Callable[[], dict[str, float]]) -> None:
        """A count kept elsewhere, by the values of one label."""
        self._labelled[name] = (doc, label, read)

    def info(self, name: str, doc: str, read: Callable[[], dict[str, str]]) -> None:
        """Labels of a constant 1; ``name`` without prefix and ``_info``."""
        self._infos[name] = (doc, read)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        from prometheus_client.metrics_core import InfoMetricFamily

        if self._servers:
            yield from _together({name: [*m.of_calls(), *m.of_others()] for name, m in self._servers.items()})
        else:
            yield from self.of_calls()
        yield from self.of_others()
        build = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily("toolpolicy_build", "What is running.", value=build)

    def of_calls(self) -> Iterator[Metric]:
        """What the way of a call has counted."""
        from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily

        def counter(name: str, doc: str, labels: list[str], rows: dict[Any, int]) -> CounterMetricFamily:
            family = CounterMetricFamily(f"toolpolicy_{name}", doc, labels=labels)
            for key, value in list(rows.items()):
                family.add_metric([key] if isinstance(key, str) else [str(k) for k in key], value)
            return family

        decisions: Counter[tuple[str, str, str]] = Counter()
        by_tool: Counter[tuple[str, str]] = Counter()
        for (method, tool, action, code), count in list(self._decisions.items()):
            decisions[method, action, code] += count
            if tool is not None:
                by_tool[tool, action] += count
        yield counter("decisions", "Decisions on calls.", ["method", "action", "code"], decisions)
        yield counter("tool_decisions", "Decisions on tool calls, by tool.", ["tool", "action"], by_tool)
        yield counter(
            "would_deny",
            "What policies and rules in Audit would have refused.",
            ["policy", "rule", "action"],
            self._would_deny,
        )
        yield counter("refused_requests", "Requests refused before they were a call.", ["reason"], self._refused)
        yield counter("upstream_errors", "Failures of the MCP server.", ["kind"], self._upstream_errors)
        statuses = {str(k): v for k, v in self._requests.items()}
        yield counter("requests", "Requests answered, by HTTP status.", ["status"], statuses)
        for name, doc, histogram in (
            ("decision_seconds", "Time to judge a call.", self.decision_seconds),
            ("upstream_seconds", "Time from a forwarded request to the answer's first byte.", self.call_seconds),
        ):
            seconds = HistogramMetricFamily(f"toolpolicy_{name}", doc)
            seconds.add_metric([], histogram.cumulative(), histogram.total)
            yield seconds

    def of_others(self) -> Iterator[Metric]:
        """What is known elsewhere, and asked now."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        for name, (doc, read) in self._gauges.items():
            yield GaugeMetricFamily(f"toolpolicy_{name}", doc, value=read())
        for name, (doc, read) in self._counters.items():
            yield CounterMetricFamily(f"toolpolicy_{name}", doc, value=read())
        for name, (doc, label, by) in self._labelled.items():
            family = CounterMetricFamily(f"toolpolicy_{name}", doc, labels=[label])
            for which, number in by().items():
                family.add_metric([which], number)
            yield family
        for name, (doc, labels) in self._infos.items():
            yield InfoMetricFamily(f"toolpolicy_{name}", doc, value=labels())

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition in the format that ``accept`` asks for, and its content type."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)  # pyright: ignore[reportArgumentType]
        ProcessCollector(registry=registry)
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type


def _together(by_server: dict[str, list[Metric]]) -> Iterator[Metric]:
    """One family a name, its samples labelled with their server."""
    families: dict[str, Metric] = {}
    for server, metrics in by_server.items():
        for metric in metrics:
            labelled = [sample._replace(labels={**sample.labels, "server": server}) for sample in metric.samples]
            known = families.setdefault(metric.name, metric)
            if known is metric:
                metric.samples = []
            known.samples.extend(labelled)
    yield from families.values()
