"""Who listens in a pod, from the kernel's own table."""

from __future__ import annotations

import socket
import sys

import pytest

from toolpolicy.sidecar.procnet import Listener, candidates, foreign, foreign_listeners, parse, read_listeners

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = "00000000:00000000 00:00000000 00000000 15771        0 68 1 0000000000000000 100 0 0 10 0\n"

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the samples are of a little-endian machine")


def line(local: str, state: str = "0A") -> str:
    return f"   0: {local} 00000000:0000 {state} {REST}"


@pytest.mark.parametrize(
    ("local", "address", "port"),
    [
        ("0100007F:1F90", "127.0.0.1", 8000 + 80),
        ("00000000:0016", "0.0.0.0", 22),
        ("0200580A:2328", "10.88.0.2", 9000),
        ("00000000000000000000000000000000:1F40", "::", 8000),
        ("00000000000000000000000001000000:1F40", "::1", 8000),
        ("000088FD000000000000000002000000:1F40", "fd88::2", 8000),
        ("0000000000000000FFFF00000200580A:1F40", "10.88.0.2", 8000),
    ],
)
def test_a_listener_is_read(local: str, address: str, port: int) -> None:
    assert list(parse(HEAD + line(local))) == [Listener(port, address)]


@pytest.mark.parametrize(
    "text",
    ["", HEAD, line("0100007F:1F90", "01"), "junk", line("zz:1F90"), line("0100007F"), line("01:1F90"), "\0\n" * 9],
)
def test_what_is_no_listener_is_passed_over(text: str) -> None:
    assert list(parse(text)) == []


def test_the_kernel_tells_of_ours() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        found = read_listeners()
        assert found is not None
        assert Listener(four.getsockname()[1], "127.0.0.1") in found
        assert Listener(six.getsockname()[1], "::1") in found


def test_foreign_is_what_can_be_reached_from_outside_at_an_unknown_port() -> None:
    with socket.create_server(("0.0.0.0", 0)) as everywhere, socket.create_server(("127.8.8.8", 0)) as inside:
        port = everywhere.getsockname()[1]
        assert Listener(port, "0.0.0.0") in foreign_listeners([8000])
        assert port not in {one.port for one in foreign_listeners([port])}
        assert inside.getsockname()[1] not in {one.port for one in foreign_listeners([])}


def test_foreign_is_bounded() -> None:
    assert len(foreign([Listener(port, "::") for port in range(1, 5000)], {8000})) == 100


@pytest.mark.parametrize(
    ("listeners", "expected"),
    [
        (None, ["127.0.0.1", "::1"]),
        ([], []),
        ([Listener(8001, "::")], []),
        ([Listener(8000, "0.0.0.0")], ["127.0.0.1"]),
        ([Listener(8000, "::")], ["127.0.0.1", "::1"]),
        ([Listener(8000, "::1")], ["::1"]),
        ([Listener(8000, "10.88.0.2"), Listener(8000, "fd88::2")], ["10.88.0.2", "fd88::2"]),
        ([Listener(8000, "10.88.0.2"), Listener(8000, "::1"), Listener(8000, "127.0.0.1")],
         ["127.0.0.1", "::1", "10.88.0.2"]),
    ],
)  # fmt: skip
def test_where_a_server_may_be_reached(listeners: list[Listener] | None, expected: list[str]) -> None:
    assert candidates(listeners, 8000) == expected
