"""The rules directory changes under the sidecar as the kubelet changes it, is emptied, or turns bad."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bypass.vectors.build import DELETE
from faults.common import ask, is_denied, policy
from support.processes import ProgramError
from support.servers import Server, stack
from support.sidecar import Sidecar

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]

REASON = "nothing is deleted here"


def reload(sidecar: Sidecar, found: str) -> None:
    """Wait until ``/readyz`` mentions ``found``."""
    sidecar.wait_until(lambda: found in sidecar.admin("/readyz")[1], f"{found!r} in /readyz", 10)


class Volume:
    """A mounted ConfigMap: files are links into ``..data``, which is a link to a folder with the time in its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def swap(self, files: dict[str, str]) -> None:
        """Replace everything, in the kubelet's own order: new folder, link renamed over, old folder removed."""
        self._count += 1
        fresh = self.folder / f"..2026_11_22_16_00_{self._count:02}.{self._count}"
        fresh.mkdir(mode=0o755)
        for name, content in files.items():
            (fresh / name).write_text(content)
        data = self.folder / "..data"
        old = data.resolve() if data.is_symlink() else None
        pending = self.folder / "..data_tmp"
        pending.symlink_to(fresh.name)
        pending.rename(data)
        for name in files:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        for link in self.folder.iterdir():
            if link.is_symlink() and not link.name.startswith("..") and link.name not in files:
                link.unlink()
        if old is not None:
            shutil.rmtree(old)


def index(manifest: str, epoch: int, *, digest: str | None = None) -> dict[str, str]:
    """The files of a ConfigMap with one policy."""
    parsed: dict[str, Any] = yaml.safe_load(manifest)
    parsed["metadata"] |= {"namespace": "agents", "uid": "u-1", "generation": epoch}
    text = json.dumps(parsed)
    entry = {
        "digest": digest or f"sha256:{hashlib.sha256(text.encode()).hexdigest()}",
        "kind": "ToolPolicy",
        "namespace": "agents",
        "name": parsed["metadata"]["name"],
        "uid": "u-1",
        "generation": epoch,
    }
    head = {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "RulesIndex",
        "epoch": epoch,
        "revision": f"{epoch}-1",
        "policies": {"agents.policy.json": entry},
    }
    return {"index.json": json.dumps(head), "agents.policy.json": text}


@pytest.fixture(scope="module")
def server() -> Any:
    with stack("plain") as running:
        yield running


def test_a_swapped_volume_is_obeyed_at_the_next_call(server: Server, tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    volume.swap(index(policy(default="Allow"), 1))
    with Sidecar(tmp_path, server.url) as sidecar:
        assert ask(sidecar, "echo").status == 200
        assert is_denied(ask(sidecar, DELETE), REASON)
        volume.swap(index(policy(default="Deny"), 2))
        reload(sidecar, "2-1")
        assert ask(sidecar, "echo").json()["result"]["isError"]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param({}, id="emptied"),
        pytest.param({"index.json": "{"}, id="no-json"),
        pytest.param(index(policy(), 1), id="lower-epoch"),
        pytest.param(index(policy(), 3, digest="sha256:" + "0" * 64), id="wrong-digest"),
        pytest.param({"index.json": index(policy(), 3)["index.json"]}, id="policy-missing"),
        pytest.param(index(policy().replace("rules:", "rulez:"), 3), id="unknown-field"),
    ],
)
def test_a_set_that_is_lost_or_bad_keeps_the_last_good_one(server: Server, tmp_path: Path, bad: dict[str, str]) -> None:
    volume = Volume(tmp_path)
    volume.swap(index(policy(), 2))
    before = server.executed(DELETE)
    with Sidecar(tmp_path, server.url) as sidecar:
        assert is_denied(ask(sidecar, DELETE), REASON)
        volume.swap(bad)
        reload(sidecar, "the newest rules were refused")
        assert is_denied(ask(sidecar, DELETE), REASON)
        assert ask(sidecar, "echo").status == 200
        assert sidecar.admin("/readyz")[0] == 200
        volume.swap(index(policy(default="Deny"), 4))
        reload(sidecar, "4-1")
        assert ask(sidecar, "echo").json()["result"]["isError"], "a later good set is taken"
    assert server.executed(DELETE) == before


def test_a_plain_directory_that_is_emptied_keeps_the_last_good_set(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(policy())
    with Sidecar(tmp_path, server.url) as sidecar:
        file.unlink()
        reload(sidecar, "the newest rules were refused")
        assert is_denied(ask(sidecar, DELETE), REASON)


def test_a_directory_without_rules_is_refused_at_the_start(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="ended with 2"):
        Sidecar(tmp_path, server.url)


def test_an_edited_file_keeps_the_counters(server: Server) -> None:
    with Sidecar(policy(), server.url) as sidecar:
        assert not is_denied(ask(sidecar, "once"), "")
        assert is_denied(ask(sidecar, "once"), "limit")
        sidecar.policy.write_text(policy(default="Deny"))
        sidecar.wait_until(lambda: ask(sidecar, "echo").json()["result"].get("isError"), "the new rules", 10)
        assert is_denied(ask(sidecar, "once"), "limit")
