"""`cronium completion`: for shells."""

import click
from click.shell_completion import get_completion_class

from cronium_worker.cli.printing import echo


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what has SHELL complete cronium's commands and options. Bash needs version 4.4.

    \b
    Example:
      cronium completion bash >/etc/bash_completion.d/cronium
      echo 'eval "$(cronium completion zsh)"' >>~/.zshrc
      cronium completion fish >~/.config/fish/completions/cronium.fish
    """
    from cronium_worker.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"no completion for {shell}")
    echo(kind(cli, {}, "cronium", "_CRONIUM_COMPLETE").source())
