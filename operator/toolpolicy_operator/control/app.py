"""The routes of the control API. What they answer is documented in ``docs/reference/control-api.md``."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from toolpolicy_operator.control.relay import PATH as RELAY_PATH
from toolpolicy_operator.control.relay import RETRY, Leadership, Relay
from toolpolicy_operator.control.report import MAX_BYTES, Report, ReportFault, parse_report
from toolpolicy_operator.control.reports import Reports
from toolpolicy_operator.control.reviews import Quota, TokenReviews
from toolpolicy_operator.control.tokens import Caller, Refused, bearer

log = logging.getLogger(__name__)

REPORT_PATH = "/v1/report"
NEXT_SECONDS = 60.0
"""When a sidecar is asked to report again at the latest."""
READ_SECONDS = 5.0
PER_POD = 60
"""Reports of one pod in :data:`PER_POD_SECONDS`."""
PER_POD_SECONDS = 60.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ControlApi:
    """Takes sidecars' reports, on whatever replica, into the ``reports`` of the Lease's holder.

    ``sidecars`` reviews tokens of pods, ``operators`` those of other replicas, whose ServiceAccount must be
    ``operator`` (``namespace/name``).
    """

    def __init__(
        self,
        *,
        sidecars: TokenReviews,
        operators: TokenReviews,
        operator: str,
        reports: Reports,
        leadership: Leadership,
        relay: Relay,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sidecars = sidecars
        self._operators = operators
        self._operator = operator
        self._reports = reports
        self._leadership = leadership
        self._relay = relay
        self._quota = Quota(PER_POD, PER_POD_SECONDS, clock)
        self.answers: Counter[int] = Counter()
        """Answers by HTTP status, for the metrics."""

    def routes(self) -> list[web.AbstractRouteDef]:
        """For the server's control listener."""
        return [
            web.post(REPORT_PATH, self._answering(self._report)),
            web.post(RELAY_PATH, self._answering(self._relayed)),
        ]

    async def close(self) -> None:
        await self._sidecars.close()
        await self._operators.close()
        await self._relay.close()

    # For the metrics

    def reviews(self) -> dict[str, int]:
        """TokenReviews by outcome."""
        both = (self._sidecars, self._operators)
        return {
            "asked": sum(one.asked for one in both),
            "failed": sum(one.failed for one in both),
            "sent_away": sum(one.sent_away for one in both),
        }

    def relayed(self) -> dict[str, int]:
        """Reports that went to the Lease's holder, and those that could not."""
        return {"passed": self._relay.passed, "failed": self._relay.failed}

    def held(self) -> int:
        """Pods whose last report is known."""
        return len(self._reports)

    def _answering(self, handler: Handler) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                response = await handler(request)
            except Refused as refused:
                response = refusal(refused)
            self.answers[response.status] += 1
            return response

        return answer

    async def _report(self, request: web.Request) -> web.StreamResponse:
        caller = await self._sidecars.caller(bearer(request.headers.get("Authorization")), request.remote or "")
        if not caller.pod_uid:
            message = "the token is bound to no pod: a sidecar reports with the projected token of its own pod"
            raise Refused(403, "Forbidden", message)
        if left := self._quota.left(caller.pod_uid):
            raise Refused(429, "TooManyRequests", f"more than {PER_POD} reports a minute of one pod", left)
        self._quota.count(caller.pod_uid)
        body, report = await read_report(request)
        own_pod(report, caller)
        if self._leadership.leading:
            self._reports.put(report)
        else:
            await self._relay.pass_on(body)
        return _json(200, {"next": NEXT_SECONDS})

    async def _relayed(self, request: web.Request) -> web.StreamResponse:
        caller = await self._operators.caller(bearer(request.headers.get("Authorization")), request.remote or "")
        if f"{caller.namespace}/{caller.service_account}" != self._operator:
            raise Refused(403, "Forbidden", "only another replica of the operator may relay reports")
        _, report = await read_report(request)
        if not self._leadership.leading:
            raise Refused(503, "ServiceUnavailable", "this replica does not hold the Lease", RETRY)
        self._reports.put(report)
        return _json(200, {"next": NEXT_SECONDS})


def own_pod(report: Report, caller: Caller) -> None:
    """The pod that a report names must be its token's. Raises :class:`Refused` (403)."""
    said, proved = report.pod, caller
    if (said.namespace, said.name, said.uid) != (proved.namespace, proved.pod_name, proved.pod_uid):
        log.warning(
            "refused a report of pod %s/%s (%s) with the token of pod %s/%s (%s)",
            said.namespace, said.name, said.uid, proved.namespace, proved.pod_name, proved.pod_uid,
        )  # fmt: skip
        raise Refused(
            403,
            "Forbidden",
            f"the report names the pod {said.namespace}/{said.name} ({said.uid}), the token is that of "
            f"{proved.namespace}/{proved.pod_name} ({proved.pod_uid}): a sidecar reports for its own pod only",
        )


async def read_report(request: web.Request) -> tuple[bytes, Report]:
    """The body and the report in it. Raises :class:`Refused`: 400, 408, 411, 413."""
    length = request.content_length
    if length is None:
        raise Refused(411, "LengthRequired", "a report needs a Content-Length")
    if length > MAX_BYTES:
        raise Refused(413, "RequestEntityTooLarge", f"a report has at most {MAX_BYTES} bytes")
    try:
        async with asyncio.timeout(READ_SECONDS):
            body = await request.read()
    except TimeoutError:
        raise Refused(408, "Timeout", f"the body did not arrive within {READ_SECONDS:.0f} s") from None
    try:
        return body, parse_report(body)
    except ReportFault as fault:
        raise Refused(400, "BadRequest", f"the body is no report: {fault}") from None


def refusal(refused: Refused) -> web.Response:
    """A Status object; 429 and 503 say when to come back, spread over a second."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": refused.status}
    headers: dict[str, str] = {}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(refused.retry_after + random.random())))  # noqa: S311 - no secret
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _json(refused.status, {**body, "reason": refused.reason, "message": refused.message}, headers)


def _json(status: int, value: Any, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        text=json.dumps(value),
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )
