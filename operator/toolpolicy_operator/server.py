"""What the operator serves: the admission webhooks and the control API over TLS, each on a port of its own so that a
flood of one does not delay the other, and health and metrics in plain HTTP on a third.

A webhook answers every request it can read with an AdmissionReview (admission.k8s.io/v1), its own failures included:
``allowed: false`` and a message that says what to do, because what the API server says of a broken answer ("failed
calling webhook") helps nobody. A body that is no review is answered with a ``Status`` object. The port is reachable by
pods, too: bodies, their sum, connections and times are bounded, and nothing is done for a request but to answer it.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, cast
from uuid import uuid4

from aiohttp import web

from toolpolicy_operator.listener import Listener
from toolpolicy_operator.tls import ReloadingContext

log = logging.getLogger(__name__)

Review = dict[str, Any]
ReviewHandler = Callable[[Review], Review | Awaitable[Review]]
"""AdmissionReview with a request in, AdmissionReview with a response out."""
Readiness = Callable[[], tuple[bool, dict[str, Any]]]
Rendered = tuple[bytes, str]

MAX_REVIEW = 6 * 1024 * 1024
"""Bytes of an admission review: the API server's own limit of a request, 3 MiB, for the object and as much for the old
one."""
MAX_CONTROL = 256 * 1024
MAX_READING = 48 * 1024 * 1024
"""Bytes of all bodies that are being read or judged."""
READ_SECONDS = 5.0
DEADLINE_SECONDS = 4.5
"""The webhooks' timeout is 5 s; an answer after it helps nobody. The API server says its own with ``?timeout=``."""


