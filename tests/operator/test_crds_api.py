"""The CRDs and the webhook on a real API server: the same manifests pass as with ``toolpolicy check``, in its words."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from cluster.control import ControlPlane
from support.admission_server import Webhook, serving
from support.policy_webhooks import register, unregister
from toolpolicy.policy.load import KINDS, load_object
from toolpolicy.policy.model import API_VERSION
from toolpolicy_operator.admission.policies import review_policy
from toolpolicy_operator.kube import Api, ApiError, Object, policy_path
from toolpolicy_operator.records import Kind
from toolpolicy_operator.store import Store

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "policies"
FENCE = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VALIDATIONS = ("Ignore", "Warn", "Strict")
ALLOW = {"name": "a", "action": "Allow"}
BEFORE_WEBHOOKS = re.compile(r"^failed to create typed patch object|^\.spec\.rules: |^spec: Required")
"""Server-side apply must know an object's fields to merge it, and refuses by itself what has another type."""
TYPO = {"name": "a", "action": "Allow", "validation": [{"expression": "true"}]}


def sources() -> Iterator[tuple[str, str]]:
    """Every text with policies that this repository shows or tests: (where, YAML)."""
    for folder in (ROOT / "manifests" / "examples", DATA / "good", DATA / "bad"):
        for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.json")]):
            yield f"{folder.name}/{path.name}", path.read_text(errors="replace")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for number, block in enumerate(FENCE.findall(path.read_text())):
            yield f"{path.name}-{number}", block


def manifests() -> Iterator[tuple[str, Object]]:
    """Those that kubectl would send: YAML that can be read, of one of our kinds."""
    for where, text in sources():
        try:
            documents = list(yaml.safe_load_all(text))
            json.dumps(documents, allow_nan=False)
        except (yaml.YAMLError, TypeError, ValueError):
            continue
        held = [cast("Object", d) for d in documents if isinstance(d, dict)]
        flat: list[Any] = [item for d in held for item in d.get("items", [d])]
        for number, document in enumerate(flat):
            if isinstance(document, dict) and is_ours(cast("Object", document)):
                yield f"{where}-{number}", cast("Object", document)
    yield from BROKEN.items()
    yield from GOOD.items()


def policy(name: str = "p", kind: str = "ToolPolicy", **spec: Any) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": "mcp"}}, **spec},
    }


