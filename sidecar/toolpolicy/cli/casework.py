"""Running the cases of ``toolpolicy test``: each with its own counters and clock, and the evaluator that enforces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from toolpolicy.cli.cases import NOON, Case, Expectation, Loaded, Step, TestCall, step_call
from toolpolicy.cli.listing import Tools, read_tools, tools_in
from toolpolicy.cli.output import load_policies
from toolpolicy.policy.compile import PolicySet, compile_policies
from toolpolicy.policy.decide import decide, visible
from toolpolicy.policy.explain import explain, render
from toolpolicy.policy.limits import MemoryCounters
from toolpolicy.policy.model import Action
from toolpolicy.policy.types import Call, Catalogue, Decision, Principal, RuleRef


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case. ``differences``: (what, expected, got) of the call that failed first; empty if the case passed."""

    name: str
    file: str
    line: int
    where: str = ""
    """Which step and repetition failed."""
    differences: tuple[tuple[str, str, str], ...] = ()
    explanation: str = ""
    calls: int = 0

    @property
    def passed(self) -> bool:
        return not self.differences


def run_file(loaded: Loaded, wanted: Callable[[str], bool] = lambda name: True) -> list[Outcome]:
    """Every case whose name is ``wanted``. Raises :class:`InputError` for policies or tools that can't be used."""
    policies = compile_policies(load_policies(loaded.directory / path for path in loaded.file.policies))
    tools = loaded.file.tools
    if tools is None:
        catalogue = Tools((), others=True)
    elif isinstance(tools, str):
        catalogue = Tools(read_tools(str(loaded.directory / tools)))
    else:
        catalogue = Tools(tools_in(list(tools), f"{loaded.path}: tools"))
    return [
        replace(_run(case, policies, catalogue), file=loaded.path, line=line)
        for case, line in zip(loaded.file.cases, loaded.lines, strict=True)
        if wanted(case.name)
    ]


def _run(case: Case, policies: PolicySet, catalogue: Catalogue) -> Outcome:
    counters = MemoryCounters()
    steps = _steps(case)
    start = now = case.time or steps[0].time or NOON
    made = 0
    for number, step in enumerate(steps, 1):
        earlier, now = now, (step.time or now) + timedelta(seconds=step.after)
        if now < earlier:
            backwards = ("time", f"not before {earlier.isoformat()}", now.isoformat())
            return Outcome(case.name, "", 0, f"step {number}", (backwards,), "time only runs forwards")
        test_call = step_call(case.call, step.call)
        assert test_call is not None
        call = _call(test_call, now)
        elapsed = (now - start).total_seconds()
        for repetition in range(1, step.repeat + 1):
            decision = decide(policies, call, catalogue, counters, elapsed)
            differences = _compare(step.expect, decision, lambda c=call: visible(policies, c, c.tool or "", catalogue))
            made += 1
            if differences:
                explained = render(explain(policies, call, catalogue, counters, elapsed))
                where = f"step {number}" if case.steps else ""
                where += f"{', ' if where else ''}call {repetition} of {step.repeat}" if step.repeat > 1 else ""
                return Outcome(case.name, "", 0, where, tuple(differences), explained, made)
            if decision.action is Action.ALLOW:
                counters.reserve(decision.demands, elapsed)
    return Outcome(case.name, "", 0, calls=made)


def _steps(case: Case) -> tuple[Step, ...]:
    if case.steps:
        return case.steps
    assert case.expect is not None
    return (Step(call=case.call, after=case.after, repeat=case.repeat, expect=case.expect),)


def _call(call: TestCall, now: datetime) -> Call:
    who = call.principal
    account = f"system:serviceaccount:{who.service_account.replace('/', ':')}" if who.service_account else None
    id = who.id or account or "anonymous"
    kind = who.kind or ("ServiceAccount" if account else "JWT" if who.verified else "Credential")
    principal = Principal(id, kind, who.verified, who.groups, who.service_account, who.claims)
    return Call(
        method=call.method,
        principal=principal,
        now=now,
        tool=call.tool,
        arguments=call.args,
        identities=(id,),
        session=call.session,
        client=call.client,
        server=call.server,
    )


def _compare(expect: Expectation, decision: Decision, shown: Callable[[], bool]) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    if expect.action is not None and decision.action is not expect.action:
        found.append(("action", expect.action.value, f"{decision.action.value} ({decision.code})"))
    if expect.code is not None and decision.code != expect.code:
        found.append(("code", expect.code, decision.code))
    if expect.reason is not None and expect.reason not in decision.reason:
        found.append(("reason", f"… {expect.reason} …", decision.reason or "(none)"))
    if expect.rule is not None and not any(_is(ref, expect.rule) for ref in decision.rules):
        found.append(("rule", expect.rule, ", ".join(map(str, decision.rules)) or "(none)"))
    if expect.would_deny is not None and not any(_is(would.rule, expect.would_deny) for would in decision.would_deny):
        got = ", ".join(str(would.rule) for would in decision.would_deny) or "(none)"
        found.append(("wouldDeny", expect.would_deny, got))
    if expect.visible is not None and (is_shown := shown()) is not expect.visible:
        found.append(("visible", str(expect.visible).lower(), str(is_shown).lower()))
    return found


def _is(ref: RuleRef, text: str) -> bool:
    names = {str(ref), f"{ref.policy}:{ref.rule}" if ref.rule else ref.policy}
    return text in names or (ref.rule is not None and text == ref.rule)
