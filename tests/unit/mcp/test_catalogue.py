"""What is known of the server's tools, and what a caller may see of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolpolicy.mcp.catalogue import ToolCatalogue, encode, filter_tools, looks_like_tools_list


def tool(name: str, **annotations: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "inputSchema": {"type": "object"}}
    return {**found, "annotations": annotations} if annotations else found


class TestKnowledge:
    def test_a_tool_that_was_listed(self) -> None:
        catalogue = ToolCatalogue()
        assert catalogue.get("a") is None
        assert catalogue.observe({"tools": [tool("a", readOnlyHint=True)]})
        info = catalogue.get("a")
        assert info is not None
        assert (info.name, info.input_schema, info.annotations) == ("a", {"type": "object"}, {"readOnlyHint": True})
        assert catalogue.names() == ["a"]
        assert len(catalogue) == 1

    def test_the_same_listing_again_changes_nothing(self) -> None:
        catalogue = ToolCatalogue()
        catalogue.observe({"tools": [tool("a")]})
        before, version = catalogue.get("a"), catalogue.version
        catalogue.observe({"tools": [tool("a")]})
        assert catalogue.get("a") is before
        assert catalogue.version == version

    def test_a_tool_that_is_no_longer_listed_stays_known(self) -> None:
        catalogue = ToolCatalogue()
        catalogue.observe({"tools": [tool("a"), tool("b")]})
        catalogue.observe({"tools": [tool("b")]})
        assert catalogue.get("a") is not None

    @pytest.mark.parametrize(
        ("first", "then", "kept"),
        [
            ({"readOnlyHint": False}, {"readOnlyHint": True}, {"readOnlyHint": False}),
            ({"readOnlyHint": False}, {}, {"readOnlyHint": False}),
            ({"destructiveHint": True}, {"destructiveHint": False}, {"destructiveHint": True}),
            ({"readOnlyHint": True}, {"readOnlyHint": False}, {"readOnlyHint": False}),
            ({}, {"destructiveHint": True}, {"destructiveHint": True}),
            ({"destructiveHint": True}, {"readOnlyHint": False}, {"destructiveHint": True, "readOnlyHint": False}),
            ({"readOnlyHint": True}, {}, {}),
        ],
    )
    def test_hints_only_become_stricter(self, first: Any, then: Any, kept: Any) -> None:
        catalogue = ToolCatalogue()
        catalogue.observe({"tools": [tool("a", **first)]})
        catalogue.observe({"tools": [tool("a", **then)]})
        info = catalogue.get("a")
        assert info is not None
        assert info.annotations == kept

    def test_the_newest_schema_counts(self) -> None:
        catalogue = ToolCatalogue()
        catalogue.observe({"tools": [tool("a")]})
        catalogue.observe({"tools": [{"name": "a", "inputSchema": {"type": "object", "required": ["x"]}}]})
        info = catalogue.get("a")
        assert info is not None
        assert info.input_schema == {"type": "object", "required": ["x"]}

    @pytest.mark.parametrize(
        "odd",
        [None, 1, "a", [], {}, {"name": 1}, {"name": ""}, {"name": None, "inputSchema": {}}],
    )
    def test_what_is_no_tool_is_counted_and_skipped(self, odd: Any) -> None:
        catalogue = ToolCatalogue()
        catalogue.observe({"tools": [odd, tool("a")]})
        assert (catalogue.names(), catalogue.dropped) == (["a"], 1)

    @pytest.mark.parametrize("odd", [None, 1, "x", []])
    def test_odd_schemas_and_annotations_are_as_if_absent(self, odd: Any) -> None:
        catalogue = ToolCatalogue()
        catalogue.observe({"tools": [{"name": "a", "inputSchema": odd, "annotations": odd}]})
        info = catalogue.get("a")
        assert info is not None
        assert (info.input_schema, info.annotations) == (None, {})

    def test_the_headers_that_a_schema_declares(self) -> None:
        catalogue = ToolCatalogue()
        schema = {"properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
        catalogue.observe({"tools": [{"name": "a", "inputSchema": schema}, tool("b")]})
        assert catalogue.declared("a") == {b"mcp-param-region": ("region",)}
        assert catalogue.declared("b") == {}
        assert catalogue.declared("c") is None


class TestFreshness:
    def test_pages_make_a_listing(self) -> None:
        catalogue = ToolCatalogue()
        assert not catalogue.observe({"tools": [tool("a")], "nextCursor": "p2"})
        assert not catalogue.fresh
        assert not catalogue.observe({"tools": [tool("b")], "nextCursor": "p3"}, "p2")
        assert catalogue.observe({"tools": [tool("c")]}, "p3")
        assert catalogue.fresh
        assert catalogue.names() == ["a", "b", "c"]

    def test_a_page_without_its_beginning_is_knowledge_but_no_listing(self) -> None:
        catalogue = ToolCatalogue()
        assert not catalogue.observe({"tools": [tool("z")]}, "p9")
        assert catalogue.get("z") is not None
        assert not catalogue.fresh

    def test_a_change_makes_it_stale_and_not_unknown(self) -> None:
        catalogue = ToolCatalogue()
        catalogue.observe({"tools": [tool("a", destructiveHint=True)]})
        catalogue.invalidate()
        assert not catalogue.fresh
        assert catalogue.get("a") is not None
        catalogue.observe({"tools": [tool("b")]})
        assert catalogue.fresh

    def test_a_page_from_before_the_change_does_not_make_it_fresh(self) -> None:
        catalogue = ToolCatalogue()
        catalogue.observe({"tools": [], "nextCursor": "p2"})
        catalogue.invalidate()
        assert not catalogue.observe({"tools": []}, "p2")
        assert not catalogue.fresh

    def test_another_server_is_another_catalogue(self) -> None:
        catalogue = ToolCatalogue(max_tools=1)
        catalogue.observe({"tools": [tool("a")]})
        catalogue.reset()
        assert (len(catalogue), catalogue.fresh, catalogue.declared("a")) == (0, False, None)
        catalogue.observe({"tools": [tool("b"), tool("c")]})
        assert catalogue.names() == ["b"]


class TestBounds:
    def test_number(self) -> None:
        catalogue = ToolCatalogue(max_tools=3)
        catalogue.observe({"tools": [tool(f"t{n}") for n in range(5)]})
        assert (len(catalogue), catalogue.dropped, catalogue.get("t4")) == (3, 2, None)
        catalogue.observe({"tools": [tool("t0", destructiveHint=True)]})
        info = catalogue.get("t0")
        assert info is not None
        assert info.annotations == {"destructiveHint": True}

    def test_size(self) -> None:
        catalogue = ToolCatalogue(max_bytes=1000)
        catalogue.observe({"tools": [{"name": "big", "inputSchema": {"description": "x" * 1000}}, tool("small")]})
        assert (catalogue.names(), catalogue.dropped) == (["small"], 1)
        for n in range(100):
            catalogue.observe({"tools": [{"name": "small", "inputSchema": {"description": "y" * (500 + n)}}]})
        assert catalogue.dropped == 1, "what is replaced gives its room back"

    def test_open_listings(self) -> None:
        catalogue = ToolCatalogue()
        for n in range(1000):
            catalogue.observe({"tools": [], "nextCursor": f"c{n}"})
        assert catalogue.observe({"tools": []}, "c999")


SHAPES: list[tuple[Any, bool]] = [
    ({"jsonrpc": "2.0", "id": 1, "result": {"tools": []}}, True),
    ([{"id": 1, "result": {}}, {"id": 2, "result": {"tools": [tool("a")]}}], True),
    ({"result": {"tools": {"a": 1}}}, False),
    ({"result": {"structuredContent": {"tools": []}, "content": []}}, False),
    ({"method": "sampling/createMessage", "params": {"tools": []}}, False),
    ({"result": []}, False),
    ({"tools": []}, False),
    ([], False),
    (None, False),
    ("tools", False),
]


@pytest.mark.parametrize(("message", "expected"), SHAPES)
def test_a_listing_is_known_by_its_shape(message: Any, expected: bool) -> None:
    assert looks_like_tools_list(message) is expected


class TestFilter:
    @property
    def tools(self) -> list[dict[str, Any]]:
        return [tool("a"), tool("b"), tool("c")]

    def test_nothing_to_change(self) -> None:
        assert filter_tools({"tools": self.tools}, lambda _: True, 1000) is None
        result = {"tools": self.tools, "ttlMs": 1000, "cacheScope": "private"}
        assert filter_tools(result, lambda _: True, 1000) is None

    def test_an_invisible_tool_is_left_out_and_the_rest_stays(self) -> None:
        result = {"tools": self.tools, "nextCursor": "n", "_meta": {"x": 1}}
        found = filter_tools(result, lambda name: name != "b", 1000)
        assert found == {"tools": [tool("a"), tool("c")], "nextCursor": "n", "_meta": {"x": 1}}
        assert len(result["tools"]) == 3, "the original is not touched"

    @pytest.mark.parametrize(
        ("stated", "expected"),
        [
            ({"cacheScope": "public", "ttlMs": 500}, {"cacheScope": "private", "ttlMs": 500}),
            ({"cacheScope": "private", "ttlMs": 5000}, {"cacheScope": "private", "ttlMs": 1000}),
            ({"cacheScope": "odd"}, {"cacheScope": "private"}),
            ({"cacheScope": None}, {"cacheScope": "private"}),
            ({"ttlMs": 0}, {"cacheScope": "private", "ttlMs": 0}),
            ({"ttlMs": 10**30}, {"cacheScope": "private", "ttlMs": 1000}),
            ({"ttlMs": float("inf")}, {"cacheScope": "private", "ttlMs": 1000}),
            ({"ttlMs": float("nan")}, {"cacheScope": "private", "ttlMs": 1000}),
            ({"ttlMs": "1e9"}, {"cacheScope": "private", "ttlMs": 1000}),
            ({"ttlMs": True}, {"cacheScope": "private", "ttlMs": 1000}),
            ({"ttlMs": 0, "cacheScope": "private"}, None),
        ],
    )
    def test_a_cache_is_private_and_short(self, stated: dict[str, Any], expected: dict[str, Any] | None) -> None:
        found = filter_tools({"tools": self.tools, **stated}, lambda _: True, 1000)
        assert found == (None if expected is None else {"tools": self.tools, **expected})

    def test_a_passed_boundary_is_no_negative_time(self) -> None:
        found = filter_tools({"tools": [], "ttlMs": 5}, lambda _: True, -3)
        assert found == {"tools": [], "ttlMs": 0, "cacheScope": "private"}

    @pytest.mark.parametrize("odd", [None, 1, "a", [], {}, {"name": 1}])
    def test_what_has_no_name_is_left_out(self, odd: Any) -> None:
        assert filter_tools({"tools": [odd, tool("a")]}, lambda _: True, 0) == {"tools": [tool("a")]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(JSON)
def test_encoding_is_one_line_that_means_the_same(value: Any) -> None:
    found = encode(value)
    assert b"\n" not in found
    assert b"\r" not in found
    assert json.loads(found) == json.loads(
        json.dumps(value, ensure_ascii=True).encode("utf-8")
    ) or "\\ud" in json.dumps(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (json.loads("1e400"), b"1.7976931348623157e+308"),
        ({"a": [json.loads("-1e400")]}, b'{"a":[-1.7976931348623157e+308]}'),
        ([float("nan")], b"[null]"),
        ("\ud800", b'"?"'),
    ],
)
def test_what_json_can_not_hold_does_not_break_the_answer(value: Any, expected: bytes) -> None:
    assert encode(value) == expected
