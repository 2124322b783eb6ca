"""Injection judged by a real API server: its defaulting, its Pod Security admission, its other admission plugins."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
import yaml

from cluster.control import ControlPlane
from support.pods import DEFAULTS, GOLDEN, Case, Object, cases, pod
from support.webhooks import Cluster, Hooks, cluster
from toolpolicy_operator.admission.lookup import ApiLookup
from toolpolicy_operator.admission.pods import mutate, validate_pod
from toolpolicy_operator.injection import podview
from toolpolicy_operator.kube import POLICIES_API, Api, ApiError, api_path
from toolpolicy_operator.server import Review
from toolpolicy_operator.store import Store

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]
ENABLED = {"toolpolicy.dev/injection": "enabled"}
WHOLE = len(podview.OUR_CONTAINERS | podview.OUR_VOLUMES)
APART = {
    "system-namespace": "no webhook is asked about it",
    "ephemeral-containers": "can't be created with them; a test of their own is below",
}
PATHS = ("/mutate/pods", "/validate/pods")


@contextlib.asynccontextmanager
async def injecting(plane: ControlPlane, store: Store | None = None) -> AsyncGenerator[tuple[Cluster, Hooks]]:
    """Our two webhooks of pods, registered as they are installed. Without a store all comes from the API server."""
    async with cluster(plane) as found:
        known = store or Store()
        lookup = ApiLookup(found.api, known)

        async def mutating(review: Review) -> Review:
            return await mutate(review, known, lookup, DEFAULTS)

        async def validating(review: Review) -> Review:
            return await validate_pod(review, known, lookup, DEFAULTS)

        async with Hooks(plane, dict(zip(PATHS, (mutating, validating), strict=True))) as hooks:
            await found.register(
                "MutatingWebhookConfiguration", "m", hooks.url(PATHS[0]), hooks.ca, reinvocationPolicy="IfNeeded"
            )
            await found.register("ValidatingWebhookConfiguration", "m", hooks.url(PATHS[1]), hooks.ca)
            await hooks.until_asked(found, await found.namespace(ENABLED), PATHS)
            yield found, hooks


async def dry(api: Api, namespace: str, manifest: Object) -> Object:
    """What the API server would store."""
    body = {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
    return await api.create(api_path("v1", "pods", namespace), body, dryRun="All")


def contains(actual: Any, expected: Any, path: str = "") -> str | None:
    """The first place where ``actual`` lacks something of ``expected``; defaults may be added to it."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        wanted, found = cast("Object", expected), cast("Object", actual)
        for key, value in wanted.items():
            if key not in found:
                if value not in ({}, [], None, False, ""):
                    return f"{path}.{key} is missing"
                continue
            problem = contains(found[key], value, f"{path}.{key}")
            if problem:
                return problem
        return None
    if isinstance(expected, list) and isinstance(actual, list):
        wanted_items, found_items = cast("list[Any]", expected), cast("list[Any]", actual)
        if len(wanted_items) > len(found_items):
            return f"{path} has {len(found_items)} items, expected {len(wanted_items)}"
        pairs = enumerate(zip(found_items, wanted_items, strict=False))
        return next((p for i, (f, w) in pairs if (p := contains(f, w, f"{path}[{i}]"))), None)
    return None if actual == expected else f"{path} is {actual!r}, expected {expected!r}"


def ours(final: Object) -> list[Object]:
    spec = podview.spec(final)
    containers = [c for c in podview.init_containers(final) if c["name"] in podview.OUR_CONTAINERS]
    return [*containers, *(v for v in podview.listed(spec, "volumes") if v["name"] in podview.OUR_VOLUMES)]


def again(final: Object) -> Object:
    """As ``kubectl get -o yaml`` gives a pod, applied anew."""
    kept = ("name", "generateName", "labels", "annotations", "ownerReferences")
    metadata = {k: v for k, v in final["metadata"].items() if k in kept}
    if metadata.get("generateName"):
        del metadata["name"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy.deepcopy(final["spec"])}


