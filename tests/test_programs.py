"""The programs that run in environments of their own are typed as strictly as everything else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import environments

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parent
FIXTURES = TESTS / "fixtures"
PROGRAMS = TESTS / "clients" / "programs"
SETS = {
    "test-mcp1": [FIXTURES / "stacks", PROGRAMS / "python1.py"],
    "test-mcp2": [FIXTURES / "reference", PROGRAMS / "python2.py"],
    "test-fastmcp": [PROGRAMS / "fastmcp_client.py", PROGRAMS / "steps.py"],
}


@pytest.mark.parametrize("name", SETS)
def test_programs_are_typed_strictly(name: str, tmp_path: Path) -> None:
    # pyright checks what lies below its configuration and follows no link to a folder: these are copies.
    for source in SETS[name]:
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / source.name)
    beside = [str(FIXTURES / "reference"), str(FIXTURES / "stacks"), str(PROGRAMS)]
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": beside}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    python = environments.venv(name) / "bin" / "python"
    command = [sys.executable, "-m", "pyright", "--project", str(tmp_path), "--pythonpath", str(python)]
    done = subprocess.run(command, env=environments.child_environment(), stdout=subprocess.PIPE, timeout=300)
    assert done.returncode == 0, done.stdout.decode()
