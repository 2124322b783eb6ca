"""Rules from files, directories and a mounted ConfigMap: what is taken, what is refused, what stays in force."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import shutil
import signal
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support import kubelet
from toolpolicy.policy.compile import PolicySet
from toolpolicy.policy.decide import evaluate
from toolpolicy.policy.model import Action
from toolpolicy.policy.types import Call, Principal
from toolpolicy.sidecar.rules import DirectoryRules, FileRules, Pod, RuleSet, parse_labels
from toolpolicy.sidecar.rules import reading as reading_module
from toolpolicy.sidecar.rules import source as source_module

DEADLINE = 20.0
YAML = """
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {name: %s}
spec:
  selector: {}
  rules:
  - {name: one, match: {tools: [%s]}, action: Allow}
"""


def allowed(rules: RuleSet | None, tool: str) -> bool:
    assert rules is not None
    call = Call("tools/call", Principal("addr:192.0.2.1", "Address"), datetime.now(UTC), tool=tool)
    return evaluate(rules.policies, call, None).action is Action.ALLOW


@contextlib.asynccontextmanager
async def watching(source: FileRules | DirectoryRules) -> AsyncGenerator[Callable[[Callable[[], bool]], Any]]:
    """Watches; gives a function that waits until a condition holds, or fails at the deadline."""
    task = asyncio.create_task(source.watch())

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0.005)

    try:
        yield until
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# Files


@pytest.mark.asyncio
async def test_before_the_first_good_set_there_is_none(tmp_path: Path) -> None:
    source = FileRules([tmp_path / "missing.yaml"])
    status = await source.load()
    assert source.current is None
    assert "can't be read" in status.problems[0]


@pytest.mark.asyncio
async def test_a_file_is_in_force_once_loaded(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(YAML % ("a", "search"))
    source = FileRules([file])
    status = await source.load()
    assert (status.problems, status.policies, status.epoch) == ((), 1, 0)
    assert allowed(source.current, "search")
    assert not allowed(source.current, "delete")


@pytest.mark.asyncio
async def test_several_files_apply_together_and_the_same_policy_twice_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(YAML % ("a", "search"))
    two.write_text(YAML % ("b", "fetch"))
    source = FileRules([one, two])
    await source.load()
    assert allowed(source.current, "search")
    assert allowed(source.current, "fetch")
    two.write_text(YAML % ("a", "fetch"))
    status = await source.load()
    assert any("also in" in p for p in status.problems)
    assert status.revision == source.current.revision if source.current else False


@pytest.mark.asyncio
async def test_an_edit_in_place_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(YAML % ("a", "search"))
    source = FileRules([file], interval=0.01)
    await source.load()
    async with watching(source) as until:
        file.write_text(YAML % ("a", "fetch"))
        await until(lambda: allowed(source.current, "fetch"))
    assert not allowed(source.current, "search")


@pytest.mark.asyncio
async def test_a_rename_over_the_file_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(YAML % ("a", "search"))
    source = FileRules([file], interval=0.01)
    await source.load()
    async with watching(source) as until:
        for tool in ("fetch", "list", "get"):
            new = tmp_path / "p.yaml.tmp"
            new.write_text(YAML % ("a", tool))
            new.rename(file)
            await until(lambda tool=tool: allowed(source.current, tool))


@pytest.mark.asyncio
async def test_a_file_cut_off_while_it_is_written_is_not_taken(tmp_path: Path) -> None:
    """Two documents of which the second denies: with the first alone the set would be valid, and weaker."""
    file = tmp_path / "p.yaml"
    first = YAML % ("a", "search")
    second = "---" + (YAML % ("b", "search")).replace("Allow", "Deny")
    file.write_text(first + second)
    source = FileRules([file], interval=60)
    await source.load()
    assert not allowed(source.current, "search")
    seen: list[bool] = []
    source.subscribe(lambda: seen.append(allowed(source.current, "search")))
    task = asyncio.create_task(source.watch())
    looks = 0
    async with asyncio.timeout(DEADLINE):
        while looks < 6:
            file.write_text((first + second)[: len(first) + 3 + looks % 2])  # never the same for two looks
            source._poked.set()  # pyright: ignore[reportPrivateUsage]
            while source._poked.is_set():  # pyright: ignore[reportPrivateUsage]
                await asyncio.sleep(0)
            looks += 1
    file.write_text(first + second)
    task.cancel()
    assert seen == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"# nothing\n---\n", "ToolPolicy"),
        (b"\xff\xfe", "UTF-8"),
        (b"{", ""),
        ((YAML % ("a", "x") + "  surprise: 1\n").encode(), "surprise"),
        ((YAML % ("a", "x")).replace("Allow}", "Allow, when: 'nonsense ('}").encode(), "when"),
    ],
)
@pytest.mark.asyncio
async def test_a_bad_file_leaves_the_last_good_set_in_force(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(YAML % ("a", "search"))
    source = FileRules([file])
    good = await source.load()
    file.write_bytes(content)
    status = await source.load()
    assert status.problems
    assert said in "\n".join(status.problems)
    assert (status.revision, status.failures, status.reloads) == (good.revision, 1, 1)
    assert status.failed_at is not None
    assert allowed(source.current, "search")
    file.write_text(YAML % ("a", "fetch"))
    assert (await source.load()).problems == ()
    assert allowed(source.current, "fetch")


@pytest.mark.asyncio
async def test_a_fault_of_ours_refuses_one_set_and_not_all_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(YAML % ("a", "search"))
    source = FileRules([file], 0.01)
    await source.load()

    def fails(*_: object) -> None:
        raise AttributeError("a fault of ours")

    async with watching(source) as until:
        with monkeypatch.context() as patched:
            patched.setattr(source_module, "load_text", fails)
            file.write_text(YAML % ("b", "fetch"))
            await until(lambda: source.status.failures == 1)
            assert "a fault of ours" in source.status.problems[0]
            assert allowed(source.current, "search")
        file.write_text(YAML % ("c", "fetch"))
        await until(lambda: allowed(source.current, "fetch"))


@pytest.mark.asyncio
async def test_a_file_that_disappears_leaves_the_last_good_set(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(YAML % ("a", "search"))
    source = FileRules([file])
    await source.load()
    file.unlink()
    assert (await source.load()).problems
    assert allowed(source.current, "search")


@pytest.mark.asyncio
async def test_more_than_the_size_allowed_and_special_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(YAML % ("a", "search") + "#" * 2000)
    assert "larger" in (await FileRules([file], max_bytes=1024).load()).problems[0]
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    assert "not a regular file" in (await FileRules([fifo]).load()).problems[0]


@pytest.mark.asyncio
async def test_sighup_reads_again_what_did_not_change(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(YAML % ("a", "search"))
    source = FileRules([file], interval=60)
    await source.load()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, source.reload)
    try:
        async with watching(source) as until:
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: source.status.reloads == 2)
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


@pytest.mark.asyncio
async def test_subscribers_are_told_after_the_swap_and_only_then(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(YAML % ("a", "search"))
    source = FileRules([file])
    told: list[str] = []
    source.subscribe(lambda: told.append(source.current.revision if source.current else ""))
    await source.load()
    file.write_text("nonsense")
    await source.load()
    assert told == [source.status.revision]


@pytest.mark.asyncio
async def test_a_subscriber_that_fails_does_not_end_the_watching(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(YAML % ("a", "search"))
    source = FileRules([file], interval=0.01)

    def fails() -> None:
        raise RuntimeError("a fault")

    source.subscribe(fails)
    async with watching(source) as until:
        await until(lambda: source.status.reloads == 1)
        file.write_text(YAML % ("a", "fetch"))
        await until(lambda: allowed(source.current, "fetch"))


@pytest.mark.asyncio
async def test_calls_go_on_while_a_large_set_compiles(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    rule = "  - {name: r%d, match: {tools: [t%d]}, action: Allow, validations: [{expression: 'args.n < %d'}]}\n"
    rules = "".join(rule % (n, n, n) for n in range(150))
    file.write_text((YAML % ("a", "search")) + rules)
    source = FileRules([file])
    loading = asyncio.create_task(source.load())
    turns = 0
    while not loading.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await loading).problems == ()
    assert turns > 20


@pytest.mark.asyncio
async def test_old_sets_are_freed(tmp_path: Path) -> None:
    def sets() -> int:
        gc.unfreeze()
        return sum(type(o) is PolicySet for o in gc.get_objects())

    before = sets()
    file = tmp_path / "p.yaml"
    source = FileRules([file])
    for n in range(4):
        file.write_text(YAML % ("a", f"tool{n}"))
        assert (await source.load()).reloads == n + 1
    assert sets() == before + 1


@pytest.mark.asyncio
async def test_files_that_change_between_their_readings_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old and new files together could allow what neither set allows."""
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    deny = (YAML % ("b", "search")).replace("Allow", "Deny")
    one.write_text(YAML % ("a", "search"))
    two.write_text(deny)
    reading = reading_module.read_file

    def read(path: Path, budget: int) -> bytes:
        raw = reading(path, budget)
        if path == one and two.read_text() == deny:
            one.write_text(YAML % ("a", "fetch"))
            two.write_text(YAML % ("b", "list"))
        return raw

    monkeypatch.setattr(reading_module, "read_file", read)
    source = FileRules([one, two])
    seen: list[bool] = []
    source.subscribe(lambda: seen.append(allowed(source.current, "search")))
    assert (await source.load()).problems == ()
    assert seen == [False]
    assert allowed(source.current, "fetch")


