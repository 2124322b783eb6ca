"""The demo: AWS HealthImaging's own MCP server behind ``toolpolicy proxy``, driven by the official client.

Everything that is printed comes from the run: what the agent was told from its client, the rule that decided from the
audit log, what was executed from the endpoint that plays AWS. The demo checks its own story, and ends with 1 where it
is not so.

Usage: ``python -m demo.run`` from the top of the repository, in its environment (``make demo`` does both).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.request
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, NoReturn

from demo import show
from demo.endpoint import DATASTORE, ROLE, Endpoint
from tools import environments

ROOT = environments.ROOT
POLICY = ROOT / "manifests" / "examples" / "healthimaging.yaml"
SERVER = "awslabs.healthimaging-mcp-server"
EXPORT = "start_dicom_export_job"
LIMIT = 10
"""Exports a minute and session, as the policy says."""
DEADLINE = 60.0
"""Seconds for any single step; none takes more than a few, unless the machine is very busy."""
NEW_RULE = """
  - name: audit-in-progress
    match:
      tools: [list_datastores]
    action: Deny
    reason: Data stores are not listed while the audit is in progress
"""


class DemoFailed(Exception):
    """The run was not as it should be; the text says what was expected and what came."""


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise DemoFailed(what)


# -- the parts ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(command: list[str], log: Path, **options: Any) -> Generator[subprocess.Popen[str]]:
    """A child process in a group of its own, ended whatever happens; its stderr goes to ``log``."""
    with log.open("w") as errors:
        child = subprocess.Popen(command, stderr=errors, text=True, start_new_session=True, **options)
    try:
        yield child
    finally:
        if child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        else:
            child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


class Agent:
    """The official client in its own environment and process."""

    def __init__(self, child: subprocess.Popen[str], log: Path) -> None:
        self._child = child
        self._log = log
        self.about = self._read()

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(question) + "\n")
        self._child.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        stdout = self._child.stdout
        assert stdout is not None
        timer = threading.Timer(DEADLINE, self._child.kill)
        timer.start()
        try:
            line = stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise DemoFailed(f"the agent's client ended:\n{self._log.read_text()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def agent(target: list[str], work: Path, name: str, env: dict[str, str]) -> Generator[Agent]:
    python = environments.venv("demo-agent") / "bin" / "python"
    log = work / f"{name}.log"
    pipe = subprocess.PIPE
    command = [str(python), "-I", str(ROOT / "demo" / "agent.py"), *target]
    with process(command, log, stdin=pipe, stdout=pipe, env=env) as child:
        yield Agent(child, log)


@dataclass
class Proxy:
    """A running ``toolpolicy proxy``."""

    child: subprocess.Popen[str]
    log: Path
    url: str
    admin: str

    def health(self) -> dict[str, Any]:
        """What its admin port says about itself: ``rules`` in force, ``audit`` and its head."""
        with urllib.request.urlopen(f"{self.admin}/readyz", timeout=DEADLINE) as answer:
            health: dict[str, Any] = json.load(answer)
            return health


def toolpolicy() -> str:
    return str(Path(sys.executable).with_name("toolpolicy"))


@contextlib.contextmanager
def proxy(policy: Path, audit: Path, key: Path, server: list[str], env: dict[str, str]) -> Generator[Proxy]:
    log = policy.with_name("proxy.log")
    ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    files = ["--policy", str(policy), "--audit", str(audit), "--audit-key", str(key)]
    command = [toolpolicy(), "proxy", *files, *ports, "--", *server]
    with process(command, log, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env) as child:
        ready = re.compile(r"serving (http://\S+?),.* admin on (http://\S+)")

        def address() -> re.Match[str] | None:
            if child.poll() is not None:
                raise DemoFailed(f"toolpolicy proxy ended:\n{log.read_text()[-3000:]}")
            return ready.search(log.read_text())

        found = until(address, "toolpolicy proxy to listen")
        yield Proxy(child, log, found[1], found[2])


def until(condition: Any, what: str) -> Any:
    """The first true value of ``condition``."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        expect(time.monotonic() < end, f"waited {DEADLINE:.0f} s in vain for {what}")
        time.sleep(0.02)
    return value


