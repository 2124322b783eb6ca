"""Only exact paths are routed; whatever resembles a judged one is not there."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from toolpolicy.mcp.paths import MAX_ANNOUNCED, PathError, RouteKind, Routes


@dataclass(frozen=True)
class Pass:
    path: str
    methods: tuple[str, ...] = ("GET", "HEAD")


def kind(method: str, target: str | bytes, routes: Routes | None = None) -> RouteKind:
    return (routes or Routes()).route(method, target).kind


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("POST", "/mcp", RouteKind.MCP),
        ("GET", b"/mcp", RouteKind.MCP),
        ("DELETE", "/mcp", RouteKind.MCP),
        ("POST", "/mcp?api_key=a%20b", RouteKind.MCP),
        ("POST", "/mcp?", RouteKind.MCP),
        ("GET", "/sse", RouteKind.LEGACY_SSE),
        ("GET", "/sse?token=1", RouteKind.LEGACY_SSE),
        ("POST", "/sse", RouteKind.MCP),
        ("GET", "/.well-known/oauth-protected-resource", RouteKind.DISCOVERY),
        ("HEAD", "/.well-known/oauth-protected-resource/mcp", RouteKind.DISCOVERY),
        ("GET", "/.well-known/oauth-authorization-server", RouteKind.DISCOVERY),
        ("GET", "/.well-known/oauth-authorization-server/mcp", RouteKind.DISCOVERY),
        ("GET", "/.well-known/openid-configuration/mcp", RouteKind.DISCOVERY),
    ],
)
def test_known_paths(method: str, target: str | bytes, expected: RouteKind) -> None:
    route = Routes().route(method, target)
    assert route.kind is expected
    assert route.target == (target if isinstance(target, str) else target.decode())


@pytest.mark.parametrize(
    "target",
    [
        "",
        "*",
        "/",
        "mcp",
        "/MCP",
        "/Mcp",
        "/mcp/",
        "/mcp//",
        "//mcp",
        "//host/mcp",
        "///mcp",
        "/mcp#f",
        "/mcp?x#f",
        "/mcp;v=1",
        "/mcp/.",
        "/./mcp",
        "/x/../mcp",
        "/mcp/../mcp",
        "/%6dcp",
        "/mcp%00",
        "/mcp%2f",
        "/mcp%20",
        "/mcp ",
        "\\mcp",
        "/\\mcp",
        "/mcp\\",
        "/mcp\t",
        "/mcp\0",
        "/mc\u017f",
        "/ｍcp",
        "http://host/mcp",
        "HTTP://HOST/mcp",
        "https://user@host/mcp",
        "host:80",
        "/mcp/x",
        "/mcp.json",
        "/mcp?a\\b",
        "/mcp?a b",
        "/mcp?\u00e9",
        "/SSE",
        "/sse/",
        "/messages",
        "/messages/?session_id=1",
        "/health",
        "/.well-known/",
        "/.well-known/x",
        "/.well-known/oauth-protected-resource/",
        "/.well-known/oauth-protected-resource/other",
        "/.well-known/oauth-protected-resource?x=1",
        "/.well-known/oauth-protected-resource/../../mcp",
        "/.well-known/oauth-protected-resource/%2e%2e/mcp",
        "/x/.well-known/oauth-protected-resource",
        "/mcp?" + "a" * 9000,
    ],
)
def test_near_variants_are_not_there(target: str) -> None:
    for method in ("POST", "GET", "OPTIONS"):
        assert kind(method, target) is RouteKind.NOT_FOUND
        assert kind(method, target.encode()) is RouteKind.NOT_FOUND


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get"])
def test_discovery_documents_are_only_read(method: str) -> None:
    assert kind(method, "/.well-known/oauth-protected-resource") is RouteKind.NOT_FOUND


def test_other_mcp_paths() -> None:
    routes = Routes(["/", "/api/v1/mcp"], legacy_sse=["/api/events"])
    assert kind("POST", "/", routes) is RouteKind.MCP
    assert kind("POST", "/api/v1/mcp", routes) is RouteKind.MCP
    assert kind("POST", "/mcp", routes) is RouteKind.NOT_FOUND
    assert kind("GET", "/api/events", routes) is RouteKind.LEGACY_SSE
    assert kind("GET", "/sse", routes) is RouteKind.NOT_FOUND
    assert kind("GET", "/.well-known/oauth-protected-resource/api/v1/mcp", routes) is RouteKind.DISCOVERY


def test_an_mcp_path_that_is_also_the_legacy_one() -> None:
    routes = Routes(["/sse"])
    assert kind("GET", "/sse", routes) is RouteKind.MCP


@pytest.mark.parametrize(
    "path", ["mcp", "", "//mcp", "/a//b", "/a/../b", "/.", "/m%63p", "/mcp?x", "/a;b", "/é", "/a b"]
)
def test_a_configured_path_must_be_plain(path: str) -> None:
    with pytest.raises(PathError):
        Routes([path])


class TestPassThrough:
    routes = Routes(["/mcp"], [Pass("/health"), Pass("/hooks", ("POST",)), Pass("/docs/")])

    @pytest.mark.parametrize(
        ("method", "target", "expected"),
        [
            ("GET", "/health", RouteKind.PASS_THROUGH),
            ("HEAD", "/health?verbose=1", RouteKind.PASS_THROUGH),
            ("GET", "/docs/", RouteKind.PASS_THROUGH),
            ("POST", "/hooks", RouteKind.PASS_THROUGH),
            ("POST", "/health", RouteKind.NOT_FOUND),
            ("GET", "/hooks", RouteKind.NOT_FOUND),
            ("GET", "/health/", RouteKind.NOT_FOUND),
            ("GET", "/HEALTH", RouteKind.NOT_FOUND),
            ("GET", "/docs", RouteKind.NOT_FOUND),
            ("GET", "/health/../mcp", RouteKind.NOT_FOUND),
            ("GET", "/health%2f..%2fmcp", RouteKind.NOT_FOUND),
        ],
    )
    def test_exactly_as_named(self, method: str, target: str, expected: RouteKind) -> None:
        assert kind(method, target, self.routes) is expected

    @pytest.mark.parametrize(
        "path", ["/MCP", "/mcp/", "/Sse", "/%6dcp", "/mcp;x", "//mcp", "/x/../mcp", "no-slash", "/mcp"]
    )
    def test_never_a_variant_of_a_judged_path(self, path: str) -> None:
        routes = Routes(["/mcp"], [Pass(path, ("GET", "POST"))])
        assert routes.refused == (path,)
        assert kind("POST", path, routes) in (RouteKind.NOT_FOUND, RouteKind.MCP)

    def test_never_a_variant_of_an_announced_path(self) -> None:
        routes = Routes(["/mcp"], [Pass("/Messages", ("POST",)), Pass("/messages", ("POST",))])
        assert kind("POST", "/Messages", routes) is RouteKind.PASS_THROUGH
        routes.announce("/messages?session_id=1")
        assert kind("POST", "/Messages", routes) is RouteKind.NOT_FOUND
        assert kind("POST", "/messages?session_id=1", routes) is RouteKind.LEGACY_MESSAGE


class TestAnnounced:
    def test_a_message_path_is_known_while_its_stream_lives(self) -> None:
        routes = Routes()
        first = routes.announce("/messages/?session_id=abc")
        second = routes.announce("/messages/?session_id=def")
        assert first == "/messages/?session_id=abc"
        assert kind("POST", first, routes) is RouteKind.LEGACY_MESSAGE
        assert kind("GET", first, routes) is RouteKind.NOT_FOUND
        assert kind("POST", "/messages?session_id=abc", routes) is RouteKind.NOT_FOUND
        routes.forget(first)
        assert kind("POST", second, routes) is RouteKind.LEGACY_MESSAGE
        routes.forget(second)
        assert kind("POST", second, routes) is RouteKind.NOT_FOUND
        routes.forget(second)

    @pytest.mark.parametrize(
        "query",
        [
            "",
            "?",
            "?session_id=abc&x=1",
            "?x=1&session_id=abc",
            "?session%5fid=abc",
            "?session_id=%61bc",
            "?session_id=ABC",
        ],
    )
    def test_another_spelling_of_an_announced_session_is_not_there(self, query: str) -> None:
        routes = Routes()
        routes.announce("/messages/?session_id=abc")
        assert kind("POST", f"/messages/{query}", routes) is RouteKind.NOT_FOUND
        assert kind("POST", "/messages/?session_id=abc", routes) is RouteKind.LEGACY_MESSAGE

    def test_an_absolute_announcement_is_told_as_a_path(self) -> None:
        assert Routes().announce("http://10.0.0.7:3000/messages?sessionId=1") == "/messages?sessionId=1"

    @pytest.mark.parametrize(
        "endpoint",
        [
            "",
            "messages",
            "//evil/messages",
            "/a/../mcp",
            "/m%65ssages",
            "ftp://x/y",
            "http://host",
            "/a b",
            "/a#b",
            "/a\\b",
        ],
    )
    def test_what_is_no_plain_path(self, endpoint: str) -> None:
        with pytest.raises(PathError):
            Routes().announce(endpoint)

    def test_announcing_the_mcp_path_leaves_it_judged(self) -> None:
        routes = Routes()
        routes.announce("/mcp?session=1")
        assert kind("POST", "/mcp?session=1", routes) is RouteKind.MCP

    def test_bounded(self) -> None:
        routes = Routes()
        for n in range(MAX_ANNOUNCED):
            routes.announce(f"/messages/{n}")
        with pytest.raises(PathError):
            routes.announce("/messages/more")
        routes.announce("/messages/7")
