"""Events are found wherever the chunks end, and nothing is lost or changed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolpolicy.mcp.sse import Event, EventScanner, SseError, replace_data

Fields = tuple[bytes | None, str | None, bytes | None]


def scan(*chunks: bytes) -> list[Event]:
    scanner = EventScanner()
    return [event for chunk in chunks for event in scanner.feed(chunk)]


def fields(event: Event) -> Fields:
    return (event.data, event.event, event.id)


def meaningful(events: list[Event]) -> list[Fields]:
    return [found for event in events if (found := fields(event)) != (None, None, None)]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"data: x\n\n", (b"x", None, None)),
        (b"data:x\n\n", (b"x", None, None)),
        (b"data:  x \n\n", (b" x ", None, None)),
        (b"data\n\n", (b"", None, None)),
        (b"data: a\ndata: b\n\n", (b"a\nb", None, None)),
        (b"data: a\r\ndata\r\ndata: b\r\n\r\n", (b"a\n\nb", None, None)),
        (b"event: message\rdata: x\r\r", (b"x", "message", None)),
        (b"id: 7\nevent: endpoint\nretry: 10\ndata: /m\n\n", (b"/m", "endpoint", b"7")),
        (b"id\ndata: x\n\n", (b"x", None, b"")),
        (b"id: a\0b\ndata: x\n\n", (b"x", None, None)),
        (b": ping\n\n", (None, None, None)),
        (b":\r\n\r\n", (None, None, None)),
        (b"retry: 3000\n\n", (None, None, None)),
        (b"Data: x\n\n", (None, None, None)),
        (b" data: x\n\n", (None, None, None)),
        (b"data : x\n\n", (None, None, None)),
        (b"\n", (None, None, None)),
        (b"\xef\xbb\xbfdata: x\n\n", (b"x", None, None)),
        (b"data: \xc3\xa9\x0b\x0c\x1e\xe2\x80\xa8\n\n", ("\u00e9\x0b\x0c\x1e\u2028".encode(), None, None)),
    ],
)
def test_fields(raw: bytes, expected: Fields) -> None:
    (event,) = scan(raw)
    assert event.raw == raw
    assert fields(event) == expected


def test_a_mark_counts_only_at_the_start_of_the_stream() -> None:
    first, second = scan(b"data: a\n\n\xef\xbb\xbfdata: b\n\n")
    assert (first.data, second.data) == (b"a", None)


def test_an_event_is_delivered_with_its_last_byte() -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        scanner = EventScanner()
        raw = b"id: 1" + end + b"data: x" + end + end
        for n in range(len(raw) - 1):
            assert scanner.feed(raw[n : n + 1]) == []
        (event,) = scanner.feed(raw[-1:])
        assert event.raw == raw


def test_a_split_pair_of_cr_and_lf_stays_one_line_end() -> None:
    first, second = scan(b"data: a\r\n\r", b"\ndata: b\r", b"\n\r\n")
    assert (first.raw, second.raw) == (b"data: a\r\n\r\n", b"data: b\r\n\r\n")


def test_bare_cr_is_not_held_back() -> None:
    assert [event.raw for event in scan(b"data: a\r\r")] == [b"data: a\r\r"]
    assert meaningful(scan(b"data: a\r\r", b"\ndata: b\n\n")) == [(b"a", None, None), (b"b", None, None)]


def test_what_is_unfinished_is_given_back() -> None:
    scanner = EventScanner()
    assert len(scanner.feed(b"data: a\n\ndata: b\n")) == 1
    assert scanner.finish() == b"data: b\n"
    assert scanner.finish() == b""


def test_an_event_that_is_too_large() -> None:
    scanner = EventScanner(max_event=100)
    assert len(scanner.feed(b"data: " + b"x" * 92 + b"\n\n")) == 1
    with pytest.raises(SseError):
        scanner.feed(b"data: " + b"x" * 93 + b"\n\n")
    growing = EventScanner(max_event=100)
    with pytest.raises(SseError):
        for _ in range(200):
            growing.feed(b"x")


def test_work_is_linear_in_tiny_chunks() -> None:
    """A megabyte byte by byte: a scanner that searched from the start each time would need 10^11 steps."""
    scanner = EventScanner()
    for _ in range(2**20):
        scanner.feed(b"x")
    assert [len(event.raw) for event in scanner.feed(b"\n\n")] == [2**20 + 2]


def test_many_lines_without_cr_are_searched_once() -> None:
    raw = b"data: x\n" * 100_000 + b"\n"
    (event,) = scan(raw)
    assert event.raw == raw


PIECES = st.lists(
    st.sampled_from(
        [
            b"data: a",
            b"data:",
            b"id: 1",
            b"event: e",
            b": c",
            b"retry: 1",
            b"x",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"\xef\xbb\xbf",
        ]
    ),
    max_size=30,
).map(b"".join)


def reference(raw: bytes) -> list[Fields]:
    """WHATWG's algorithm on the whole stream, as plainly as it can be written."""
    text = raw.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    found: list[Fields] = []
    data: list[bytes] = []
    kind: str | None = None
    id: bytes | None = None
    for line in text.split(b"\n")[:-1]:
        if not line:
            if data or kind is not None or id is not None:
                found.append((b"\n".join(data) if data else None, kind, id))
            data, kind, id = [], None, None
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value.decode()
        elif name == b"id":
            id = value
    return found


@settings(max_examples=400, deadline=None, derandomize=True)
@given(PIECES, st.lists(st.integers(0, 120), max_size=12))
def test_chunking_changes_no_event_and_loses_no_byte(raw: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(raw)), len(raw)]
    scanner = EventScanner()
    events = [event for a, b in itertools.pairwise(edges) for event in scanner.feed(raw[a:b])]
    rest = scanner.finish()
    assert b"".join(event.raw for event in events) + rest == raw
    expected = reference(raw)
    if rest.endswith(b"\r") and meaningful([Event(rest)]) and len(meaningful(events)) < len(expected):
        expected.pop()  # the stream ended between CR and LF
    assert meaningful(events) == expected


@pytest.mark.parametrize(
    ("raw", "new", "expected"),
    [
        (b"data: old\n\n", b"new", b"data: new\n\n"),
        (b"event: message\r\nid: 1\r\ndata: old\r\n\r\n", b"{}", b"event: message\r\nid: 1\r\ndata: {}\r\n\r\n"),
        (b"data: a\nid: 1\ndata: b\nretry: 5\n\n", b"{}", b"data: {}\nid: 1\nretry: 5\n\n"),
        (b"data: old\r\r", b"new", b"data: new\r\r"),
        (b"data\n\n", b"new", b"data: new\n\n"),
        (b"data: old\n\n", b"a\nb", b"data: a\ndata: b\n\n"),
        (b"data: old\n\n", b"", b"data: \n\n"),
        (b": only a comment\n\n", b"new", b": only a comment\n\n"),
        (b"\xef\xbb\xbfdata: old\n\n", b"new", b"\xef\xbb\xbfdata: new\n\n"),
        (b"\xef\xbb\xbfid: 1\ndata: old\n\n", b"new", b"\xef\xbb\xbfid: 1\ndata: new\n\n"),
        (b"database: x\ndata: old\n\n", b"new", b"database: x\ndata: new\n\n"),
    ],
)
def test_replacing_data_keeps_every_other_line(raw: bytes, new: bytes, expected: bytes) -> None:
    (event,) = scan(raw)
    assert replace_data(event, new) == expected
