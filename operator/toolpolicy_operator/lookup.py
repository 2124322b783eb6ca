"""What admission asks the API server beside policies and namespaces."""

from __future__ import annotations

from collections.abc import Sequence

from toolpolicy_operator.kube import Api, Object, api_path

SECONDS = 1.0


class ApiServices:
    """The Services of a namespace as of now, for the warnings of a policy's admission."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def __call__(self, namespace: str) -> Sequence[Object]:
        return await self._api.list(api_path("v1", "services", namespace), within=SECONDS)
