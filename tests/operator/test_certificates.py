"""Certificates are renewed one step at a time, and at no moment is something served that nobody trusts."""

from __future__ import annotations

import base64
import copy
import ssl
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolpolicy_operator import pki, rotation
from toolpolicy_operator.certificates import Certificates, Options, ca_bundle_patch, service_names
from toolpolicy_operator.kube import ApiError, Object
from toolpolicy_operator.pki import CertificateFault, Pair
from toolpolicy_operator.rotation import Material, Terms, step
from toolpolicy_operator.tls import ReloadingContext

START = datetime(2026, 11, 22, tzinfo=UTC)
TERMS = Terms(("operator.system.svc",), timedelta(days=365), timedelta(days=30), timedelta(minutes=10))
CONFIGURATIONS = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")


def made(now: datetime = START) -> Material:
    return step(None, TERMS, now, False)[0]


class Cluster:
    """The few objects that certificates touch, with versions and conflicts as an API server has them."""

    def __init__(self, *, configured: bool = True, annotations: dict[str, str] | None = None) -> None:
        self.objects: dict[str, Object] = {}
        self.version = 1
        self.writes: list[str] = []
        self.reads = 0
        self.broken = False
        for plural in CONFIGURATIONS if configured else ():
            webhooks = [{"name": f"{n}.toolpolicy.dev", "clientConfig": {"service": {"name": "o"}}} for n in "ab"]
            metadata = {"name": "toolpolicy", "resourceVersion": "1", "annotations": annotations or {}}
            self.objects[f"/apis/admissionregistration.k8s.io/v1/{plural}/toolpolicy"] = {
                "metadata": metadata,
                "webhooks": webhooks,
            }

    async def get(self, path: str) -> Object:
        self.reads += 1
        self._up()
        if path not in self.objects:
            raise ApiError(404, "NotFound", path)
        return copy.deepcopy(self.objects[path])

    async def create(self, path: str, obj: Object) -> Object:
        self._up()
        path = f"{path}/{obj['metadata']['name']}"
        if path in self.objects:
            raise ApiError(409, "AlreadyExists", path)
        return self._put(path, obj)

    async def update(self, path: str, obj: Object) -> Object:
        self._up()
        if self.objects[path]["metadata"]["resourceVersion"] != obj["metadata"].get("resourceVersion"):
            raise ApiError(409, "Conflict", path)
        return self._put(path, obj)

    async def apply(self, path: str, obj: Object) -> Object:
        self._up()
        there = copy.deepcopy(self.objects[path])
        assert there["metadata"]["resourceVersion"] == obj["metadata"]["resourceVersion"]
        for webhook, applied in zip(there["webhooks"], obj["webhooks"], strict=True):
            assert applied["name"] == webhook["name"]
            webhook["clientConfig"] |= applied["clientConfig"]
        return self._put(path, there)

    def _up(self) -> None:
        if self.broken:
            raise ApiError(0, "Unreachable", "no route")

    def _put(self, path: str, obj: Object) -> Object:
        self.version += 1
        obj = copy.deepcopy(obj)
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.objects[path] = obj
        self.writes.append(path.rpartition("/")[2])
        return copy.deepcopy(obj)

    @property
    def secret(self) -> Object:
        return self.objects["/api/v1/namespaces/toolpolicy-system/secrets/toolpolicy-ca"]

    def bundles(self) -> list[str]:
        """What each webhook trusts."""
        found = (w["clientConfig"].get("caBundle", "") for o in self.objects.values() for w in o.get("webhooks", []))
        return [base64.b64decode(b).decode() for b in found]


class Replica:
    def __init__(self, cluster: Cluster, clock: Clock, *, leads: bool = True, directory: Path | None = None) -> None:
        self.tls, self.leads, self.heard = ReloadingContext(), leads, list[str]()
        options = Options(TERMS, directory=directory, publish_every=0)
        self.settled = True
        self.certificates = Certificates(
            cluster, self.tls, options, lambda: self.leads, self.heard.append, lambda bundle: self.settled, clock.now
        )

    @property
    def serial(self) -> str:
        return self.tls.pair.certificate if self.tls.pair else ""


