"""``make demo`` on its real input: what it shows, and that nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.endpoint import DATASTORE, Endpoint
from tools import environments

DEADLINE = 120.0


def start(temporary: Path) -> subprocess.Popen[str]:
    """The demo as the Makefile starts it, with its temporary files where the test can see them."""
    environments.venv("demo-server")
    environments.venv("demo-agent")
    return subprocess.Popen(
        [sys.executable, "-m", "demo.run"],
        cwd=environments.ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``."""
    found: list[int] = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


@pytest.mark.slow
def test_the_demo_shows_allowed_denied_limited_and_edited_calls_and_counts_them(tmp_path: Path) -> None:
    demo = start(tmp_path)
    out, err = demo.communicate(timeout=DEADLINE)
    assert demo.returncode == 0, out + err
    text = " ".join(out.split())
    for expected in (
        r"shown \d+ of the server's 39 tools hidden bulk_delete_by_criteria",
        r"agent list_datastores\(\) told .*radiology.* decided Allow by agents/imaging:read-freely",
        r"told The tool delete_datastore is denied .*Destructive imaging tools are off for agents",
        r"exports may only go to the imaging-exports bucket",
        r"limit of 10 .* Retry in \d+ seconds",
        r"revision \w+ → \w+ in force",
        r"decided Deny by agents/imaging:audit-in-progress",
        r"\d+ records as they were written, 0 findings",
        r"list_datastores 2 1 1 1 search_image_sets 2 2 0 2 delete_datastore 1 0 1 0 start_dicom_export_job 12 10 2 10",
        r"10 exports allowed, 10 executed, all to imaging-exports; 0 deletes; nothing else\.$",
    ):
        assert re.search(expected, text), f"{expected} is missing in:\n{out}"
    assert len(re.findall(r"s3://imaging-exports/export-\d+/ +job", out)) == 10
    assert "\x1b" not in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    demo = start(tmp_path)
    assert demo.stdout is not None
    while "1. What is the agent shown?" not in demo.stdout.readline():
        assert demo.poll() is None
    below = descendants(demo.pid)
    assert len(below) >= 3
    demo.send_signal(number)
    _, err = demo.communicate(timeout=DEADLINE)
    assert (demo.returncode, err.strip().splitlines()[-1]) == (130, "interrupted")
    end = time.monotonic() + DEADLINE
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < end, "processes of the demo are still there"
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def test_the_endpoint_records_what_should_never_reach_it() -> None:
    """The demo's proof rests on this: a delete that came through would be counted."""
    endpoint = Endpoint()
    try:
        assert endpoint.execute("DELETE", f"/datastore/{DATASTORE}", {})[0] == 200
        assert endpoint.execute("POST", "/startDICOMExportJob/datastore/x?y=1", {"outputS3Uri": "s3://x/"})[0] == 200
        assert endpoint.execute("PUT", "/elsewhere", {})[0] == 404
        assert endpoint.counts() == {"DeleteDatastore": 1, "StartDICOMExportJob": 1, "PUT /elsewhere": 1}
    finally:
        endpoint.close()
