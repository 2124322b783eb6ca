"""When a rotation of the CA may go on: once all who have to trust the new one do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from toolpolicy_operator import names
from toolpolicy_operator.application import Application
from toolpolicy_operator.kube import Api
from toolpolicy_operator.records import Kind
from toolpolicy_operator.settings import Settings


def _application(control_url: str) -> Application:
    unreachable: Any = SimpleNamespace(host="https://api.invalid")
    return Application(Settings("example/sidecar:1", control_url=control_url), Api(unreachable))


def _rules(namespace: str, ca: str | None) -> dict[str, Any]:
    data = {"index.json": "{}"} | ({names.CONTROL_CA_KEY: ca} if ca is not None else {})
    metadata = {"name": names.RULES_CONFIGMAP, "namespace": namespace, "uid": namespace, "resourceVersion": "1"}
    return {"metadata": metadata, "data": data}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("control_url", "held", "trusted"),
    [
        ("https://toolpolicy-operator:9444", ["NEW", "NEW"], True),
        ("https://toolpolicy-operator:9444", ["NEW", "OLD"], False),
        ("https://toolpolicy-operator:9444", ["NEW", None], False),
        # No sidecar reports, so no rules carry a CA: waiting for them would leave the old one in use until it ends.
        ("", [None, None], True),
    ],
)
async def test_a_rotation_waits_only_for_rules_that_carry_the_ca(
    control_url: str, held: list[str | None], trusted: bool
) -> None:
    application = _application(control_url)
    for index, ca in enumerate(held):
        application.store.put(Kind.RULES, _rules(f"n{index}", ca))
    assert application._trusted_everywhere("NEW") is trusted  # pyright: ignore[reportPrivateUsage]
