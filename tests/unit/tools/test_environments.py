"""The cache of installed sets: built once, never half, and an installation that failed is told and forgotten."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools import environments
from tools.environments import MARKER, InstallError


class Installer:
    """Stands for pip and for the making of an environment; ``runs`` counts both together."""

    def __init__(self, *, fails: int = 0) -> None:
        self.runs = 0
        self.fails = fails

    def create(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "half").touch()

    def run(self, command: Sequence[str], cwd: Path, **_: str) -> None:
        self.runs += 1
        if self.runs <= self.fails:
            raise InstallError(f"{' '.join(command)} failed")
        (cwd / "half").rename(cwd / "whole")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree with one set of requirements, and a cache of its own."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "x.txt").write_text("one==1\n")
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setenv("TOOLPOLICY_CACHE", str(tmp_path / "cache"))
    return tmp_path


def install(monkeypatch: pytest.MonkeyPatch, installer: Installer) -> Installer:
    def builder(**_: object) -> Installer:
        return installer

    monkeypatch.setattr("venv.EnvBuilder", builder)
    monkeypatch.setattr(environments, "_run", installer.run)
    return installer


def test_a_set_is_installed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer = install(monkeypatch, Installer())
    first = environments.venv("x")
    assert environments.venv("x") == first
    assert installer.runs == 1
    assert (first / "whole").exists()


def test_a_changed_lock_is_another_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer = install(monkeypatch, Installer())
    first = environments.venv("x")
    (root / "requirements" / "x.txt").write_text("one==2\n")
    assert environments.venv("x") != first
    assert installer.runs == 2


def test_what_failed_halfway_is_built_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer = install(monkeypatch, Installer(fails=1))
    with pytest.raises(InstallError, match="--require-hashes"):
        environments.venv("x")
    assert not list((root / "cache").glob(f"*/{MARKER}"))
    assert (environments.venv("x") / "whole").exists()
    assert installer.runs == 2


def test_two_at_a_time_install_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer = install(monkeypatch, Installer())
    together = threading.Barrier(2)
    found: list[Path] = []

    def work() -> None:
        together.wait(10)
        found.append(environments.venv("x"))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(set(found)) == 1
    assert len(found) == 2
    assert installer.runs == 1


def test_an_unknown_set_says_how_to_make_one(root: Path) -> None:
    with pytest.raises(InstallError, match=r"requirements/y\.in"):
        environments.venv("y")


def test_a_command_that_fails_shows_its_output(tmp_path: Path) -> None:
    run = environments._run  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(InstallError, match=r"(?s)exit code 3.*no such package"):
        run(["sh", "-c", "echo no such package; exit 3"], cwd=tmp_path)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TOOLPOLICY_CACHE": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/toolpolicy"),
        ({"HOME": "/c"}, "/c/.cache/toolpolicy"),
        ({"TOOLPOLICY_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
    ],
)
def test_where_the_cache_is(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOOLPOLICY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environments.cache_dir() == Path(expected)


REAL = Path(__file__).resolve().parents[3]
LOCKS = sorted((REAL / "requirements").glob("*.txt"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: Path(str(lock)).stem)
def test_a_lock_has_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-", text.replace("    --hash", ""), re.MULTILINE), "an option of pip"
    entries = re.split(r"\n(?=\S)", text.strip())
    assert [entry.split()[0] for entry in entries if not entry.startswith("#") and "--hash=sha256:" not in entry] == []
    assert lock.with_suffix(".in").is_file()


def test_the_lock_of_node_has_hashes_and_no_address() -> None:
    text = (REAL / "tests" / "node" / "package-lock.json").read_text()
    assert '"resolved"' not in text
    assert text.count('"integrity": "sha512-') == text.count('"node_modules/')
