"""Vectors in what is asked for: names that a forgiving server takes for another, values cut short, other methods."""

from __future__ import annotations

from bypass.vectors.build import ALL, DELETE, NOT_OK, Vector, call, post, text

NAMES = "tool names"
VALUES = "values that expressions misread"
METHODS = "other methods as side doors"
STRICT = ("allow-list",)


def names() -> list[Vector]:
    """A name outside the plain characters is refused by any policy; one inside them is another tool, unknown to it."""
    inside = {"in upper case": DELETE.upper(), "in mixed case": "Delete_Everything"}
    outside = {
        "a blank before": f" {DELETE}",
        "a blank behind": f"{DELETE} ",
        "a line end behind": f"{DELETE}\n",
        "a tab before": f"\t{DELETE}",
        "a no-break space": f"\u00a0{DELETE}",
        "an ideographic space": f"{DELETE}\u3000",
        "a wide letter": f"\uff44{DELETE[1:]}",
        "a wide low line": DELETE.replace("_", "\uff3f"),
        "mathematical letters": f"\U0001d41d{DELETE[1:]}",
        "a NUL behind": f"{DELETE}\0",
        "a NUL and more behind": f"{DELETE}\0.echo",
    }
    found = [
        Vector(f"name: {how}", NAMES, post(call(name)), ("plain",), policies=STRICT) for how, name in inside.items()
    ]
    return found + [Vector(f"name: {how}", NAMES, post(call(name)), ("plain",)) for how, name in outside.items()]


def values() -> list[Vector]:
    """``echo`` may only be called with the value ``ok``; the runtime's strings end at U+0000."""
    bodies = {
        "NUL behind the allowed value": call("echo", {"value": "ok\0evil"}),
        "NUL alone": call("echo", {"value": "\0"}),
        "a NUL key beside the value": call("echo", {"value": "evil", "value\0x": "ok"}),
        "another case": call("echo", {"value": "OK"}),
        "a blank behind": call("echo", {"value": "ok "}),
        "an equivalent letter": call("echo", {"value": "o\u212a"}),
        "a number": call("echo", {"value": 0}),
        "a list": call("echo", {"value": ["ok"]}),
        "null": call("echo", {"value": None}),
    }
    found: list[Vector] = []
    for name, body in bodies.items():
        stacks = ("golang",) if name == "null" else ("plain", "golang")
        stacks += (
            ("reference", "python1", "node1", "node2") if isinstance(body["params"]["arguments"]["value"], str) else ()
        )
        found.append(Vector(f"value: {name}", VALUES, post(body), stacks, NOT_OK))
    # A server that converts arguments takes all of these for the number 5000; the policy allows less than 1000.
    for name, value in {"a numeric string": "5000", "a list of a number": [5000], "an object": {"x": 5000}}.items():
        data = post(call("get_sum", {"a": value, "b": 1}))
        stacks = ("reference", "python1", "plain", "golang") if name == "a numeric string" else ("plain", "golang")
        found.append(Vector(f"value: {name} for a number", VALUES, data, stacks, "get_sum"))
    escaped = text(call("echo", {"value": "ok?"}), ("ok?", "ok\\u0000evil"))
    found.append(Vector("value: NUL, escaped", VALUES, post(escaped), ALL, NOT_OK))
    return found


def methods() -> list[Vector]:
    """A policy that allows two tools allows no prompt, no resource and no method that it does not know."""

    def ask(method: str, **params: object) -> bytes:
        return post({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})

    doors = {
        "prompts/get": ask("prompts/get", name="secret_prompt"),
        "resources/read": ask("resources/read", uri="test://secret"),
        "resources/subscribe": ask("resources/subscribe", uri="test://secret"),
        "completion/complete": ask("completion/complete", ref={"type": "ref/prompt", "name": "x"}, argument={}),
    }
    found = [
        Vector(f"method: {method}", METHODS, data, ("plain",), tool=method, policies=STRICT)
        for method, data in doors.items()
    ]
    for method in ("tasks/create", "tools/invoke"):
        data = ask(method, name=DELETE)
        found.append(Vector(f"method: {method}", METHODS, data, ("plain",), policies=STRICT))
    secrets = {
        "prompts/get": ("secret_prompt", doors["prompts/get"]),
        "resources/read": ("secret_resource", doors["resources/read"]),
    }
    for method, (tool, data) in secrets.items():
        found.append(Vector(f"method: {method} of an SDK", METHODS, data, ("python1",), tool=tool, policies=STRICT))
    task = post(call(params={"name": DELETE, "arguments": {}, "task": {"ttl": 60000}}))
    found.append(
        Vector("method: a call as a task", METHODS, task, ("reference", "python1", "node2", "golang", "plain"))
    )
    return found


def vectors() -> list[Vector]:
    """All of this file."""
    return [*names(), *values(), *methods()]
