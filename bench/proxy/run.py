"""The sidecar beside its baselines, in one run: direct, Go's plain reverse proxy, our own pass-through, the sidecar.

    .venv/bin/python bench/proxy/run.py [--rounds 5] [--slice 700ms] [--out bench/proxy/results.json]

The proxies run on core 0, the MCP server (Go) and the load generator (Go) on core 1. Every answer is checked by the
generator, and every 50th call of the sidecar's is one that its policy must deny. All systems are up at once and are
driven in short slices in turn, since the speed of a shared machine drifts: compare within a round. Kept are all raw
samples; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from chart import chart  # noqa: E402

from tools.environments import go_program  # noqa: E402

PROXY_CORE, LOAD_CORE = 0, 1
CASES = [("small", 1), ("small", 32), ("big", 32), ("sse", 1)]
"""(kind of answer, clients): a small JSON answer, 100 KB of JSON, a stream of ten events."""


@dataclass(frozen=True)
class System:
    name: str
    port: int
    pid: int
    deny_every: int = 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], port: int, core: int, log: Path) -> Generator[subprocess.Popen[bytes]]:
    """A process pinned to a core, listening on ``port``; ended by its id."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
    os.sched_setaffinity(process.pid, {core})
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not come up:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def drive(load: Path, system: System, mode: str, clients: int, span: str, *extra: str) -> dict[str, Any]:
    """One slice. Raises if any answer was wrong: a proxy that errs is not fast."""
    command = [
        str(load), "-addr", f"127.0.0.1:{system.port}", "-c", str(clients), "-mode", mode, "-t", span, "-warm", "200ms",
        "-denyevery", str(system.deny_every), "-pid", str(system.pid), *extra,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, timeout=120, check=False, preexec_fn=lambda: os.sched_setaffinity(0, {LOAD_CORE})
    )
    found: dict[str, Any] = json.loads(done.stdout or b"{}")
    broken = found.get(
        "transport_errors", 0
    )  # Go's proxy now and then breaks a kept connection: its own affair, if rare
    tolerable = 0 if system.name == "sidecar" else found.get("ok", 0) // 1000
    if done.returncode or found.get("bad") or found.get("leaked") or found.get("fail") or broken > tolerable:
        raise SystemExit(
            f"{system.name}, {mode}, {clients} clients: wrong answers\n{done.stdout.decode()}{done.stderr.decode()}"
        )
    return found


def medians(rounds: list[dict[str, dict[str, Any]]], field: str) -> dict[str, float]:
    return {name: statistics.median(float(row[name].get(field, 0)) for row in rounds) for name in rounds[0]}


def added(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, float]:
    """p50 minus direct's in the same round, µs."""
    names = [name for name in rounds[0] if name != "direct"]
    return {n: statistics.median(row[n]["p50_us"] - row["direct"]["p50_us"] for row in rounds) for n in names}


def ratio(rounds: list[dict[str, dict[str, Any]]], field: str, one: str, other: str) -> float:
    """The median over the rounds of one system's figure over another's of the same round."""
    return statistics.median(row[one][field] / row[other][field] for row in rounds)


def summarise(samples: dict[str, list[dict[str, dict[str, Any]]]]) -> dict[str, Any]:
    single, many, big, sse = (samples[f"{mode}-{clients}"] for mode, clients in CASES)
    return {
        "p50_added_us_1_client": added(single),
        "p99_us_1_client": medians(single, "p99_us"),
        "rps_1_client": medians(single, "rps"),
        "rps_32_clients": medians(many, "rps"),
        "p50_us_32_clients": medians(many, "p50_us"),
        "p99_us_32_clients": medians(many, "p99_us"),
        "cpu_us_per_request_32_clients": medians(many, "cpu_us_per_req"),
        "rps_big_32_clients": medians(big, "rps"),
        "sse_10_events_added_us": added(sse),
        "rss_mib_32_clients": {name: kib / 1024 for name, kib in medians(many, "rss_end_kib").items()},
        "targets": [
            {
                "target": "rps at 32 clients over the Go proxy's",
                "want": ">= 1",
                "is": ratio(many, "rps", "sidecar", "go-proxy"),
            },
            {
                "target": "added p50 at 1 client over the Go proxy's",
                "want": "<= 1",
                "is": added(single)["sidecar"] / added(single)["go-proxy"],
            },
            {
                "target": "CPU per request over the Go proxy's",
                "want": "<= 1",
                "is": ratio(many, "cpu_us_per_req", "sidecar", "go-proxy"),
            },
            {
                "target": "CPU per request over our own pass-through's",
                "want": "<= 1.25",
                "is": ratio(many, "cpu_us_per_req", "sidecar", "pass-through"),
            },
            {
                "target": "100 KB answers: rps over direct's",
                "want": ">= 0.8",
                "is": ratio(big, "rps", "sidecar", "direct"),
            },
            {"target": "10-event SSE answer: added µs", "want": "<= 250", "is": added(sse)["sidecar"]},
        ],
    }


