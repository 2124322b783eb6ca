"""The way of a report to the operator: over TLS, as the pod's own ServiceAccount, for as long as the sidecar runs.

Nothing of a call depends on it: the operator being away shows in the detail of ``/readyz``, in the metrics and in the
log, and changes no decision. The operator decides when to come back (``next``, ``Retry-After``); the sidecar adds
jitter, so that a thousand of them never stay in step. Token and CA are files that the kubelet renews: the token is read
for every report, the CA whenever its file is another one. A connection serves one report: the next may find another
replica, or another certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import ssl
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import aiohttp

from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.settings import Settings

log = logging.getLogger(__name__)

PATH = "/v1/report"
LONGEST = 60.0
"""Seconds between two reports at the most; the operator counts on it."""
SHORTEST = 1.0
FIRST_RETRY = 1.0
SPREAD = 0.25
"""Seconds over which sidecars that got the same rules at the same moment spread their reports."""
TIMEOUT = 10.0
LONGEST_PAUSE = 300.0
"""The most of a Retry-After that is heeded."""
MAX_ANSWER = 64 * 1024
_LOOK = 1.0


class Reports(Protocol):
    """What is to be sent. ``urgent`` changes with what must not wait."""

    def compose(self) -> bytes: ...
    def urgent(self) -> object: ...


class _Failed(Exception):
    """A report that was not taken: ``result`` for the metric, ``pause`` in seconds where the operator says it."""

    def __init__(self, result: str, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.result, self.pause = result, pause


class ControlClient:
    """Sends reports until it is closed. ``clock`` is monotonic."""

    def __init__(self, settings: Settings, reports: Reports, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = settings.control_url.rstrip("/") + PATH
        self._token_file = Path(settings.control_token_file)
        self._ca_file = Path(settings.control_ca_file)
        self._reports = reports
        self._clock = clock
        self._poked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._trusted: tuple[object, ssl.SSLContext] | None = None
        self._sent: object = None
        self._not_before = 0.0
        self.results: Counter[str] = Counter()
        """Reports by what became of them: ``taken``, ``refused``, ``busy``, ``failed``."""
        self.taken_at: float | None = None
        """When the operator took the last one, in unix seconds."""
        self.failures = 0
        """In a row."""
        self.last_error = ""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def poke(self) -> None:
        """Report soon: something changed."""
        self._poked.set()

    def note(self) -> str | None:
        """For ``/readyz``: what is wrong, if it is more than a hiccup."""
        if self.failures < 2:
            return None
        return f"the operator does not take this pod's reports (rules stay enforced): {self.last_error}"

    def view(self) -> dict[str, Any]:
        """For ``/status``."""
        return {"takenAt": self.taken_at, "failures": self.failures, "lastError": self.last_error}

    async def _run(self) -> None:
        connector = aiohttp.TCPConnector(limit=1, force_close=True)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            pause = random.uniform(0, SPREAD)  # noqa: S311 - spreads load
            while True:
                await self._wait(self._clock() + pause)
                pause = await self._report(session)

    async def _wait(self, until: float) -> None:
        """Until then; earlier, but not before the operator wants to be asked, if something urgent changes."""
        hurried = False
        while (left := until - self._clock()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poked.wait(), left if hurried else min(_LOOK, left))
            urgent = self._poked.is_set() or self._reports.urgent() != self._sent
            self._poked.clear()
            if urgent and not hurried:
                hurried = True
                soon = self._clock() + random.uniform(0, SPREAD)  # noqa: S311 - spreads load
                until = min(until, max(soon, self._not_before))

    async def _report(self, session: aiohttp.ClientSession) -> float:
        """Send one; the seconds until the next."""
        self._sent = self._reports.urgent()
        try:
            following = await self._send(session)
        except _Failed as failed:
            return self._note_failure(failed)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return self._note_failure(_Failed("failed", _say(error)))
        if self.failures >= 2:
            log.info("the operator takes this pod's reports again")
        self.results["taken"] += 1
        self.taken_at = time.time()
        self.failures = 0
        self.last_error = ""
        self._not_before = 0.0
        return random.uniform(0.75, 1.0) * following  # noqa: S311 - spreads load

    async def _send(self, session: aiohttp.ClientSession) -> float:
        token = self._token_file.read_text("ascii").strip()
        async with session.post(
            self._url,
            data=self._reports.compose(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            ssl=self._context(),
            allow_redirects=False,
        ) as answer:
            body = await answer.content.read(MAX_ANSWER)
            if answer.status != 200:
                result = {429: "busy", 503: "busy"}.get(answer.status, "refused")
                pause = _seconds(answer.headers.get("Retry-After", ""))
                raise _Failed(result, f"{answer.status} {_message(body)}", pause)
        return _next(body)

    def _context(self) -> ssl.SSLContext:
        """What the operator's certificate is checked against: the CA file as it is now."""
        found = self._ca_file.stat()
        identity = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        if self._trusted is None or self._trusted[0] != identity:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_verify_locations(cafile=str(self._ca_file))
            self._trusted = (identity, context)
        return self._trusted[1]

    def _note_failure(self, failed: _Failed) -> float:
        self.results[failed.result] += 1
        self.failures += 1
        message = str(failed)
        # The first failure is a hiccup; the second is said, and then only what is new.
        said = self.failures == 2 or (self.failures > 2 and message != self.last_error)
        level = logging.WARNING if said else logging.DEBUG
        log.log(level, "the operator did not take this pod's report (rules stay enforced): %s", message)
        self.last_error = message
        if failed.pause is not None:
            pause = failed.pause + random.uniform(0, 1 + failed.pause / 10)  # noqa: S311 - spreads load
        else:
            most = min(LONGEST, FIRST_RETRY * 2 ** min(self.failures - 1, 10))
            pause = random.uniform(most / 2, most)  # noqa: S311 - spreads load
        self._not_before = self._clock() + pause
        return pause


def describe(metrics: Metrics, client: ControlClient) -> None:
    """Let the metrics read what became of the reports."""
    metrics.counter_by(
        "control_reports", "Reports to the operator, by what became of them.", "result", lambda: dict(client.results)
    )
    metrics.gauge("control_failures", "Reports in a row that the operator did not take.", lambda: client.failures)
    metrics.gauge(
        "control_last_report_timestamp_seconds", "When the operator took the last one.", lambda: client.taken_at or 0
    )


def _next(body: bytes) -> float:
    """When the operator wants the next report; anything it says beside that is a newer operator's."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise _Failed("failed", "200 with an answer that is not JSON") from None
    said: Any = cast("dict[str, Any]", answer).get("next") if isinstance(answer, dict) else None
    if not isinstance(said, int | float) or isinstance(said, bool):
        return LONGEST
    return max(SHORTEST, min(LONGEST, float(said)))


def _seconds(text: str) -> float | None:
    """A Retry-After in seconds; its other form, a date, is not used by the operator."""
    return min(float(text), LONGEST_PAUSE) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _message(body: bytes) -> str:
    """The message of a Status object, or the beginning of whatever came instead."""
    text = body[:300].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        status = json.loads(body)
        if isinstance(status, dict):
            text = str(cast("dict[str, Any]", status).get("message", ""))[:300]
    return "".join(c if c.isprintable() else " " for c in text)


def _say(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:.0f} s"
    return f"{type(error).__name__}: {error}"[:300]
