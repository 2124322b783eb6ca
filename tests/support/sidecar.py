"""The sidecar as its user starts it: ``toolpolicy proxy`` in a process of its own."""

from __future__ import annotations

import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.processes import Program

LISTENING = re.compile(r"http://127\.0\.0\.1:(\d+)(/\S*)?")


class Sidecar(Program):
    """``toolpolicy proxy`` in front of ``upstream``, ready when the constructor returns.

    ``policy`` is the text of a manifest or the path of a file or directory; ``wrapper`` is put before the command line,
    ``env`` holds settings (``TOOLPOLICY_…``).
    """

    def __init__(
        self,
        policy: str | Path,
        upstream: str,
        *arguments: str,
        path: str = "/mcp",
        wrapper: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._work = tempfile.TemporaryDirectory(prefix="sidecar-")
        self.folder = Path(self._work.name)
        if isinstance(policy, str):
            file = self.folder / "policy.yaml"
            file.write_text(policy)
            policy = file
        self.policy = policy
        self.path = path
        program = str(Path(sys.executable).with_name("toolpolicy"))
        self.audit = self.folder / "audit.jsonl"
        between = ["--policy", str(policy), "--upstream", upstream, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        between += ["--audit", str(self.audit)]
        super().__init__([*wrapper, program, "proxy", *between, *arguments], name="sidecar", env=env)
        try:
            self.port, self.admin_port = self.wait_until(self._ports, "line that says where it listens")
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def admin(self, path: str) -> tuple[int, str]:
        """Status and body of a GET on the admin port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def stop(self) -> None:
        super().stop()
        self._work.cleanup()

    def _ports(self) -> tuple[int, int] | None:
        text = self.errors() + self.output()
        found = [int(match[1]) for match in LISTENING.finditer(text)]
        return (found[0], found[1]) if len(found) > 1 else None
