"""Globs are anchored and case-sensitive, and the index finds exactly what matching one by one would."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolpolicy.policy.matching import NameIndex, glob_matches, ordinary, valid_glob


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("get", "get", True),
        ("get", "Get", False),
        ("get", "get ", False),
        ("get", "gets", False),
        ("get_*", "get_", True),
        ("get_*", "get_x", True),
        ("get_*", "xget_x", False),
        ("*_job", "export_job", True),
        ("*_job", "export_jobs", False),
        ("*export*", "start_export_job", True),
        ("a*b*c", "abc", True),
        ("a*b*c", "aXXbYYc", True),
        ("a*b*c", "acb", False),
        ("ab*ba", "aba", False),
        ("ab*ba", "abba", True),
        ("*", "", True),
        ("*", "anything/at.all", True),
        ("**", "x", True),
        ("a?c", "abc", False),
        ("a.c", "abc", False),
        ("[a]", "a", False),
    ],
)
def test_globs(pattern: str, name: str, matches: bool) -> None:
    assert glob_matches(pattern, name) is matches


_NAMES = st.text("ab_", max_size=8)
_PATTERNS = st.text("ab_*", min_size=1, max_size=6)


@given(_PATTERNS, _NAMES)
def test_a_glob_is_the_regular_expression_one_expects(pattern: str, name: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None
    assert glob_matches(pattern, name) is expected


@given(st.lists(_PATTERNS, max_size=12), _NAMES)
def test_the_index_finds_what_matching_one_by_one_finds(patterns: list[str], name: str) -> None:
    index: NameIndex[int] = NameIndex()
    for number, pattern in enumerate(patterns):
        index.add(pattern, number)
    assert sorted(index.find(name)) == [i for i, pattern in enumerate(patterns) if glob_matches(pattern, name)]


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        ("start_dicom-export.job/v2", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("a b", False),
        ("a\n", False),
        ("ä", False),
        ("a*", False),
        ("tool\u200b", False),
        ("\uff54ool", False),
    ],
)
def test_ordinary_names(name: str, usual: bool) -> None:
    assert ordinary(name) is usual


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("get_*", True),
        ("*", True),
        ("my tool", True),
        ("ü", True),
        ("my tool*", False),
        ("", False),
        ("a\0", False),
        ("a\n", False),
        ("a" * 257, False),
        ("\ud800", False),
    ],
)
def test_patterns_that_can_match(text: str, valid: bool) -> None:
    assert valid_glob(text) is valid
