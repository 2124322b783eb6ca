"""The way from flags to the API server, and from its errors to sentences that say what to do."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import Awaitable, Callable, Sequence
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


POLICY_TYPES = ("toolpolicy", "toolpolicies", "tp", "clustertoolpolicy", "clustertoolpolicies", "ctp")
POD_TYPES = ("pod", "pods", "po")


def bare(name: str, types: Sequence[str]) -> str:
    """NAME of kubectl's TYPE/NAME. Raises :class:`InputError` for another type."""
    kind, slash, rest = name.partition("/")
    if not slash:
        return name
    if kind.lower().partition(".")[0] not in types:
        raise InputError(f"{name[:253]}: expected NAME, or {types[0]}/NAME")
    return rest


def ask(where: Target, question: Callable[[Api], Awaitable[T]], role: str = "view") -> T:
    """Connect, put the question, close. Every failure is an :class:`InputError` that says what to do. ``role`` is the
    ClusterRole that grants all of the question.
    """

    async def run() -> T:
        if where.context is not None:
            _known(where.file(), where.context)
        try:
            api = await Api.connect(where.file(), context=where.context)
        except ConfigurationError as error:
            raise InputError(f"{error}: {_NAME_ONE}") from None
        async with api:
            try:
                return await question(api)
            except ApiError as error:
                raise InputError(cure(error, api.host, role)) from None

    return asyncio.run(run())


def _known(file: Path | str | None, context: str) -> None:
    """An :class:`InputError` where the kubeconfig has no such context: its file is not at fault."""
    try:
        context_namespace(file, context)
    except ConfigurationError as error:
        raise InputError(f"{error}: see kubectl config get-contexts") from None


def cure(error: ApiError, host: str, role: str = "view") -> str:
    """What an API error means to a user; ``role`` would have been enough."""
    said = str(error.answer.get("message") or error.message)
    match error.status:
        case 0:
            return f"the API server {host} can't be reached: {said}. See whether `kubectl version` gets an answer"
        case 401:
            return f"the API server {host} does not accept these credentials: log in again ({said})"
        case 403:
            return f"not permitted: {said}. {needed(said, role)}"
        case 429 | 503 | 504:
            return f"the API server {host} has no time for this: {said}. Try again in a moment"
        case _ if "failed calling webhook" in said:
            return f"{said}. Does the operator run? kubectl -n toolpolicy-system get pods"
        case _:
            return said


_REFUSAL = re.compile(
    r'is forbidden: User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"'
    r'.*? (?:in the namespace "(?P<namespace>[^"]+)"|at the cluster scope)',
    re.DOTALL,
)
"""How the API server's RBAC authorizer says no (k8s.io/apiserver, endpoints/handlers/responsewriters/errors.go)."""
_ACCOUNT = "system:serviceaccount:"


def needed(said: str, role: str) -> str:
    """Who forbids something, and the command that grants it: what the refusal names is filled in."""
    refusal = _REFUSAL.search(said)
    if refusal is None:
        return "Ask who runs the cluster"
    user, namespace = refusal["user"], refusal["namespace"]
    account = f"--serviceaccount={user.removeprefix(_ACCOUNT)}"
    whom = account if user.startswith(_ACCOUNT) else f"--user={shlex.quote(user)}"
    if namespace is not None:
        return f"Who may grant it: kubectl create rolebinding NAME --clusterrole={role} {whom} -n {namespace}"
    command = f"Who may grant it: kubectl create clusterrolebinding NAME --clusterrole={role} {whom}"
    if role != "view" and refusal["resource"] == "clustertoolpolicies":
        return "No role that comes with toolpolicy grants it but cluster-admin: ask who runs the cluster"
    return f"Ask for one namespace with -n, instead of -A. {command}" if role == "view" else command
