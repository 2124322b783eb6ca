"""Reading manifests: every error of a file in one run, at its place, with what was expected. Never a traceback."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from toolpolicy.mcp import methods
from toolpolicy.policy import semantics
from toolpolicy.policy.documents import MAX_DOCUMENT, MAX_FILE
from toolpolicy.policy.errors import PolicyError, Problem
from toolpolicy.policy.load import MAX_POLICY, duplicates, load_object, load_text, require
from toolpolicy.policy.matching import glob_matches
from toolpolicy.policy.shapes import items, mapping

DATA = Path(__file__).parents[2] / "data" / "policies"
BAD = sorted((DATA / "bad").glob("*.yaml"))
GOOD = sorted((DATA / "good").iterdir())
HEAD = "apiVersion: toolpolicy.dev/v1alpha1\nkind: ToolPolicy\nmetadata: {name: p}\n"
SERVER = 'spec: {selector: {}, server: {path: "/@"}}\n'
VALID = HEAD + "spec: {selector: {}}\n"


def one(text: str | bytes) -> Problem:
    policies, problems = load_text(text, "f.yaml")
    assert policies == []
    assert len(problems) == 1, [str(p) for p in problems]
    return problems[0]


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_error_of_the_file_is_found_at_its_place(path: Path) -> None:
    expected = path.with_suffix(".expected").read_text().splitlines()
    assert [str(problem) for problem in load_text(path.read_bytes(), path.name)[1]] == expected


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_error_has_a_place_and_a_stable_code(path: Path) -> None:
    for problem in load_text(path.read_bytes(), path.name)[1]:
        assert problem.line >= 1
        assert problem.column >= 1
        assert problem.code.replace("-", "").isalpha()


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_good_files_have_no_problem(path: Path) -> None:
    policies, problems = load_text(path.read_bytes(), path.name)
    assert problems == []
    assert policies


def test_documents_and_kinds_are_all_read() -> None:
    text = f"---\n{VALID}---\n# nothing here\n---\n{VALID.replace('ToolPolicy', 'ClusterToolPolicy')}...\n"
    assert [(p.kind, p.metadata.name) for p in require(text, "f")] == [("ToolPolicy", "p"), ("ClusterToolPolicy", "p")]


def test_a_good_document_beside_a_bad_one_is_returned_with_the_problems() -> None:
    policies, problems = load_text(VALID + "---\nkind: x\n", "f")
    assert (len(policies), len(problems)) == (1, 1)


def test_require_raises_with_every_problem() -> None:
    with pytest.raises(PolicyError) as caught:
        require(HEAD + "spec: {selector: {}, a: 1, b: 2}\n", "f")
    assert len(caught.value.problems) == 2
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "\ufeff", "---\n---\n", "null"])
def test_a_file_without_a_policy_says_what_is_expected(text: str) -> None:
    problem = one(text)
    assert (problem.code, problem.line) == ("empty", 1)
    assert "expected a ToolPolicy" in problem.message


@pytest.mark.parametrize(
    ("data", "line", "column", "says"),
    [
        (b"a: 1\nb\xe4: 2\n", 2, 2, "not UTF-8 (byte 0xe4)"),
        (VALID.encode("utf-16"), 1, 1, "it seems to be UTF-16"),
        ("ä: ö\n".encode() + b"\xff", 2, 1, "not UTF-8"),
    ],
)
def test_bytes_that_are_not_utf8_are_refused(data: bytes, line: int, column: int, says: str) -> None:
    problem = one(data)
    assert (problem.line, problem.column) == (line, column)
    assert says in problem.message


@pytest.mark.parametrize(
    ("character", "says"),
    [("\0", "U+0000"), ("\x1b", "U+001B"), ("\x7f", "U+007F"), ("\u202e", "invisible"), ("\ud800", "surrogate"),
     ("\u2028", "invisible"), ("\ufeff", "invisible"), ("\x85", "U+0085")],
)  # fmt: skip
def test_characters_that_nobody_sees_are_refused_raw_and_escaped(character: str, says: str) -> None:
    raw = one(f"{VALID}# a{character}b\n")
    assert (raw.line, raw.column) == (5, 4)
    assert says in raw.message
    policy, problems = load_object({"kind": f"a{character}"}, "f")
    assert policy is None
    assert says in problems[0].message
    if not "\ud800" <= character <= "\udfff":
        text = HEAD + SERVER.replace("@", f"\\u{ord(character):04x}")
        [escaped] = load_text(text, "f")[1]
        assert (escaped.path, escaped.line) == ("spec.server.path", 4)
        assert says in escaped.message


def test_a_byte_order_mark_is_skipped() -> None:
    assert len(require("\ufeff" + VALID, "f")) == 1


def test_nesting_is_bounded() -> None:
    assert "nested more than 64 deep" in one("[" * 100).message
    deep: Any = {}
    for _ in range(100):
        deep = {"a": deep}
    assert load_object({"kind": "ToolPolicy", "spec": deep}, "f")[1][0].code == "too-deep"


@pytest.mark.parametrize(
    "bomb", ["{" * 90_000, "? " * 90_000, "- " * 90_000, "a: " * 80_000, "[a, " * 60_000, "'" * 250_000, "&a " * 50_000]
)
def test_texts_made_to_be_slow_end_in_few_errors(bomb: str) -> None:
    policies, problems = load_text(bomb, "f")
    assert not policies
    assert 1 <= len(problems) <= 70


def test_alias_bombs_are_never_expanded() -> None:
    names = "abcdefgh"
    lines = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise(names)]
    problems = load_text("\n".join(["a: &a [x, x]", *lines]), "f")[1]
    assert {problem.code for problem in problems} == {"anchor", "unknown-kind", "unknown-version"}


def test_a_test_among_the_policies_is_said_to_be_one_and_nothing_else() -> None:
    found = one("apiVersion: toolpolicy.dev/v1alpha1\nkind: ToolPolicyTest\npolicies: [p.yaml]\ncases: []\n")
    assert (found.line, found.code) == (2, "test-file")
    assert "`toolpolicy test`" in found.message


def test_sizes_are_bounded_and_said() -> None:
    assert "at most 8388608" in one(" " * (MAX_FILE + 1)).message
    assert "at most 262144" in one("#" * (MAX_DOCUMENT + 1)).message
    message = "x" * 1000
    rules = [{"name": f"r{i}", "action": "Deny", "reason": message} for i in range(65)]
    spec: dict[str, Any] = {"selector": {}, "rules": rules}
    manifest: dict[str, Any] = {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "ToolPolicy",
        "metadata": {"name": "p"},
        "spec": spec,
    }
    problem = one(json.dumps(manifest))
    assert f"at most {MAX_POLICY}" in problem.message
    del rules[-3:]
    manifest["status"] = {"conditions": ["y" * 60_000]}
    manifest["metadata"] = {"name": "p", "annotations": {"a": "z" * 60_000}}
    assert load_object(manifest, "f")[1] == []


def test_what_kubernetes_adds_is_ignored() -> None:
    manifest: dict[str, Any] = {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "ToolPolicy",
        "metadata": {"name": "p", "creationTimestamp": None, "managedFields": [{"time": None}], "uid": "u"},
        "spec": {"selector": {}},
        "status": {"observedGeneration": 1, "anything": None},
    }
    policy, problems = load_object(manifest, "f")
    assert problems == []
    assert policy is not None
    assert policy.metadata.uid == "u"


def test_an_object_without_lines_still_names_its_fields() -> None:
    manifest = {"apiVersion": "toolpolicy.dev/v1alpha1", "kind": "ToolPolicy", "metadata": {"name": "p"}}
    policy, problems = load_object({**manifest, "spec": {"selector": {}, "mod": "Audit"}}, "admission")
    assert policy is None
    assert [str(p) for p in problems] == ["admission: error: spec.mod: unknown field 'mod': did you mean mode?"]


def test_a_dump_with_tuples_is_checked_like_a_manifest_with_lists() -> None:
    [policy] = require((DATA / "good" / "full.yaml").read_bytes(), "full.yaml")
    dumped = policy.model_dump(by_alias=True)
    assert load_object(dumped, "f") == (policy, [])
    dumped["spec"]["rules"] = (*dumped["spec"]["rules"], {"name": "spend", "action": "Allow", "hide": True})
    assert {problem.code for problem in load_object(dumped, "f")[1]} == {"duplicate-rule", "hide"}


@pytest.mark.parametrize(
    "value", [{1: 2}, {"a": {None: 1}}, {"spec": {"rules": [float("nan")]}}, {"kind": ["x"]}, {}, {"spec": {1, 2}}]
)
def test_objects_of_any_shape_give_problems(value: dict[Any, Any]) -> None:
    policy, problems = load_object(value, "f")
    assert policy is None
    assert problems


def test_the_same_name_in_two_files_is_told_with_both() -> None:
    [policy] = require(VALID, "a.yaml")
    [problem] = duplicates([("a.yaml", policy), ("b.yaml", policy)])
    assert (problem.file, problem.message) == ("b.yaml", "ToolPolicy p is also in a.yaml")
    assert duplicates([("a.yaml", policy), ("a.yaml", policy)]) == []


@pytest.mark.parametrize(
    ("expression", "line", "column"),
    [
        ("when: args.x ==  nam", 8, 22),
        ('when: "args.x ==  nam"', 8, 23),
        ("when: |\n      1 == 1 &&\n      nam == 2", 10, 1),
    ],
)
def test_a_fault_inside_an_expression_is_placed_in_the_file(expression: str, line: int, column: int) -> None:
    rules = f"  rules:\n  - name: a\n    action: Allow\n    {expression}\n"
    [problem] = load_text(HEAD + "spec:\n" + rules + "  selector: {}\n", "f")[1]
    assert (problem.line, problem.column, problem.code) == (line, column, "cel")


def test_the_methods_that_no_rule_can_match_are_those_that_pass() -> None:
    passing = [*methods.PASSING, methods.NOTIFICATION_PREFIX + "cancelled"]
    assert [m for m in passing if not any(glob_matches(p, m) for p in semantics.PASSING)] == []
    assert [m for m in methods.JUDGED if any(glob_matches(p, m) for p in semantics.PASSING)] == []
    assert [p for p in semantics.PASSING if "*" not in p and methods.judged(p)] == []


FULL = (DATA / "good" / "full.yaml").read_text()
SYNTAX = [
    "&a ",
    "*a",
    "!!x ",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "? ",
    "'",
    '"',
    "|\n",
    ">\n",
]
VALUES = ["yes", "~", "null", "0x1", "1e999", ".inf", "<<: ", "9" * 5000, "(?=", "((", "\\u0000"]
CHARACTERS = ["\0", "\t", "\n", "  ", "#", "\x85", "\ud800", "\u202e"]
PIECES = st.sampled_from([*SYNTAX, *VALUES, *CHARACTERS])
EDIT = st.tuples(st.integers(0, len(FULL)), st.integers(0, 40), st.one_of(PIECES, st.text(max_size=8)))
EDITS = st.lists(EDIT, min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(EDITS)
@example([(0, len(FULL), "kind: ToolPolicy\nspec: [")])
def test_no_mutation_of_a_policy_ever_raises(edits: list[tuple[int, int, str]]) -> None:
    text = FULL
    for at, length, piece in edits:
        text = text[:at] + piece + text[at + length :]
    policies, problems = load_text(text, "f")
    assert policies or problems
    assert all("Traceback" not in problem.message and len(problem.message) < 1500 for problem in problems)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def children(value: object) -> list[tuple[str | int, Any]]:
    return [*mapping(value).items(), *enumerate(items(value))]


def paths(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    return [at, *(path for key, child in children(value) for path in paths(child, (*at, key)))]


def replaced(value: object, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    changed = [(key, replaced(child, path[1:], new) if key == path[0] else child) for key, child in children(value)]
    return dict(changed) if isinstance(value, dict) else [child for _, child in changed]


MANIFEST: dict[str, Any] = require(FULL, "full.yaml")[0].model_dump(mode="json", by_alias=True)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(paths(MANIFEST)[1:]), JSON)
@example(("metadata", "labels", "team"), None)
@example(("metadata",), None)
def test_no_value_in_any_field_ever_raises(path: tuple[str | int, ...], value: Any) -> None:
    policy, problems = load_object(replaced(MANIFEST, path, value), "f")
    assert (policy is None) == bool(problems)
