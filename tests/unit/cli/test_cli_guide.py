"""The guide's own example does what the guide says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "testing-policies.md"


def test_the_example_of_the_guide(run: Callable[..., Result], tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    policy, cases = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "policy.yaml").write_text(policy)
    (tmp_path / "policy-test.yaml").write_text(cases)
    result = run("test", tmp_path / "policy-test.yaml")
    assert result.output == "5 passed, 0 failed\n"
    assert result.output in text
    broken = (
        policy.replace("action: Deny", "action: Allow").replace("    hide: true\n", "").replace("    reason: ", "    #")
    )
    (tmp_path / "policy.yaml").write_text(broken)
    failed = run("test", tmp_path / "policy-test.yaml").output.replace(f"{tmp_path}/", "").splitlines()
    shown = text.split("$ toolpolicy test policy-test.yaml\nFAIL")[1].split("```")[0].splitlines()
    assert ["FAIL" + shown[0], *shown[1:4]] == failed[:4]
    assert failed[-1] == shown[-1]
