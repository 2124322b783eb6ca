"""Where the rules in force come from: files, a plain directory, or a mounted ConfigMap with an index.

A new set is read whole, checked whole, compiled beside the running one and swapped in by one assignment. A set with
any fault changes nothing: the last good one stays in force, and log, metric and ``/readyz`` say why. Before the first
good set ``current`` is None and everything is denied.

Changes are found by looking (``rules_interval``), not by inotify: a node has few inotify instances for a user (128 by
default, shared by all pods with our UID), some file systems deliver no events at all, and a look costs a few
microseconds. Traps:

- The kubelet writes a new directory, swaps the symlink ``..data`` to it and removes the old one. A set is therefore
  read through one directory handle; files opened by path could come from two sets.
- An editor that writes in place leaves a moment in which a file is empty or cut off, and a policy cut off between two
  documents is a valid, weaker one. A file changed in place is read only once it rests; one that was renamed over at
  once.
- A file or directory without any policy is a lost set, not the wish to allow everything; only an index can say "no
  policy".
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from toolpolicy.policy.compile import PolicySet, compile_policies
from toolpolicy.policy.errors import PolicyError, Problem
from toolpolicy.policy.load import duplicates, load_object, load_text
from toolpolicy.policy.model import Policy
from toolpolicy.policy.rulesindex import INDEX, IndexFault, parse_index, read_manifests
from toolpolicy.policy.selection import Pod, parse_labels, select
from toolpolicy.sidecar.rules import reading

log = logging.getLogger(__name__)

DATA = "..data"
SUFFIXES = (".yaml", ".yml", ".json")
MAX_BYTES = 4 * 1024 * 1024
_Fingerprint = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """One compiled set. ``epoch`` is 0 without an index; ``loaded_at`` is in unix seconds."""

    policies: PolicySet
    revision: str
    epoch: int
    loaded_at: float
    names: tuple[str, ...] = ()
    """The policies in it, ``namespace/name`` or ``name``."""


@dataclass(frozen=True, slots=True)
class RulesStatus:
    """For ``/readyz``, metrics and log. ``problems`` are why the set found last is not in force; empty if it is."""

    revision: str | None = None
    epoch: int = 0
    loaded_at: float | None = None
    policies: int = 0
    reloads: int = 0
    failures: int = 0
    problems: tuple[str, ...] = ()
    failed_at: float | None = None


@dataclass(frozen=True, slots=True)
class _Candidate:
    policies: list[Policy]
    revision: str
    epoch: int


class _Watched(ABC):
    """What all sources share: look, read, check, compile off the loop, swap, tell."""

    def __init__(self, interval: float = 0.25, max_bytes: int = MAX_BYTES) -> None:
        self.current: RuleSet | None = None
        self.status = RulesStatus()
        self._quiet = False
        self._interval = interval
        self._max_bytes = max_bytes
        self._subscribers: list[Callable[[], None]] = []
        self._seen: _Fingerprint | None = None
        self._poked = asyncio.Event()
        self._lock = asyncio.Lock()

    def subscribe(self, changed: Callable[[], None]) -> None:
        """``changed`` is called in the loop's thread after each swap."""
        self._subscribers.append(changed)

    def reload(self) -> None:
        """Look now and read even if nothing seems changed (SIGHUP)."""
        self._seen = None
        self._poked.set()

    async def load(self, *, quiet: bool = False) -> RulesStatus:
        """Look once, and load what changed. Raises nothing for a bad set: status and (not if ``quiet``) log say it."""
        self._quiet = quiet
        async with self._lock:
            for _ in range(3):  # what changes while it is read is read again
                fingerprint = self._look()
                if fingerprint == self._seen:
                    break
                await self._load(fingerprint)
        return self.status

    async def watch(self) -> None:
        """Look for changes for ever; cancel it to stop."""
        unsettled: _Fingerprint | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poked.wait(), self._interval)
            self._poked.clear()
            fingerprint = self._look()
            if fingerprint == self._seen:
                unsettled = None
            elif self._is_whole(fingerprint) or fingerprint == unsettled or self._seen is None:
                unsettled = None
                await self.load()
            else:
                unsettled = fingerprint

    async def _load(self, fingerprint: _Fingerprint) -> None:
        problems: list[str] = []
        candidate: _Candidate | None = None
        policies: PolicySet | None = None
        try:
            candidate = await asyncio.to_thread(self._read)
            policies = await asyncio.to_thread(_compile, candidate.policies)
        except (reading.RulesFault, IndexFault, PolicyError) as fault:
            problems = [str(p) for p in fault.problems]
        except OSError as error:
            problems = [f"{error.filename or 'the rules'}: {error.strerror}"]
        except Exception as error:  # a fault of ours must not end the watch: no later set would ever be read
            log.exception("the rules could not be read")
            problems = [f"the rules could not be read: {type(error).__name__}: {error}"]
        if self._look() != fingerprint:
            self._seen = None  # it changed while it was read: what was read, or found wrong, may be a mixture
        elif candidate is not None and policies is not None:
            self._swap(fingerprint, candidate, policies)
        else:
            self._refuse(fingerprint, problems)

    def _swap(self, fingerprint: _Fingerprint, candidate: _Candidate, policies: PolicySet) -> None:
        self._seen = fingerprint
        names = tuple(sorted(_name_of(p) for p in candidate.policies))
        self.current = RuleSet(policies, candidate.revision, candidate.epoch, time.time(), names)
        self.status = replace(
            self.status,
            revision=candidate.revision,
            epoch=candidate.epoch,
            loaded_at=self.current.loaded_at,
            policies=len(names),
            reloads=self.status.reloads + 1,
            problems=(),
            failed_at=None,
        )
        log.info(
            "rules revision %s in force: %s", candidate.revision, ", ".join(names) or "no policy selects this server"
        )
        for changed in self._subscribers:
            try:
                changed()
            except Exception:
                log.exception("a part of the sidecar could not follow the new rules")
        _settle_memory()

    def _refuse(self, fingerprint: _Fingerprint, problems: list[str]) -> None:
        self._seen = fingerprint
        self.status = replace(
            self.status, failures=self.status.failures + 1, problems=tuple(problems), failed_at=time.time()
        )
        if self._quiet:
            return
        kept = (
            f"revision {self.current.revision} stays in force"
            if self.current
            else "none are in force, so everything is denied"
        )
        for problem in problems[:20]:
            log.error("rules refused: %s", problem)
        log.error("rules refused (%d problem%s); %s", len(problems), "s"[: len(problems) != 1], kept)

    @abstractmethod
    def _look(self) -> _Fingerprint:
        """What changes when the rules do. Must be cheap, and never raise."""

    @abstractmethod
    def _is_whole(self, fingerprint: _Fingerprint) -> bool:
        """True if this change can't be half-written, so that it need not rest first."""

    @abstractmethod
    def _read(self) -> _Candidate:
        """Read and check the whole set; in a thread. Raises RulesFault, IndexFault or OSError."""


