"""Vectors in the JSON-RPC message: batches, duplicate keys, folded keys, numbers, ids, size and depth."""

from __future__ import annotations

from bypass.vectors.build import (
    ACCEPT,
    ALL,
    DELETE,
    HOST,
    JSON_TYPE,
    NOT_OK,
    Vector,
    call,
    compact,
    modern,
    post,
    request,
    standard,
    text,
)

BATCH = "batch"
KEYS = "duplicate and folded keys"
NUMBERS = "numbers that JSON has not"
SIZE = "depth and size"
IDS = "ids and mixed envelopes"
ALLOWED = call("echo", {"value": "ok"})
NAME = '"name":"echo"'
DENIED_NAME = f'"name":"{DELETE}"'
VALUE = '{"value":"ok"}'


def batches() -> list[Vector]:
    old = [HOST, JSON_TYPE, ACCEPT, ("MCP-Protocol-Version", "2025-03-26")]
    pair = compact([call("echo", {"value": "ok"}, id=1), call(id=2)])
    bodies = {
        "one denied call": compact([call()]),
        "after an allowed call": pair,
        "before an allowed call": compact([call(id=1), call("echo", id=2)]),
        "nested": compact([[call()]]),
        "with a notification": compact([{"jsonrpc": "2.0", "method": "notifications/x"}, call()]),
        "with white space before it": b" \r\n\t" + pair,
    }
    takers = ("node1", "node2", "plain")
    found = [
        Vector(f"batch: {name}", BATCH, post(body), ("plain",) if name == "nested" else takers)
        for name, body in bodies.items()
    ]
    found.append(Vector("batch: in 2025-03-26", BATCH, request("POST", "/mcp", old, pair), takers))
    found.append(Vector("batch: without a revision", BATCH, request("POST", "/mcp", old[:3], pair), takers))
    found.append(Vector("batch: in 2026-07-28", BATCH, standard(compact([modern()])), ("plain",)))
    return found


def duplicates() -> list[Vector]:
    def twice(first: str, second: str) -> bytes:
        return text(ALLOWED, (first, f"{first},{second}"))

    evil = '"value":"evil"'
    bodies = {
        "name": (twice(NAME, DENIED_NAME), DELETE),
        "name, escaped": (twice(NAME, f'"n\\u0061me":"{DELETE}"'), DELETE),
        "method": (text(call(), ('"method":', '"method":"ping","method":')), DELETE),
        "params": (text(call(), ('"params":', '"params":{"name":"echo"},"params":')), DELETE),
        "id": (text(call(), ('"id":7', '"id":7,"id":8')), DELETE),
        "jsonrpc": (text(call(), ('"jsonrpc":"2.0"', '"jsonrpc":"2.0","jsonrpc":"2.0"')), DELETE),
        "arguments": (twice(f'"arguments":{VALUE}', '"arguments":{"value":"evil"}'), NOT_OK),
        "inside arguments": (twice('"value":"ok"', evil), NOT_OK),
        "inside arguments, escaped": (twice('"value":"ok"', '"v\\u0061lue":"evil"'), NOT_OK),
        "deep inside arguments": (text(call("echo", {"x": [{"y": 1}]}), ('"y":1', '"y":1,"y":2')), "echo"),
    }
    return [Vector(f"duplicate: {name}", KEYS, post(body), ALL, tool) for name, (body, tool) in bodies.items()]


def folded() -> list[Vector]:
    """Go's decoder takes a key in any case, by simple folding: U+017F is an s, U+212A a k. The last one counts."""
    end = f'"arguments":{VALUE}}}}}'
    bodies: dict[str, tuple[bytes, str]] = {}
    for key in ("Name", "NAME", "nAmE"):
        bodies[f"{key} beside name"] = (text(ALLOWED, (NAME, f'{NAME},"{key}":"{DELETE}"')), DELETE)
    for key in ("Method", "METHOD"):
        bodies[f"{key} beside method"] = (text(call(), ('"method":', f'"method":"ping","{key}":')), DELETE)
    for key in ("Params", "PARAMS", "paramſ"):
        bodies[f"{key} beside params"] = (text(ALLOWED, (end, f'{end[:-1]},"{key}":{{{DENIED_NAME}}}}}')), DELETE)
    for key in ("Arguments", "argumentſ"):
        bodies[f"{key} beside arguments"] = (text(ALLOWED, (end, f'{end[:-2]},"{key}":{{"value":"evil"}}}}}}')), NOT_OK)
    for key in ("Name", "Method", "Params"):
        bodies[f"{key} alone"] = (text(call(), (f'"{key.lower()}":', f'"{key}":')), DELETE)
    return [Vector(f"folded: {name}", KEYS, post(body), ("golang",), tool) for name, (body, tool) in bodies.items()]


