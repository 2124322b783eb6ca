"""``docs/failure-modes.md`` names every fault test, and no other."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent.parent / "docs" / "failure-modes.md"


def test_the_document_and_the_tests_are_the_same_list() -> None:
    promised = set(re.findall(r"`(test_\w+)`", DOCUMENT.read_text()))
    files = [HERE / name for name in ("test_upstream.py", "test_rules.py", "test_process.py")]
    tried = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}
    assert promised == tried - {"test_the_control_answers"}
