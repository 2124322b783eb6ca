"""Vectors in how the body is written down: media types, content encodings, character encodings."""

from __future__ import annotations

import gzip
import zlib

from bypass.vectors.build import ALL, Vector, bare, call, compact, post, text

TYPES = "content types"
CODINGS = "content encodings"
TEXT = "character encodings"
REVISION = ("MCP-Protocol-Version", "2025-06-18")
DENIED = compact(call())
LENIENT = ("golang", "plain")
LABELLED = ("reference", "python1", "node2", *LENIENT)
"""Servers that do not look at Content-Encoding."""


def types() -> list[Vector]:
    values: dict[str, tuple[str, ...]] = {
        "application/json, text/plain": ("reference", "python1", *LENIENT),
        "text/plain, application/json": LENIENT,
        "text/plain; a=application/json": LENIENT,
        "text/plain": LENIENT,
        "application/json-patch+json": LENIENT,
        "application/vnd.api+json": LENIENT,
        "application/x-www-form-urlencoded": LENIENT,
        "multipart/form-data; boundary=x": LENIENT,
        "application/jsonp": LENIENT,
        "application/json; charset=iso-8859-1": ("reference", "python1", "node2", *LENIENT),
        "application/json; charset=utf-8; charset=utf-16": ALL,
        "": LENIENT,
    }
    found = [
        Vector(
            f"type: {value or 'empty'}", TYPES, bare(DENIED, [("Content-Type", value), REVISION]), stacks, status=415
        )
        for value, stacks in values.items()
    ]
    found.append(Vector("type: none", TYPES, bare(DENIED, [REVISION]), LENIENT, status=415))
    two = [("Content-Type", "application/json"), ("Content-Type", "text/plain"), REVISION]
    found.append(Vector("type: two headers", TYPES, bare(DENIED, two), ("reference", "python1", "node2", *LENIENT)))
    for charset, codec in {"utf-16": "utf-16", "utf-16le": "utf-16-le", "utf-32": "utf-32", "utf-7": "utf-7"}.items():
        headers = [("Content-Type", f"application/json; charset={charset}"), REVISION]
        stacks = ("node1", "plain") if charset == "utf-7" else ("python1", "node1", "plain")
        body = compact(call()).decode().encode(codec)
        if charset == "utf-7":
            body = body.replace(b"_", b"+AF8-")
        found.append(Vector(f"type: charset {charset}", TYPES, bare(body, headers), stacks, status=415))
    return found


def codings() -> list[Vector]:
    bodies: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
        "gzip": ("gzip", gzip.compress(DENIED), ("node1", "plain")),
        "deflate": ("deflate", zlib.compress(DENIED), ("node1", "plain")),
        "a plain body labelled gzip": ("gzip", DENIED, LABELLED),
        "a plain body labelled br": ("br", DENIED, LABELLED),
        "a plain body labelled identity": ("identity", DENIED, ALL),
        "a plain body labelled x-unknown": ("x-unknown", DENIED, LABELLED),
        "an empty label": ("", DENIED, ALL),
    }
    return [
        Vector(f"coding: {name}", CODINGS, post(body, ("Content-Encoding", label)), stacks, status=415)
        for name, (label, body, stacks) in bodies.items()
    ]


def characters() -> list[Vector]:
    plain = DENIED.decode()
    bodies: dict[str, tuple[bytes, tuple[str, ...]]] = {
        "a byte order mark": (b"\xef\xbb\xbf" + DENIED, ("python1", "node1", "node2", "plain")),
        "UTF-16 with a mark": (plain.encode("utf-16"), ("python1", "plain")),
        "UTF-16 without a mark": (plain.encode("utf-16-le"), ("python1", "plain")),
        "UTF-16, big end first": (plain.encode("utf-16-be"), ("python1", "plain")),
        "UTF-32": (plain.encode("utf-32-le"), ("python1", "plain")),
    }
    found = [Vector(f"text: {name}", TEXT, post(body), stacks, status=400) for name, (body, stacks) in bodies.items()]
    echo = call("echo", {"value": "ok", "x": "?"})
    raw = compact(echo)
    for name, data, stacks in (
        ("invalid UTF-8", raw.replace(b"?", b"\xff"), ("node1", "node2", "golang")),
        ("overlong UTF-8", raw.replace(b"?", b"\xc0\xaf"), ("node1", "node2", "golang")),
        ("a surrogate in UTF-8", raw.replace(b"?", b"\xed\xa0\x80"), ("python1", "node1", "node2", *LENIENT)),
        ("a lone surrogate", text(echo, ('"?"', '"\\ud800"')), ("python1", "node1", "node2", *LENIENT)),
        (
            "surrogates in the wrong order",
            text(echo, ('"?"', '"\\udc00\\ud800"')),
            ("python1", "node1", "node2", *LENIENT),
        ),
        ("a lone surrogate in a key", text(echo, ('"x"', '"\\udfff"')), ("node1", "node2", *LENIENT)),
    ):
        found.append(Vector(f"text: {name}", TEXT, post(data), stacks, "echo", status=400))
    control = text(echo, ('"?"', '"\t"'))
    found.append(
        Vector(
            "text: a raw control character", TEXT, post(control), (), "echo", control="every parser we have refuses it"
        )
    )
    return found


def vectors() -> list[Vector]:
    """All of this file."""
    return [*types(), *codings(), *characters()]
