"""Whether the sidecar's memory stays flat: 200,000 calls by 20,000 distinct sessions through a real process.

    .venv/bin/python bench/proxy/growth.py [--calls 200000] [--sessions 20000] [--out bench/proxy/growth.json]

Prints resident and anonymous memory along the way, and exits 1 if the second half of the run grew by more than 4 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]

from run import LOAD_CORE, PROXY_CORE, free_port, running, status_kib  # noqa: E402

from tools.environments import go_program  # noqa: E402

POLICY = """\
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {name: growth}
spec:
  selector: {}
  rules:
  - name: export
    match: {tools: [start_dicom_export_job]}
    action: Allow
    rateLimit: {max: 20, window: 1s, per: Session, principalMax: 10000}
    validations: [{expression: 'args.output_s3_uri.startsWith("s3://imaging-exports/")'}]
"""
ALLOWED_GROWTH_KIB = 4096
CLIENTS = 16
SAMPLES = 10


async def client(port: int, sessions: int, turns: asyncio.Queue[int]) -> int:
    """Calls until there are no more turns. The number of calls that reached the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    passed = 0
    with contextlib.closing(writer):
        while not turns.empty():
            turn = turns.get_nowait()
            call = {"name": "start_dicom_export_job", "arguments": {"output_s3_uri": "s3://imaging-exports/x"}}
            message = {"jsonrpc": "2.0", "id": turn, "method": "tools/call", "params": call}
            body = json.dumps(message).encode()
            head = (
                f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Accept: application/json, text/event-stream\r\nMcp-Session-Id: growth-{turn % sessions:08d}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            passed += b"upstream-ok" in await asyncio.wait_for(reader.readexactly(length), 20)
    return passed


async def drive(port: int, pid: int, calls: int, sessions: int) -> list[dict[str, float]]:
    found = [status_kib(pid) | {"calls": 0.0}]
    for part in range(SAMPLES):
        turns: asyncio.Queue[int] = asyncio.Queue()
        for turn in range(part * calls // SAMPLES, (part + 1) * calls // SAMPLES):
            turns.put_nowait(turn)
        passed = sum(await asyncio.gather(*(client(port, sessions, turns) for _ in range(CLIENTS))))
        found.append(status_kib(pid) | {"calls": (part + 1) * calls / SAMPLES, "passed": float(passed)})
        print(json.dumps(found[-1]), flush=True)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--calls", type=int, default=200_000)
    options.add_argument("--sessions", type=int, default=20_000)
    options.add_argument("--out", type=Path, default=HERE / "growth.json")
    chosen = options.parse_args()
    upstream = go_program(HERE.parent / "rig" / "upstream")
    origin, port, admin = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        policy = logs / "policy.yaml"
        policy.write_text(POLICY)
        command = [
            str(Path(sys.executable).parent / "toolpolicy"), "proxy", "--policy", str(policy),
            "--upstream", f"http://127.0.0.1:{origin}/mcp", "--listen", f"127.0.0.1:{port}",
            "--admin", f"127.0.0.1:{admin}", "--audit", str(logs / "audit"), "--audit-key", str(logs / "key"),
        ]  # fmt: skip
        with (
            running([str(upstream), "-addr", f"127.0.0.1:{origin}"], origin, LOAD_CORE, logs / "upstream.log"),
            running(command, port, PROXY_CORE, logs / "sidecar.log") as sidecar,
        ):
            samples = asyncio.run(drive(port, sidecar.pid, chosen.calls, chosen.sessions))
    growth = samples[-1]["RssAnon"] - samples[SAMPLES // 2]["RssAnon"]
    chosen.out.write_text(json.dumps({"samples": samples, "second_half_growth_kib": growth}, indent=1) + "\n")
    print(f"anonymous memory grew by {growth:,.0f} KiB in the second half")
    return int(growth > ALLOWED_GROWTH_KIB)


if __name__ == "__main__":
    sys.exit(main())
