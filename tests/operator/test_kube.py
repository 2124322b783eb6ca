"""The adapter against a real API server: what the operator relies on is what the server does."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cluster.control import ControlPlane
from toolpolicy_operator import kube
from toolpolicy_operator.configmap import ABSENT
from toolpolicy_operator.kube import Api, ApiError, ConfigurationError, api_path

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]


@pytest_asyncio.fixture
async def api(control_plane: ControlPlane) -> AsyncGenerator[Api]:
    async with await Api.connect(control_plane.kubeconfig) as found:
        yield found


def config_map(namespace: str, name: str = "found", **metadata: str) -> dict[str, Any]:
    about = {"name": name, "namespace": namespace, **metadata}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"a": "b"}}


def path(namespace: str, name: str = "found") -> str:
    return api_path("v1", "configmaps", namespace, name)


async def test_an_apply_can_ask_that_there_be_none_yet(api: Api, namespace: str) -> None:
    created = await api.apply(path(namespace), config_map(namespace, resourceVersion=ABSENT))
    assert created["data"] == {"a": "b"}
    with pytest.raises(ApiError) as refused:
        await api.apply(path(namespace), config_map(namespace, resourceVersion=ABSENT))
    assert refused.value.conflict


async def test_an_apply_of_an_older_version_is_refused(api: Api, namespace: str) -> None:
    first = await api.apply(path(namespace), config_map(namespace))
    await api.patch(path(namespace), {"data": {"a": "c"}})
    old = config_map(namespace, uid=first["metadata"]["uid"], resourceVersion=first["metadata"]["resourceVersion"])
    with pytest.raises(ApiError) as refused:
        await api.apply(path(namespace), old)
    assert refused.value.conflict


async def test_an_apply_to_what_was_deleted_does_not_bring_it_back(api: Api, namespace: str) -> None:
    first = await api.apply(path(namespace), config_map(namespace))
    about = {k: first["metadata"][k] for k in ("uid", "resourceVersion")}
    await api.delete(path(namespace), uid=about["uid"], resource_version=about["resourceVersion"])
    with pytest.raises(ApiError) as refused:
        await api.apply(path(namespace), config_map(namespace, **about))
    assert refused.value.conflict


async def test_a_deletion_names_what_it_means(api: Api, namespace: str) -> None:
    first = await api.apply(path(namespace), config_map(namespace))
    with pytest.raises(ApiError) as refused:
        await api.delete(path(namespace), uid=first["metadata"]["uid"], resource_version="1")
    assert refused.value.conflict


async def test_a_list_of_many_pages_is_all_of_it(api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        await api.create(api_path("v1", "configmaps", namespace), config_map(namespace, f"number-{number}"))
    monkeypatch.setattr(kube, "PAGE", 3)
    found = await api.list(api_path("v1", "configmaps", namespace))
    named = [o["metadata"]["name"] for o in found if o["metadata"]["name"].startswith("number-")]
    assert sorted(named) == [f"number-{n}" for n in range(7)]
    assert found.resource_version.isdecimal()


async def test_what_is_refused_says_what_and_whom(control_plane: ControlPlane, namespace: str) -> None:
    async with await Api.connect(control_plane.kubeconfig_for("nobody-in-particular")) as stranger:
        with pytest.raises(ApiError) as refused:
            await stranger.get(path(namespace))
    assert refused.value.forbidden
    assert "nobody-in-particular" in refused.value.message
    assert "configmaps" in refused.value.message


async def test_what_is_not_there_is_not_found(api: Api, namespace: str) -> None:
    with pytest.raises(ApiError) as missing:
        await api.get(path(namespace, "nothing"))
    assert missing.value.not_found
    assert missing.value.reason == "NotFound"


async def test_a_server_that_is_not_there_is_said(control_plane: ControlPlane, tmp_path: Path) -> None:
    elsewhere = tmp_path / "kubeconfig"
    elsewhere.write_text(control_plane.kubeconfig.read_text().replace(control_plane.url, "https://127.0.0.1:9"))
    async with await Api.connect(elsewhere) as api:
        with pytest.raises(ApiError) as failed:
            await api.get("/version")
    assert (failed.value.status, failed.value.reason) == (0, "Unreachable")


@pytest.mark.parametrize("text", ["", "apiVersion: v1", "{", "current-context: x"])
async def test_a_kubeconfig_that_is_none_is_said(tmp_path: Path, text: str) -> None:
    broken = tmp_path / "kubeconfig"
    broken.write_text(text)
    with pytest.raises(ConfigurationError, match="no access to a cluster from the kubeconfig"):
        await Api.connect(broken)


async def test_a_namespace_cannot_leave_its_path() -> None:
    assert api_path("v1", "pods", "a/../b", "c?d") == "/api/v1/namespaces/a%2F..%2Fb/pods/c%3Fd"
