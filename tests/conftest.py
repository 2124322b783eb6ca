"""What all tests share: a run that is green says little."""

from __future__ import annotations

import pytest

pytest_plugins = ["cluster.fixtures"]


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    """No dot for a test that passed: what is left on the screen is what to look at."""
    return ("passed", "", "PASSED") if report.when == "call" and report.passed else None
