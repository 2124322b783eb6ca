"""What the plugin reads of a cluster: into the operator's own store, so that questions have the operator's answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from toolpolicy.cli.output import InputError
from toolpolicy_operator import names
from toolpolicy_operator.kube import POLICIES_API, Api, ApiError, Object, api_path
from toolpolicy_operator.records import Kind
from toolpolicy_operator.store import Store

INSTALL = (
    "install toolpolicy first: kubectl apply -k manifests/install (or only its CRDs: kubectl apply -f manifests/crds)"
)


@dataclass(slots=True)
class Snapshot:
    """The store as of now, the objects as they are, and what could not be read."""

    store: Store = field(default_factory=Store)
    policies: list[Object] = field(default_factory=list[Object])
    pods: list[Object] = field(default_factory=list[Object])
    unread: list[str] = field(default_factory=list[str])
    """Sentences: what is left out, and the permission that it takes."""

    def keep(self, kind: Kind, obj: Object) -> None:
        self.store.put(kind, obj)
        if kind in (Kind.TOOL_POLICY, Kind.CLUSTER_TOOL_POLICY):
            self.policies.append({"apiVersion": POLICIES_API, "kind": kind.value, **obj})
        elif kind is Kind.POD:
            self.pods.append(obj)

    async def permitted(self, what: str, permission: str, read: Callable[[], Awaitable[None]]) -> None:
        """Read, or note what is missing where that is forbidden."""
        try:
            await read()
        except ApiError as error:
            if not error.forbidden:
                raise
            self.unread.append(f"{what}: you lack the permission to {permission}")


async def snapshot(api: Api, namespace: str | None) -> Snapshot:
    """Everything about policies in a namespace, or (None) in all of them. Raises ApiError where the policies or pods
    themselves can't be read.
    """
    found = Snapshot()
    await _policies(api, namespace, found)
    for pod in await api.list(api_path("v1", "pods", namespace)):
        found.keep(Kind.POD, pod)
    await _namespaces(api, namespace, found)
    await _rules(api, namespace, found)
    return found


async def _policies(api: Api, namespace: str | None, found: Snapshot) -> None:
    try:
        for policy in await api.list(api_path(POLICIES_API, "toolpolicies", namespace)):
            found.keep(Kind.TOOL_POLICY, policy)
    except ApiError as error:
        if error.not_found:
            raise InputError(f"this cluster does not know ToolPolicies: {INSTALL}") from None
        raise

    async def cluster() -> None:
        for policy in await api.list(api_path(POLICIES_API, "clustertoolpolicies")):
            found.keep(Kind.CLUSTER_TOOL_POLICY, policy)

    await found.permitted("ClusterToolPolicies are left out", "list clustertoolpolicies.toolpolicy.dev", cluster)


async def _namespaces(api: Api, namespace: str | None, found: Snapshot) -> None:
    async def read() -> None:
        if namespace is None:
            for space in await api.list("/api/v1/namespaces"):
                found.keep(Kind.NAMESPACE, space)
        else:
            try:
                found.keep(Kind.NAMESPACE, await api.get(api_path("v1", "namespaces", None, namespace)))
            except ApiError as error:
                if not error.not_found:
                    raise
                raise InputError(f"there is no namespace {namespace}: see kubectl get namespaces") from None

    which = "list namespaces" if namespace is None else f"get the namespace {namespace}"
    await found.permitted("whether injection is enabled is not known", which, read)


async def _rules(api: Api, namespace: str | None, found: Snapshot) -> None:
    async def read() -> None:
        selector = f"metadata.name={names.RULES_CONFIGMAP}"
        for rules in await api.list(api_path("v1", "configmaps", namespace), fieldSelector=selector):
            found.keep(Kind.RULES, rules)

    await found.permitted("the rules' revision is not known", "list configmaps", read)