def numbers() -> list[Vector]:
    found: list[Vector] = []
    for literal, stacks in {
        "NaN": ("reference", "python1", "plain"),
        "Infinity": ("reference", "python1", "plain"),
        "-Infinity": ("reference", "python1", "plain"),
        "1e400": tuple(stack for stack in ALL if stack != "golang"),
        "-1e400": tuple(stack for stack in ALL if stack != "golang"),
    }.items():
        body = text(call("echo", {"value": "ok", "n": 1}), ('"n":1', f'"n":{literal}'))
        found.append(Vector(f"number: {literal}", NUMBERS, post(body), stacks, "echo"))
    # The validation allows less than 1000. A runtime that wraps, rounds or fails must not let these pass.
    for literal in ("1e30", "1" + "0" * 30, str(2**63), str(2**64 + 1), str(2**53 + 1)):
        body = text(call("get_sum", {"a": 1, "b": 2}), ('"a":1', f'"a":{literal}'))
        found.append(Vector(f"number: {literal[:12]} in a validation", NUMBERS, post(body), ALL, "get_sum"))
    return found


def sizes() -> list[Vector]:
    deep = text(call("echo", {"value": "ok", "x": 0}), ('"x":0', '"x":' + "[" * 5000 + "]" * 5000))
    objects = text(call("echo", {"value": "ok", "x": 0}), ('"x":0', '"x":' + '{"x":' * 5000 + "0" + "}" * 5000))
    outside = text(call("echo", {"value": "ok"}, x=0), ('"x":0', '"x":' + "[" * 5000 + "]" * 5000))
    huge = compact(call("echo", {"value": "ok", "x": "x" * (5 * 1024 * 1024)}))
    padded = compact(ALLOWED) + b" " * (5 * 1024 * 1024)
    return [
        Vector("depth: arrays", SIZE, post(deep), ("node1", "node2", "golang"), "echo"),
        Vector("depth: objects", SIZE, post(objects), ("node1", "node2", "golang"), "echo"),
        Vector("depth: outside the parameters", SIZE, post(outside), ("golang",), "echo"),
        Vector("size: 5 MiB of an argument", SIZE, post(huge), ("golang", "plain"), "echo", status=413),
        Vector("size: 5 MiB of white space", SIZE, post(padded), ("golang", "plain"), "echo", status=413),
    ]


def envelopes() -> list[Vector]:
    lenient = ("golang", "plain")
    bodies = {
        "a result beside the call": compact(call(result={})),
        "an error beside the call": compact(call(error={"code": 1, "message": "x"})),
        "a bigint id": compact(call(id=2**70)),
        "a fractional id": text(call(), ('"id":7', '"id":7.5')),
        "a fractional id that is whole": text(call(), ('"id":7', '"id":7.0')),
        "an exponent id": text(call(), ('"id":7', '"id":7e0')),
        "a null id": compact(call(id=None)),
        "a boolean id": compact(call(id=True)),
        "an array id": compact(call(id=[7])),
        "an object id": compact(call(id={"x": 7})),
        "no id": text(call(), ('"id":7,', "")),
        "jsonrpc 1.0": compact(call(jsonrpc="1.0")),
        "no jsonrpc": text(call(), ('"jsonrpc":"2.0",', "")),
        "an unknown member": compact(call(x=1)),
    }
    more = {
        "a result beside the call": ("reference", "python1"),
        "a bigint id": ("reference", "python1"),
        "an unknown member": ("reference", "python1"),
        "a fractional id that is whole": ("node1", "node2"),
        "an exponent id": ("node1", "node2"),
    }
    found = [
        Vector(f"envelope: {name}", IDS, post(body), (*lenient, *more.get(name, ()))) for name, body in bodies.items()
    ]
    trailing = compact(call()) + compact(ALLOWED)
    found.append(Vector("envelope: a second message behind it", IDS, post(trailing), ("golang",)))
    found.append(Vector("envelope: a denied message before NUL", IDS, post(compact(call()) + b"\0"), ("golang",)))
    listed = compact(call()).replace(b'"arguments":{}', b'"arguments":[]')
    found.append(Vector("envelope: arguments are a list", IDS, post(listed), ("plain",)))
    return found


def vectors() -> list[Vector]:
    """All of this file."""
    return [*batches(), *duplicates(), *folded(), *numbers(), *sizes(), *envelopes()]
