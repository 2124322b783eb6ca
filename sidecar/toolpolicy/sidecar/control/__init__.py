"""Reports to the operator. Imported only where ``TOOLPOLICY_CONTROL_URL`` is set; no call ever waits for it."""

from toolpolicy.sidecar.admin import Health
from toolpolicy.sidecar.control.client import ControlClient, describe
from toolpolicy.sidecar.control.report import Reporter
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.settings import Settings

__all__ = ["ControlClient", "Reporter", "start_reporting"]


def start_reporting(settings: Settings, reporter: Reporter, health: Health, metrics: Metrics) -> ControlClient:
    """Report from now on; ``poke`` the client when the rules change, and close it at the end."""
    client = ControlClient(settings, reporter)
    health.notes.append(client.note)
    health.extra["control"] = client.view
    describe(metrics, client)
    client.start()
    return client
