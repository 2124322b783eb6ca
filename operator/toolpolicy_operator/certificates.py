"""The certificate that webhooks and control API present, and where the CA that signed it is made known.

*Own* mode keeps a CA of ours and the leaf that all replicas share in one Secret. Any replica may make the first
(creating is atomic); only the holder of the Lease changes it, with the resourceVersion it read. *Directory* mode reads
tls.crt, tls.key and ca.crt that something else writes, such as cert-manager.

In both, two rules let nothing be refused while certificates change. No replica presents a leaf before every webhook
configuration trusts its CA. And the bundle that is published (``caBundle`` of the webhook configurations by server-side
apply of that field alone, ``control-ca.crt`` by the reconciler, see :attr:`Certificates.bundle`) loses a CA only after
the overlap (:mod:`toolpolicy_operator.rotation`). A configuration annotated for cert-manager's injector is left alone.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from toolpolicy_operator import names, pki, rotation
from toolpolicy_operator.kube import ApiError, Object, api_path
from toolpolicy_operator.pki import CertificateFault, Pair
from toolpolicy_operator.rotation import Material, Terms
from toolpolicy_operator.tls import ReloadingContext

log = logging.getLogger(__name__)

INJECTED_BY_CERT_MANAGER = ("cert-manager.io/inject-ca-from", "cert-manager.io/inject-ca-from-secret")
CERT_MANAGER_DIRECTORY = Path("/etc/toolpolicy/certificates")
_REGISTRATION = "admissionregistration.k8s.io/v1"
_CONFIGURATIONS = {
    "mutatingwebhookconfigurations": "MutatingWebhookConfiguration",
    "validatingwebhookconfigurations": "ValidatingWebhookConfiguration",
}
_LARGEST_FILE = 128 * 1024


class Kubernetes(Protocol):
    """What is needed of :class:`toolpolicy_operator.kube.Api`."""

    async def get(self, path: str) -> Object: ...
    async def create(self, path: str, obj: Object) -> Object: ...
    async def update(self, path: str, obj: Object) -> Object: ...
    async def apply(self, path: str, obj: Object) -> Object: ...


def _now() -> datetime:
    return datetime.now(UTC)


def _always(bundle: str) -> bool:
    return True


def _never_mind(bundle: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Options:
    """``configuration`` names both webhook configurations; empty: none are kept. ``interval`` and ``publish_every`` are
    seconds. With a ``directory`` certificates come from there.
    """

    terms: Terms
    namespace: str = names.SYSTEM_NAMESPACE
    secret: str = names.CA_SECRET
    configuration: str = "toolpolicy"
    directory: Path | None = None
    interval: float = 10.0
    publish_every: float = 20.0


def service_names(service: str, namespace: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names under which a Service is reached in a cluster, and ``more``."""
    return (f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local", f"{service}.{namespace}", *more)


@dataclass
class Certificates:
    """``leads`` says whether this replica holds the Lease; ``changed`` hears a new :attr:`bundle`; ``settled`` says
    whether a bundle is wherever else it must be (the rules ConfigMaps).
    """

    api: Kubernetes
    tls: ReloadingContext
    options: Options
    leads: Callable[[], bool]
    changed: Callable[[str], None] = _never_mind
    settled: Callable[[str], bool] = _always
    now: Callable[[], datetime] = _now
    problem: str = field(default="", init=False)
    """What keeps the newest certificates from being used; empty if nothing does."""
    bundle: str = field(default="", init=False)
    """The CAs that sidecars are to trust, PEM: for ``control-ca.crt``. Empty before the first certificate is in use."""
    _material: Material | None = field(default=None, init=False)
    _version: str = field(default="", init=False)
    _published: tuple[str, datetime] | None = field(default=None, init=False)

    @property
    def ready(self) -> bool:
        """Whether a certificate is presented."""
        return self.tls.pair is not None

    def expiry(self) -> float:
        """When what is presented ends, seconds since 1970; 0 if nothing is."""
        return pki.expires(self.tls.pair.certificate).timestamp() if self.tls.pair is not None else 0.0

    async def start(self) -> None:
        """Return when a certificate is presented; until then :attr:`problem` says why not."""
        while not self.ready:
            await self.refresh()
            if not self.ready:
                await asyncio.sleep(min(1.0, self.options.interval))

    async def run(self) -> None:
        """Keep it so until cancelled. A new holder of the Lease publishes at once: after an installation nothing can be
        admitted before.
        """
        waited, led = 0.0, False
        while True:
            pause = min(1.0, self.options.interval)
            await asyncio.sleep(pause)
            waited, leads = waited + pause, self.leads()
            if waited >= self.options.interval or (leads and not led):
                await self.refresh()
                waited = 0.0
            led = leads

    async def refresh(self) -> None:
        """Look at what there is, take at most one step, present and publish. Raises nothing of the API's or the
        files'.
        """
        problem = ""
        try:
            if self.options.directory is not None:
                await self._from_directory(self.options.directory)
            else:
                await self._from_secret()
        except CertificateFault as fault:
            problem = f"{self._source}: {fault}"
        except (ApiError, OSError) as error:
            problem = f"{self._source}: {error}"
        if problem and problem != self.problem:
            log.warning("certificates: %s", problem)
        self.problem = problem

    @property
    def _source(self) -> str:
        directory = self.options.directory
        return f"directory {directory}" if directory else f"Secret {self.options.namespace}/{self.options.secret}"

    async def _from_secret(self) -> None:
        found = await self._read() or await self._first()
        if rotation.foreign(self._material, found) and not await self._trusted(found.authority):
            # Until the holder has made it the next CA, what is served now goes on being served.
            if not self.leads() or self._material is None:
                return
            log.warning("certificates: %s was replaced: its CA becomes the next one", self._source)
            found = await self._write(rotation.adopt(self._material, found))
        self._know(found)
        if self.leads():
            published = await self._publish(found.bundle) and self.settled(found.bundle)
            after, done = rotation.step(found, self.options.terms, self.now(), published)
            if done:
                log.info("certificates: %s", done)
                found = await self._write(after)
                self._know(found)
                await self._publish(found.bundle)
        await self._present(found.leaf)

    async def _from_directory(self, directory: Path) -> None:
        texts = {name: _read_file(directory / name) for name in ("tls.crt", "tls.key", "ca.crt")}
        pair = Pair(texts["tls.crt"], texts["tls.key"])
        pki.check_pair(pair)
        # Sidecars must go on trusting replicas that have not read the new files yet.
        self._trust(pki.without_expired(pki.bundle(texts["ca.crt"], self.bundle), self.now()))
        if self.leads():
            await self._publish(self.bundle)
        await self._present(pair)

    async def _read(self) -> Material | None:
        try:
            secret = await self.api.get(self._path)
        except ApiError as error:
            if error.status == 404:
                self._version = ""
                return None
            raise
        self._version = str(secret["metadata"].get("resourceVersion") or "")
        return rotation.read(secret)

    async def _first(self) -> Material:
        """The Secret that is not there: what is in use if there is anything, else a CA of our own."""
        material = self._material
        if material is None:
            material, _ = rotation.step(None, self.options.terms, self.now(), False)
        try:
            await self.api.create(self._collection, self._secret(material))
        except ApiError as error:
            if error.status != 409:
                raise
        found = await self._read()
        if found is None:
            raise CertificateFault("it went as soon as it was made")
        return found

    async def _write(self, material: Material) -> Material:
        written = await self.api.update(self._path, self._secret(material))
        self._version = str(written["metadata"].get("resourceVersion") or "")
        return material

    def _secret(self, material: Material) -> Object:
        metadata: Object = {
            "name": self.options.secret,
            "namespace": self.options.namespace,
            "annotations": rotation.secret_annotations(material),
            "labels": {"app.kubernetes.io/name": "toolpolicy"},
        }
        if self._version:
            metadata["resourceVersion"] = self._version
        secret: Object = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata}
        return {**secret, "data": rotation.secret_data(material)}

    def _know(self, material: Material) -> None:
        self._material = material
        self._trust(material.bundle)

    def _trust(self, bundle: str) -> None:
        if bundle != self.bundle:
            self.bundle = bundle
            self.changed(bundle)

    async def _present(self, leaf: Pair | None) -> None:
        """Use a leaf once every webhook configuration trusts its CA, or when what is in use has expired."""
        served = self.tls.pair
        if leaf is None or leaf == served:
            return
        expired = served is None or pki.expires(served.certificate) <= self.now()
        if not expired and not await self._trusted(leaf):
            return
        if self.tls.use(leaf):
            log.info("certificates: %s is presented from now on", pki.describe(leaf.certificate))

    async def _trusted(self, pair: Pair) -> bool:
        """Whether every webhook of the configurations that exist trusts a CA or a leaf."""
        for plural in _CONFIGURATIONS:
            found = await self._configuration(plural)
            if found is not None and not all(_trusts(webhook, pair) for webhook in _webhooks(found)):
                return False
        return True

    async def _publish(self, bundle: str) -> bool:
        """Whether all webhook configurations carry the bundle; writes it to those that do not.

        What was found right is looked at again only after a while, or when another bundle is asked for.
        """
        last, now = self._published, self.now()
        if last is not None and last[0] == bundle and (now - last[1]).total_seconds() < self.options.publish_every:
            return True
        self._published, complete = None, True
        for plural, kind in _CONFIGURATIONS.items():
            found = await self._configuration(plural)
            # One that is not there yet, in the middle of an installation, is looked for again soon.
            complete = complete and found is not None
            if found is None or _injected(found):
                continue
            patch = ca_bundle_patch(found, kind, bundle)
            if patch is not None:
                await self.api.apply(api_path(_REGISTRATION, plural, None, self.options.configuration), patch)
                log.info("certificates: wrote caBundle of %s %s", kind, self.options.configuration)
        if complete or not self.options.configuration:
            self._published = (bundle, now)
        return True

    async def _configuration(self, plural: str) -> Object | None:
        if not self.options.configuration:
            return None
        try:
            return await self.api.get(api_path(_REGISTRATION, plural, None, self.options.configuration))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    @property
    def _collection(self) -> str:
        return api_path("v1", "secrets", self.options.namespace)

    @property
    def _path(self) -> str:
        return api_path("v1", "secrets", self.options.namespace, self.options.secret)


