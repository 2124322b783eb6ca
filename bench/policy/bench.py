"""What the policy engine costs, without HTTP: `python bench/policy/bench.py [-o FILE]`.

Times are the best of many short runs (what the code takes, not what the machine was doing), in CPU time of one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from toolpolicy.policy.compile import PolicySet, compile_policies
from toolpolicy.policy.decide import evaluate, visible
from toolpolicy.policy.limits import MemoryCounters
from toolpolicy.policy.model import ToolPolicy
from toolpolicy.policy.types import Call, Principal, ToolInfo

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
MOST_RULES = 500
"""Of one policy; more come as several."""


class Tools:
    """A catalogue."""

    def __init__(self, *names: str) -> None:
        self._tools = {name: ToolInfo(name, {"type": "object"}) for name in names}

    def get(self, name: str) -> ToolInfo | None:
        return self._tools.get(name)


def best(run: Callable[[], object], number: int = 500, rounds: int = 120) -> float:
    """Microseconds of CPU time for one run."""
    found = float("inf")
    for _ in range(rounds):
        started = time.process_time_ns()
        for _ in range(number):
            run()
        found = min(found, (time.process_time_ns() - started) / number)
    return round(found / 1000, 2)


def manifest(name: str, rules: list[dict[str, Any]]) -> ToolPolicy:
    return ToolPolicy.model_validate(
        {
            "apiVersion": "toolpolicy.dev/v1alpha1",
            "kind": "ToolPolicy",
            "metadata": {"name": name, "namespace": "bench"},
            "spec": {"selector": {}, "rules": rules},
        }
    )


def policies(rules: list[dict[str, Any]]) -> list[ToolPolicy]:
    return [
        manifest(f"p{start}", rules[start : start + MOST_RULES]) for start in range(0, max(len(rules), 1), MOST_RULES)
    ]


def filler(count: int, expressions: int = 0) -> list[dict[str, Any]]:
    """Rules that match other tools: names, prefixes, suffixes, inner globs."""
    shapes = ("other_{}", "other_{}_*", "*_other_{}", "*other_{}*")
    rules: list[dict[str, Any]] = []
    for index in range(count):
        rule: dict[str, Any] = {
            "name": f"f{index}",
            "match": {"tools": [shapes[index % 4].format(index)]},
            "action": "Allow",
        }
        if index < expressions:
            rule["when"] = f'args.path{index}.startsWith("/data/{index}") && size(args.name) < {index + 10}'
        rules.append(rule)
    return rules


MATCHING: list[dict[str, Any]] = [
    {"name": "m1", "match": {"tools": ["start_export"]}, "action": "Allow"},
    {"name": "m2", "match": {"tools": ["start_*"]}, "action": "Allow", "when": 'args.kind == "dicom"'},
    {"name": "m3", "match": {}, "action": "Allow", "validations": [{"expression": 'args.uri.startsWith("s3://x/")'}]},
]
TYPICAL: list[dict[str, Any]] = [
    {"name": "read", "match": {"categories": ["Read"]}, "action": "Allow"},
    {"name": "never", "match": {"categories": ["Destructive"]}, "action": "Deny"},
    {
        "name": "export",
        "match": {"tools": ["start_export"]},
        "action": "Allow",
        "rateLimit": {"max": 10000, "window": "60s", "per": "Session", "principalMax": 10000},
        "validations": [{"expression": 'args.uri.startsWith("s3://x/")'}, {"expression": 'args.kind != "raw"'}],
    },
]
ARGUMENTS = {"uri": "s3://x/y", "kind": "dicom", "datastore_id": "a" * 32}


def ask(tool: str = "start_export", session: str = "s1", arguments: Mapping[str, Any] = ARGUMENTS) -> Call:
    return Call("tools/call", Principal("10.0.0.1", "Address"), NOW, tool, arguments, ("10.0.0.1",), session)


def matching_of(count: int) -> PolicySet:
    return compile_policies(policies([*filler(count - len(MATCHING)), *MATCHING]))


def scaling() -> dict[str, Any]:
    """A call that matches three rules, among 10 and among 1,000; the second figure with a name never seen before."""
    tools = Tools("start_export")
    figures: dict[str, Any] = {}
    for count in (10, 1000):
        compiled, asked = matching_of(count), ask()
        assert len(evaluate(compiled, asked, tools).rules) == 3
        names = iter(f"start_{index}" for index in range(10**9))
        figures[f"{count} rules"] = {
            "us": best(partial(evaluate, compiled, asked, tools)),
            "new name us": best(partial(_fresh, compiled, names), 200, 40),
        }
    figures["ratio"] = round(figures["1000 rules"]["us"] / figures["10 rules"]["us"], 2)
    figures["new name ratio"] = round(figures["1000 rules"]["new name us"] / figures["10 rules"]["new name us"], 2)
    return figures


def _fresh(compiled: PolicySet, names: Iterator[str]) -> object:
    return evaluate(compiled, ask(next(names)), None)


def compiling() -> dict[str, float]:
    """1,000 rules with 300 expressions: from manifests as Python values, and from validated models."""
    rules = filler(1000, 300)
    started = time.process_time()
    models = policies(rules)
    parsed = time.process_time()
    compile_policies(models)
    done = time.process_time()
    return {"validate s": round(parsed - started, 3), "compile s": round(done - parsed, 3)}


def typical() -> dict[str, float]:
    """20 rules, two CEL validations, a limit."""
    compiled = compile_policies(policies([*filler(17), *TYPICAL]))
    tools = Tools("start_export", "delete_it", "get_it")
    export, delete, get = ask(), ask("delete_it"), ask("get_it")
    counters, clock = MemoryCounters(), [0.0]
    demands = evaluate(compiled, export, tools).demands

    def reserve() -> object:
        clock[0] += 0.02
        return counters.reserve(demands, clock[0])

    return {
        "build call": best(ask),
        "allowed, two expressions, one limit": best(lambda: evaluate(compiled, export, tools)),
        "allowed, no expression": best(lambda: evaluate(compiled, get, tools)),
        "denied by rule": best(lambda: evaluate(compiled, delete, tools)),
        "reserve two buckets": best(reserve),
        "visible, one tool": best(lambda: visible(compiled, get, "get_it", tools)),
    }


def memory() -> dict[str, float]:
    """200,000 calls of 20,000 sessions over 2,000 s: the process before, half way, and after (MiB)."""
    compiled, counters = compile_policies(policies([*filler(17), *TYPICAL])), MemoryCounters()
    tools = Tools("start_export")
    figures: dict[str, float] = {}
    for index in range(200_000):
        if index in (20_000, 100_000):
            figures[f"after {index}"] = _rss()
        decision = evaluate(compiled, ask(session=f"s{index // 10}"), tools)
        counters.reserve(decision.demands, index / 100)
    return {**figures, "after 200000": _rss(), "buckets": counters.size()}


def _rss() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 2**20, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="also write the figures as JSON")
    figures = {
        "python": platform.python_version(),
        "memory MiB": memory(),
        "20-rule policy us": typical(),
        "three matching rules": scaling(),
        "1000 rules, 300 expressions": compiling(),
    }
    output: Path | None = parser.parse_args().output
    text = json.dumps(figures, indent=2)
    print(text)
    if output is not None:
        output.write_text(text + "\n")


if __name__ == "__main__":
    main()