BROKEN: dict[str, Object] = {
    "a typo": policy(rules=[TYPO]),
    "a typo beside spec": {**policy(), "specs": {}},
    "a typo in another case": policy(Mode="Audit"),
    "no spec": {k: v for k, v in policy().items() if k != "spec"},
    "null as spec": {**policy(), "spec": None},
    "null as mode": policy(mode=None),
    "null as default": policy(defaultAction=None),
    "null as rules": policy(rules=None),
    "null as match, which would be every call": policy(rules=[{**ALLOW, "match": None}]),
    "null as tools": policy(rules=[{**ALLOW, "match": {"tools": None}}]),
    "null as selector": policy(selector=None),
    "null as a label": policy(selector={"matchLabels": {"a": None}}),
    "null as a port": policy(server={"port": None}),
    "null as a limit": policy(rules=[{**ALLOW, "rateLimit": None}]),
    "null as a rule": policy(rules=[None]),
    "no name": policy(rules=[{"action": "Allow"}]),
    "the same name twice": policy(rules=[ALLOW, ALLOW]),
    "no action": policy(rules=[{"name": "a"}]),
    "a text as rules": policy(rules="none"),
    "a text as rule": policy(rules=["none"]),
    "a number as mode": policy(mode=5),
    "a number in a text": policy(server={"port": "8000"}),
    "a port too high": policy(server={"port": 70000}),
    "a wrong expression": policy(rules=[{**ALLOW, "when": "args.x ="}]),
    "an expression of another type": policy(rules=[{**ALLOW, "when": "1"}]),
    "a wrong schema": policy(rules=[{**ALLOW, "validations": [{"schema": {"type": "strin"}}]}]),
    "a selector that selects nothing": policy(
        selector={"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}
    ),
    "a namespace selector in a ToolPolicy": policy(namespaceSelector={}),
    "too many rules": policy(rules=[{**ALLOW, "name": f"r{i}"} for i in range(501)]),
    "too large": policy(
        mode="Enforce",
        defaultAction="Deny",
        rules=[{**ALLOW, "name": f"r{i}", "reason": "x" * 1000} for i in range(70)],
    ),
    "deep": policy(rules=[{**ALLOW, "validations": [{"schema": {"not": {"not": {"not": {"type": 5}}}}}]}]),
    "a name that is none": policy(name="Imaging_Policy"),
}
GOOD: dict[str, Object] = {
    "the least": policy(),
    "every pod": policy(selector={}),
    "a named port": policy(server={"port": "mcp"}),
    "seconds": policy(rules=[{**ALLOW, "rateLimit": {"max": 5, "window": 60}}]),
    "a sum": policy(rules=[{**ALLOW, "rateLimit": {"max": 0.5, "window": "1h30m", "cost": "double(args.a)"}}]),
    "a schema with null": policy(rules=[{**ALLOW, "validations": [{"schema": {"enum": [None], "x": None}}]}]),
    "a cluster's": policy(kind="ClusterToolPolicy", namespaceSelector={"matchLabels": {"a": "b"}}),
}


def is_ours(document: Object) -> bool:
    named = isinstance(document.get("metadata"), dict) and isinstance(document["metadata"].get("name"), str)
    return document.get("kind") in KINDS and document.get("apiVersion") == API_VERSION and named


@pytest.fixture
def webhook(control_plane: ControlPlane, namespace: str) -> Iterator[Webhook]:
    """Our webhook, before and after the API server's own validation, for this test's namespace alone."""
    with serving({"/validate/policies": review_policy}) as hook:
        register(control_plane, namespace, hook)
        yield hook
        unregister(control_plane, namespace)


def placed(manifest: Object, namespace: str) -> Object:
    """The manifest in the test's namespace, or with its label."""
    moved = copy.deepcopy(manifest)
    moved.pop("status", None)  # the operator's
    moved["metadata"] = {k: v for k, v in moved["metadata"].items() if k in ("name", "labels", "annotations")}
    if manifest["kind"] == "ToolPolicy":
        moved["metadata"]["namespace"] = namespace
    else:
        moved["metadata"]["labels"] = {"test": namespace}
        moved["metadata"]["name"] += f"-{namespace}"
        if "namespace" in manifest["metadata"]:
            moved["metadata"]["namespace"] = namespace
    return moved


async def verdict(api: Api, manifest: Object, namespace: str, validation: str) -> ApiError | None:
    """What the API server says of creating it, or, with ``Apply``, of applying it on the server's side."""
    kind, metadata = manifest["kind"], manifest["metadata"]
    path = policy_path(kind, namespace if kind == "ToolPolicy" else None, metadata["name"])
    try:
        if validation == "Apply":
            await api.apply(path, manifest, manager="kubectl", dry_run=True)
        else:
            await api.create(path.rpartition("/")[0], manifest, dryRun="All", fieldValidation=validation)
    except ApiError as error:
        return error
    return None


@pytest.mark.asyncio
async def test_the_api_server_and_check_give_the_same_verdict_in_the_same_words(
    control_plane: ControlPlane, namespace: str, webhook: Webhook
) -> None:
    tried, differing = {True: 0, False: 0}, list[object]()
    async with await Api.connect(control_plane.kubeconfig) as api:
        for name, written in manifests():
            manifest = placed(written, namespace)
            accepted, problems = load_object(manifest, "")
            tried[accepted is not None] += 1
            for validation in (*VALIDATIONS, "Apply"):
                error = await verdict(api, manifest, namespace, validation)
                said = error.message if error is not None else ""
                before = BEFORE_WEBHOOKS.search(said) or any(p.path == "metadata.namespace" for p in problems)
                lines = [f"{p.path}: {p.message}" if p.path else p.message for p in problems]
                unsaid = [line for line in lines if not before and line not in said]
                if (error is None) != (not problems) or unsaid:
                    differing.append((name, validation, problems, unsaid, said))
    assert not differing
    assert min(tried.values()) >= 5, tried


def apply(plane: ControlPlane, manifest: Object, *flags: str, check: bool = True) -> str:
    """What kubectl prints, on both streams."""
    done = plane.kubectl("apply", "-f", "-", *flags, stdin=json.dumps(manifest), check=check)
    return done.stdout + done.stderr


@pytest.mark.parametrize("validation", ["ignore", "warn", "strict"])
def test_a_typo_is_refused_in_readable_lines_and_never_dropped(
    control_plane: ControlPlane, namespace: str, webhook: Webhook, validation: str
) -> None:
    wrong = placed(policy(mode="enforce", rules=[TYPO, {**ALLOW, "match": {"tool": ["x"]}}]), namespace)
    done = control_plane.kubectl("apply", f"--validate={validation}", "-f", "-", stdin=json.dumps(wrong), check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        'The ToolPolicy "p" is invalid: ',
        "* spec.mode: expected Enforce or Audit, not 'enforce': did you mean Enforce?",
        "* spec.rules[0].validation: unknown field 'validation': did you mean validations?",
        "* spec.rules[1].match.tool: unknown field 'tool': did you mean tools?",
        "* spec.rules[1].name: the name 'a' is also that of rules[0]: names are unique in a policy",
    ]
    assert control_plane.kubectl("get", "tp", "-n", namespace, "-o", "name").stdout == ""


def test_a_warning_is_shown_once_though_two_registrations_give_it(control_plane: ControlPlane, namespace: str) -> None:
    store = Store()
    live = json.loads(control_plane.kubectl("get", "namespace", namespace, "-o", "json").stdout)
    store.put(Kind.NAMESPACE, live)
    with serving({"/validate/policies": lambda review: review_policy(review, store)}) as hook:
        register(control_plane, namespace, hook)
        said = apply(control_plane, placed(policy(rules=[ALLOW]), namespace))
        unregister(control_plane, namespace)
    warned = [line for line in said.splitlines() if line.startswith("Warning: ")]
    assert len(warned) == 2
    assert f"kubectl label namespace {namespace} toolpolicy.dev/injection=enabled" in warned[0]


EXAMPLE = yaml.safe_load((ROOT / "manifests" / "examples" / "healthimaging.yaml").read_text())
SERVER_SIDE = "--server-side"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        [SERVER_SIDE],
        ["--field-manager=argocd-controller"],
        [SERVER_SIDE, "--field-manager=argocd-controller", "--force-conflicts"],
    ],
    ids=["client-side", "server-side", "argocd client-side", "argocd server-side"],
)
def test_applying_the_same_manifest_again_changes_nothing(
    control_plane: ControlPlane, namespace: str, webhook: Webhook, flags: list[str]
) -> None:
    manifest = placed(EXAMPLE, namespace)
    apply(control_plane, manifest, *flags)
    before = live(control_plane, namespace, "imaging")
    apply(control_plane, manifest, *flags)
    after = live(control_plane, namespace, "imaging")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert after["metadata"]["generation"] == 1
    difference = control_plane.kubectl("diff", "-f", "-", *flags, stdin=json.dumps(manifest), check=False)
    assert (difference.returncode, difference.stdout) == (0, "")
    # What was applied is all there is: nothing that a tool could take for drift, but the two stated defaults.
    assert after["spec"] == {"mode": "Enforce", "defaultAction": "Deny", **manifest["spec"]}