@pytest.mark.asyncio
async def test_a_loaded_set_is_out_of_the_collectors_sight(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(YAML % ("a", "search"))
    gc.unfreeze()
    await FileRules([file]).load()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


# Plain directories


@pytest.mark.asyncio
async def test_a_plain_directory_holds_all_its_yaml_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML % ("a", "search"))
    (tmp_path / "b.json").write_text(json.dumps(kubelet.policy("b", "fetch")))
    (tmp_path / "README.md").write_text("not a policy")
    (tmp_path / ".hidden.yaml").write_text("nonsense")
    source = DirectoryRules(tmp_path)
    status = await source.load()
    assert (status.problems, status.policies) == ((), 2)
    (tmp_path / "a.yaml").unlink()
    await source.load()
    assert not allowed(source.current, "search")
    (tmp_path / "b.json").unlink()
    status = await source.load()
    assert "holds no ToolPolicy" in status.problems[0]
    assert allowed(source.current, "fetch")


# A mounted ConfigMap


@pytest.mark.asyncio
async def test_the_kubelets_swap_is_followed(tmp_path: Path) -> None:
    volume = tmp_path / "rules"
    kubelet.write(volume, kubelet.volume_files([kubelet.policy(tool="search")]))
    source = DirectoryRules(volume, interval=0.01, require_index=True)
    status = await source.load()
    assert (status.problems, status.revision, status.epoch) == ((), "1-1", 1)
    async with watching(source) as until:
        kubelet.write(volume, kubelet.volume_files([kubelet.policy(tool="fetch")], revision="1-2"))
        await until(lambda: source.status.revision == "1-2")
    assert allowed(source.current, "fetch")
    assert not allowed(source.current, "search")


