"""What a process needs before it serves."""

from __future__ import annotations

import logging
import resource

import pytest

from toolpolicy.sidecar.serve import enough_files
from toolpolicy.sidecar.settings import Settings

WANTED = Settings().max_connections + Settings().upstream_connections + 256
ENDLESS = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "set_to", "warned"),
    [
        ((1024, 1_048_576), (WANTED, 1_048_576), False),
        ((1024, ENDLESS), (WANTED, ENDLESS), False),
        ((1024, 4096), (4096, 4096), True),
        ((1024, 1024), None, True),
        ((1_048_576, 1_048_576), None, False),
        ((ENDLESS, ENDLESS), None, False),
    ],
)
def test_enough_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limits: tuple[int, int],
    set_to: tuple[int, int] | None,
    warned: bool,
) -> None:
    given: list[tuple[int, int]] = []

    def getrlimit(_: int) -> tuple[int, int]:
        return limits

    def setrlimit(_: int, found: tuple[int, int]) -> None:
        given.append(found)

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    with caplog.at_level(logging.WARNING):
        enough_files(Settings())
    assert given == ([] if set_to is None else [set_to])
    assert bool(caplog.records) == warned
