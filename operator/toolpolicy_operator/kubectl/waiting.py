"""``--wait``: asking again until it is so, or the time is up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from toolpolicy.policy.duration import parse_duration

T = TypeVar("T")
DEFAULT = "60s"
INTERVAL = 1.0
"""Seconds from an answer to the next question."""


class WaitCommand(click.Command):
    """``--wait`` takes its value after ``=`` alone, as kubectl's optional values do: a word after it is NAME."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"--wait={DEFAULT}" if each == "--wait" else each for each in args])


def seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """The flag's value in seconds; a click callback."""
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}. For example: --wait=90s") from None


async def until(read: Callable[[], Awaitable[T]], enough: Callable[[T], bool], limit: float | None) -> T:
    """The first answer that is enough, or the last one before ``limit`` seconds are over; None asks once."""
    end = time.monotonic() + (limit or 0.0)
    while True:
        found = await read()
        if enough(found) or time.monotonic() >= end:
            return found
        await asyncio.sleep(min(INTERVAL, max(0.0, end - time.monotonic())))
