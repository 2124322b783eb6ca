"""Pods that exist in the world, each beside what becomes of it.

``UPDATE_GOLDEN=1 pytest tests/operator/test_injection_golden.py`` writes the second half anew; read the diff.
"""

from __future__ import annotations

import copy
import os

import pytest
import yaml

from support.pods import GOLDEN, Case, cases
from toolpolicy_operator.injection.pod import treat, verify

CASES = cases()


def outcome(case: Case) -> tuple[str, str]:
    """The file's ending and its content."""
    injection = treat(case.pod, case.plan)
    eligibility = injection.eligibility
    if eligibility.refused:
        return "refused.txt", f"{eligibility.reason}: {eligibility.message}\n"
    said = f"# {eligibility.reason}: {eligibility.message}\n"
    return "out.yaml", said + yaml.safe_dump(injection.pod, sort_keys=False, width=120)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_becomes_what_is_written(case: Case) -> None:
    ending, content = outcome(case)
    files = {e: GOLDEN / f"{case.name}.{e}" for e in ("out.yaml", "refused.txt")}
    if os.environ.get("UPDATE_GOLDEN"):
        for path in files.values():
            path.unlink(missing_ok=True)
        files[ending].write_text(content)
    assert [e for e, path in files.items() if path.exists()] == [ending]
    assert files[ending].read_text() == content


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_second_time_changes_nothing(case: Case) -> None:
    before = copy.deepcopy(case.pod)
    once = treat(case.pod, case.plan)
    assert case.pod == before
    if once.eligibility.refused:
        return
    again = treat(once.pod, case.plan)
    assert again == once


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_was_injected_is_what_is_asked_for_at_the_end(case: Case) -> None:
    once = treat(case.pod, case.plan)
    if not once.eligibility.refused:
        assert verify(once.pod, case.plan).eligibility == once.eligibility