class Clock:
    def __init__(self) -> None:
        self.time = START

    def now(self) -> datetime:
        return self.time

    def forward(self, **by: float) -> None:
        self.time += timedelta(**by)


def assert_trusted(cluster: Cluster, replicas: Sequence[Replica]) -> None:
    for replica in replicas:
        assert replica.serial
        assert all(pki.signed_by(replica.serial, trusted) for trusted in cluster.bundles())


def test_a_first_step_makes_a_ca_and_a_leaf_for_the_names() -> None:
    material = made()
    assert material.leaf is not None
    assert pki.signed_by(material.leaf.certificate, material.bundle)
    assert pki.names_of(material.leaf.certificate) == {"operator.system.svc"}
    assert step(material, TERMS, START, True) == (material, "")


def test_a_leaf_is_renewed_for_its_time_its_names_and_its_ca() -> None:
    material = made()
    later, done = step(material, TERMS, START + timedelta(days=21), True)
    assert done == "made a certificate"
    assert later.authority == material.authority
    named, done = step(material, replace(TERMS, names=("operator.system.svc", "10.0.0.1", "::1")), START, True)
    assert done
    assert named.leaf is not None
    assert pki.names_of(named.leaf.certificate) == {"operator.system.svc", "10.0.0.1", "::1"}
    other, done = step(replace(material, authority=made().authority), TERMS, START, True)
    assert done
    assert other.leaf is not None
    assert pki.signed_by(other.leaf.certificate, other.bundle)


def test_a_ca_is_published_before_it_signs_and_trusted_after_it_stopped() -> None:
    first = made()
    now = START + timedelta(days=300)
    first, done = step(first, TERMS, now, True)
    assert done == "made a certificate"
    second, done = step(first, TERMS, now, True)
    assert done == "made the next CA"
    assert second.next is not None
    assert second.leaf == first.leaf
    assert step(second, TERMS, now + timedelta(days=1), False) == (second, "")
    seen, done = step(second, TERMS, now, True)
    assert seen.since == now
    assert step(seen, TERMS, now + timedelta(minutes=9), True) == (seen, "")
    third, done = step(seen, TERMS, now + timedelta(minutes=10), True)
    assert done == "changed to the next CA"
    assert third.leaf is not None
    assert pki.signed_by(third.leaf.certificate, second.next.certificate)
    assert pki.contains(third.bundle, first.authority.certificate)
    assert step(third, TERMS, now + timedelta(minutes=19), True) == (third, "")
    fourth, done = step(third, TERMS, now + timedelta(minutes=20), True)
    assert not pki.contains(fourth.bundle, first.authority.certificate)
    assert fourth.settled
    assert step(fourth, TERMS, now + timedelta(minutes=21), True) == (fourth, "")


def test_an_expired_ca_is_replaced_at_once() -> None:
    material, done = step(made(), TERMS, START + timedelta(days=366), False)
    assert done == "replaced a CA that had expired"
    assert material.leaf is not None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 8, 15, 600, 14_400, 200_000]), st.booleans()), max_size=25))
def test_whatever_the_order_of_events_the_leaf_is_signed_by_a_ca_that_was_published(
    events: list[tuple[int, bool]],
) -> None:
    """``trusted`` is what the last published bundle said."""
    material, now = made(), START
    trusted = material.bundle
    for minutes, published in events:
        now += timedelta(minutes=minutes)
        if published:
            trusted = material.bundle
        before = material
        material, _ = step(material, TERMS, now, published)
        assert material.leaf is not None
        expired = pki.expires(before.authority.certificate) <= now
        assert expired or pki.signed_by(material.leaf.certificate, trusted)
        assert expired or before.leaf is None or pki.signed_by(before.leaf.certificate, material.bundle) or (
            material.leaf == before.leaf
        )  # fmt: skip
        if expired:
            trusted = material.bundle


