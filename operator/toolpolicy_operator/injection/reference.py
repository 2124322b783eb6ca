"""The truth table as Markdown: ``python -m toolpolicy_operator.injection.reference`` writes it into
``docs/reference/injection.md``."""

from __future__ import annotations

import sys
from pathlib import Path

from toolpolicy_operator.injection.eligibility import OTHER_REASONS, TABLE, Effect

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
_EFFECTS = {
    Effect.LEAVE: "admitted as it is",
    Effect.PROTECT: "refused, or admitted unprotected where `ineligible: Warn`",
    Effect.REFUSE: "refused",
    Effect.INJECT: "injected",
}


def table() -> str:
    rows = [f"| `{row.reason}` | {row.when} | {_EFFECTS[row.effect]} |" for row in TABLE]
    others = [f"| `{reason}` | {meaning} |" for reason, meaning in OTHER_REASONS]
    return "\n".join(
        [
            "| reason | when | what becomes of the pod |",
            "|---|---|---|",
            *rows,
            "",
            "Two more reasons are not of this table:",
            "",
            "| reason | meaning |",
            "|---|---|",
            *others,
        ]
    )


def updated(page: str) -> str:
    """The page with the table as it is now. Raises ValueError if it has no place for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(path: str = "docs/reference/injection.md") -> None:
    file = Path(path)
    file.write_text(updated(file.read_text()))


if __name__ == "__main__":
    main(*sys.argv[1:2])
