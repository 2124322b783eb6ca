"""What every Python client does, whichever library it is: one step after the other, each reported as a JSON line.

A library comes in as two functions: ``names()`` lists the tools, ``call(name, arguments, progress)`` calls one and
returns (text, is an error). Nothing here waits for a time: a step goes on when the server says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

Progress = Callable[[float], None]
Names = Callable[[], Awaitable[list[str]]]
Call = Callable[[str, dict[str, Any], Progress | None], Awaitable[tuple[str, bool]]]


def report(step: str, **found: Any) -> None:
    """One line for the test to read."""
    sys.stdout.write(json.dumps({"step": step, **found}) + "\n")
    sys.stdout.flush()


async def run(names: Names, call: Call, *, resumes: bool) -> None:
    """All steps. ``resumes``: the revision in use has resumable streams."""
    report("list", tools=await names())
    report("allow", answer=await call("get_sum", {"a": 1, "b": 2}, None))
    report("deny", answer=await call("delete_everything", {}, None))
    report("limit", answers=[await call("echo", {"value": "ok"}, None) for _ in range(3)])
    await stream(call)
    await cancel(call)
    if resumes:
        report("resume", answer=await call("test_reconnection", {}, None))
    report("end")


async def stream(call: Call) -> None:
    """The first notification must arrive while the call runs: only then does the test open the gate."""
    seen: list[float] = []

    def progress(value: float) -> None:
        seen.append(value)
        report("stream-waits", progress=value)

    answer = await call("wait_for_gate", {"gate": "stream"}, progress)
    report("stream", answer=answer, progress=seen)


async def cancel(call: Call) -> None:
    """Give up a running call; the test looks at the server for the cancellation."""
    running = asyncio.Event()
    task = asyncio.ensure_future(call("wait_for_gate", {"gate": "cancel"}, lambda _: running.set()))
    await running.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    report("cancel")
