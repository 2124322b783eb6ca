"""The two policies that every vector meets: one allows what it names, the other denies what it names."""

from __future__ import annotations

_RULES = """\
  - name: sums-of-small-numbers
    match: {tools: [get_sum]}
    action: Allow
    validations:
    - expression: "!has(args.a) || double(args.a) < 1000.0"
      message: only small numbers
  - name: echo-says-ok
    match: {tools: [echo]}
    action: Allow
    validations:
    - expression: "!has(args.value) || args.value == 'ok'"
      message: echo only says ok
  - name: never-delete
    match: {tools: [delete_everything]}
    action: Deny
    reason: nothing is deleted here
"""


def _policy(name: str, default: str) -> str:
    head = "apiVersion: toolpolicy.dev/v1alpha1\nkind: ToolPolicy\n"
    return f"{head}metadata: {{name: {name}}}\nspec:\n  selector: {{}}\n  defaultAction: {default}\n  rules:\n{_RULES}"


POLICIES = {"allow-list": _policy("allow-list", "Deny"), "deny-list": _policy("deny-list", "Allow")}