@pytest.mark.asyncio
async def test_a_swap_while_reading_never_gives_a_mixed_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kubelet swaps, and removes the old directory, between the reading of the index and of the policies."""
    volume = tmp_path / "rules"
    kubelet.write(volume, kubelet.volume_files([kubelet.policy("a", "old"), kubelet.policy("b", "old2")]))
    source = DirectoryRules(volume, require_index=True)
    reading = reading_module.read_at
    swaps = 0

    def read(directory: int, name: str, budget: int) -> bytes:
        nonlocal swaps
        raw = reading(directory, name, budget)
        if name == "index.json" and swaps < 2:
            swaps += 1
            new = [kubelet.policy("a", f"new{swaps}"), kubelet.policy("b", "new")]
            kubelet.write(volume, kubelet.volume_files(new, revision=f"1-{swaps + 1}"))
        return raw

    monkeypatch.setattr(reading_module, "read_at", read)
    status = await source.load()
    assert swaps == 2
    assert (status.problems, status.revision, status.failures) == ((), "1-3", 0)
    assert allowed(source.current, "new2")
    assert not allowed(source.current, "old2")


@pytest.mark.asyncio
async def test_swaps_without_pause_end_in_the_last_set(tmp_path: Path) -> None:
    volume = tmp_path / "rules"
    kubelet.write(volume, kubelet.volume_files([kubelet.policy(tool="t0")], revision="1-0"))
    source = DirectoryRules(volume, interval=0.01, require_index=True)
    revisions: list[str] = []
    mixed: list[str] = []

    def check() -> None:
        assert source.current is not None
        revisions.append(source.current.revision)
        number = source.current.revision.partition("-")[2]
        if not (allowed(source.current, f"t{number}") and allowed(source.current, f"u{number}")):
            mixed.append(source.current.revision)

    source.subscribe(check)
    async with watching(source) as until:
        for n in range(1, 30):
            files = [kubelet.policy("a", f"t{n}"), kubelet.policy("b", f"u{n}")]
            await asyncio.to_thread(kubelet.write, volume, kubelet.volume_files(files, revision=f"1-{n}"))
        await until(lambda: source.status.revision == "1-29")
    assert [m for m in mixed if m != "1-0"] == []
    assert source.status.failures == 0


def _index(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    index = json.loads(files["index.json"])
    for key, value in changes.items():
        if value is None:
            del index[key]
        else:
            index[key] = value
    return {**files, "index.json": json.dumps(index).encode()}


def _entry(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    index = json.loads(files["index.json"])
    entry = next(iter(index["policies"].values()))
    entry.update(changes)
    return {**files, "index.json": json.dumps(index).encode()}


GOOD = kubelet.volume_files([kubelet.policy(tool="fetch")], epoch=5, revision="5-2")
KEY = "agents.imaging.json"
BAD_SETS: dict[str, tuple[dict[str, bytes], str]] = {
    "lower epoch": (_index(GOOD, epoch=4), "epoch 4 is lower than 5"),
    "no epoch": (_index(GOOD, epoch=None), "epoch"),
    "epoch true": (_index(GOOD, epoch=True), "epoch"),
    "negative epoch": (_index(GOOD, epoch=-1), "epoch"),
    "text epoch": (_index(GOOD, epoch="6"), "epoch"),
    "unknown field": (_index(GOOD, quarantine=[]), "quarantine: unknown field"),
    "unknown field of an entry": (_entry(GOOD, priority=1), "unknown field"),
    "other version": (_index(GOOD, apiVersion="toolpolicy.dev/v2"), "apiVersion"),
    "other kind": (_index(GOOD, kind="Rules"), "kind"),
    "empty revision": (_index(GOOD, revision=""), "revision"),
    "policies a list": (_index(GOOD, policies=[]), "policies"),
    "wrong digest": (_entry(GOOD, digest="sha256:" + "0" * 64), "digest"),
    "no digest": (_entry(GOOD, digest=None), "digest"),
    "changed file": ({**GOOD, KEY: GOOD[KEY] + b" "}, "digest"),
    "missing key": ({"index.json": GOOD["index.json"]}, "can't be read"),
    "another name": (_entry(GOOD, name="other"), "metadata.name"),
    "another namespace": (_entry(GOOD, namespace="other"), "metadata.namespace"),
    "another kind": (_entry(GOOD, kind="ClusterToolPolicy", namespace=None), "kind"),
    "another generation": (_entry(GOOD, generation=9), "metadata.generation"),
    "index no JSON": ({**GOOD, "index.json": b"{"}, "not JSON"),
    "index twice the same key": ({**GOOD, "index.json": b'{"epoch": 1, "epoch": 9}'}, "same key twice"),
    "index too deep": ({**GOOD, "index.json": b"[" * 200_000}, "not JSON"),
    "index a list": ({**GOOD, "index.json": b"[]"}, "object"),
    "no index": ({KEY: GOOD[KEY]}, "lost"),
    "nothing at all": ({}, "lost"),
    "path outside": (_index(GOOD, policies={"../x": {}}), "ConfigMap"),
    "unknown field of a policy": (kubelet.volume_files([kubelet.policy(surprise=1)], 5), "surprise"),
    "bad CEL": (
        kubelet.volume_files([kubelet.policy(rules=[{"name": "a", "action": "Allow", "when": "("}])], 5),
        "when",
    ),
    "one bad of two": (
        kubelet.volume_files([kubelet.policy("a"), kubelet.policy("b", mode="Perhaps")], 5),
        "Perhaps",
    ),
}


@pytest.mark.parametrize("name", BAD_SETS)
@pytest.mark.asyncio
async def test_a_bad_set_leaves_the_last_good_one_in_force(tmp_path: Path, name: str) -> None:
    files, said = BAD_SETS[name]
    volume = tmp_path / "rules"
    kubelet.write(volume, kubelet.volume_files([kubelet.policy(tool="search")], epoch=5, revision="5-1"))
    source = DirectoryRules(volume)
    await source.load()
    kubelet.write(volume, files)
    status = await source.load()
    assert said in "\n".join(status.problems)
    assert (status.revision, status.epoch, status.failures) == ("5-1", 5, 1)
    assert allowed(source.current, "search")
    assert not allowed(source.current, "fetch")
    kubelet.write(volume, GOOD)
    assert (await source.load()).revision == "5-2"


@pytest.mark.parametrize("name", [n for n in BAD_SETS if n != "lower epoch"])
@pytest.mark.asyncio
async def test_a_bad_set_at_the_start_puts_nothing_in_force(tmp_path: Path, name: str) -> None:
    kubelet.write(tmp_path / "rules", BAD_SETS[name][0])
    source = DirectoryRules(tmp_path / "rules", require_index=True)
    assert (await source.load()).problems
    assert source.current is None


@pytest.mark.asyncio
async def test_a_lost_directory_leaves_the_last_good_set(tmp_path: Path) -> None:
    volume = tmp_path / "rules"
    kubelet.write(volume, GOOD)
    source = DirectoryRules(volume)
    await source.load()
    for entry in list(volume.iterdir()):
        entry.unlink() if entry.is_symlink() or entry.is_file() else shutil.rmtree(entry)
    assert "lost" in (await source.load()).problems[0]
    volume.rmdir()
    assert (await source.load()).problems
    assert allowed(source.current, "fetch")


@pytest.mark.asyncio
async def test_after_an_index_was_seen_plain_files_are_no_substitute(tmp_path: Path) -> None:
    volume = tmp_path / "rules"
    kubelet.write(volume, GOOD)
    source = DirectoryRules(volume)
    await source.load()
    shutil.rmtree(volume)
    volume.mkdir()
    (volume / "p.yaml").write_text(YAML % ("a", "anything"))
    assert "lost" in (await source.load()).problems[0]
    assert not allowed(source.current, "anything")


@pytest.mark.asyncio
async def test_an_index_without_policies_is_no_policy(tmp_path: Path) -> None:
    kubelet.write(tmp_path / "rules", kubelet.volume_files([]))
    source = DirectoryRules(tmp_path / "rules", require_index=True)
    assert (await source.load()).problems == ()
    assert source.current is not None
    assert source.current.policies.empty


@pytest.mark.asyncio
async def test_an_equal_epoch_and_a_higher_one_are_taken_in_any_revision(tmp_path: Path) -> None:
    volume = tmp_path / "rules"
    source = DirectoryRules(volume, require_index=True)
    for epoch, revision in ((1, "1-5"), (1, "1-4"), (2, "2-1"), (7, "x")):
        kubelet.write(volume, kubelet.volume_files([kubelet.policy()], epoch, revision))
        assert (await source.load()).revision == revision
    kubelet.write(volume, kubelet.volume_files([kubelet.policy()], 6, "6-99"))
    assert "lower" in (await source.load()).problems[0]
    assert source.status.epoch == 7


@pytest.mark.asyncio
async def test_a_symlink_inside_the_payload_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_bytes(GOOD[KEY])
    payload = kubelet.write(tmp_path / "rules", {"index.json": GOOD["index.json"]})
    (payload / KEY).symlink_to(outside)
    status = await DirectoryRules(tmp_path / "rules").load()
    assert "can't be read" in status.problems[0]


# Which policies select the pod


@pytest.mark.asyncio
async def test_only_policies_that_select_the_pod_apply(tmp_path: Path) -> None:
    policies = [
        kubelet.policy("by-label", "a", selector={"matchLabels": {"app": "imaging"}}),
        kubelet.policy("other-label", "b", selector={"matchLabels": {"app": "other"}}),
        kubelet.policy("other-namespace", "c", namespace="elsewhere"),
        kubelet.policy("all", "d"),
    ]
    kubelet.write(tmp_path / "rules", kubelet.volume_files(policies))
    pod = Pod("agents", {"app": "imaging"}, None, {"team": "x"})
    source = DirectoryRules(tmp_path / "rules", pod=pod)
    await source.load()
    assert source.current is not None
    assert source.current.names == ("agents/all", "agents/by-label")


@pytest.mark.asyncio
async def test_cluster_policies_apply_by_namespace_labels(tmp_path: Path) -> None:
    prod = {"matchLabels": {"env": "prod"}}
    files = kubelet.volume_files([kubelet.policy("base", namespace=None, namespaceSelector=prod)])
    kubelet.write(tmp_path / "rules", files)
    for labels, count in (({"env": "prod"}, 1), ({"env": "dev"}, 0), ({}, 0)):
        source = DirectoryRules(tmp_path / "rules", pod=Pod("agents", {}, None, labels))
        assert (await source.load()).policies == count


@pytest.mark.asyncio
async def test_a_label_change_adds_policies_and_never_releases_the_pod(tmp_path: Path) -> None:
    policies = [
        kubelet.policy("was", "a", selector={"matchLabels": {"app": "imaging"}}),
        kubelet.policy("is", "b", selector={"matchLabels": {"app": "other"}}),
    ]
    kubelet.write(tmp_path / "rules", kubelet.volume_files(policies))
    info = tmp_path / "podinfo"
    kubelet.write(info, {"labels": b'app="imaging"\n'})
    source = DirectoryRules(
        tmp_path / "rules", interval=0.01, pod=Pod("agents", {"app": "imaging"}), labels_file=info / "labels"
    )
    await source.load()
    assert source.current is not None
    assert source.current.names == ("agents/was",)
    async with watching(source) as until:
        kubelet.write(info, {"labels": b'app="other"\nnote="a \\"quoted\\" one"\n'})
        await until(lambda: source.current is not None and len(source.current.names) == 2)
        kubelet.write(info, {"labels": b"garbage"})
        await until(lambda: source.current is not None and source.current.names == ("agents/was",))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("", {}),
        ('a="1"\nb.c/d=""\n', {"a": "1", "b.c/d": ""}),
        ('{"a": "1"}', {"a": "1"}),
    ],
)
def test_labels_are_read_as_the_downward_api_writes_them(text: str, labels: dict[str, str]) -> None:
    assert parse_labels(text) == labels


@pytest.mark.parametrize("text", ["a", "a=1", 'a="1', '="x"', '{"a": 1}', "{"])
def test_labels_that_cannot_be_read_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_labels(text)
