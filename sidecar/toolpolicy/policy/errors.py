"""A fault in a policy: where it is, what was expected, and what was probably meant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One finding. ``line`` and ``column`` are 1-based, 0 where unknown; ``path`` like ``spec.rules[2].when``."""

    file: str
    line: int
    column: int
    path: str
    message: str
    severity: str = "error"
    """``error`` | ``warning`` | ``note``."""
    code: str = ""
    """A stable kebab-case word, e.g. ``unknown-field``."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        at = f" {self.path}:" if self.path else ""
        return f"{where}: {self.severity}:{at} {self.message}"


class PolicyError(ValueError):
    """A set of policies that can't be used; ``problems`` holds every error found, never only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems
