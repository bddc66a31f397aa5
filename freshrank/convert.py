"""`freshrank convert`: data of others into the form that `freshrank replay` reads."""

from collections.abc import Callable
from pathlib import Path

import click

from freshrank.ranklens import ConvertSummary, convert_ranklens

LOADERS: dict[str, Callable[[Path, Path], ConvertSummary]] = {"ranklens": convert_ranklens}
"""By name, what writes the recorded log of a source folder into another folder."""


@click.command()
@click.argument("name", type=click.Choice(list(LOADERS)))
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def convert(name: str, source: Path, folder: Path) -> None:
    """Converts the data set NAME in the folder SOURCE into a recorded log in FOLDER.

    \b
    Example:
      freshrank convert ranklens downloads/ranklens recorded/ranklens
      freshrank replay recorded/ranklens --config configs/ranklens.yaml --report report.html
    """  # noqa: D301 - click wants the character
    try:
        written = LOADERS[name](source, folder)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    by_scenario = ", ".join(f"{scenario} {num}" for scenario, num in written.scenarios.items())
    click.echo(
        f"{folder}: {written.impressions} impressions of {written.items} items ({by_scenario}),"
        f" {written.feedback} feedback of {written.users} users"
    )
