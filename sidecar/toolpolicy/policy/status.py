"""What the operator reports about a policy in its ``status``. Readers ignore fields of a newer operator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from toolpolicy.policy.model import Model

Count = Annotated[int, Field(ge=0)]


class StatusModel(Model):
    model_config = ConfigDict(extra="ignore")


class Condition(StatusModel):
    """One condition, as in every Kubernetes API."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """`Accepted` or `Enforced`."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: Count | None = None
    """The generation of the policy that this is about."""
    last_transition_time: Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """One word for programs, such as `Programmed` or `BypassPossible`."""
    message: Annotated[str, Field(max_length=32768)]
    """For people: what it means, and what to do."""


class Pods(StatusModel):
    """How far the policy has come to the pods that it selects."""

    selected: Count
    """Running pods that the policy selects."""
    injected: Count
    """Of these, pods with the sidecar."""
    current: Count
    """Of these, pods whose sidecar has reported this generation."""
    opted_out: Count = 0
    """Pods that opted out."""


class Status(StatusModel):
    """Written by the operator."""

    observed_generation: Count | None = None
    """The generation of the policy that the status is about."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = ()
    """`Accepted`: the policy is valid. `Enforced`: every selected pod has reported that it enforces this generation."""
    rules: Count | None = None
    """Number of rules."""
    pods: Pods | None = None
    """Counts of pods."""
    pods_needing_restart: Annotated[tuple[Annotated[str, Field(max_length=317)], ...], Field(max_length=100)] = ()
    """Pods (in a ClusterToolPolicy `namespace/name`) that are older than the policy and run without a sidecar."""
    pods_behind: Annotated[tuple[Annotated[str, Field(max_length=317)], ...], Field(max_length=100)] = ()
    """Pods (named as above) whose sidecar has not reported this generation, or has refused it."""
