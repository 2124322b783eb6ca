"""The clusters as pytest fixtures; ``tests/conftest.py`` names this file as a plugin."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

from cluster import foreign, images, keeper
from cluster import node as nodes
from cluster.control import ClusterError, Components, ControlPlane, boot, has_account, install_crds, layout, programs
from tools.environments import InstallError

RUN = "PYTEST_CLUSTERS_OF"
"""Set by the process that was called as pytest: its own id, which its parallel workers inherit. No ``TOOLPOLICY_``
name: a sidecar refuses one that it does not know."""
ACCOUNT_DEADLINE = 60.0
CLUSTERS = {"control_plane", "own_control_plane", "node"}


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        os.environ[RUN] = str(os.getpid())


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        keeper.end(os.environ[RUN])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs a cluster is slow, whether it says so or not."""
    for item in items:
        if CLUSTERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ControlPlane:
    """One API server for the whole run, shared by its workers; see :class:`cluster.control.ControlPlane`."""
    chosen = os.environ.get("TOOLPOLICY_TEST_KUBECONFIG")
    try:
        if chosen:
            plane = foreign.join(chosen, tmp_path_factory.mktemp("cluster"))
            install_crds(plane)
            return plane
        # A first build takes minutes and says so: not into a captured stream.
        with uncaptured(request.config):
            programs()
        return keeper.obtain("control", os.environ[RUN])
    except (ClusterError, InstallError) as error:
        raise lacking("a Kubernetes API server", error) from None


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ControlPlane:
    """A Kubernetes with a real node that has the images of :mod:`cluster.images`, for the whole run."""
    chosen = os.environ.get("TOOLPOLICY_TEST_KUBECONFIG")
    try:
        if chosen:
            plane = foreign.join(chosen, tmp_path_factory.mktemp("cluster"))
            install_crds(plane)
            return plane
        with uncaptured(request.config):
            nodes.ensure_packages()
            nodes.programs()
            images.prepare()
        return keeper.obtain("node", os.environ[RUN])
    except (ClusterError, InstallError) as error:
        raise lacking("a Kubernetes node", error) from None


@pytest.fixture
def node_namespace(node: ControlPlane) -> Generator[str]:
    """A namespace on the node's cluster, as ``namespace`` is one on the control plane."""
    yield from fresh_namespace(node)


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Generator[str]:
    """A namespace of the test's own, with its ServiceAccount; deleted afterwards, which nobody waits for."""
    yield from fresh_namespace(control_plane)


@pytest.fixture
def own_control_plane(tmp_path: Path) -> Generator[tuple[ControlPlane, Components]]:
    """A control plane of one test's own, to be stopped and paused; 5 s and 700 MB, so for faults only."""
    plan = layout(tmp_path / "control")
    try:
        parts = Components(plan, programs())
    except (ClusterError, InstallError) as error:
        raise lacking("a Kubernetes API server", error) from None
    try:
        yield boot(plan, parts), parts
    finally:
        parts.close()


def lacking(what: str, error: Exception) -> BaseException:
    """A failure, not a skip: what can't be tried is not known to work."""
    return pytest.fail.Exception(f"this test needs {what}: {error}", pytrace=False)


def uncaptured(config: pytest.Config) -> AbstractContextManager[None]:
    """A block whose output reaches the terminal."""
    capture = cast(Any, config.pluginmanager.getplugin("capturemanager"))
    return capture.global_and_fixture_disabled() if capture else nullcontext()


def fresh_namespace(plane: ControlPlane) -> Generator[str]:
    """A new namespace, deleted when the generator ends."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    create_namespace(plane, name)
    yield name
    plane.kubectl("delete", "namespace", name, "--wait=false", check=False)


def create_namespace(plane: ControlPlane, name: str, **labels: str) -> None:
    """Create a namespace and return when its default ServiceAccount is there, without which no pod is admitted."""
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    plane.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
    if not plane.controllers:
        plane.kubectl("create", "serviceaccount", "default", "-n", name)
    end = time.monotonic() + ACCOUNT_DEADLINE
    while not has_account(plane, name):
        if time.monotonic() > end:
            raise ClusterError(f"namespace {name} has no default ServiceAccount after {ACCOUNT_DEADLINE:.0f} s")
        time.sleep(0.02)