class _Refused(Exception):
    """A request that is answered by its HTTP status and a message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


@dataclass(slots=True)
class Budget:
    """Bytes that all requests together may hold; :meth:`take` refuses what would pass them."""

    most: int = MAX_READING
    held: int = 0

    def take(self, size: int) -> None:
        if self.held + size > self.most:
            raise _Refused(
                503, "ServiceUnavailable", "toolpolicy is reading too many requests at once: try again in a second"
            )
        self.held += size

    def give(self, size: int) -> None:
        self.held -= size


@dataclass(frozen=True, slots=True)
class Addresses:
    """HOST:PORT of each listener; port 0 takes a free one, an empty string none at all."""

    webhooks: str = "0.0.0.0:9443"
    control: str = "0.0.0.0:9444"
    admin: str = "0.0.0.0:8080"


@dataclass(slots=True)
class Served:
    """What the server is given to serve. ``observe`` hears path, outcome and seconds of each review."""

    reviews: Mapping[str, ReviewHandler]
    """By path: ``/mutate/pods``, ``/validate/pods``, ``/validate/policies``."""
    readiness: Readiness
    metrics: Callable[[str], Rendered]
    """The Accept header in, body and content type out."""
    control: Iterable[web.AbstractRouteDef] = ()
    """Routes below ``/v1/``."""
    observe: Callable[[str, str, float], None] = lambda path, outcome, seconds: None
    state: Callable[[], Mapping[str, Any]] = field(default=dict[str, Any])
    """What ``/status`` tells beside readiness."""


class Server:
    """The three listeners. Ports are known once :meth:`start` has returned."""

    def __init__(self, served: Served, tls: ReloadingContext) -> None:
        self._served = served
        self._tls = tls
        self._budget = Budget()
        self._listeners: list[Listener] = []
        self.ports: dict[str, int] = {}
        self.draining = False

    async def start(self, addresses: Addresses) -> None:
        """Listen; raises OSError for a port that is taken, ValueError for an address that is none."""
        wanted = {
            "webhooks": (addresses.webhooks, self._webhooks, self._tls.listener),
            "control": (addresses.control, self._control, self._tls.listener),
            "admin": (addresses.admin, self._admin, None),
        }
        try:
            for name, (address, application, context) in wanted.items():
                if not address:
                    continue
                listener = Listener(application())
                self._listeners.append(listener)
                self.ports[name] = await listener.start(address, context)
        except (OSError, ValueError):
            await self.close()
            raise

    async def close(self) -> None:
        """Take no more connections, let reviews under way end (at most 10 s), close."""
        self.draining = True
        await asyncio.gather(*(listener.close() for listener in self._listeners))
        self._listeners.clear()

    def _webhooks(self) -> web.Application:
        app = web.Application(client_max_size=MAX_REVIEW, middlewares=[_answer_errors])
        for path, handler in self._served.reviews.items():
            app.router.add_post(path, self._review(path, handler))
        return app

    def _control(self) -> web.Application:
        app = web.Application(client_max_size=MAX_CONTROL, middlewares=[_answer_errors])
        app.router.add_routes(self._served.control)
        return app

    def _admin(self) -> web.Application:
        async def healthz(request: web.Request) -> web.StreamResponse:
            return _plain(200, "ok\n")

        async def readyz(request: web.Request) -> web.StreamResponse:
            ready, detail = self._served.readiness()
            if self.draining:
                ready, detail = False, {**detail, "draining": True}
            return _json(200 if ready else 503, {"ready": ready, **detail})

        async def status(request: web.Request) -> web.StreamResponse:
            ready, detail = self._served.readiness()
            return _json(200, {"ready": ready, **detail, **self._served.state()})

        async def metrics(request: web.Request) -> web.StreamResponse:
            body, content_type = self._served.metrics(request.headers.get("Accept", ""))
            return web.Response(body=body, headers={"Content-Type": content_type})

        app = web.Application(client_max_size=1024, middlewares=[_answer_errors])
        for path, handler in (("/healthz", healthz), ("/readyz", readyz), ("/status", status), ("/metrics", metrics)):
            app.router.add_get(path, handler)
        return app

    def _review(self, path: str, handler: ReviewHandler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def respond(request: web.Request) -> web.StreamResponse:
            started = monotonic()
            size = request.content_length
            if size is None:
                raise _Refused(411, "LengthRequired", "an admission review needs a Content-Length")
            if size > MAX_REVIEW:
                raise _Refused(413, "RequestEntityTooLarge", f"an admission review of more than {MAX_REVIEW} bytes")
            self._budget.take(size)
            try:
                review = await _read_review(request)
                answer, outcome = await judged(handler, review, _deadline(request.query.get("timeout", "")))
            finally:
                self._budget.give(size)
            self._served.observe(path, outcome, monotonic() - started)
            return _json(200, answer)

        return respond


async def judged(handler: ReviewHandler, review: Review, seconds: float) -> tuple[Review, str]:
    """The handler's answer to a review and its outcome for metrics: ``allowed``, ``denied``, ``error``, ``timeout``.

    Whatever the handler does, the answer is a review with the request's uid; a failure denies.
    """
    uid = review["request"]["uid"]
    try:
        async with asyncio.timeout(seconds):
            result = handler(review)
            answer = await result if inspect.isawaitable(result) else result
        response = answer["response"]
        if response.get("uid") != uid or not isinstance(response.get("allowed"), bool):
            raise ValueError("the answer is not one to this request")
    except TimeoutError:
        message = f"toolpolicy could not decide within {seconds:.1f} s: try again; if it stays, see the operator's log"
        return _denial(uid, 504, "Timeout", message), "timeout"
    except Exception:
        # The process's edge: what the author of a pod sees must not be a traceback, nor a pod without its sidecar.
        token = uuid4().hex[:12]
        log.exception("admission %s failed on %s", token, _subject(review))
        message = (
            f"toolpolicy failed to decide on this object and refuses it; the operator's log tells why under {token}"
        )
        return _denial(uid, 500, "InternalError", message), "error"
    return answer, "allowed" if response["allowed"] else "denied"


async def _read_review(request: web.Request) -> Review:
    try:
        async with asyncio.timeout(READ_SECONDS):
            body = await request.read()
    except TimeoutError:
        raise _Refused(408, "Timeout", f"the body did not arrive within {READ_SECONDS:.0f} s") from None
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise _Refused(400, "BadRequest", "the body is not JSON") from None
    return check_review(value)


def check_review(value: Any) -> Review:
    """A review that handlers may rely on: version v1, a request with uid, kind, operation and object. Raises a refusal
    that says what is wrong.
    """
    review = cast(Review, value) if isinstance(value, dict) else {}
    if review.get("kind") != "AdmissionReview" or review.get("apiVersion") != "admission.k8s.io/v1":
        raise _Refused(400, "BadRequest", "expected an AdmissionReview of admission.k8s.io/v1")
    request = review.get("request")
    if not isinstance(request, dict):
        raise _Refused(400, "BadRequest", "the AdmissionReview has no request")
    fields = cast(dict[str, Any], request)
    if not isinstance(fields.get("uid"), str) or not isinstance(fields.get("operation"), str):
        raise _Refused(400, "BadRequest", "the AdmissionReview's request has no uid or no operation")
    for name in ("object", "oldObject"):
        if not isinstance(fields.get(name), dict | None):
            raise _Refused(400, "BadRequest", f"the AdmissionReview's {name} is not an object")
    return review


def _deadline(asked: str) -> float:
    """Seconds for an answer: half a second less than the API server waits (``5s``), at most our own."""
    number = asked.removesuffix("s")
    seconds = float(number) if number.isascii() and number.isdigit() else DEADLINE_SECONDS + 0.5
    return max(0.5, min(DEADLINE_SECONDS, seconds - 0.5))


@web.middleware
async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except _Refused as refused:
        return _status(refused.status, refused.reason, refused.message)
    except web.HTTPException as error:
        return _status(error.status, error.reason.replace(" ", ""), f"{request.method} {request.path}: {error.reason}")
    except asyncio.CancelledError:
        raise
    except Exception:
        token = uuid4().hex[:12]
        log.exception("request %s failed: %s %s", token, request.method, request.path)
        return _status(500, "InternalError", f"internal error; the operator's log tells why under {token}")


def _denial(uid: str, code: int, reason: str, message: str) -> Review:
    status = {"code": code, "reason": reason, "message": message}
    response = {"uid": uid, "allowed": False, "status": status}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def _subject(review: Review) -> str:
    request = review["request"]
    return " ".join(str(request.get(name, "")) for name in ("operation", "namespace", "name"))


def _status(code: int, reason: str, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return _json(code, {**body, "reason": reason, "message": message})


def _json(status: int, value: Any) -> web.Response:
    return web.Response(
        status=status, text=json.dumps(value), content_type="application/json", headers={"Cache-Control": "no-store"}
    )


def _plain(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, headers={"Cache-Control": "no-store"})
