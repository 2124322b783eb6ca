"""``toolpolicy completion``: the script that lets a shell complete verbs and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from toolpolicy.cli.output import echo

WHERE = {
    "bash": "toolpolicy completion bash >> ~/.bashrc",
    "zsh": "toolpolicy completion zsh >> ~/.zshrc",
    "fish": "toolpolicy completion fish > ~/.config/fish/completions/toolpolicy.fish",
}


@click.command(epilog="Examples:\n" + "\n".join(f"  {line}" for line in WHERE.values()))
@click.argument("shell", type=click.Choice(list(WHERE)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL. Put it where your shell reads its settings."""
    found = get_completion_class(shell)
    assert found is not None
    echo(found(ctx.find_root().command, {}, "toolpolicy", "_TOOLPOLICY_COMPLETE").source())