class Audit:
    """The audit log as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def decisions(self) -> list[dict[str, Any]]:
        lines = self._path.read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == "decision"]

    def next(self, known: int) -> dict[str, Any]:
        """The decision after the first ``known`` ones."""
        found: list[dict[str, Any]] = until(lambda: self.decisions()[known:], "the audit record of a call")
        return found[0]


# -- the story ---------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """One call: what the agent got, and what the audit says of it."""

    told: str
    refused: bool
    verdict: str
    rules: list[str]
    code: str
    retry_after: float | None


class Story:
    def __init__(self, hands: Agent, audit: Audit, endpoint: Endpoint) -> None:
        self.hands = hands
        self.audit = audit
        self.endpoint = endpoint
        self.known = len(audit.decisions())

    def call(self, tool: str, **arguments: Any) -> Outcome:
        """Let the agent call; check that what it was told and what was audited agree."""
        before = sum(self.endpoint.counts().values())
        answer = self.hands.ask(call=tool, arguments=arguments)
        record = self.audit.next(self.known)
        self.known += 1
        executed = sum(self.endpoint.counts().values()) - before
        expect(record.get("tool") == tool, f"the audit's next record should be of {tool}: {record}")
        allowed = record["action"] == "Allow"
        expect(
            executed == int(allowed), f"{tool} was audited as {record['action']}, and {executed} requests reached AWS"
        )
        expect(
            answer["error"] != allowed,
            f"{tool} was audited as {record['action']}, and the agent told: {answer['text']}",
        )
        decision = answer["meta"].get("toolpolicy.dev/decision", {})
        rules = [str(rule) for rule in record.get("rules", [])]
        if not allowed:
            expect(decision.get("rules", []) == rules, f"agent and audit name other rules: {decision} and {record}")
        return Outcome(
            answer["text"], answer["error"], record["action"], rules, record["code"], decision.get("retryAfter")
        )

    def tell(self, tool: str, **arguments: Any) -> Outcome:
        outcome = self.call(tool, **arguments)
        show.call(show.Call(tool, arguments, summary(outcome), outcome.verdict, outcome.rules))
        return outcome


def summary(outcome: Outcome) -> str:
    """A refusal in full, a result in short."""
    return outcome.told if outcome.refused else re.sub(r"\s+", " ", outcome.told)


def reads(story: Story) -> None:
    show.step(2, "Reads pass")
    for tool, arguments in (("list_datastores", {}), ("search_image_sets", {"datastore_id": DATASTORE})):
        outcome = story.tell(tool, **arguments)
        expect(not outcome.refused and by(outcome, "read-freely"), f"{tool} should be allowed: {outcome}")


def delete(story: Story) -> None:
    show.step(3, "A delete is denied (an agent may know the name of a tool that it is not shown)")
    outcome = story.tell("delete_datastore", datastore_id=DATASTORE)
    expect(outcome.refused and by(outcome, "never-delete"), f"a delete should be denied: {outcome}")
    expect("Destructive imaging tools are off for agents" in outcome.told, f"the reason is missing: {outcome.told}")


def export(bucket: str, name: str) -> dict[str, str]:
    uri = f"s3://{bucket}/{name}/"
    return {"output_s3_uri": uri, "job_name": name, "datastore_id": DATASTORE, "data_access_role_arn": ROLE}


def exports(story: Story) -> None:
    show.step(4, "An export to a foreign bucket is refused by its message")
    outcome = story.tell(EXPORT, **export("somewhere-else", "export-0"))
    expect(outcome.refused and by(outcome, "exports"), f"a foreign bucket should be refused: {outcome}")
    expect("exports may only go to the imaging-exports bucket" in outcome.told, f"no message: {outcome.told}")
    show.step(5, f"{LIMIT} exports to the right bucket run, the next within the minute is told when to retry")
    show.line()
    show.field("agent", f"{EXPORT}, {LIMIT} times:")
    show.row("output_s3_uri", "told", "decided")
    for number in range(1, LIMIT + 1):
        arguments = export("imaging-exports", f"export-{number}")
        outcome = story.call(EXPORT, **arguments)
        expect(not outcome.refused and by(outcome, "exports"), f"export {number} should be allowed: {outcome}")
        job = json.loads(outcome.told)
        decided = f"{outcome.verdict} by {', '.join(outcome.rules)}"
        show.row(arguments["output_s3_uri"], f"job {job['job_id'][-4:]} {job['job_status']}", decided, good=True)
    outcome = story.tell(EXPORT, **export("imaging-exports", f"export-{LIMIT + 1}"))
    expect(outcome.refused and by(outcome, "exports"), f"one export too many should be refused: {outcome}")
    expect(0 < (outcome.retry_after or 0) <= 60, f"the agent should be told to retry within 60 s: {outcome}")


def edit(story: Story, policy: Path, running: Proxy) -> None:
    show.step(6, "The policy is edited while it runs, and the next call obeys")
    before = running.health()["rules"]
    replacement = policy.with_suffix(".new")
    replacement.write_text(policy.read_text().rstrip() + "\n" + NEW_RULE)
    started = time.monotonic()
    replacement.replace(policy)
    after = until(
        lambda: (r := running.health()["rules"])["revision"] != before["revision"] and r, "the edited policy to load"
    )
    took = time.monotonic() - started
    expect(not after["problems"], f"the edited policy was refused: {after['problems']}")
    show.line()
    show.block("edit", textwrap.dedent(NEW_RULE).strip().splitlines())
    show.field("proxy", f"revision {before['revision']} → {after['revision']} in force after {took:.1f} s, no restart")
    outcome = story.tell("list_datastores")
    expect(outcome.refused and by(outcome, "audit-in-progress"), f"the new rule should deny: {outcome}")
    outcome = story.tell("search_image_sets", datastore_id=DATASTORE)
    expect(not outcome.refused, f"other reads should still pass: {outcome}")


def by(outcome: Outcome, rule: str) -> bool:
    return any(name.rpartition(":")[2] == rule for name in outcome.rules)


def listing(hands: Agent, all_tools: list[str]) -> None:
    show.step(1, "What is the agent shown?")
    shown = hands.ask(list=True)["tools"]
    hidden = sorted(set(all_tools) - set(shown))
    expect(set(shown) < set(all_tools), f"the agent should see a part of the server's tools: {shown}")
    expect("delete_datastore" in hidden and EXPORT in shown, f"deletes should be hidden and exports shown: {hidden}")
    show.line()
    show.field("shown", f"{len(shown)} of the server's {len(all_tools)} tools")
    show.field("hidden", ", ".join(hidden), limit=6)


def reckon(audit_file: Path, key: Path, head: str, endpoint: Endpoint) -> None:
    """The audit verified, and beside it what the endpoint executed."""
    show.step(7, "The audit is verified, and set beside what AWS was asked to do")
    command = [toolpolicy(), "audit", "verify", "--key", str(key), "--head", head, str(audit_file)]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    show.line()
    show.field("$", f"toolpolicy audit verify --key audit.key --head {head[:20]}… audit.jsonl")
    for text in (done.stdout + done.stderr).splitlines():
        show.field("", text.replace(str(audit_file.parent) + os.sep, ""))
    expect(done.returncode == 0, f"the audit did not verify: {done.stdout}{done.stderr}")
    executed = endpoint.counts()
    decisions = [d for d in Audit(audit_file).decisions() if d["method"] == "tools/call"]
    names = {
        "list_datastores": "ListDatastores",
        "search_image_sets": "SearchImageSets",
        "delete_datastore": "DeleteDatastore",
        EXPORT: "StartDICOMExportJob",
    }
    rows: list[tuple[str, ...]] = []
    for tool, operation in names.items():
        actions = [d["action"] for d in decisions if d["tool"] == tool]
        allowed = actions.count("Allow")
        rows.append((tool, str(len(actions)), str(allowed), str(len(actions) - allowed), str(executed[operation])))
        expect(executed[operation] == allowed, f"{tool}: {allowed} allowed, {executed[operation]} executed")
    show.line()
    show.table(rows, ("tool", "asked", "allowed", "denied", "executed by AWS"))
    jobs = [request.body["outputS3Uri"] for request in endpoint.executed if request.operation == names[EXPORT]]
    expect(len(jobs) == LIMIT, f"{LIMIT} exports should have been executed: {jobs}")
    expect(all(uri.startswith("s3://imaging-exports/") for uri in jobs), f"an export went elsewhere: {jobs}")
    expect(set(executed) <= set(names.values()), f"AWS executed something else: {executed}")
    show.line()
    show.line(
        show.paint(
            f"   {LIMIT} exports allowed, {len(jobs)} executed, all to imaging-exports; "
            f"{executed['DeleteDatastore']} deletes; nothing else.",
            "green",
            "bold",
        )
    )
    show.line()


# -- the run -----------------------------------------------------------------------------------------------------------


def tell_setting(server_version: str, running: Proxy, about: dict[str, Any]) -> None:
    show.title("toolpolicy: a real MCP server behind a real policy")
    show.field("server", f"{SERVER} {server_version} over stdio, one process per session")
    show.field("proxy", f"toolpolicy proxy at {running.url}, policy {POLICY.relative_to(ROOT)} (a copy)")
    show.field("agent", f"the official Python client, mcp {about['client']}, protocol {about['protocol']}")
    show.field("AWS", "an endpoint on this machine that records every request it executes")


def package_version(venv: Path, name: str) -> str:
    """The version of ``name`` that is installed in ``venv``."""
    path = [str(folder) for folder in venv.glob("lib/python*/site-packages")]
    found = next(iter(Distribution.discover(name=name, path=path)), None)
    expect(found is not None, f"{name} is not installed in {venv}")
    return found.version if found is not None else ""


def tools_without_policy(server: list[str], work: Path, env: dict[str, str]) -> list[str]:
    """What the server itself offers, asked directly."""
    with agent(["--", *server], work, "direct", env) as hands:
        tools: list[str] = hands.ask(list=True)["tools"]
        return tools


def clean_environment(**extra: str) -> dict[str, str]:
    """Ours without what could change the demo: settings of toolpolicy and of AWS."""
    inherited = environments.child_environment().items()
    return {name: value for name, value in inherited if not name.startswith(("TOOLPOLICY_", "AWS_"))} | extra


def run(work: Path) -> None:
    venv = environments.venv("demo-server")
    environments.venv("demo-agent")
    policy = work / POLICY.name
    shutil.copyfile(POLICY, policy)
    audit_file, key = work / "audit.jsonl", work / "audit.key"
    server = [str(venv / "bin" / SERVER)]
    with contextlib.closing(Endpoint()) as endpoint, ThreadPoolExecutor(1) as pool:
        env = clean_environment(
            AWS_ENDPOINT_URL=endpoint.url,
            AWS_DEFAULT_REGION="eu-central-2",
            AWS_REGION="eu-central-2",
            AWS_ACCESS_KEY_ID="demo",
            AWS_SECRET_ACCESS_KEY="demo",
            AWS_EC2_METADATA_DISABLED="true",
            # the operation that AWS's published SDK lacks, and names of hosts that only AWS resolves
            AWS_DATA_PATH=str(ROOT / "demo" / "aws"),
            AWS_DISABLE_HOST_PREFIX_INJECTION="true",
            FASTMCP_LOG_LEVEL="WARNING",
        )
        direct = pool.submit(tools_without_policy, server, work, env)
        with (
            proxy(policy, audit_file, key, server, env) as running,
            agent([running.url], work, "agent", env) as hands,
        ):
            tell_setting(package_version(venv, SERVER), running, hands.about)
            listing(hands, direct.result())
            story = Story(hands, Audit(audit_file), endpoint)
            reads(story)
            delete(story)
            exports(story)
            edit(story, policy, running)
            head: str = running.health()["audit"]["head"]
        reckon(audit_file, key, head, endpoint)


def stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    try:
        with tempfile.TemporaryDirectory(prefix="toolpolicy-demo-") as work:
            try:
                run(Path(work))
            except DemoFailed as failure:
                logs = "".join(f"\n--- {p.name}\n{p.read_text()[-2000:]}" for p in sorted(Path(work).glob("*.log")))
                sys.stderr.write(f"\nThe demo did not go as it should: {failure}\n{logs}\n")
                return 1
    except environments.InstallError as error:
        sys.stderr.write(f"\nThe demo could not be installed: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
