"""Reads files of a set of rules: regular ones only, within a budget of bytes, through no symlink of a payload."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from toolpolicy.policy.errors import Problem


class RulesFault(Exception):
    """A set that can't be used; ``problems`` says everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)


def read_file(path: Path, budget: int) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    return _drain(handle, path, budget)


def read_at(directory: int, name: str, budget: int) -> bytes:
    handle = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=directory)
    return _drain(handle, name, budget)


def _drain(handle: int, name: str | Path, budget: int) -> bytes:
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise RulesFault([fault(name, "is not a regular file")])
        raw = file.read(budget + 1)
    if len(raw) > budget:
        raise RulesFault([fault(name, "the rules are larger in all than TOOLPOLICY_RULES_MAX_BYTES allows")])
    return raw


def fault(file: str | Path, message: str) -> Problem:
    return Problem(str(file), 0, 0, "", message, code="rules")


def identity(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does; None where there is none."""
    try:
        s = path.stat()
    except OSError:
        return None
    return (s.st_dev, s.st_ino, s.st_mtime_ns, s.st_ctime_ns, s.st_size)


def replaced(before: object, after: object) -> bool:
    """Whether an :func:`identity` is of another inode than the one before."""
    return isinstance(before, tuple) and isinstance(after, tuple) and before[:2] != after[:2]
