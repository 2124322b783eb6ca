"""Pin and hash every ``*.in`` of this folder anew into its ``*.txt``, for every platform and Python from 3.11 on.

Needs ``uv`` (``pip install uv``), which is used for nothing else. No lock file holds the address of an index.
Usage: ``lock.py [NAME…]`` (without names: all sets).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# What others include comes first.
FIRST = ["base", "operator", "dev"]
OPTIONS = ["--generate-hashes", "--universal", "--python-version", "3.11", "--no-header", "--no-annotate", "--quiet"]
# Sets that pin pip itself or build tools, which the resolver leaves out unless told otherwise.
UNSAFE = ["--allow-unsafe"]


def _place(name: str) -> tuple[int, str]:
    return (FIRST.index(name) if name in FIRST else len(FIRST), name)


def main(names: list[str]) -> int:
    uv = shutil.which("uv")
    if uv is None:
        sys.stderr.write("lock.py needs uv: run 'pip install uv' in an environment on the PATH\n")
        return 2
    known = sorted((file.stem for file in FOLDER.glob("*.in")), key=_place)
    unknown = sorted(set(names) - set(known))
    if unknown:
        sys.stderr.write(f"no such set: {', '.join(unknown)}; there are {', '.join(known)}\n")
        return 2
    for name in names or known:
        command = [uv, "pip", "compile", *OPTIONS, *UNSAFE, "--upgrade", f"{name}.in", "-o", f"{name}.txt"]
        if subprocess.run(command, cwd=FOLDER, stdout=subprocess.DEVNULL, check=False).returncode:  # noqa: S603
            return 1
        sys.stdout.write(f"requirements/{name}.txt\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
