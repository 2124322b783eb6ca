"""The process's edge: settings that can't be used end it with a sentence, never with a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toolpolicy_operator.settings import SettingsError, parse

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ([], {}, "--image (TOOLPOLICY_OPERATOR_IMAGE) is required"),
        (["--image", "i", "--control-url", "http://x"], {}, "expected https://HOST[:PORT]"),
        (["--image", "i", "--listen", "9443"], {}, "--listen '9443': expected HOST:PORT"),
        (["--image", "i", "--listen", "h:99999"], {}, "expected HOST:PORT"),
        (["--image", "i", "--listen", "h:¹"], {}, "expected HOST:PORT"),
        (["--image", "i", "--resync-seconds", "1"], {}, "expected 10 to 3600"),
        (["--image", "i", "--resync-seconds", "nan"], {}, "expected 10 to 3600"),
        (["--image", "i", "--certificates", "directory"], {}, "needs --certificate-directory"),
        (["--image", "i"], {"TOOLPOLICY_OPERATOR_IMAGES": "x"}, "unknown setting TOOLPOLICY_OPERATOR_IMAGES"),
        (["--image", "i"], {"TOOLPOLICY_OPERATOR_DEFAULT_INJECTION": "on"}, "expected enabled or disabled"),
    ],
)
def test_a_setting_that_can_not_be_used_is_named(arguments: list[str], environment: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse(arguments, environment)
    assert said in str(refused.value)


def test_flags_come_before_the_environment_and_that_before_defaults() -> None:
    environment = {"TOOLPOLICY_OPERATOR_IMAGE": "from-environment", "TOOLPOLICY_OPERATOR_NAMESPACE": "elsewhere"}
    found = parse(["--image", "from-flag"], environment)
    assert (found.image, found.namespace, found.listen) == ("from-flag", "elsewhere", "0.0.0.0:9443")
    assert found.identity != parse(["--image", "i"], {}).identity, "no two processes take each other for themselves"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--image", "i", "--kubeconfig", "/nowhere"], 1, "no access to a cluster from the kubeconfig /nowhere"),
        (["--image", ""], 2, "--image"),
        (["--help"], 0, "examples:"),
    ],
    ids=["no cluster", "no image", "help"],
)
def test_it_ends_with_a_sentence(arguments: list[str], code: int, said: str) -> None:
    command = [sys.executable, "-m", "toolpolicy_operator", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