class FileRules(_Watched):
    """One or several files (YAML or JSON, several documents each): every policy in them applies."""

    def __init__(self, paths: Iterable[str | Path], interval: float = 0.25, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(interval, max_bytes)
        self._paths = tuple(Path(p) for p in paths)

    def _look(self) -> _Fingerprint:
        return tuple(reading.identity(p) for p in self._paths)

    def _is_whole(self, fingerprint: _Fingerprint) -> bool:
        """True if every file that changed is another inode than before: renamed over, complete from the start."""
        before = self._seen
        if before is None or len(before) != len(fingerprint):
            return False
        return all(reading.replaced(b, a) for b, a in zip(before, fingerprint, strict=True) if a != b)

    def _read(self) -> _Candidate:
        return _read_plain(self._paths, self._max_bytes)


class DirectoryRules(_Watched):
    """A directory: with ``index.json`` a mounted ConfigMap (``pod`` picks what applies), without one plain files.

    ``require_index``: in a cluster a directory without index is a lost one. Once an index was seen it is required for
    good. ``labels_file``: the downward API's file of the pod's labels, read again with every look.
    """

    def __init__(
        self,
        path: str | Path,
        interval: float = 0.25,
        max_bytes: int = MAX_BYTES,
        *,
        pod: Pod | None = None,
        labels_file: str | Path | None = None,
        require_index: bool = False,
    ) -> None:
        super().__init__(interval, max_bytes)
        self._path = Path(path)
        self._pod = pod
        self._labels_file = Path(labels_file) if labels_file else None
        self._require_index = require_index

    def _look(self) -> _Fingerprint:
        labels = reading.identity(self._labels_file) if self._labels_file else None
        try:
            return ("link", str((self._path / DATA).readlink()), reading.identity(self._path / DATA), labels)
        except OSError:
            pass
        if self._has_index():
            return ("index", reading.identity(self._path / INDEX), reading.identity(self._path), labels)
        return ("plain", *((str(p), reading.identity(p)) for p in self._plain_files()))

    def _is_whole(self, fingerprint: _Fingerprint) -> bool:
        return fingerprint[0] == "link"

    def _has_index(self) -> bool:
        return (self._path / INDEX).exists()

    def _plain_files(self) -> list[Path]:
        try:
            names = sorted(os.listdir(self._path))  # noqa: PTH208 -- names are all that is needed
        except OSError:
            return []
        return [self._path / n for n in names if n.endswith(SUFFIXES) and not n.startswith(".")]

    def _read(self) -> _Candidate:
        for _ in range(3):  # the kubelet may remove the directory that was just resolved: then there is a newer one
            try:
                handle = os.open(self._path / DATA, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                handle = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return self._read_handle(handle)
            except _Vanished:
                continue
            finally:
                os.close(handle)
        raise reading.RulesFault([reading.fault(self._path, "the directory changes faster than it can be read")])

    def _read_handle(self, handle: int) -> _Candidate:
        budget = self._max_bytes

        def read(name: str) -> bytes:
            nonlocal budget
            raw = reading.read_at(handle, name, budget)
            budget -= len(raw)
            return raw

        try:
            raw_index = read(INDEX)
        except FileNotFoundError:
            if os.fstat(handle).st_nlink == 0:
                raise _Vanished from None
            if self._require_index:
                raise reading.RulesFault(
                    [reading.fault(self._path / INDEX, "is missing: the set of rules is lost")]
                ) from None
            return _read_plain(self._plain_files(), self._max_bytes, self._path)
        index = parse_index(raw_index)
        try:
            manifests = read_manifests(index, read)
        except IndexFault:
            if os.fstat(handle).st_nlink == 0:
                raise _Vanished from None
            raise
        self._require_index = True
        if self.current is not None and index.epoch < self.current.epoch:
            message = (
                f"epoch {index.epoch} is lower than {self.current.epoch}, which is in force: an older operator's set"
            )
            raise reading.RulesFault([reading.fault(INDEX, message)])
        policies: list[tuple[str, Policy]] = []
        problems: list[Problem] = []
        for entry, manifest in manifests:
            policy, found = load_object(dict(manifest), entry.key)
            problems.extend(p for p in found if p.severity == "error")
            if policy is not None:
                policies.append((entry.key, policy))
        problems.extend(duplicates(policies))
        if problems:
            raise reading.RulesFault(problems)
        return _Candidate(select([p for _, p in policies], self._now()), index.revision, index.epoch)

    def _now(self) -> Pod | None:
        if self._pod is None or self._labels_file is None:
            return self._pod
        try:
            return replace(self._pod, now=parse_labels(self._labels_file.read_text("utf-8")))
        except (OSError, ValueError) as error:
            # The labels at admission still select: a file that can't be read never releases the pod.
            log.warning("can't read the pod's labels from %s: %s", self._labels_file, error)
            return self._pod


class _Vanished(Exception):
    pass


def _read_plain(paths: Sequence[Path], max_bytes: int, directory: Path | None = None) -> _Candidate:
    """All policies of some files. No policy at all is a fault: a lost or half-written file is not the wish to allow
    everything.
    """
    policies: list[tuple[str, Policy]] = []
    problems: list[Problem] = []
    content = sha256()
    budget = max_bytes
    for path in paths:
        try:
            raw = reading.read_file(path, budget)
        except OSError as error:
            problems.append(reading.fault(path, f"can't be read: {error.strerror}"))
            continue
        budget -= len(raw)
        content.update(b"%d:" % len(raw) + raw)
        found, faults = load_text(raw, str(path))
        policies.extend((str(path), p) for p in found)
        problems.extend(p for p in faults if p.severity == "error")
    if not policies and not problems:
        where = directory or (paths[0] if paths else Path("the rules"))
        problems.append(
            reading.fault(where, "holds no ToolPolicy; to allow everything say so with defaultAction: Allow")
        )
    problems.extend(p for p in duplicates(policies) if p not in problems)
    if problems:
        raise reading.RulesFault(problems)
    return _Candidate([p for _, p in policies], content.hexdigest()[:12], 0)


def _compile(policies: list[Policy]) -> PolicySet:
    """Compile in this thread, letting the loop's thread in ten times as often as usual: calls go on meanwhile."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 10)
    try:
        return compile_policies(policies)
    finally:
        sys.setswitchinterval(interval)


def _settle_memory() -> None:
    """Take the new set out of the collector's sight: it lives long, and a full collection over it would stall calls.

    The young generations are collected first, so that no passing garbage is frozen with it. The old set is freed by
    reference counts, frozen or not.
    """
    gc.collect(1)
    gc.freeze()


def _name_of(policy: Policy) -> str:
    meta = policy.metadata
    return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name