def test_the_crds_themselves_do_not_drift(control_plane: ControlPlane) -> None:
    """What the API server adds to them (defaults, its own conditions) is no difference to what was applied."""
    difference = control_plane.kubectl("diff", SERVER_SIDE, "-f", ROOT / "manifests" / "crds", check=False)
    assert (difference.returncode, difference.stdout) == (0, "")


def test_no_field_changes_hands_when_the_operator_writes_status(
    control_plane: ControlPlane, namespace: str, webhook: Webhook
) -> None:
    manifest = placed(policy(rules=[ALLOW]), namespace)
    apply(control_plane, manifest, SERVER_SIDE)
    status = {"rules": 1, "pods": {"selected": 2, "injected": 2, "current": 1}, "conditions": [CONDITION]}
    patch = {**manifest, "status": status, "spec": None}
    del patch["spec"]
    control_plane.kubectl(
        "apply", SERVER_SIDE, "--subresource=status", "--field-manager=toolpolicy-operator", "-f", "-",
        stdin=json.dumps(patch),
    )  # fmt: skip
    before = live(control_plane, namespace, "p")
    apply(control_plane, manifest, SERVER_SIDE)
    after = live(control_plane, namespace, "p")
    assert after == before
    owned = {e["manager"]: e["fieldsV1"] for e in after["metadata"]["managedFields"]}
    assert set(owned["toolpolicy-operator"]) == {"f:status"}
    assert "f:status" not in owned["kubectl"]


