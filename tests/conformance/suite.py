"""Runs the official conformance suite and reads its result check by check."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from tools import environments

REVISIONS = ("2025-11-25", "2026-07-28")
TIMEOUT = 240.0
Checks = Mapping[str, list[tuple[str, str]]]
"""By scenario: (check, status) in the suite's own order."""
PACKAGE = Path("@modelcontextprotocol") / "conformance"
FOLDER = re.compile(r"server-(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")


def run(url: str, revision: str, results: Path) -> Checks:
    """Run the requirement set of ``revision`` against ``url``; ``results`` is a folder to write to."""
    script = environments.node_modules() / PACKAGE / "dist" / "index.js"
    command = [environments.node(), script, "server", "--url", url, "--requirements", revision, "-o", results]
    done = subprocess.run(
        [str(part) for part in command],
        env=environments.child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT,
    )
    checks = {
        match["scenario"]: [(str(check["id"]), str(check["status"])) for check in _read(folder / "checks.json")]
        for folder in sorted(results.iterdir())
        if (match := FOLDER.fullmatch(folder.name))
    }
    assert checks, f"the suite wrote no result:\n{done.stdout.decode(errors='replace')[-4000:]}"
    return checks


def scored(revision: str) -> list[str]:
    """The scenarios that the requirement set of ``revision`` scores for a server."""
    file = environments.node_modules() / PACKAGE / "requirements" / f"{revision}.yaml"
    return cast(list[str], yaml.safe_load(file.read_text())["server"])


def differences(direct: Checks, through: Checks, mended: Collection[tuple[str, str]] = ()) -> list[str]:
    """One line for each check whose result is not the same on both sides.

    ``mended`` are the (scenario, check) that may fail directly and pass through the sidecar.
    """
    lines: list[str] = []
    for scenario in sorted({*direct, *through}):
        left, right = direct.get(scenario, []), through.get(scenario, [])
        left = [(check, "SUCCESS" if (scenario, check) in mended else status) for check, status in left]
        if left == right:
            continue
        gone, new = list(left), list(right)
        for check in left:
            if check in new:
                gone.remove(check)
                new.remove(check)
        lines += [f"{scenario}: {check} is {status} only directly" for check, status in gone]
        lines += [f"{scenario}: {check} is {status} only through the sidecar" for check, status in new]
        if not gone and not new:
            lines.append(f"{scenario}: the same checks in another order")
    return lines


def failed(checks: Checks) -> list[str]:
    return [
        f"{scenario}: {check}" for scenario, found in checks.items() for check, status in found if status == "FAILURE"
    ]


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        # The scenario gave up before its first check, as some do against a server that knows an older revision alone.
        return [{"id": "no result", "status": "FAILURE"}]
    return cast(list[dict[str, Any]], json.loads(file.read_text()))
