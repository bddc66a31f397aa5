"""`freshrank config`: what a run's settings really are, before anything is started."""

import os
from pathlib import Path

import click
import yaml

from freshrank.command import CONFIG_PATH, OVERRIDE_HELP
from freshrank.config import load_config


@click.group()
def config() -> None:
    """Shows or checks the configuration of a run."""


_OVERRIDES = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=OVERRIDE_HELP)


@config.command()
@click.argument("path", metavar="CONFIG", type=CONFIG_PATH)
@_OVERRIDES
def show(path: Path, overrides: tuple[str, ...]) -> None:
    """Prints every setting with its default filled in, as YAML; passwords are masked.

    \b
    Example:
      freshrank config show configs/demo.yaml --set join.grace_ms=500
    """  # noqa: D301 - click wants the character
    run = load_config(path, overrides, os.environ)
    run.check()
    click.echo(f"# hash: {run.config_hash()}")
    click.echo(yaml.safe_dump(run.resolved(), sort_keys=False, default_flow_style=None, width=120), nl=False)


@config.command()
@click.argument("path", metavar="CONFIG", type=CONFIG_PATH)
@_OVERRIDES
def check(path: Path, overrides: tuple[str, ...]) -> None:
    """Checks every section, and the sections against each other. Exit code 2 names the first mistake.

    \b
    Example:
      freshrank config check configs/production.yaml
    """  # noqa: D301 - click wants the character
    run = load_config(path, overrides, os.environ)
    run.check()
    click.echo(f"{path}: all settings are allowed, hash {run.config_hash()}")