def ca_bundle_patch(configuration: Object, kind: str, bundle: str) -> Object | None:
    """What to apply so that every webhook of the configuration trusts ``bundle`` and nothing else is owned; None if all
    do. It carries the resourceVersion that was read, because the list of webhooks may have changed since.
    """
    wanted = base64.b64encode(bundle.encode()).decode()
    webhooks = _webhooks(configuration)
    if all(webhook.get("clientConfig", {}).get("caBundle") == wanted for webhook in webhooks):
        return None
    metadata = configuration["metadata"]
    return {
        "apiVersion": _REGISTRATION,
        "kind": kind,
        "metadata": {"name": metadata["name"], "resourceVersion": metadata["resourceVersion"]},
        "webhooks": [{"name": webhook["name"], "clientConfig": {"caBundle": wanted}} for webhook in webhooks],
    }


def _webhooks(configuration: Object) -> list[dict[str, Any]]:
    return configuration.get("webhooks") or []


def _injected(configuration: Object) -> bool:
    annotations: dict[str, str] = configuration["metadata"].get("annotations") or {}
    return any(name in annotations for name in INJECTED_BY_CERT_MANAGER)


def _trusts(webhook: dict[str, Any], pair: Pair) -> bool:
    try:
        bundle = base64.b64decode(webhook.get("clientConfig", {}).get("caBundle") or "", validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return False
    return pki.signed_by(pair.certificate, bundle) or pki.contains(bundle, pair.certificate)


def _read_file(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(_LARGEST_FILE + 1)
    if len(raw) > _LARGEST_FILE:
        raise CertificateFault(f"{path.name} has more than {_LARGEST_FILE} bytes")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise CertificateFault(f"{path.name} is not PEM") from None