def test_a_secret_is_read_as_it_was_written() -> None:
    material = replace(made(), next=pki.new_authority(START, timedelta(days=1)), since=START)
    material = replace(material, previous=pki.new_authority(START, timedelta(days=1)).certificate)
    secret = {
        "metadata": {"annotations": rotation.secret_annotations(material)},
        "data": rotation.secret_data(material),
    }
    assert rotation.read(secret) == material


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_secret_that_cannot_be_used_is_an_error_that_names_the_key_and_not_its_contents() -> None:
    good, other = rotation.secret_data(made()), rotation.secret_data(made())
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "ca.crt and ca.key are missing"),
        ({"ca.crt": good["ca.crt"]}, "one is missing"),
        ({**good, "ca.key": other["ca.key"]}, "does not belong"),
        ({**good, "tls.key": other["tls.key"]}, "does not belong"),
        ({**good, "ca.crt": _encoded("nonsense")}, "not a PEM certificate"),
        ({**good, "ca.key": _encoded("s3cret")}, "not a PEM private key"),
        ({**good, "ca.crt": "!"}, "not PEM in base64"),
        ({**good, "ca.crt": _encoded("ü")}, "not PEM in base64"),
        ({**good, "ca.crt": 7}, "is no text"),
        ({**good, "ca.crt": "A" * 200_000}, "is no text of at most"),
        ({**good, "previous.crt": _encoded("x")}, "not a PEM certificate"),
        ({**good, "tls.crt": ""}, "one is missing"),
    ]
    for data, says in cases:
        with pytest.raises(CertificateFault, match=says) as fault:
            rotation.read({"metadata": {}, "data": data})
        assert "s3cret" not in str(fault.value)
    assert "PRIVATE" not in repr(made())


def test_only_ca_bundles_are_applied_and_only_where_they_differ() -> None:
    webhooks: list[Object] = [{"name": "a", "clientConfig": {"url": "https://x"}}, {"name": "b", "clientConfig": {}}]
    found: Object = {"metadata": {"name": "toolpolicy", "resourceVersion": "7"}, "webhooks": webhooks}
    patch = ca_bundle_patch(found, "MutatingWebhookConfiguration", "PEM")
    assert patch is not None
    encoded = _encoded("PEM")
    assert patch["metadata"] == {"name": "toolpolicy", "resourceVersion": "7"}
    assert patch["webhooks"] == [{"name": n, "clientConfig": {"caBundle": encoded}} for n in "ab"]
    webhooks[0]["clientConfig"]["caBundle"] = webhooks[1]["clientConfig"]["caBundle"] = encoded
    assert ca_bundle_patch(found, "MutatingWebhookConfiguration", "PEM") is None


@pytest.mark.asyncio
async def test_two_replicas_share_the_first_secret_and_only_the_holder_publishes() -> None:
    cluster, clock = Cluster(), Clock()
    follower, holder = Replica(cluster, clock, leads=False), Replica(cluster, clock)
    await follower.certificates.refresh()
    assert follower.serial
    assert cluster.bundles() == [""] * 4
    await holder.certificates.refresh()
    assert holder.serial == follower.serial
    assert_trusted(cluster, [follower, holder])
    cluster.writes.clear()
    for _ in range(3):
        clock.forward(minutes=5)
        await holder.certificates.refresh()
        await follower.certificates.refresh()
    assert cluster.writes == []
    assert holder.heard == [holder.certificates.bundle]


@pytest.mark.asyncio
async def test_through_a_rotation_every_replica_is_trusted_at_every_moment() -> None:
    cluster, clock = Cluster(), Clock()
    replicas = [Replica(cluster, clock), Replica(cluster, clock, leads=False)]
    bundles: set[str] = set()
    for replica in replicas:
        await replica.certificates.refresh()
    first = replicas[0].certificates.bundle
    clock.forward(days=250)
    for turn in range(60):
        for replica in replicas if turn % 3 else replicas[:1]:
            await replica.certificates.refresh()
            assert_trusted(cluster, replicas)
        bundles |= {*cluster.bundles()}
        clock.forward(minutes=1)
    assert not pki.contains(replicas[0].certificates.bundle, first)
    assert replicas[0].serial == replicas[1].serial
    assert len(bundles) >= 3


