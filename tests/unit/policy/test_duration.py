"""Durations: GEP-2257 or a bare whole number of seconds, and nothing that only looks like one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolpolicy.policy.duration import MAX_SECONDS, format_duration, parse_duration


@pytest.mark.parametrize(
    ("spelt", "seconds"),
    [
        ("60s", 60), ("10m", 600), ("1h30m", 5400), ("250ms", 0.25), ("0s", 0), ("1h0m0s1ms", 3600.001),
        ("90m", 5400), ("1m1m", 120), (60, 60), (0, 0), (60.0, 60), ("99999h", MAX_SECONDS),
    ],
)  # fmt: skip
def test_accepts_what_gep_2257_and_a_bare_number_say(spelt: str | int | float, seconds: float) -> None:
    assert parse_duration(spelt) == seconds


@pytest.mark.parametrize(
    "spelt",
    ["", "60", "1d", "1.5h", "-1s", "1h 30m", "60s\n", "s", "1H", "100000s", "1h1m1s1ms1s", "99999h1m", "٣s",
     -1, 0.5, float("nan"), float("inf"), MAX_SECONDS + 1, True, None, [], {}],
)  # fmt: skip
def test_refuses_everything_else_and_shows_how_to_write_it(spelt: object) -> None:
    with pytest.raises(ValueError, match=r"duration|whole seconds"):
        parse_duration(spelt)


def test_a_quoted_number_is_told_apart_from_a_duration() -> None:
    with pytest.raises(ValueError, match="write 60s, or 60 without quotes"):
        parse_duration("60")


def test_a_fraction_is_told_its_spelling() -> None:
    with pytest.raises(ValueError, match="write 500ms"):
        parse_duration(0.5)


@given(st.integers(0, MAX_SECONDS * 1000))
def test_formatting_is_the_inverse_of_parsing(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@pytest.mark.parametrize("seconds", [-0.001, MAX_SECONDS + 0.5, float("nan"), float("inf")])
def test_what_has_no_spelling_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        format_duration(seconds)
