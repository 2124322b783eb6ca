"""Container images without an engine: layers as tar files, and the OCI archive that containerd imports.

Three images share one Debian layer: the sidecar, a real MCP server with a client, and the pause image of pods. Layers
are cached by what they are made from; only the layer with our own package is made anew for every run, in a second.

usage: python -m cluster.images FOLDER     writes sidecar.tar, mcp.tar and pause.tar, for a cluster of one's own
"""

from __future__ import annotations

import compileall
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

from tools import environments
from tools.environments import InstallError

SIDECAR = "toolpolicy.test/sidecar:dev"
MCP = "toolpolicy.test/mcp:dev"
PAUSE = "toolpolicy.test/pause:1"
PYTHON = (3, 11)
"""Debian bookworm's, which the wheels in the images are chosen for."""
SUITE = "bookworm"
BUSYBOX = (
    "sh",
    "ls",
    "cat",
    "sleep",
    "nc",
    "id",
    "env",
    "mkdir",
    "touch",
    "head",
    "ps",
    "kill",
    "ip",
    "grep",
    "netstat",
)
USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\nsidecar:x:15771:15771::/:/bin/sh\n"
GROUPS = "root:x:0:\nnogroup:x:65534:\nsidecar:x:15771:\n"
LIBRARIES, OWN = "opt/libraries", "opt/toolpolicy"
BUILD_TIMEOUT = 900.0
DEBIAN = Path(__file__).resolve().parent / "config" / "debian.txt"
"""Debian packages: dependencies are spelt out, since they are only extracted; nothing resolves or configures them."""


@dataclass(frozen=True)
class Image:
    """What an archive holds."""

    name: str
    entrypoint: Sequence[str]
    layers: Sequence[Path]
    user: str = ""
    python_path: str = ""


def write_all(folder: Path) -> dict[str, Path]:
    """Write the archive of every image; by name."""
    folder.mkdir(parents=True, exist_ok=True)
    debian, system = _debian_layer(), _system_layer()
    own = _own_layer(folder / "own-layer.tar")
    probe = layer_of(folder / "mcp-layer.tar", {"opt/mcp": environments.ROOT / "tests" / "fixtures" / "pods"})
    path = f"/{OWN}:/{LIBRARIES}"
    images = (
        Image(
            SIDECAR,
            ["python3", "-m", "toolpolicy.sidecar"],
            [debian, system, _library_layer("base"), own],
            user="15771:15771",
            python_path=path,
        ),
        Image(MCP, ["python3"], [debian, system, _library_layer("test-mcp1"), probe], python_path=path),
        Image(PAUSE, ["/busybox", "sleep", "2147483647"], [_pause_layer()]),
    )
    archives: dict[str, Path] = {}
    for image in images:
        archives[image.name] = folder / f"{image.name.split('/')[1].split(':')[0]}.tar"
        write_archive(archives[image.name], image)
    for layer in (own, probe):
        layer.unlink()
    return archives


def prepare() -> None:
    """Fill the cache, which takes a minute the first time."""
    for layer in (_debian_layer, _system_layer, _pause_layer):
        layer()
    for name in ("base", "test-mcp1"):
        _library_layer(name)


def write_archive(target: Path, image: Image) -> None:
    """Write the OCI image layout of ``image`` as a tar."""
    with tarfile.open(target, "w") as tar:
        _put(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        layers = [_blob(tar, layer.read_bytes(), "layer.v1.tar") for layer in image.layers]
        config: dict[str, Any] = {
            "Entrypoint": list(image.entrypoint),
            "Env": [
                "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
                "PYTHONDONTWRITEBYTECODE=1",
                "PYTHONUNBUFFERED=1",
                *([f"PYTHONPATH={image.python_path}"] if image.python_path else []),
            ],
        }
        if image.user:
            config["User"] = image.user
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        document = {
            "architecture": machine,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
        described = _blob(tar, json.dumps(document).encode(), "config.v1+json")
        content = {"schemaVersion": 2, "mediaType": _media("manifest.v1+json"), "config": described, "layers": layers}
        manifest = _blob(tar, json.dumps(content).encode(), "manifest.v1+json")
        index = {**manifest, "annotations": {"io.containerd.image.name": image.name}}
        _put(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [index]}).encode())


