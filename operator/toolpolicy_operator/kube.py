"""The one adapter to the Kubernetes API: typed, bounded in time, one kind of error.

Configuration (kubeconfig, in-cluster, token refresh, exec plugins, proxies) and transport are the official library's.
Its generated classes are not used: objects are the JSON that the API sends, which is what the pure core works on, and
what keeps a field that a newer API server knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode

import aiohttp
import yaml
from kubernetes.aio import client as _client  # pyright: ignore[reportMissingTypeStubs]
from kubernetes.aio import config as _config  # pyright: ignore[reportMissingTypeStubs]
from kubernetes.aio.client import rest as _rest  # pyright: ignore[reportMissingTypeStubs]

from toolpolicy_operator.names import FIELD_MANAGER, GROUP

Object = dict[str, Any]
"""A Kubernetes object, as JSON."""

VERSION = "v1alpha1"
REQUEST_TIMEOUT = 10.0
"""Seconds that one request may take."""
LIST_TIMEOUT = 60.0
PAGE = 500
_WARNING = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')
"""RFC 7234, 5.5: code, agent, text."""
_JSON = "application/json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_PATCHES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}


class ApiError(Exception):
    """An answer that is no success, or none at all.

    ``status`` is the HTTP status, 0 where the API server could not be reached or did not answer in time; ``reason`` the
    Status' machine-readable word (``Conflict``, ``NotFound``, ``Unreachable`` …); ``retry_after`` seconds, where said.
    """

    def __init__(
        self, status: int, reason: str, message: str, retry_after: float | None = None, answer: Object | None = None
    ) -> None:
        super().__init__(f"{reason}: {message}" if reason else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.answer: Object = answer or {}
        """The Status object (meta/v1) that was sent, if one was."""

    @property
    def not_found(self) -> bool:
        return self.status == 404

    @property
    def conflict(self) -> bool:
        return self.status == 409

    @property
    def forbidden(self) -> bool:
        return self.status == 403


class ConfigurationError(Exception):
    """No usable way to the API server is configured."""


class Listing(list[Object]):
    """The objects of a LIST, and the version of the collection at which they are all of them."""

    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class Access:
    """What another client needs to reach the same server as the same user. Paths are files of PEM."""

    server: str
    ca: str | None
    certificate: str | None
    key: str | None
    token: str | None
    verify: bool


class Api:
    """Requests to one API server. For the event loop that it is first used in."""

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self._rest: Any = None
        self.host = str(configuration.host)
        self.warned: Callable[[str], None] = lambda text: None
        """Is told each warning of an answer (KEP-1693)."""

    @classmethod
    async def connect(cls, kubeconfig: Path | str | None = None, *, context: str | None = None) -> Api:
        """From this kubeconfig; without one from the pod's ServiceAccount, else the user's own kubeconfig.

        ``context`` is one of the kubeconfig's, instead of its current one. Raises :class:`ConfigurationError`.
        """
        configuration: Any = cast("Any", _client).Configuration()
        configuration.connection_pool_maxsize = 32
        configuration.retries = 0  # retries are the queue's: it knows what still matters
        loaders = cast("Any", _config)
        try:
            if kubeconfig is not None or context is not None:
                file = str(kubeconfig) if kubeconfig is not None else None
                await loaders.load_kube_config(file, context=context, client_configuration=configuration)
            else:
                try:
                    loaders.load_incluster_config(client_configuration=configuration)
                except loaders.ConfigException:
                    await loaders.load_kube_config(client_configuration=configuration)
        except (loaders.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
            where = f"the kubeconfig {kubeconfig}" if kubeconfig is not None else "the pod or ~/.kube/config"
            raise ConfigurationError(f"no access to a cluster from {where}: {error}") from error
        return cls(configuration)

    async def access(self) -> Access:
        """How this client reaches the server, with a token that is fresh now."""
        c = self._configuration
        header = await self._authorization()
        token = header.split(" ", 1)[1].strip() if header and " " in header else header
        return Access(c.host, c.ssl_ca_cert, c.cert_file, c.key_file, token, c.verify_ssl)

    async def close(self) -> None:
        if self._rest is not None:
            await self._rest.close()
            self._rest = None

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, path: str, *, within: float = REQUEST_TIMEOUT, **params: str) -> Object:
        return await self.request("GET", path, params=params, within=within)

    async def list(self, path: str, *, within: float = LIST_TIMEOUT, **params: str) -> Listing:
        """Every object, page by page. ``params`` such as ``fieldSelector``; ``within`` seconds for all pages together.

        A collection that changed too much between pages (410) is read again from its beginning, once.
        """
        async with _deadline(within, path):
            try:
                return await self._pages(path, params)
            except ApiError as error:
                if error.status != 410:
                    raise
                return await self._pages(path, params)

    async def _pages(self, path: str, params: dict[str, str]) -> Listing:
        found, more = Listing(), ""
        while True:
            query = {"limit": str(PAGE), **params} | ({"continue": more} if more else {})
            page = await self.request("GET", path, params=query, within=LIST_TIMEOUT)
            metadata = cast("Object", page.get("metadata") or {})
            found.extend(cast("list[Object]", page.get("items") or []))
            more = metadata.get("continue") or ""
            if not more:
                found.resource_version = str(metadata.get("resourceVersion") or "")
                return found

    async def create(self, path: str, obj: Object, *, within: float = REQUEST_TIMEOUT, **params: str) -> Object:
        return await self.request("POST", path, obj, params={"fieldManager": FIELD_MANAGER, **params}, within=within)

    async def update(self, path: str, obj: Object, **params: str) -> Object:
        return await self.request("PUT", path, obj, params={"fieldManager": FIELD_MANAGER, **params})

    async def apply(
        self, path: str, obj: Object, *, force: bool = True, manager: str = FIELD_MANAGER, dry_run: bool = False
    ) -> Object:
        """Server-side apply: the fields of ``obj`` become ``manager``'s, those it had and leaves out are removed."""
        params = {"fieldManager": manager, "force": "true" if force else "false"}
        if dry_run:
            params["dryRun"] = "All"
        return await self.request("PATCH", path, obj, params=params, content_type=_PATCHES["apply"])

    async def patch(
        self, path: str, patch: Object | list[Object], kind: str = "merge", *, metadata_only: bool = False
    ) -> Object:
        """A ``merge`` or ``json`` patch. With ``metadata_only`` the answer is a PartialObjectMetadata, a fraction of a
        pod."""
        query = {"fieldManager": FIELD_MANAGER}
        accept = _METADATA if metadata_only else _JSON
        return await self.request("PATCH", path, patch, params=query, content_type=_PATCHES[kind], accept=accept)

    async def delete(self, path: str, *, uid: str | None = None, resource_version: str | None = None) -> None:
        """Deletes, if it still is the object of this uid and version."""
        wanted = {k: v for k, v in (("uid", uid), ("resourceVersion", resource_version)) if v is not None}
        await self.request("DELETE", path, {"preconditions": wanted} if wanted else None)

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: dict[str, str] | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
        within: float = REQUEST_TIMEOUT,
    ) -> Object:
        """One request; ``path`` from ``/api…`` on. Raises :class:`ApiError`."""
        url = self.host + path + (f"?{urlencode(params)}" if params else "")
        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": FIELD_MANAGER}
        authorization = await self._authorization()
        if authorization:
            headers["Authorization"] = authorization
        if self._rest is None:
            self._rest = cast("Any", _rest).RESTClientObject(self._configuration)
        try:
            response = await self._rest.request(
                method,
                url,
                headers=headers,
                body=body,
                _request_timeout=aiohttp.ClientTimeout(total=within, sock_connect=min(within, 5.0)),
            )
            raw: bytes = await response.read()
        except TimeoutError as error:
            raise ApiError(0, "Timeout", f"{method} {path}: no answer within {within:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ApiError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error
        for header in response.headers.getall("Warning", ()):
            if found := _WARNING.match(header):
                self.warned(found[1].replace('\\"', '"').replace("\\\\", "\\"))
        if not 200 <= response.status < 300:
            raise _error(method, path, response.status, raw, response.headers.get("Retry-After"))
        return _object(raw, method, path)

    async def _authorization(self) -> str | None:
        settings: dict[str, Any] = await self._configuration.auth_settings()
        value = settings.get("BearerToken", {}).get("value")
        return str(value).strip() if value else None


def context_namespace(kubeconfig: Path | str | None = None, context: str | None = None) -> str:
    """The namespace of a context, ``default`` where it says none. Raises :class:`ConfigurationError`."""
    loaders = cast("Any", _config)
    try:
        contexts, current = loaders.list_kube_config_contexts(str(kubeconfig) if kubeconfig is not None else None)
    except (loaders.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(str(error)) from error
    chosen = next((c for c in contexts if c["name"] == context), None) if context is not None else current
    if chosen is None:
        known = ", ".join(sorted(c["name"] for c in contexts)) or "none"
        raise ConfigurationError(f"no context {context!r} in the kubeconfig: it has {known}")
    context_of = cast("Object", chosen.get("context") or {})
    return str(context_of.get("namespace") or "default")


@contextlib.asynccontextmanager
async def _deadline(seconds: float, path: str) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ApiError(0, "Timeout", f"LIST {path}: not complete within {seconds:g} s") from error


def _object(raw: bytes, method: str, path: str) -> Object:
    try:
        value: object = json.loads(raw) if raw else {}
    except ValueError as error:
        raise ApiError(0, "NotJSON", f"{method} {path}: the answer is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(0, "NotJSON", f"{method} {path}: the answer is not an object")
    return cast("Object", value)


def _error(method: str, path: str, status: int, raw: bytes, retry_after: str | None) -> ApiError:
    reason, message, seconds = "", raw[:300].decode("utf-8", "replace").strip(), _seconds(retry_after)
    answer: Object = {}
    with contextlib.suppress(ValueError):
        value: object = json.loads(raw)
        if isinstance(value, dict):
            answer = cast("Object", value)
            reason, message = str(answer.get("reason") or ""), str(answer.get("message") or message)
            if seconds is None:
                seconds = _seconds(cast("Object", answer.get("details") or {}).get("retryAfterSeconds"))
    said = f"{message or 'no message'} ({method} {path})"
    return ApiError(status, reason or str(status), said, seconds, answer)


def _seconds(value: object) -> float | None:
    """Retry-After in seconds; its other form, a date, is not used by API servers."""
    try:
        seconds = float(cast("str", value))
    except (TypeError, ValueError):
        return None
    return min(max(seconds, 0.0), 300.0) if math.isfinite(seconds) else None


def api_path(api: str, plural: str, namespace: str | None = None, name: str | None = None, sub: str = "") -> str:
    """The path of a resource: ``api_path("v1", "pods", "agents", "mcp-0", "eviction")``; ``api`` is group/version."""
    path = f"/api/{api}" if "/" not in api else f"/apis/{api}"
    if namespace is not None:
        path += f"/namespaces/{quote(namespace, safe='')}"
    path += f"/{plural}"
    if name is not None:
        path += f"/{quote(name, safe='')}"
    return path + (f"/{sub}" if sub else "")


POLICIES_API = f"{GROUP}/{VERSION}"


def policy_path(kind: str, namespace: str | None, name: str, sub: str = "") -> str:
    """The path of a ToolPolicy, or of a ClusterToolPolicy (``namespace`` None)."""
    return api_path(POLICIES_API, PLURALS[kind], namespace, name, sub)


PLURALS = {"ToolPolicy": "toolpolicies", "ClusterToolPolicy": "clustertoolpolicies"}
