"""Compile the way of a call to C with mypyc: the same source, typed strictly anyhow, as extension modules beside it.

    python tools/compiled.py OUT

OUT becomes a copy of ``sidecar/`` whose modules of :data:`MODULES` also exist as shared libraries, which Python
prefers to the source. Put it on ``PYTHONPATH``, or into an image's ``site-packages`` in place of the plain package.
Nothing needs it: without a C compiler the package runs as it is, only slower. Needs ``requirements/build.txt``.

Traps: a compiled module's ``Final`` values are constants, and a type that is broken at run time is a TypeError where
interpreted code would go on, so the tests run on the compiled build, too (``make test-compiled``).
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# The compiler is not among what is installed for development.

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from mypyc.build import mypycify
from setuptools import Distribution
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "sidecar"

MODULES = {
    "mcp": "envelope headers lookalikes methods paths revisions sse values",
    "policy": "bounded cel compile compiled decide evaluation hazards limits plan",
    "sidecar": "canonical case exchange gate head judge lens metrics outbox pool requests sessions streams upstream "
    "wiring",
    "sidecar/audit": "chain log",
    "sidecar/identity": "request",
    "sidecar/state": "memory",
}
"""By folder of ``toolpolicy``: what runs for every call. The rest gains nothing, is subclassed, or is not for mypyc
(pydantic models, slots on a class of aiohttp's)."""


def sources() -> list[str]:
    """The modules' files, relative to ``sidecar/``."""
    return [f"toolpolicy/{folder}/{name}.py" for folder, names in MODULES.items() for name in names.split()]


def build(target: Path) -> None:
    """Fill ``target`` anew. Raises SystemExit where mypyc refuses something."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info"))
    before = Path.cwd()
    os.chdir(target)  # mypyc names modules by their path from here
    try:
        options = ["--config-file", str(Path(__file__).with_name("mypyc.ini"))]
        extensions: Any = mypycify([*options, *sources()], opt_level="3", debug_level="0", target_dir=".build")
        command = build_ext(Distribution({"name": "toolpolicy", "ext_modules": extensions, "packages": []}))
        command.build_lib, command.build_temp = ".", ".build"
        command.parallel = os.cpu_count()
        command.ensure_finalized()
        command.run()
    finally:
        os.chdir(before)
        shutil.rmtree(target / ".build", ignore_errors=True)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python tools/compiled.py OUT\n")
        return 2
    build(Path(arguments[0]).resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