def layer_of(target: Path, folders: Mapping[str, Path]) -> Path:
    """A layer with each folder at its place; owned by root, of no date, so that the same content is the same layer."""
    with tarfile.open(target, "w") as tar:
        for place, folder in folders.items():
            tar.add(folder, place, filter=_plain)
    return target


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def _debian_layer() -> Path:
    """Debian's Python, nft and busybox, extracted by mmdebstrap."""
    target = environments.cache_dir() / f"image-{SUITE}-{environments.digest(DEBIAN)}"
    with environments.building(target) as missing:
        if missing:
            environments.say("extracting Debian packages for test images (once)")
            target.mkdir(parents=True)
            command = [
                "mmdebstrap",
                "--quiet",
                "--variant=extract",
                f"--include={','.join(DEBIAN.read_text().split())}",
                SUITE,
            ]
            done = subprocess.run(
                [*command, str(target / "layer.tar")],
                capture_output=True,
                text=True,
                timeout=BUILD_TIMEOUT,
                check=False,
            )
            if done.returncode:
                raise InstallError(f"mmdebstrap failed:\n{done.stderr[-2000:]}")
    return target / "layer.tar"


def _system_layer() -> Path:
    """What the packages' own scripts would have set up."""
    target = environments.cache_dir() / f"image-system-{environments.digest(Path(__file__))}"
    with environments.building(target) as missing, tempfile.TemporaryDirectory() as scratch:
        if missing:
            target.mkdir(parents=True)
            root = Path(scratch)
            for folder in ("bin", "usr/bin", "etc", "tmp", "root"):
                (root / folder).mkdir(parents=True)
            (root / "tmp").chmod(0o1777)
            # Not merged-usr: extracted packages keep /bin, where busybox is.
            for tool in BUSYBOX:
                (root / "bin" / tool).symlink_to("busybox")
            (root / "usr/bin/python3").symlink_to("python3.11")
            (root / "etc/passwd").write_text(USERS)
            (root / "etc/group").write_text(GROUPS)
            layer_of(target / "layer.tar", {folder: root / folder for folder in ("bin", "usr", "etc", "tmp", "root")})
    return target / "layer.tar"


def _library_layer(name: str) -> Path:
    """The wheels of ``requirements/NAME.txt``, compiled: a container that writes no bytecode would do it each start."""
    libraries = environments.packages(name, PYTHON)
    target = environments.cache_dir() / f"image-{libraries.parent.name}"
    with environments.building(target) as missing:
        if missing:
            target.mkdir(parents=True)
            _compile(libraries)
            layer_of(target / "layer.tar", {LIBRARIES: libraries})
    return target / "layer.tar"


def _pause_layer() -> Path:
    target = environments.cache_dir() / "image-pause"
    with environments.building(target) as missing:
        if missing:
            target.mkdir(parents=True)
            with tarfile.open(target / "layer.tar", "w") as tar:
                tar.add(shutil.which("busybox") or "/bin/busybox", "busybox", filter=_plain)
    return target / "layer.tar"


def _own_layer(target: Path) -> Path:
    """Our own package as the source tree has it now."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        shutil.copytree(environments.ROOT / "sidecar", tree, ignore=shutil.ignore_patterns("__pycache__"))
        _compile(tree)
        return layer_of(target, {OWN: tree})


def _compile(folder: Path) -> None:
    """Bytecode that needs no check against its source; by a Python of another version none is made."""
    if sys.version_info[:2] == PYTHON:
        mode = PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(folder, quiet=2, force=True, invalidation_mode=mode, workers=os.cpu_count() or 1)


def _blob(tar: tarfile.TarFile, data: bytes, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    _put(tar, f"blobs/sha256/{digest}", data)
    return {"mediaType": _media(kind), "digest": f"sha256:{digest}", "size": len(data)}


def _media(kind: str) -> str:
    return f"application/vnd.oci.image.{kind}"


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    for name, archive in write_all(Path(sys.argv[1])).items():
        print(f"{archive}\t{name}")
