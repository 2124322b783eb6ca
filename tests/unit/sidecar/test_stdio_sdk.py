"""The official Python SDK on both ends of front and bridge, in both of its eras."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import environments

SERVER = """
import asyncio, os
from mcp.server.mcpserver import Context, MCPServer

app = MCPServer("sdk-server")

@app.tool()
async def steps(count: int, ctx: Context) -> str:
    for step in range(count):
        await ctx.report_progress(step, count)
    return f"{count} steps by {os.getpid()}"

@app.tool()
def fail() -> str:
    raise ValueError("on purpose")

app.run()
"""

CLIENT = """
import asyncio, json, sys
from mcp import Client, StdioServerParameters

async def main():
    mode, *command = sys.argv[1:]
    server = command[0] if len(command) == 1 else StdioServerParameters(command=command[0], args=command[1:])
    async with Client(server, mode=mode) as client:
        seen = []
        async def progress(done, total, message):
            seen.append(done)
        tools = [tool.name for tool in (await client.list_tools()).tools]
        calls = [client.call_tool("steps", {"count": n}, progress_callback=progress) for n in (3, 2)]
        results = [result.content[0].text.split(" by ")[0] for result in await asyncio.gather(*calls)]
        failed = await client.call_tool("fail", {})
        print(json.dumps({"protocol": client.protocol_version, "tools": tools, "results": results,
                          "progress": sorted(seen), "failed": failed.is_error}))

asyncio.run(main())
"""

FRONT = """
import asyncio, sys
from toolpolicy.sidecar.stdio_client import serve_stdio
from toolpolicy.sidecar.stdio_server import StdioBridge

async def main():
    bridge = StdioBridge(sys.argv[2:], sys.argv[1] == "shared")
    await bridge.start()
    try:
        return await serve_stdio(bridge.url, sys.stdin.buffer, sys.stdout.buffer)
    finally:
        await bridge.stop()

sys.exit(asyncio.run(main()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["own", "shared"])
@pytest.mark.parametrize(("mode", "protocol"), [("legacy", "2025-11-25"), ("auto", "2026-07-28")])
def test_the_official_client_and_server_notice_nothing(tmp_path: Path, mode: str, protocol: str, sharing: str) -> None:
    python = str(environments.venv("test-mcp2") / "bin" / "python")
    for name, text in (("server", SERVER), ("client", CLIENT), ("front", FRONT)):
        (tmp_path / f"{name}.py").write_text(text)
    server = [python, str(tmp_path / "server.py")]
    front = [sys.executable, str(tmp_path / "front.py"), sharing, *server]

    def talk(command: list[str]) -> dict[str, Any]:
        arguments = [python, str(tmp_path / "client.py"), mode, *command]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    direct, wrapped = talk(server), talk(front)
    assert wrapped == direct
    assert direct == {
        "protocol": protocol,
        "tools": ["steps", "fail"],
        "results": ["3 steps", "2 steps"],
        "progress": [0, 0, 1, 1, 2],
        "failed": True,
    }
