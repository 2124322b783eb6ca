"""The official Python client 2.x; the second argument is ``legacy`` or a revision such as 2026-07-28."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import steps
from mcp import Client
from mcp_types import TextContent


async def main(url: str, mode: str) -> None:
    async with Client(url, mode=mode) as client:

        async def names() -> list[str]:
            return [tool.name for tool in (await client.list_tools()).tools]

        async def call(name: str, arguments: dict[str, Any], seen: steps.Progress | None) -> tuple[str, bool]:
            async def notify(progress: float, total: float | None, message: str | None) -> None:
                del total, message
                if seen:
                    seen(progress)

            result = await client.call_tool(name, arguments, progress_callback=notify if seen else None)
            text = "".join(block.text for block in result.content if isinstance(block, TextContent))
            return text, bool(result.is_error)

        await steps.run(names, call, resumes=mode == "legacy")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
