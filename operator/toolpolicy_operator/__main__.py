"""``python -m toolpolicy_operator``: the process's edge."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from toolpolicy_operator import watch
from toolpolicy_operator.application import Application
from toolpolicy_operator.kube import Api, ConfigurationError
from toolpolicy_operator.settings import Settings, SettingsError, parse

log = logging.getLogger("toolpolicy_operator")


async def run(settings: Settings) -> int:
    """Until SIGTERM or SIGINT (0), or until a part of it fails (1)."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    application = Application(settings, await Api.connect(settings.kubeconfig))
    stopping = asyncio.create_task(stop.wait())
    failing: asyncio.Task[str] | None = None
    try:
        await application.start()
        failing = asyncio.create_task(application.ended())
        await asyncio.wait([stopping, failing], return_when=asyncio.FIRST_COMPLETED)
        return 0 if stop.is_set() else 1
    finally:
        for task in (stopping, failing):
            if task is not None:
                task.cancel()
        await application.stop()


def main() -> int:
    try:
        settings = parse(sys.argv[1:])
    except SettingsError as error:
        sys.stderr.write(f"toolpolicy_operator: {error}\n")
        return 2
    logging.basicConfig(
        level=settings.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    watch.quiet()
    try:
        return asyncio.run(run(settings))
    except (ConfigurationError, OSError, ValueError) as error:
        sys.stderr.write(f"toolpolicy_operator: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