def show(summary: dict[str, Any]) -> None:
    names = ["direct", "go-proxy", "pass-through", "sidecar"]
    print(f"{'':34}" + "".join(f"{name:>14}" for name in names))
    for key, row in summary.items():
        if isinstance(row, dict):
            print(f"{key:34}" + "".join(f"{row[name]:14,.1f}" if name in row else f"{'-':>14}" for name in names))
    for target in summary["targets"]:
        low = target["want"].startswith("<=")
        bound = float(target["want"][3:])
        met = target["is"] <= bound if low else target["is"] >= bound
        print(f"{'met ' if met else 'MISS'} {target['target']}: {target['is']:.2f} (want {target['want']})")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--slice", default="700ms")
    options.add_argument("--streams", type=int, default=1000, help="idle streams for the memory figure; 0 skips it")
    options.add_argument("--out", type=Path, default=HERE / "results.json")
    chosen = options.parse_args()
    load, upstream, floor = (go_program(HERE.parent / "rig" / name) for name in ("load", "upstream", "floor"))
    python = sys.executable
    ports = [free_port() for _ in range(5)]
    origin, go_port, pass_port, port, admin = (f"127.0.0.1:{p}" for p in ports)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        logs = Path(folder)

        def start(name: str, command: list[str], place: int, core: int) -> int:
            return stack.enter_context(running(command, place, core, logs / name)).pid

        start("upstream", [str(upstream), "-addr", origin], ports[0], LOAD_CORE)
        go_pid = start("floor", [str(floor), "-addr", go_port, "-up", f"http://{origin}"], ports[1], PROXY_CORE)
        # -E: interpreted always; compiled legs take no stand-in for the part that looks at answers.
        relay = [python, "-E", str(HERE / "passthrough.py"), pass_port, f"http://{origin}/mcp"]
        relay_pid = start("pass-through", relay, ports[2], PROXY_CORE)
        command = [
            str(Path(python).parent / "toolpolicy"), "proxy", "--policy", str(HERE / "policy20.yaml"), "--upstream", f"http://{origin}/mcp",
            "--listen", port, "--admin", admin, "--audit", str(logs / "audit.jsonl"),
            "--audit-key", str(logs / "audit.key"), "--set", "max_connections=4096", "--set", "max_streams=4096",
        ]  # fmt: skip
        pid = start("sidecar", command, ports[3], PROXY_CORE)
        systems = [
            System("direct", ports[0], 0),
            System("go-proxy", ports[1], go_pid),
            System("pass-through", ports[2], relay_pid),
            System("sidecar", ports[3], pid, deny_every=50),
        ]
        memory_at_start = status_kib(pid)
        samples: dict[str, list[dict[str, dict[str, Any]]]] = {f"{mode}-{clients}": [] for mode, clients in CASES}
        for number in range(chosen.rounds):
            for mode, clients in CASES:
                row = {system.name: drive(load, system, mode, clients, chosen.slice) for system in systems}
                samples[f"{mode}-{clients}"].append(row)
            print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr)
        idle = drive(load, systems[3], "idle", chosen.streams, "0s", "-hold", "2s") if chosen.streams else {}
    summary = summarise(samples)
    summary["sidecar_memory_at_start_kib"] = memory_at_start
    if idle:
        summary["idle_stream_kib"] = {"sidecar": idle["kib_per_session_and_stream"]}
    machine = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    chosen.out.write_text(
        json.dumps({"time": when, "machine": machine, "summary": summary, "samples": samples}, indent=1) + "\n"
    )
    chosen.out.with_suffix(".svg").write_text(chart(summary))
    show(summary)


def status_kib(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: float(line.split()[1]) for line in lines for key in ("VmRSS", "RssAnon") if line.startswith(f"{key}:")}


if __name__ == "__main__":
    main()
