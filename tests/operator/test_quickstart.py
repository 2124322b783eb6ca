"""What the cluster guide and the README show: the commands exist, the messages are those of the API server, the example
works.
"""

from __future__ import annotations

import json
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cluster.control import ControlPlane
from support.admission_server import serving
from support.policy_webhooks import register, unregister
from support.processes import Program
from support.servers import free_port
from support.sidecar import Sidecar
from toolpolicy.policy.load import load_object
from toolpolicy_operator.admission.policies import review_policy
from toolpolicy_operator.injection.plan import Defaults, make_plan
from toolpolicy_operator.injection.pod import inject
from toolpolicy_operator.kubectl.verbs import main as plugin
from toolpolicy_operator.records import Kind
from toolpolicy_operator.store import Store
from tools import environments

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "kubernetes.md"
QUICKSTART = ROOT / "manifests" / "examples" / "quickstart"


def objects() -> Iterator[Any]:
    for path in sorted(QUICKSTART.glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def shown() -> list[str]:
    """Every command of the plugin in a console block, without what it is piped into."""
    blocks = re.findall(r"```console\n(.*?)```", GUIDE.read_text() + (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.partition(" | ")[0] for line in lines if line.startswith("kubectl toolpolicy ")]


@pytest.mark.parametrize("line", sorted(set(shown())))
def test_every_command_that_is_shown_exists(line: str) -> None:
    words = shlex.split(line, comments=True)[2:]
    command: click.Command = plugin
    context = click.Context(plugin)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
    command.make_context("kubectl toolpolicy", words)


def test_every_file_and_link_of_the_guide_exists() -> None:
    text = GUIDE.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (GUIDE.parent / link).exists(), link
    for path in re.findall(r"-[fk] (manifests/\S+)", text):
        assert (ROOT / path).exists(), path


def test_the_example_is_eligible_and_its_policy_selects_it() -> None:
    _, manifest, _, deployment, service = objects()
    policy, problems = load_object(manifest, "")
    assert policy is not None, problems
    template = deployment["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "p", **template["metadata"]}}
    labels = {"toolpolicy.dev/injection": "enabled"}
    injected = inject(pod, make_plan([policy], "notes", labels, Defaults("0.1.0", "sidecar:1")))
    assert injected["metadata"]["annotations"]["toolpolicy.dev/servers"] == "8000"
    assert policy.spec.selector.match_labels == service["spec"]["selector"]
    assert template["spec"]["containers"][0]["image"].startswith("docker.io/")


def test_what_the_guide_shows_of_the_api_server_is_what_it_says(control_plane: ControlPlane, namespace: str) -> None:
    store = Store()
    live = control_plane.kubectl("get", "namespace", namespace, "-o", "json").stdout
    store.put(Kind.NAMESPACE, json.loads(live))
    wrong = yaml.safe_load(
        (QUICKSTART / "2-policy.yaml").read_text().replace("namespace: notes", f"namespace: {namespace}")
    )
    right = json.dumps(wrong)
    wrong["spec"]["mode"] = "enforce"
    wrong["spec"]["rules"][0]["validation"] = []
    with serving({"/validate/policies": lambda review: review_policy(review, store)}) as hook:
        register(control_plane, namespace, hook)
        refused = control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(wrong), check=False)
        accepted = control_plane.kubectl("apply", "-f", "-", stdin=right)
        unregister(control_plane, namespace)
    guide = GUIDE.read_text()
    assert f"$ kubectl apply -f typo.yaml\n{refused.stderr}" in guide
    first, *_ = accepted.stderr.splitlines()
    assert f"{first.replace(namespace, 'notes')}\n{accepted.stdout}" in guide


@pytest.mark.slow
def test_the_examples_server_is_judged_as_the_guide_says(tmp_path: Path) -> None:
    """The script of the ConfigMap, on the version of the SDK that the Deployment installs, behind its policy."""
    _, _, script, deployment, _ = objects()
    assert "mcp==1.30.0" in deployment["spec"]["template"]["spec"]["containers"][0]["command"][2]
    port = free_port()
    file = tmp_path / "server.py"
    file.write_text(script["data"]["server.py"].replace("8000", str(port)).replace("0.0.0.0", "127.0.0.1"))
    python = environments.venv("test-mcp1") / "bin" / "python"
    with (
        Program([python, "-W", "ignore", file], name="notes"),
        Sidecar(QUICKSTART / "2-policy.yaml", f"http://127.0.0.1:{port}/mcp") as sidecar,
    ):
        [body] = re.findall(r"-d '(\{.*\})'", GUIDE.read_text())
        denied = call(sidecar.url, body)
        assert denied["result"]["isError"]
        assert "notes are kept for the auditors" in denied["result"]["content"][0]["text"]
        allowed = call(sidecar.url, body.replace("delete_note", "read_note"))
        assert allowed["result"]["content"][0]["text"] == "hello from the pod"


def call(url: str, body: str) -> Any:
    """As the guide's curl. The server takes a moment to listen."""
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    request = urllib.request.Request(url, body.encode(), headers)
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code != 502 or time.monotonic() > end:
                raise
            time.sleep(0.1)
