"""What real servers' parsers would execute, each asked over a pipe: the oracles of the differential fuzz test."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

from tools import environments

SOURCES = environments.ROOT / "tests" / "fixtures" / "parsers"
KINDS = ("python2", "node1", "golang")

Call = tuple[Any, Any]
"""(tool, arguments) as a server would run it."""


class Parser:
    """One long-lived process; a body in, per parser of that process the calls that it would execute."""

    def __init__(self, command: Sequence[str | Path], **extra: str) -> None:
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environments.child_environment(**extra),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def executed(self, body: bytes) -> dict[str, list[Call]]:
        """For each parser of this process the calls that it reads out of ``body``, in order."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(base64.b64encode(body) + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the parser ended with {self.process.wait(10)}"
        found = cast(dict[str, list[list[Any]]], json.loads(line))
        return {name: [(call[0], call[1]) for call in calls] for name, calls in found.items()}


def parser(kind: str) -> Parser:
    """One of :data:`KINDS`."""
    if kind == "python2":
        return Parser([environments.venv("test-mcp2") / "bin" / "python", "-W", "ignore", SOURCES / "python2.py"])
    if kind == "node1":
        return Parser([environments.node(), SOURCES / "node1.cjs"], NODE_PATH=str(environments.node_modules()))
    if kind == "golang":
        return Parser([environments.go_program(SOURCES / "golang")])
    raise ValueError(f"unknown parser {kind!r}; there are {', '.join(KINDS)}")
