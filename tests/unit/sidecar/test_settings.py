"""Every setting: its default holds, its range is checked, its page is up to date, and all errors come at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from toolpolicy.sidecar import settings as module
from toolpolicy.sidecar.settings import FIELDS, Settings, SettingsError, from_environ, reference, variable
from toolpolicy.sidecar.target import parse_servers

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "settings.md"


def problems(**environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        from_environ({variable(k): v for k, v in environ.items()})
    return caught.value.problems


def test_without_variables_all_is_as_by_default() -> None:
    assert from_environ({"PATH": "/bin", "TOOLPOLICY": "x"}) == Settings()


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_every_field_has_a_documented_default_within_its_range(field: dataclasses.Field[Any]) -> None:
    assert field.metadata["doc"].endswith(".")
    if not isinstance(field.default, str):
        assert field.metadata["low"] <= field.default <= field.metadata["high"]
    elif field.metadata["choices"]:
        assert field.default in field.metadata["choices"]
    assert not module._SERVICE_LINK.search(variable(field.name))  # pyright: ignore[reportPrivateUsage]


def test_the_page_of_settings_is_what_the_code_says() -> None:
    assert PAGE.read_text("utf-8") == reference(), (
        "run: python -m toolpolicy.sidecar.settings > docs/reference/settings.md"
    )


def test_every_setting_is_on_its_page() -> None:
    page = PAGE.read_text("utf-8")
    assert [f.name for f in FIELDS if f"`{variable(f.name)}`" not in page] == []


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_body", "8Mi", 8 * 1024 * 1024),
        ("max_body", "5000000", 5_000_000),
        ("max_body", "5M", 5_000_000),
        ("max_depth", " 32 ", 32),
        ("connect_timeout", "2", 2.0),
        ("connect_timeout", "1m30s", 90.0),
        ("connect_timeout", "250ms", 0.25),
        ("drain_grace", "0", 0.0),
        ("listen", "0.0.0.0:9000", "0.0.0.0:9000"),
        ("log_level", "debug", "debug"),
    ],
)
def test_values_are_read(name: str, text: str, value: object) -> None:
    assert getattr(from_environ({variable(name): text}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("max_body", "lots", "4Mi"),
        ("max_body", "1", "1024 to"),
        ("max_body", "-1", "number of bytes"),
        ("max_body", "4mi", "4Mi"),
        ("max_body", "٤", "4Mi"),
        ("max_body", "9" * 30, "4Mi"),
        ("max_body", "", "4Mi"),
        ("max_depth", "1.5", "whole number"),
        ("max_depth", "²", "whole number"),
        ("max_depth", "1000000", "4 to 200"),
        ("connect_timeout", "soon", ""),
        ("connect_timeout", "nan", ""),
        ("connect_timeout", "inf", ""),
        ("connect_timeout", "-1", ""),
        ("connect_timeout", "0", "0.001 to"),
        ("log_level", "loud", "debug or info"),
    ],
)
def test_bad_values_say_what_is_expected(name: str, text: str, said: str) -> None:
    (problem,) = problems(**{name: text})
    assert problem.startswith(variable(name))
    assert said in problem


def test_all_problems_come_at_once() -> None:
    found = problems(max_body="x", max_depth="y", log_level="z", tls_key_file="k")
    assert len(found) == 4


def test_a_mistyped_name_is_an_error_with_the_nearest_one() -> None:
    (problem,) = problems(max_boddy="1")
    assert "did you mean TOOLPOLICY_MAX_BODY?" in problem


def test_the_variables_that_kubernetes_makes_of_services_are_passed_over() -> None:
    links = {
        "TOOLPOLICY_PORT": "tcp://10.0.0.1:443",
        "TOOLPOLICY_SERVICE_HOST": "10.0.0.1",
        "TOOLPOLICY_SERVICE_PORT": "443",
        "TOOLPOLICY_SERVICE_PORT_HTTPS": "443",
        "TOOLPOLICY_PORT_443_TCP": "tcp://10.0.0.1:443",
        "TOOLPOLICY_PORT_443_TCP_ADDR": "10.0.0.1",
        "TOOLPOLICY_PORT_443_TCP_PROTO": "tcp",
        "TOOLPOLICY_OPERATOR_PORT": "tcp://10.0.0.2:443",
        "TOOLPOLICY_OPERATOR_SERVICE_HOST": "10.0.0.2",
    }
    assert from_environ(links) == Settings()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tls_certificate_file": "c"}, "both or neither"),
        ({"audit_key": "00", "audit_key_file": "k"}, "give one"),
        ({"listen": "127.0.0.1:9901"}, "must be another"),
        ({"listen": "stdio"}, "stdout carries MCP"),
    ],
)
def test_contradictions_are_found(changes: dict[str, str], said: str) -> None:
    (problem,) = problems(**changes)
    assert said in problem


def test_secrets_are_neither_shown_nor_quoted() -> None:
    settings = from_environ({"TOOLPOLICY_AUDIT_KEY": "5ecret", "TOOLPOLICY_IDENTITY_KEY": "5ecret"})
    assert "5ecret" not in repr(settings)


def test_options_of_the_command_line_are_the_base() -> None:
    base = Settings(listen="127.0.0.1:1", max_depth=10)
    assert from_environ({"TOOLPOLICY_MAX_DEPTH": "20"}, base) == Settings(listen="127.0.0.1:1", max_depth=20)


@pytest.mark.parametrize("name", ["TOOLPOLICY_CACHE", "TOOLPOLICY_DEBUG"])
def test_variables_of_other_parts_are_no_settings(name: str) -> None:
    assert from_environ({name: "1"}) == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("15771", "expected LISTENPORT=TARGETPORT"),
        ("15771=", "expected LISTENPORT=TARGETPORT"),
        ("15771=8000,", "expected LISTENPORT=TARGETPORT"),
        ("0=8000", "expected LISTENPORT=TARGETPORT"),
        ("15771=80000", "expected LISTENPORT=TARGETPORT"),
        ("15771=8000=1", "expected LISTENPORT=TARGETPORT"),
        ("15771=http://x", "expected LISTENPORT=TARGETPORT"),
        ("15771=8000,15771=9000", "port 15771 is given twice"),
        ("15771=8000,15773=8000", "port 8000 is given twice"),
        ("15771=8000,8000=9000", "port 8000 is listened at and a server's"),
        (",".join(f"{n}={n + 1000}" for n in range(1, 18)), "17 servers are more than 16"),
    ],
)
def test_servers_that_cannot_be_meant(text: str, words: str) -> None:
    with pytest.raises(SettingsError) as fault:
        from_environ({"TOOLPOLICY_SERVERS": text})
    assert [p for p in fault.value.problems if p.startswith("TOOLPOLICY_SERVERS: ") and words in p]


def test_servers_are_pairs_of_ports() -> None:
    assert parse_servers("15771=8000, 15773=9000") == ((15771, 8000), (15773, 9000))
