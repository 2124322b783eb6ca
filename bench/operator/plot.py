"""Draws how long edits took, from the quickest to the slowest, as an SVG."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, TOP = 560, 220, 60, 30
TARGET = 2.0
TITLE = "from an edit to the last pod touched: share of edits by seconds"


def plot(seconds: Sequence[float]) -> str:
    """``seconds`` from apply to the last pod touched; the share of edits that took no longer, over the time."""
    ordered = sorted(seconds)
    most = max(TARGET * 1.1, ordered[-1])

    def x(value: float) -> float:
        return LEFT + value / most * WIDTH

    def y(share: float) -> float:
        return TOP + HEIGHT * (1 - share)

    line = " ".join(f"{x(s):.1f},{y((n + 1) / len(ordered)):.1f}" for n, s in enumerate(ordered))
    steps = [0.5 * n for n in range(int(most / 0.5) + 1)]
    parts = [
        f'<text x="{LEFT}" y="18" font-weight="bold">{TITLE}</text>',
        *(f'<text x="{x(s):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{s:g}</text>' for s in steps),
        *(f'<text x="{LEFT - 8}" y="{y(s) + 4:.1f}" text-anchor="end">{s:.0%}</text>' for s in (0.5, 0.99)),
        *(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(s):.1f}" y2="{y(s):.1f}" stroke="#ddd"/>'
            for s in (0.5, 0.99)
        ),
        f'<line x1="{x(TARGET):.1f}" x2="{x(TARGET):.1f}" y1="{TOP}" y2="{TOP + HEIGHT}" stroke="#c33"/>',
        f'<text x="{x(TARGET) - 6:.1f}" y="{TOP + HEIGHT - 8}" text-anchor="end" fill="#c33">target of the p99</text>',
        f'<polyline points="{line}" fill="none" stroke="#e07a3f" stroke-width="2"/>',
    ]
    size = f'width="{LEFT + WIDTH + 30}" height="{TOP + HEIGHT + 34}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"
