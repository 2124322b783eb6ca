"""Which methods are judged in any revision."""

from __future__ import annotations

import pytest

from toolpolicy.mcp.methods import judged, plain_tool_name
from toolpolicy.mcp.revisions import (
    KNOWN,
    batch_allowed,
    has_result_type,
    has_sessions,
    known,
    requires_standard_headers,
)


@pytest.mark.parametrize(
    "method",
    [
        "tools/call",
        "resources/read",
        "resources/subscribe",
        "prompts/get",
        "completion/complete",
        "sampling/createMessage",
        "elicitation/create",
        "roots/list",
        "tasks/create",
        "tools/invoke",
        "vendor/run",
        "Tools/list",
        "notification/x",
    ],
)
def test_judged(method: str) -> None:
    assert judged(method)


@pytest.mark.parametrize(
    "method",
    [
        "initialize",
        "server/discover",
        "ping",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/unsubscribe",
        "tasks/get",
        "tasks/result",
        "tasks/cancel",
        "tasks/update",
        "tasks/list",
        "subscriptions/listen",
        "logging/setLevel",
        "notifications/initialized",
        "notifications/vendor",
    ],
)
def test_passing(method: str) -> None:
    assert not judged(method)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("start_dicom_export_job", True),
        ("a", True),
        ("ns.tool-1/x", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("delete ", False),
        ("delete\n", False),
        ("dеlete", False),
        ("delete\0", False),
        ("a:b", False),
    ],
)
def test_names_that_are_matched_without_being_named_exactly(name: str, plain: bool) -> None:
    assert plain_tool_name(name) is plain


REVISIONS = [
    # revision, batch, standard headers, sessions
    (None, True, False, True),
    ("2024-11-05", False, False, True),
    ("2025-03-26", True, False, True),
    ("2025-06-18", False, False, True),
    ("2025-11-25", False, False, True),
    ("2026-07-28", False, True, False),
    ("2027-01-01", False, True, False),
    ("nonsense", False, True, False),
]


@pytest.mark.parametrize(("revision", "batch", "headers", "sessions"), REVISIONS)
def test_revisions(revision: str | None, batch: bool, headers: bool, sessions: bool) -> None:
    assert batch_allowed(revision) is batch
    assert requires_standard_headers(revision) is headers
    assert has_sessions(revision) is sessions
    assert has_result_type(revision) is not sessions
    assert known(revision) is (revision in KNOWN)
