"""The way from flags to the API server, and from its errors to sentences that say what to do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from toolpolicy.cli.output import InputError
from toolpolicy_operator.kube import Api, ApiError, ConfigurationError, context_namespace

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_NAME_ONE = "name another with --kubeconfig, or set KUBECONFIG"
_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class Target:
    """Which cluster, as whom, and where: what kubectl's own flags of these names say."""

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None

    def file(self) -> Path | str | None:
        """The kubeconfig to read; None in a pod without one, where the ServiceAccount counts."""
        stated = str(self.kubeconfig or "") or os.environ.get("KUBECONFIG")
        if stated:
            if not any(Path(part).is_file() for part in stated.split(os.pathsep)):
                raise InputError(
                    f"the kubeconfig {stated} does not exist: name one with --kubeconfig, or set KUBECONFIG"
                )
            return stated
        own = Path.home() / ".kube" / "config"
        return own if own.is_file() or self.context is not None else None

    def in_namespace(self) -> str:
        """The namespace meant: the flag's, else the context's."""
        if self.namespace is not None:
            return self.namespace
        file = self.file()
        if file is None and _ACCOUNT_NAMESPACE.is_file():
            return _ACCOUNT_NAMESPACE.read_text().strip()
        try:
            return context_namespace(file, self.context)
        except ConfigurationError:
            return "default"  # connecting says what is wrong with the kubeconfig


def target_options(command: F) -> F:
    """``--kubeconfig``, ``--context`` and ``-n``, as kubectl has them; the parameter is ``target``."""

    def remember(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
        held = cast("dict[str, str | None]", ctx.ensure_object(dict))
        held[str(parameter.name)] = value

    flags = (
        (("-n", "--namespace"), "NAME", "The namespace; default: the context's."),
        (("--context",), "NAME", "The kubeconfig's context to use."),
        (("--kubeconfig",), "FILE", "Default: $KUBECONFIG, else ~/.kube/config."),
    )
    for names, metavar, text in reversed(flags):
        command = click.option(*names, metavar=metavar, callback=remember, expose_value=False, help=text)(command)
    return command


def target() -> Target:
    """The target that the current command's flags name."""
    held: dict[str, str | None] = click.get_current_context().obj or {}
    file = held.get("kubeconfig")
    return Target(Path(file).expanduser() if file else None, held.get("context"), held.get("namespace"))


def ask(where: Target, question: Callable[[Api], Awaitable[T]]) -> T:
    """Connect, put the question, close. Every failure is an :class:`InputError` that says what to do."""

    async def run() -> T:
        try:
            api = await Api.connect(where.file(), context=where.context)
        except ConfigurationError as error:
            raise InputError(f"{error}: {_NAME_ONE}") from None
        async with api:
            try:
                return await question(api)
            except ApiError as error:
                raise InputError(cure(error, api.host)) from None

    return asyncio.run(run())


def cure(error: ApiError, host: str) -> str:
    """What an API error means to a user."""
    said = str(error.answer.get("message") or error.message)
    match error.status:
        case 0:
            return f"the API server {host} can't be reached: {said}. See whether `kubectl version` gets an answer"
        case 401:
            return f"the API server {host} does not accept these credentials: log in again ({said})"
        case 403:
            return f"not permitted: {said}. {needed(said)}"
        case 429 | 503 | 504:
            return f"the API server {host} has no time for this: {said}. Try again in a moment"
        case _ if "failed calling webhook" in said:
            return f"{said}. Does the operator run? kubectl -n toolpolicy-system get pods"
        case _:
            return said


def needed(said: str) -> str:
    """Who forbids something, and how it is granted."""
    if "is forbidden: User" not in said:
        return "Ask who runs the cluster"
    return (
        "The role `view` grants it to whom it is bound: kubectl create rolebinding NAME --clusterrole=view "
        "--user=USER -n NAMESPACE (for ClusterToolPolicies a clusterrolebinding)"
    )