@pytest.mark.asyncio
async def test_no_ca_signs_before_the_rules_of_every_namespace_hold_it() -> None:
    cluster, clock = Cluster(), Clock()
    replica = Replica(cluster, clock)
    await replica.certificates.refresh()
    first = replica.certificates.bundle
    clock.forward(days=250)
    replica.settled = False
    for _ in range(50):
        await replica.certificates.refresh()
        clock.forward(minutes=5)
    assert pki.contains(replica.certificates.bundle, first)
    assert pki.signed_by(replica.serial, first)


@pytest.mark.asyncio
async def test_a_replaced_secret_becomes_the_next_ca_and_is_trusted_before_it_is_served() -> None:
    cluster, clock = Cluster(), Clock()
    replicas = [Replica(cluster, clock, leads=False), Replica(cluster, clock)]
    for replica in replicas:
        await replica.certificates.refresh()
    foreign = made(clock.now())
    cluster.secret["data"] = rotation.secret_data(foreign)
    cluster.secret["metadata"]["resourceVersion"] = "999"
    for _ in range(40):
        for replica in replicas:
            await replica.certificates.refresh()
            assert_trusted(cluster, replicas)
        clock.forward(minutes=1)
    for replica in replicas:
        assert pki.signed_by(replica.serial, foreign.authority.certificate)
        assert replica.certificates.bundle == foreign.authority.certificate


@pytest.mark.asyncio
async def test_a_replica_that_missed_a_whole_rotation_catches_up() -> None:
    cluster, clock = Cluster(), Clock()
    holder, away = Replica(cluster, clock), Replica(cluster, clock, leads=False)
    await holder.certificates.refresh()
    await away.certificates.refresh()
    clock.forward(days=250)
    for _ in range(40):
        await holder.certificates.refresh()
        clock.forward(minutes=1)
    assert away.serial != holder.serial
    away.leads, holder.leads = True, False
    await away.certificates.refresh()
    assert away.serial == holder.serial
    assert_trusted(cluster, [holder, away])


@pytest.mark.asyncio
async def test_a_deleted_secret_comes_back_and_a_broken_one_changes_nothing() -> None:
    cluster, clock = Cluster(), Clock()
    replica = Replica(cluster, clock)
    await replica.certificates.refresh()
    served, kept = replica.serial, cluster.secret["data"]
    del cluster.objects["/api/v1/namespaces/toolpolicy-system/secrets/toolpolicy-ca"]
    await replica.certificates.refresh()
    assert cluster.secret["data"] == kept
    cluster.secret["data"] = {"ca.crt": _encoded("nonsense"), "ca.key": _encoded("nonsense")}
    await replica.certificates.refresh()
    assert replica.serial == served
    assert replica.certificates.problem.startswith("Secret toolpolicy-system/toolpolicy-ca: ")
    cluster.secret["data"] = kept
    await replica.certificates.refresh()
    assert replica.certificates.problem == ""
    cluster.broken = True
    await replica.certificates.refresh()
    assert "no route" in replica.certificates.problem
    assert replica.serial == served


@pytest.mark.asyncio
async def test_a_ca_bundle_that_someone_emptied_is_written_again() -> None:
    cluster, clock = Cluster(), Clock()
    replica = Replica(cluster, clock)
    await replica.certificates.refresh()
    webhook = next(o for o in cluster.objects.values() if "webhooks" in o)["webhooks"][0]
    webhook["clientConfig"]["caBundle"] = ""
    await replica.certificates.refresh()
    assert_trusted(cluster, [replica])


