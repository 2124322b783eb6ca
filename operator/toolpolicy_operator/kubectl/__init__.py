"""``kubectl toolpolicy``: what policies, pods and rules come to in a cluster, asked with the user's own rights.

A verb is a module here. It reads with plain GET and LIST requests and writes nothing; what the user may not read is
named together with the permission, and left out where the answer does not need it. Exit codes, errors and output are
those of ``toolpolicy`` (``toolpolicy.cli``).
"""

from __future__ import annotations

import sys
from typing import NoReturn

_MISSING = (
    "error: kubectl toolpolicy needs the Python package {name}, which is not installed: "
    "pip install 'toolpolicy[operator]'\n"
)


def main() -> NoReturn:
    """The entry point ``kubectl-toolpolicy``."""
    try:
        from toolpolicy_operator.kubectl.verbs import main as run
    except ModuleNotFoundError as error:
        sys.stderr.write(_MISSING.format(name=error.name))
        sys.exit(2)
    run()
    sys.exit(0)


def complete() -> NoReturn:
    """The entry point ``kubectl_complete-toolpolicy``, which kubectl (1.26 and later) calls for its completion."""
    try:
        from toolpolicy_operator.kubectl.completion import main as run
    except ModuleNotFoundError:
        sys.exit(0)
    run(sys.argv[1:])
    sys.exit(0)
