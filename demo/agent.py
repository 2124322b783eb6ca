"""The agent's hands: the official Python client (PyPI ``mcp``), unchanged, in an environment of its own.

Reads one JSON object a line on stdin, answers each with one on stdout, and ends with stdin:
``{"list": true}`` gives ``{"tools": [...]}``,
``{"call": NAME, "arguments": {...}}`` gives ``{"error": BOOL, "text": STRING, "meta": OBJECT}``.

Usage: ``agent.py URL`` for a server over HTTP, ``agent.py -- COMMAND...`` for one over stdio.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (the client is installed in the environment of requirements/demo-agent.txt, where this file runs, and nowhere else)

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib.metadata import version
from typing import Any

from mcp import Client, StdioServerParameters


def say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main(arguments: list[str]) -> None:
    server: Any = arguments[0]
    if server == "--":
        server = StdioServerParameters(command=arguments[1], args=arguments[2:], env=dict(os.environ))
    # "legacy" is the handshake with a session, which the policy's limit counts by
    async with Client(server, mode="legacy") as client:
        say(client=version("mcp"), server=client.server_info.name, protocol=client.protocol_version)
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            if "list" in asked:
                say(tools=[tool.name for tool in (await client.list_tools()).tools])
            else:
                result = await client.call_tool(asked["call"], asked["arguments"])
                text = "\n".join(part.text for part in result.content if part.type == "text")
                say(error=bool(result.is_error), text=text, meta=result.meta or {})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