def localised(case: Case, namespace: str) -> tuple[list[Object], Object, str]:
    """A case's policies, pod, and outcome for a namespace of another name."""
    policies = copy.deepcopy(list(case.manifests))
    for manifest in policies:
        if manifest["kind"] == "ToolPolicy":
            manifest["metadata"]["namespace"] = namespace
        else:
            manifest["metadata"]["name"] += f"-{namespace}"
            manifest["spec"]["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    path = next(p for e in ("out.yaml", "refused.txt") if (p := GOLDEN / f"{case.name}.{e}").exists())
    return policies, copy.deepcopy(case.pod), path.read_text()


def policy_path(manifest: Object) -> str:
    plural = "toolpolicies" if manifest["kind"] == "ToolPolicy" else "clustertoolpolicies"
    return api_path(POLICIES_API, plural, manifest["metadata"].get("namespace"))


@contextlib.asynccontextmanager
async def policies(api: Api, manifests: list[Object]) -> AsyncGenerator[None]:
    for manifest in manifests:
        await api.create(policy_path(manifest), manifest)
    try:
        yield
    finally:
        for manifest in manifests:
            await api.delete(f"{policy_path(manifest)}/{manifest['metadata']['name']}")


async def judge(found: Cluster, case: Case, namespace: str) -> list[str]:
    """What the API server makes of a golden case, held against its second half."""
    manifests, given, content = localised(case, namespace)
    problems: list[str] = []
    async with policies(found.api, manifests):
        try:
            stored = await dry(found.api, namespace, given)
        except ApiError as error:
            expected = content.split(": ")[0]
            said = "denied the request: " + expected
            return [] if "\n" not in content.strip() and said in str(error) else [f"{case.name}: {error}"]
        if not content.startswith("#"):
            return [f"{case.name}: admitted, expected {content}"]
        expected = yaml.safe_load(content)
        text = json.dumps(expected).replace('"namespace": "agents"', f'"namespace": "{namespace}"')
        wanted: Object = json.loads(text)
        reason = content[2:].split(":")[0]
        if reason == "Injected":
            problem = contains(stored["spec"]["containers"], wanted["spec"]["containers"], "spec.containers")
            problems += [problem] if problem else []
            problems += [f"{o['name']} was changed by defaulting" for o in spelled_out(wanted, stored)]
            names = {k: v for k, v in podview.annotations_of(stored).items() if k.startswith("toolpolicy.dev/")}
            problems += [] if set(names) == set(podview.annotations_of(wanted)) & set(names) else [str(names)]
            twice = await dry(found.api, namespace, again(stored))
            problems += [] if again(twice) == again(stored) else ["a second injection changed it"]
        elif ours(stored):
            problems.append(f"injected, expected {reason}")
    return [f"{case.name}: {problem}" for problem in problems]


def spelled_out(wanted: Object, stored: Object) -> list[Object]:
    """Those of our containers and volumes that are not stored as they were written."""

    def plain(obj: Object) -> str:
        kept = {k: v for k, v in obj.items() if k != "env"}
        return json.dumps({**kept, "env": [e["name"] for e in obj.get("env", [])]}, sort_keys=True)

    written = {o["name"]: plain(o) for o in ours(wanted)}
    return [o for o in ours(stored) if written.get(o["name"]) != plain(o)]


async def test_golden_corpus(control_plane: ControlPlane) -> None:
    """Each pod once and twice, in namespaces of every Pod Security Standard that the corpus has."""
    problems: list[str] = []
    async with injecting(control_plane) as (found, _):
        names: dict[str, str] = {}
        for case in cases():
            if case.name in APART:
                continue
            labels = {k: v for k, v in case.labels.items() if not k.startswith("kubernetes.io/")}
            key = json.dumps(labels, sort_keys=True)
            if key not in names:
                names[key] = await found.namespace(labels)
            problems += await judge(found, case, names[key])
    assert problems == []


MCP: Object = {
    "apiVersion": "toolpolicy.dev/v1alpha1",
    "kind": "ToolPolicy",
    "metadata": {"name": "imaging"},
    "spec": {"selector": {"matchLabels": {"app": "mcp"}}},
}
DEPLOYMENT: Object = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "imaging"},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"app": "mcp"}},
        "template": {"metadata": {"labels": {"app": "mcp"}}, "spec": pod()["spec"]},
    },
}


async def test_a_policy_and_a_deployment_of_one_apply_never_make_an_unguarded_pod(control_plane: ControlPlane) -> None:
    """The store knows nothing: as it is in the moment before the watch tells."""
    rounds = 100
    async with injecting(control_plane) as (found, _):
        spaces = [await found.namespace(ENABLED) for _ in range(4)]

        async def apply_and_see(index: int) -> int:
            space, app = spaces[index % len(spaces)], f"mcp-{index}"
            text = json.dumps([MCP, DEPLOYMENT]).replace('"app": "mcp"', f'"app": "{app}"').replace("imaging", app)
            manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": json.loads(text)})
            await asyncio.to_thread(found.plane.kubectl, "apply", "-n", space, "-f", "-", stdin=manifest)
            path = api_path("v1", "pods", space)
            async with asyncio.timeout(60):
                while not (pods := await found.api.list(path, labelSelector=f"app={app}")):
                    await asyncio.sleep(0.05)
            return sum(1 for p in pods if len(ours(p)) != WHOLE)

        unguarded = 0
        for start in range(0, rounds, 4):
            unguarded += sum(await asyncio.gather(*(apply_and_see(i) for i in range(start, start + 4))))
        assert unguarded == 0


