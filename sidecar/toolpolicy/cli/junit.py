"""Outcomes as JUnit XML, the form that every CI system reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from toolpolicy.cli.casework import Outcome

_UNFIT = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def junit(outcomes: Sequence[Outcome], seconds: float) -> str:
    """``seconds``: how long all of them took."""
    files = list(dict.fromkeys(outcome.file for outcome in outcomes))
    failed = sum(not outcome.passed for outcome in outcomes)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites name="toolpolicy" tests="{len(outcomes)}" failures="{failed}" time="{seconds:.3f}">',
    ]
    for file in files:
        own = [outcome for outcome in outcomes if outcome.file == file]
        bad = sum(not outcome.passed for outcome in own)
        lines.append(
            f'  <testsuite name={_attribute(file)} tests="{len(own)}" failures="{bad}" errors="0" skipped="0">'
        )
        for outcome in own:
            lines += _case(outcome)
        lines.append("  </testsuite>")
    lines.append("</testsuites>")
    return "\n".join(lines) + "\n"


def _case(outcome: Outcome) -> list[str]:
    head = f"    <testcase name={_attribute(outcome.name)} classname={_attribute(outcome.file)}"
    head += f' file={_attribute(outcome.file)} line="{outcome.line}"'
    if outcome.passed:
        return [head + "/>"]
    summary = "; ".join(f"{what}: expected {wanted}, got {got}" for what, wanted, got in outcome.differences)
    text = f"{outcome.where}\n{outcome.explanation}".strip()
    return [
        head + ">",
        f"      <failure message={_attribute(summary)}>{escape(_fit(text))}</failure>",
        "    </testcase>",
    ]


def _attribute(text: str) -> str:
    return quoteattr(_fit(text))


def _fit(text: str) -> str:
    """Without the characters that XML 1.0 has no way to write."""
    return _UNFIT.sub("\ufffd", text)
