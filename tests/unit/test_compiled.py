"""The optional compiled build (``make compiled``): its list names real modules, and a run that expects it gets it."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def listed() -> list[str]:
    """The module names in ``tools/compiled.py``, which itself can't be imported without a compiler."""
    scope: dict[str, dict[str, str]] = {}
    text = (ROOT / "tools" / "compiled.py").read_text()
    begin = text.index("MODULES = {")
    exec(text[begin : text.index("}", begin) + 1], scope)
    return [
        ".".join(("toolpolicy", *folder.split("/"), name))
        for folder, names in scope["MODULES"].items()
        for name in names.split()
    ]


@pytest.mark.parametrize("name", listed())
def test_a_listed_module_exists(name: str) -> None:
    assert (ROOT / "sidecar" / Path(*name.split("."))).with_suffix(".py").is_file()


@pytest.mark.skipif("TOOLPOLICY_EXPECT_COMPILED" not in os.environ, reason="the plain build is being tested")
@pytest.mark.parametrize("name", listed())
def test_a_listed_module_is_compiled(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert module.__file__.endswith(".so")
