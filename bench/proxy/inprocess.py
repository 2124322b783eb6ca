"""What a call costs in this process, without sockets: our pass-through and the judging sidecar, µs per call, best of
several rounds.

    python bench/proxy/inprocess.py [--profile]

The kernel's share (two reads, two writes, one poll, one audit line) comes on top and is the same for any proxy.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import pstats
import sys
import time
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parent))

from passthrough import PassThrough

from toolpolicy.sidecar import pool as pool_module
from toolpolicy.sidecar.app import Sidecar
from toolpolicy.sidecar.audit import open_audit
from toolpolicy.sidecar.identity import RequestIdentifier
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.pool import Pool
from toolpolicy.sidecar.rules import FileRules
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.state.memory import MemoryState
from toolpolicy.sidecar.upstream import Connection

ROUNDS = 60
CALLS = 300
TOKEN = "0123456789abcdef0123456789abcdef"
BODY = json.dumps(
    {
        "jsonrpc": "2.0",
        "id": 17,
        "method": "tools/call",
        "params": {
            "name": "start_dicom_export_job",
            "arguments": {
                "datastore_id": "12345678901234567890123456789012",
                "job_name": "nightly-export",
                "output_s3_uri": "s3://research-approved/exports/2026/11/",
                "data_access_role_arn": "arn:aws:iam::123456789012:role/HealthImagingExport",
                "study_instance_uid": "1.2.840.113619.2.176.3596.3364818.7819.1259708454.105",
                "client_token": TOKEN,
            },
            "_meta": {"progressToken": 17},
        },
    },
    separators=(",", ":"),
).encode()
REQUEST = (
    b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:9100\r\nUser-Agent: mcp-bench/1\r\n"
    b"Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Mcp-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: bench-session-00000001\r\n\r\n" % len(BODY)
) + BODY
RESULT = (
    b'{"jsonrpc":"2.0","id":17,"result":{"resultType":"complete","content":[{"type":"text","text":"upstream-ok"}]}}'
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(RESULT) + RESULT


class Wire:
    """A transport that remembers the last bytes."""

    def __init__(self) -> None:
        self.last = b""

    def write(self, data: bytes) -> None:
        self.last = data

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, **_: Any) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


async def measure(name: str, service: Any, pool: Pool, *, profile: bool) -> float:
    down, up = Wire(), Wire()
    connection = Connection(pool)
    connection.connection_made(cast(asyncio.Transport, up))
    pool.released(connection, reusable=True)
    conversation = service._server()
    conversation.connection_made(down)
    await asyncio.sleep(0)
    best = float("inf")
    profiler = cProfile.Profile()
    for round_ in range(ROUNDS):
        if profile and round_ == ROUNDS - 1:
            profiler.enable()
        begin = time.thread_time()
        for _ in range(CALLS):
            conversation.data_received(REQUEST)
            connection.data_received(ANSWER)
        best = min(best, (time.thread_time() - begin) / CALLS)
        assert up.last.endswith(BODY), up.last
        assert down.last == ANSWER, down.last
        await asyncio.sleep(0)
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    print(f"{name:14} {best * 1e6:6.1f} µs")
    conversation.connection_lost(None)
    return best


async def main() -> None:
    pool_module.FRESH = 1e9
    profile = "--profile" in sys.argv
    settings = Settings(listen="127.0.0.1:0", upstream="http://127.0.0.1:9/mcp", upstream_keepalive=1e9)
    plain = PassThrough(settings)
    await plain.start()
    base = await measure("pass-through", plain, plain.pool, profile=profile)
    rules = FileRules([Path(__file__).with_name("policy20.yaml")])
    await rules.load()
    assert rules.current is not None, rules.status
    audit = open_audit("/dev/shm/toolpolicy-bench-audit.jsonl", b"k" * 32)
    sidecar = Sidecar(settings, rules, RequestIdentifier(None, b"k", settings), MemoryState(), audit, Metrics())
    await sidecar.start()
    full = await measure("sidecar", sidecar, sidecar.pool, profile=profile)
    print(f"{'judging':14} {(full - base) * 1e6:6.1f} µs, {full / base:.2f}x")
    await sidecar.drain()
    await plain.drain()
    Path("/dev/shm/toolpolicy-bench-audit.jsonl").unlink()


asyncio.run(main())