def other(change: str) -> Any:
    """Another mutating webhook, which strips or changes what is ours where it sees it."""

    def handle(review: Review) -> Review:
        request = review["request"]
        containers = podview.init_containers(request["object"])
        index = next((i for i, c in enumerate(containers) if c["name"] == "toolpolicy-sidecar"), None)
        response: Object = {"uid": request["uid"], "allowed": True}
        if index is not None:
            path = f"/spec/initContainers/{index}"
            patch = {
                "strip": {"op": "remove", "path": path},
                "image": {"op": "replace", "path": f"{path}/image", "value": "example/other"},
                "env": {"op": "add", "path": f"{path}/env/-", "value": {"name": "PYTHONPATH", "value": "/x"}},
            }[change]
            encoded = base64.b64encode(json.dumps([patch]).encode()).decode()
            response |= {"patchType": "JSONPatch", "patch": encoded}
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}

    return handle


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("strip", "spec.initContainers lacks toolpolicy-sidecar"),
        ("image", "spec.initContainers[1].image is 'example/other'"),
        ("env", "spec.initContainers[1].env.PYTHONPATH"),
    ],
)
@pytest.mark.parametrize("order", ["a", "z"])
async def test_another_webhook_that_changes_our_containers_is_refused(
    control_plane: ControlPlane, change: str, said: str, order: str
) -> None:
    async with injecting(control_plane) as (found, _):
        space = await found.namespace(ENABLED)
        await found.api.create(policy_path({**MCP, "metadata": {"name": "imaging", "namespace": space}}), MCP)
        async with Hooks(control_plane, {"/": other(change)}) as hooks:
            await found.register(
                "MutatingWebhookConfiguration", order, hooks.url("/"), hooks.ca, reinvocationPolicy="IfNeeded"
            )
            await hooks.until_asked(found, space, ["/"])
            with pytest.raises(ApiError) as refused:
                await dry(found.api, space, pod())
    assert f"denied the request: Altered: {said}" in str(refused.value)


async def test_opening_ephemeral_containers_are_refused_and_other_updates_ask_nobody(
    control_plane: ControlPlane,
) -> None:
    async with injecting(control_plane) as (found, hooks):
        space = await found.namespace(ENABLED)
        await found.api.create(policy_path({**MCP, "metadata": {"name": "imaging", "namespace": space}}), MCP)
        path = api_path("v1", "pods", space, "server")
        body = {**pod(), "metadata": {"name": "server", "labels": {"app": "mcp"}}}
        await found.api.create(api_path("v1", "pods", space), body)

        async def debug(name: str, **security: Any) -> None:
            container = {"name": name, "image": "busybox", "securityContext": security}
            patch: Object = {"spec": {"ephemeralContainers": [container]}}
            await found.api.patch(f"{path}/ephemeralcontainers", patch)

        with pytest.raises(ApiError, match="runs as user 15771"):
            await debug("one", runAsUser=15771)
        with pytest.raises(ApiError, match="the capability NET_ADMIN"):
            await debug("two", capabilities={"add": ["NET_ADMIN"]})
        await debug("three", runAsUser=1000)
        asked = dict(hooks.asked)
        await found.api.patch(path, {"metadata": {"labels": {"team": "a"}}})
        await found.api.patch(path, {"metadata": {"annotations": {"toolpolicy.dev/rules": "1-1"}}})
        assert hooks.asked == asked, "the guard, in the API server, sees to these"


async def test_limits_that_the_namespace_gives_every_container_are_no_alteration(control_plane: ControlPlane) -> None:
    async with injecting(control_plane) as (found, _):
        space = await found.namespace(ENABLED)
        await found.api.create(policy_path({**MCP, "metadata": {"name": "imaging", "namespace": space}}), MCP)
        limit: Object = {"type": "Container", "default": {"cpu": "300m"}, "max": {"memory": "1Gi"}}
        limits = {"metadata": {"name": "usual"}, "spec": {"limits": [limit]}}
        await found.api.create(api_path("v1", "limitranges", space), limits)
        async with asyncio.timeout(60):
            while True:  # admission looks at limits by a watch
                stored = await dry(found.api, space, {**pod(), "spec": {**pod()["spec"], "initContainers": []}})
                sidecar = next(c for c in podview.init_containers(stored) if c["name"] == "toolpolicy-sidecar")
                if sidecar["resources"]["limits"].get("cpu"):
                    break
                await asyncio.sleep(0.1)
        assert sidecar["resources"]["limits"] == {"cpu": "300m", "memory": "256Mi"}
        assert again(await dry(found.api, space, again(stored))) == again(stored)