@pytest.mark.asyncio
async def test_a_configuration_that_comes_later_is_written_at_the_next_look() -> None:
    cluster, clock = Cluster(configured=False), Clock()
    replica = Replica(cluster, clock)
    replica.certificates.options = replace(replica.certificates.options, publish_every=1e9)
    await replica.certificates.refresh()
    cluster.objects |= Cluster().objects
    await replica.certificates.refresh()
    assert_trusted(cluster, [replica])
    reads = cluster.reads
    await replica.certificates.refresh()
    assert cluster.reads == reads + 1, "the Secret; what was found right is not looked at each time"


@pytest.mark.asyncio
async def test_without_webhook_configurations_a_certificate_is_served_all_the_same() -> None:
    cluster, clock = Cluster(configured=False), Clock()
    replica = Replica(cluster, clock)
    await replica.certificates.refresh()
    assert replica.certificates.ready
    assert replica.certificates.problem == ""


def _write(directory: Path, leaf: Pair, ca: str) -> None:
    for name, text in (("tls.crt", leaf.certificate), ("tls.key", leaf.key), ("ca.crt", ca)):
        (directory / name).write_text(text)


@pytest.mark.asyncio
async def test_certificates_of_cert_manager_are_read_again_and_its_ca_bundle_is_left_alone(tmp_path: Path) -> None:
    cluster, clock = Cluster(annotations={"cert-manager.io/inject-ca-from": "toolpolicy-system/webhooks"}), Clock()
    replica = Replica(cluster, clock, directory=tmp_path)
    await replica.certificates.refresh()
    assert "directory" in replica.certificates.problem
    first, second = made(), made()
    assert first.leaf is not None
    assert second.leaf is not None
    _write(tmp_path, first.leaf, first.bundle)
    await replica.certificates.refresh()
    assert replica.serial == first.leaf.certificate
    assert cluster.writes == []
    _write(tmp_path, second.leaf, second.bundle)
    await replica.certificates.refresh()
    assert replica.serial == first.leaf.certificate, "cert-manager has not injected the new CA yet"
    assert pki.contains(replica.certificates.bundle, first.bundle), "replicas that serve the old one exist"
    for o in cluster.objects.values():
        for webhook in o["webhooks"]:
            webhook["clientConfig"]["caBundle"] = _encoded(second.bundle)
    await replica.certificates.refresh()
    assert replica.serial == second.leaf.certificate
    assert cluster.writes == []
    _write(tmp_path, Pair(first.leaf.certificate, second.leaf.key), first.bundle)
    await replica.certificates.refresh()
    assert "does not belong" in replica.certificates.problem
    assert replica.serial == second.leaf.certificate
    (tmp_path / "tls.crt").write_bytes(b"\xff" * 10)
    await replica.certificates.refresh()
    assert "tls.crt is not PEM" in replica.certificates.problem


@pytest.mark.asyncio
async def test_a_directory_whose_configurations_nobody_injects_is_published(tmp_path: Path) -> None:
    cluster, clock = Cluster(), Clock()
    replica = Replica(cluster, clock, directory=tmp_path)
    material = made()
    assert material.leaf is not None
    _write(tmp_path, material.leaf, material.bundle)
    await replica.certificates.refresh()
    assert_trusted(cluster, [replica])


def test_a_context_without_a_certificate_refuses_and_a_pair_that_does_not_match_changes_nothing() -> None:
    context = ReloadingContext()
    material, other = made(), made()
    assert material.leaf is not None
    assert other.leaf is not None
    assert context.use(material.leaf)
    assert not context.use(material.leaf)
    with pytest.raises(CertificateFault, match="does not belong"):
        context.use(Pair(material.leaf.certificate, other.leaf.key))
    assert context.pair == material.leaf
    assert context.listener.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_the_names_of_a_service() -> None:
    assert service_names("o", "n", ("1.2.3.4",)) == ("o.n.svc", "o.n.svc.cluster.local", "o.n", "1.2.3.4")
