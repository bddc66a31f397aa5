"""`freshrank study blender`: ways to learn the utility's weights, against the best there are."""

from pathlib import Path
from typing import Any

import click

from freshrank.command import need_folders, write_plots, write_results

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--worlds", type=click.IntRange(min=1), help="Each drawn from its seed; 3 if left out.")
@click.option("--requests", type=click.IntRange(min=3_000), help="Explored requests to learn from; 50000.")
@click.option("--rounds", type=click.IntRange(min=1), help="Gated rounds; 3.")
@click.option("--quick", is_flag=True, help="A smaller study: 1 world, 12,000 requests, 2 rounds.")
@click.option("--json", "json_out", type=_FILE, help="Write the figures and the points of the plots as JSON.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write the page and its plots here.")
def blender(
    worlds: int | None, requests: int | None, rounds: int | None, quick: bool, json_out: Path | None, out: Path | None
) -> None:
    """Learns utility weights in worlds whose best weights are known, and shows the share of the oracle's lift.

    Compares the published form, the recommended regression, its parts left out one by one, the alternatives, and the
    product's loop of gated rounds. Takes a few minutes on one core.

    \b
    Example:
      freshrank study blender --quick
      freshrank study blender --json blender.json --out report
    """  # noqa: D301 - click wants the character
    from freshrank.study_blender import BlenderStudyConfig, study_blender
    from freshrank.study_blender_page import main_plots, study_blender_page

    need_folders(json_out)
    settings: dict[str, Any] = (
        {"worlds": 1, "requests": 12_000, "rounds": 2, "round_requests": 10_000, "judged": 2_000} if quick else {}
    )
    given = {"worlds": worlds, "requests": requests, "rounds": rounds}
    settings |= {name: value for name, value in given.items() if value is not None}
    try:
        result = study_blender(BlenderStudyConfig(**settings), _say)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if out is not None:
        write_plots(main_plots(result), out)
    report = None if out is None else out / "blender.html"
    write_results(result, study_blender_page, json_out=json_out, report=report)
    _show(result)


def _say(world: int, name: str, share: float) -> None:
    click.echo(f"world {world}, {name}: {share:.3f}", err=True)


def _show(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from freshrank.compare_page import with_interval
    from freshrank.study_blender_page import gate_cell

    shown = Table("way to learn", "share of the oracle's lift", "gate", title="Learned utility (synthetic)", box=SIMPLE)
    for name, cell in result["variants"].items():
        shown.add_row(name, with_interval(cell["oracle_share"], 3), gate_cell(cell["passed"], result))
    console = Console()
    console.print(shown)
    for place, cell in enumerate(result["rounds"], start=1):
        console.print(f"round {place}: {with_interval(cell['oracle_share'], 3)}, {gate_cell(cell['passed'], result)}")
