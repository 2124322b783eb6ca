"""Programs under test: started in a process group of their own, with a deadline on every wait and their log at hand."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

from tools import environments

START_DEADLINE = 30.0
"""Seconds a program has until it listens; generous, because two cores may run many of them."""
STOP_DEADLINE = 10.0


class ProgramError(AssertionError):
    """A program did not do what the test waits for; the message ends with its log."""


class Program:
    """One child process. Standard output and error go to files, so that no pipe can fill and block it."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self._folder = tempfile.TemporaryDirectory(prefix=f"{name}-")
        self._output = Path(self._folder.name) / "stdout"
        self._errors = Path(self._folder.name) / "stderr"
        with self._output.open("wb") as out, self._errors.open("wb") as err:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environments.child_environment(PYTHONUNBUFFERED="1") | dict(env or {}),
                cwd=cwd,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def errors(self) -> str:
        return self._errors.read_text(errors="replace")

    def log(self, limit: int = 4000) -> str:
        """The ends of both streams, for a failure message."""
        return f"--- {self.name}: stdout\n{self.output()[-limit:]}\n--- {self.name}: stderr\n{self.errors()[-limit:]}"

    def fail(self, why: str) -> ProgramError:
        return ProgramError(f"{self.name}: {why}\n$ {' '.join(self.command)}\n{self.log()}")

    def wait_until(self, condition: Callable[[], Any], what: str, deadline: float = START_DEADLINE) -> Any:
        """The first true value of ``condition``; an error if the program ends or the deadline passes before."""
        end = time.monotonic() + deadline
        while True:
            if value := condition():
                return value
            if self.process.poll() is not None:
                if value := condition():
                    return value
                raise self.fail(f"ended with {self.process.returncode} while waiting for {what}")
            if time.monotonic() > end:
                raise self.fail(f"no {what} within {deadline:.0f} s")
            time.sleep(0.01)

    def first_json(self) -> dict[str, Any]:
        """The first complete line of standard output that is a JSON object."""

        def read() -> dict[str, Any] | None:
            for line in self.output().splitlines(keepends=True):
                if line.endswith("\n") and line.startswith("{"):
                    return cast(dict[str, Any], json.loads(line))
            return None

        return self.wait_until(read, "JSON line on standard output")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, deadline: float = STOP_DEADLINE) -> int:
        """The exit code."""
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise self.fail(f"still runs after {deadline:.0f} s") from None

    def stop(self) -> None:
        """End the whole group: first asked, then forced; never an error."""
        if self.process.poll() is None:
            self._signal_group(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
        self._signal_group(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_DEADLINE)
        self._folder.cleanup()

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)
