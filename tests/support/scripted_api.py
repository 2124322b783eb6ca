"""An API server as a script: lists, watches that the test feeds, and faults to order, which a real one has only now and
then. One event loop, plain HTTP.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Obj = dict[str, Any]
KINDS = {
    "namespaces": ("", "Namespace", False),
    "pods": ("", "Pod", True),
    "configmaps": ("", "ConfigMap", True),
    "toolpolicies": ("toolpolicy.dev", "ToolPolicy", True),
    "clustertoolpolicies": ("toolpolicy.dev", "ClusterToolPolicy", False),
}
GONE = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}


@dataclass
class ScriptedApi:
    """``objects`` is what a LIST gives by plural; :meth:`tell` sends an event to the open watches."""

    url: str = ""
    version: int = 1
    objects: dict[str, dict[str, Obj]] = field(default_factory=lambda: {plural: {} for plural in KINDS})
    refuse: list[tuple[str, int, dict[str, str]]] = field(default_factory=list[tuple[str, int, dict[str, str]]])
    """Faults of the requests to come: ``list`` or ``watch``, status, headers; each is used once."""
    seen: Counter[str] = field(default_factory=Counter[str])
    """How often each was asked: ``list pods``, ``watch pods``, ``refused list``."""
    _watches: dict[str, list[asyncio.Queue[Obj | None]]] = field(
        default_factory=lambda: {plural: list[asyncio.Queue[Obj | None]]() for plural in KINDS}
    )
    _told: dict[str, list[tuple[int, Obj]]] = field(
        default_factory=lambda: {plural: list[tuple[int, Obj]]() for plural in KINDS}
    )

    def set(self, plural: str, obj: Obj, *, quietly: bool = False) -> Obj:
        """Create or change an object; ``quietly`` tells no watch of it."""
        self.version += 1
        name = obj["metadata"]["name"]
        known = name in self.objects[plural]
        about = {"uid": f"uid-{name}", "generation": self.version, **obj["metadata"]}
        stored: Obj = {**obj, "metadata": {**about, "resourceVersion": str(self.version)}}
        self.objects[plural][name] = stored
        if not quietly:
            self.tell(plural, {"type": "MODIFIED" if known else "ADDED", "object": stored})
        return stored

    def delete(self, plural: str, name: str, *, quietly: bool = False) -> None:
        self.version += 1
        gone = self.objects[plural].pop(name)
        gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
        if not quietly:
            self.tell(plural, {"type": "DELETED", "object": gone})

    def tell(self, plural: str, event: Obj | None) -> None:
        """An event to every watch, and to later ones that begin before it; None ends them."""
        if event is not None and event["type"] != "ERROR":
            self._told[plural].append((self.version, event))
        for queue in self._watches[plural]:
            queue.put_nowait(event)

    def watched(self, plural: str) -> bool:
        return bool(self._watches[plural])

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.strip("/").split("/")
        plural = path[-1]
        if plural in KINDS and len(path) > 2:
            verb = "watch" if request.query.get("watch") == "true" else "list"
            for fault in self.refuse:
                if fault[0] == verb:
                    self.refuse.remove(fault)
                    self.seen[f"refused {verb}"] += 1
                    body = {"kind": "Status", "code": fault[1], "message": "as the test wants"}
                    return web.json_response(body, status=fault[1], headers=fault[2])
            self.seen[f"{verb} {plural}"] += 1
            return await (self._watch(request, plural) if verb == "watch" else self._list(plural))
        return web.json_response(_discovery(path))

    async def _list(self, plural: str) -> web.StreamResponse:
        group, kind, _ = KINDS[plural]
        api = f"{group}/v1alpha1" if group else "v1"
        items = [{"apiVersion": api, "kind": kind, **obj} for obj in self.objects[plural].values()]
        about = {"resourceVersion": str(self.version)}
        return web.json_response({"apiVersion": api, "kind": f"{kind}List", "metadata": about, "items": items})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        queue: asyncio.Queue[Obj | None] = asyncio.Queue()
        for version, event in self._told[plural]:
            if version > int(request.query.get("resourceVersion") or 0):
                queue.put_nowait(event)
        self._watches[plural].append(queue)
        try:
            while (event := await queue.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        except ConnectionError:
            pass  # nobody listens any more
        finally:
            self._watches[plural].remove(queue)
        return response


def _discovery(path: list[str]) -> Obj:
    """What kopf asks before it watches."""
    if path == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == ["apis"]:
        version = {"groupVersion": "toolpolicy.dev/v1alpha1", "version": "v1alpha1"}
        group = {"name": "toolpolicy.dev", "versions": [version], "preferredVersion": version}
        return {"kind": "APIGroupList", "groups": [group]}
    group = "toolpolicy.dev" if path[0] == "apis" else ""
    resources = [
        {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": namespaced,
         "verbs": ["get", "list", "watch", "patch"]}
        for plural, (where, kind, namespaced) in KINDS.items() if where == group
    ]  # fmt: skip
    return {"kind": "APIResourceList", "groupVersion": "/".join(path[1:]), "resources": resources}


@asynccontextmanager
async def scripted_api() -> AsyncGenerator[ScriptedApi]:
    script = ScriptedApi()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script._answer)  # pyright: ignore[reportPrivateUsage]
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    script.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield script
    finally:
        for plural in KINDS:
            script.tell(plural, None)
        await runner.cleanup()
