"""`freshrank study networks`: networks against each other and the truth, in worlds of conflicting tasks."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freshrank.command import need_folders, write_results

if TYPE_CHECKING:
    from freshrank.compare_run import PassReport

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--models", metavar="A,B,...", help="Architectures, with settings if need be (hinet:san=none).")
@click.option("--worlds", type=click.IntRange(min=1), default=5, show_default=True, help="Each drawn from its seed.")
@click.option("--rows", type=click.IntRange(min=1), default=100_000, show_default=True, help="Rows of each world.")
@click.option("--task-correlation", type=float, default=-0.3, show_default=True, help="How alike two tasks are.")
@click.option("--scenario-correlation", type=float, default=0.5, show_default=True, help="How alike scenarios are.")
@click.option("--dense-lr", "dense_lrs", type=float, multiple=True, help="Learning rates to choose from.")
@click.option("--report", type=_FILE, help="Write an HTML page with tables and plots.")
@click.option("--json", "json_out", type=_FILE, help="Write the figures as JSON.")
def networks(
    models: str | None,
    worlds: int,
    rows: int,
    task_correlation: float,
    scenario_correlation: float,
    dense_lrs: tuple[float, ...],
    report: Path | None,
    json_out: Path | None,
) -> None:
    """Trains networks in worlds of conflicting tasks and shifted scenarios, and judges them by the truth.

    All of them takes about an hour on one core; name some, or fewer rows, for less.

    \b
    Example:
      freshrank study networks --models hinet,mmoe,shared_bottom --worlds 3 --rows 50000 --report networks.html
    """  # noqa: D301 - click wants the character
    import torch

    from freshrank.study_networks import NetworkStudyConfig, study_networks
    from freshrank.study_networks_page import study_networks_page
    from sim.conflict_world import ConflictWorldConfig

    need_folders(report, json_out)
    torch.set_num_threads(1)  # the last bits depend on their number
    given: dict[str, Any] = {"models": tuple(models.split(","))} if models else {}
    if dense_lrs:
        given["dense_lrs"] = dense_lrs
    try:
        world = ConflictWorldConfig(task_correlation=task_correlation, scenario_correlation=scenario_correlation)
        result = study_networks(NetworkStudyConfig(worlds=worlds, rows=rows, world=world, **given), _say)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    write_results(result, study_networks_page, json_out=json_out, report=report)
    _show(result)


def _say(world: int | None, rate: float, one: "PassReport") -> None:
    where = "choosing the rate" if world is None else f"world {world}"
    figures = ", ".join(f"{task} NE {cells['all']['ne']:.4f}" for task, cells in one.progressive.items())
    click.echo(f"{one.model}, {where}, rate {rate:g}: {figures}; {one.examples_per_cpu_s:,.0f} examples/s", err=True)


def _show(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from freshrank.compare_page import with_interval

    tasks = list(result["models"]["truth"])
    shown = Table("network", "parameters", "rate", *tasks, title="NE above the truth's (synthetic)", box=SIMPLE)
    for name, by_task in result["excess"].items():
        cells = [with_interval(by_task[task]["all"]["ne"], 4) for task in tasks]
        shown.add_row(name, f"{result['params'][name]:,}", f"{result['dense_lr'][name]:g}", *cells)
    console = Console()
    console.print(shown)
    claims = Table("claimed to be no worse", "than", *tasks, title="Difference of NE, paired by world", box=SIMPLE)
    for claim in result["expected"]:
        cells = [with_interval(claim["difference"][task]["all"]["ne"], 4) for task in tasks]
        claims.add_row(claim["better"], claim["other"], *cells)
    console.print(claims)