CONDITION = {
    "type": "Enforced",
    "status": "False",
    "reason": "PartiallyEnforced",
    "message": "1 of 2 pods is current",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
    "observedGeneration": 1,
}


def test_columns_short_names_category_and_selectable_fields(
    control_plane: ControlPlane, namespace: str, webhook: Webhook
) -> None:
    for name, mode in (("one", "Enforce"), ("two", "Audit")):
        manifest = placed(policy(name, mode=mode, rules=[ALLOW]), namespace)
        apply(control_plane, manifest)
        status = {"rules": 1, "pods": {"selected": 2, "injected": 2, "current": 1}, "conditions": [CONDITION]}
        control_plane.kubectl(
            "patch", "tp", name, "-n", namespace, "--subresource=status", "--type=merge", "-p",
            json.dumps({"status": status}),
        )  # fmt: skip
    rows = [line.split() for line in control_plane.kubectl("get", "tp", "-n", namespace).stdout.splitlines()]
    assert rows[0] == ["NAME", "MODE", "DEFAULT", "RULES", "PODS", "ENFORCED", "AGE"]
    assert [row[:6] for row in rows[1:]] == [
        ["one", "Enforce", "Deny", "1", "2", "False"],
        ["two", "Audit", "Deny", "1", "2", "False"],
    ]
    assert "PartiallyEnforced" in control_plane.kubectl("get", "tp", "-n", namespace, "-o", "wide").stdout
    assert "toolpolicy.toolpolicy.dev/one" in control_plane.kubectl("get", "mcp", "-n", namespace, "-o", "name").stdout
    selected = control_plane.kubectl("get", "tp", "-n", namespace, "--field-selector=spec.mode=Audit", "-o", "name")
    assert selected.stdout.split() == ["toolpolicy.toolpolicy.dev/two"]


def test_without_the_webhook_the_schema_still_refuses_what_it_can_say(
    control_plane: ControlPlane, namespace: str
) -> None:
    """While the operator is being installed, or where someone removed its webhooks."""
    for wrong in (policy(mode="enforce"), policy(rules=[{**ALLOW, "action": "allow"}]), policy(rules=[{"name": "x"}])):
        assert "is invalid" in apply(control_plane, placed(wrong, namespace), check=False)
    typo = apply(control_plane, placed(policy(rules=[TYPO]), namespace))
    assert "created" in typo  # kept as it is: the operator does not enforce what it can't read, and says so in status
    assert live(control_plane, namespace, "p")["spec"]["rules"][0]["validation"] == TYPO["validation"]


def live(plane: ControlPlane, namespace: str, name: str) -> Object:
    found = plane.kubectl("get", "tp", name, "-n", namespace, "--show-managed-fields", "-o", "json").stdout
    return cast("Object", json.loads(found))
