"""Draws a summary of ``run.py`` as an SVG: one row of bars a figure, each relative to the largest of its row."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

FIGURES = [
    ("rps_32_clients", "requests a second, 32 clients", "more is better"),
    ("p50_added_us_1_client", "added p50 at 1 client, µs", "less is better"),
    ("p99_us_32_clients", "p99 at 32 clients, µs", "less is better"),
    ("cpu_us_per_request_32_clients", "CPU per request at 32 clients, µs", "less is better"),
    ("rps_big_32_clients", "100 KB answers a second, 32 clients", "more is better"),
    ("sse_10_events_added_us", "added by a 10-event stream, µs", "less is better"),
    ("rss_mib_32_clients", "resident memory, MiB", "less is better"),
]
COLOURS = {"direct": "#9aa5b1", "go-proxy": "#5b8def", "pass-through": "#7bc4a4", "sidecar": "#e07a3f"}
BAR, GAP, LEFT, WIDTH = 16, 30, 130, 460


def chart(summary: dict[str, Any]) -> str:
    """SVG text. ``summary`` maps a figure to a number per system."""
    parts: list[str] = []
    y = 24
    for key, title, sense in FIGURES:
        row: dict[str, float] = {name: summary[key][name] for name in COLOURS if summary[key].get(name, 0) > 0}
        parts.append(
            f'<text x="8" y="{y}" font-weight="bold">{escape(title)} <tspan fill="#777">({sense})</tspan></text>'
        )
        y += 8
        top = max(row.values())
        for name, value in row.items():
            length = max(1.0, value / top * WIDTH)
            parts.append(f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 3}" fill="{COLOURS[name]}"/>')
            parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 12}">{value:,.0f}</text>')
            y += BAR
        y += GAP
    size = f'width="{LEFT + WIDTH + 90}" height="{y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"
