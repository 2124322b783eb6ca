"""kopf as a watch: it lists, streams and reconnects; each event goes to the store in the main loop, and that is all.

kopf runs in a thread and an event loop of its own, because it cancels whatever it finds in its loop when it ends. Only
``on.event`` handlers are registered, so it writes nothing: no finalizer, annotation, peering or event of its own.

Traps that the settings below answer, each seen with kopf 1.45:

- after a dozen failed attempts a request gives up, and with it the whole of kopf: attempts are endless here, and what
  ends nevertheless (a CRD that was removed) is started again;
- an exit that hangs kills the process after ten minutes;
- the scan for new resources lists every CRD of the cluster, schemas and all: it is off, and the watch starts when our
  own LIST has found both CRDs.

An event may be missed (a DELETE while the stream was down); the periodic LIST of ``sync.py`` heals that.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import kopf

from toolpolicy_operator import names
from toolpolicy_operator.kube import VERSION, Access, Object
from toolpolicy_operator.records import Kind

log = logging.getLogger(__name__)

RESOURCES: dict[Kind, tuple[str, str, str]] = {
    Kind.NAMESPACE: ("", "v1", "namespaces"),
    Kind.TOOL_POLICY: (names.GROUP, VERSION, "toolpolicies"),
    Kind.CLUSTER_TOOL_POLICY: (names.GROUP, VERSION, "clustertoolpolicies"),
    Kind.RULES: ("", "v1", "configmaps"),
    Kind.POD: ("", "v1", "pods"),
}
FIELD_SELECTORS: dict[Kind, str] = {Kind.RULES: f"metadata.name={names.RULES_CONFIGMAP}"}
Feed = Callable[[Kind, bool, Object], None]
"""What is told of each event: the kind, whether the object was deleted, the object."""
_RESTART_SECONDS = (1.0, 2.0, 5.0, 10.0)
_STOP_SECONDS = 10.0


class _Backoffs:
    """Seconds between attempts of one request, without an end."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1.0, 2.0)
        while True:
            yield 5.0


class Watch:
    """Feeds ``feed``, in the loop that :meth:`start` was called in."""

    def __init__(self, access: Callable[[], Awaitable[Access]], feed: Feed) -> None:
        self._access, self._feed = access, feed
        self._main: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._again = threading.Event()
        self.restarts = 0

    def start(self) -> None:
        """Start it, once; later calls do nothing."""
        if self._thread is None:
            self._main = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
            self._thread.start()

    def restart(self) -> None:
        """End the streams and begin anew with a LIST."""
        self._again.set()

    async def stop(self) -> None:
        self._stop.set()
        self._again.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _STOP_SECONDS)

    def _run(self) -> None:
        attempt = 0
        while not self._stop.is_set():
            self._again.clear()
            try:
                asyncio.run(self._operate())
            except Exception as error:  # noqa: BLE001 - the thread's edge: whatever ended the watch, it starts again
                log.warning("the watch ended and starts again: %s", error or type(error).__name__)
            if self._stop.is_set():
                return
            self.restarts += 1
            self._stop.wait(_RESTART_SECONDS[min(attempt, len(_RESTART_SECONDS) - 1)])
            attempt += 1

    async def _operate(self) -> None:
        try:
            await kopf.operator(
                registry=self._registry(),
                settings=_settings(),
                standalone=True,
                clusterwide=True,
                identity=cast("Any", names.FIELD_MANAGER),
                stop_flag=self._again,
            )
        finally:
            # kopf waits for the flag in a thread of the loop's own, which the loop waits for before it closes.
            self._again.set()

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._login)
        for kind, resource in RESOURCES.items():
            kopf.on.event(*resource, registry=registry, id=kind.value)(self._handler(kind))
        return registry

    def _handler(self, kind: Kind) -> Callable[..., Any]:
        async def handle(event: Any, **_: Any) -> None:
            obj = cast("Object", event["object"])
            self._tell(kind, event["type"] == "DELETED", obj)

        return handle

    def _tell(self, kind: Kind, deleted: bool, obj: Object) -> None:
        if self._main is not None and not self._main.is_closed() and not self._stop.is_set():
            self._main.call_soon_threadsafe(self._feed, kind, deleted, obj)

    async def _login(self, **_: Any) -> kopf.ConnectionInfo:
        """The main client's own way to the server, with a token that is fresh now (kopf asks again after a 401)."""
        if self._main is None:
            raise kopf.PermanentError("the watch was not started")

        async def ask() -> Access:
            return await self._access()

        found = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask(), self._main))
        return kopf.ConnectionInfo(
            server=found.server,
            ca_path=found.ca,
            insecure=not found.verify,
            token=found.token,
            certificate_path=found.certificate,
            private_key_path=found.key,
        )


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.process.ultimate_exiting_timeout = None
    settings.networking.error_backoffs = cast("Any", _Backoffs())
    settings.networking.request_timeout = 60.0
    settings.networking.connect_timeout = 5.0
    settings.watching.chunk_size = 500
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 1.0
    for kind, selector in FIELD_SELECTORS.items():
        settings.watching.field_selectors[RESOURCES[kind]] = selector
    return settings


def quiet() -> None:
    """kopf's own lines from warnings on, and not the one that says signals are the main thread's."""
    kopf_log = logging.getLogger("kopf")
    kopf_log.setLevel(logging.WARNING)
    running = logging.getLogger("kopf._core.reactor.running")
    running.addFilter(lambda r: "OS signals are ignored" not in r.getMessage())
