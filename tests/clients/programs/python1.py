"""The official Python client 1.x."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import steps
from mcp import ClientSession, types
from mcp.client.streamable_http import streamable_http_client


async def main(url: str) -> None:
    async with streamable_http_client(url) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()

        async def names() -> list[str]:
            return [tool.name for tool in (await session.list_tools()).tools]

        async def call(name: str, arguments: dict[str, Any], seen: steps.Progress | None) -> tuple[str, bool]:
            async def notify(progress: float, total: float | None, message: str | None) -> None:
                del total, message
                if seen:
                    seen(progress)

            request_id = session._request_id  # pyright: ignore[reportPrivateUsage]
            try:
                result = await session.call_tool(name, arguments, progress_callback=notify if seen else None)
            except asyncio.CancelledError:
                # This client does not tell the server by itself; its documentation shows this notification.
                params = types.CancelledNotificationParams(requestId=request_id, reason="gave up")
                notification = types.CancelledNotification(params=params)
                await session.send_notification(types.ClientNotification(notification))
                raise
            text = "".join(block.text for block in result.content if isinstance(block, types.TextContent))
            return text, bool(result.isError)

        await steps.run(names, call, resumes=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
