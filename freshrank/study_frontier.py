"""`freshrank study frontier`: what one task costs the others, on a source or in a world with known truth."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freshrank.command import CONFIG_PATH, OVERRIDE_HELP, need_folders, write_results
from freshrank.config import load_config
from freshrank.data_sets import path_of

if TYPE_CHECKING:
    from freshrank.compare_data import CompareData
    from freshrank.one_pass import TaskFigures
    from model.config import ModelConfig

_FILE = click.Path(dir_okay=False, path_type=Path)
_WORLD_ROWS = 30_000


@click.command()
@click.argument("source", required=False)
@click.option("--config", type=CONFIG_PATH, help="YAML file of the run; with SOURCE, and then always.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=OVERRIDE_HELP)
@click.option(
    "--bounds",
    "given",
    multiple=True,
    metavar="TASK=WEIGHT,...",
    help="Least weights of one run; may be given several times. A grid of them if left out.",
)
@click.option("--parts", type=click.IntRange(min=1), default=4, show_default=True, help="Of the grid, per task.")
@click.option("--total", type=float, default=0.8, show_default=True, help="Sum of a grid point's least weights.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Passes of each run.")
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Use the first so many examples only.")
@click.option("--report", type=_FILE, help="Write an HTML page with table and plots.")
@click.option("--json", "json_out", type=_FILE, help="Write the figures as JSON.")
def frontier(
    source: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    given: tuple[str, ...],
    parts: int,
    total: float,
    seeds: int,
    limit: int | None,
    report: Path | None,
    json_out: Path | None,
) -> None:
    """Trains with PE-LTR under many least weights of the tasks, and shows what one task costs the others.

    SOURCE is what `freshrank compare` takes: a recorded log, RankLens, or MovieLens-1M. Without one it is a world of
    two conflicting tasks whose truth is known. Shows NE per task, which runs no other dominates, and which one treats
    its worst task best.

    \b
    Example:
      freshrank study frontier --report frontier.html
      freshrank study frontier recorded --config configs/demo.yaml --parts 2 --report frontier.html
    """  # noqa: D301 - click wants the character
    import torch

    from freshrank.frontier import frontier as run_frontier
    from freshrank.frontier import grid_of_bounds, parse_bounds
    from freshrank.frontier_page import frontier_page

    need_folders(report, json_out)
    torch.set_num_threads(1)  # the last bits depend on their number, and small steps gain little from more
    try:
        vectors = [parse_bounds(text) for text in given]
        data, model, truth = _inputs(source, config, overrides, limit)
        vectors = vectors or grid_of_bounds(list(data.schema.tasks), parts, total)
        figures = run_frontier(data, model, vectors, seeds, on_run=_say)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    result = {
        "source": str(source) if source else "a world with known truth",
        "truth": {task: found._asdict() for task, found in truth.items()} if truth else None,
        **figures,
    }
    write_results(result, frontier_page, json_out=json_out, report=report)
    if truth:
        click.echo("the truth: " + ", ".join(f"{task} NE {found.ne:.4f}" for task, found in truth.items()))
    for figure, title in (("ne", "NE"), ("log_loss", "log loss")):
        click.echo(f"least misery by {title}: {result['least_misery'][figure]}")


def _inputs(
    source: str | None, config: Path | None, overrides: tuple[str, ...], limit: int | None
) -> "tuple[CompareData, ModelConfig, dict[str, TaskFigures] | None]":
    """Returns what is learned from, the model, and the figures of the truth where it is known."""
    from freshrank.one_pass import judged, read_source

    if source is None:
        from freshrank.compare_models import equal_inputs
        from freshrank.study_networks import NetworkStudyConfig, conflict_data, model_config

        if config is not None or overrides:
            raise ValueError("--config, --set: go with SOURCE only; the world has a model of its own")
        given = NetworkStudyConfig(rows=limit or _WORLD_ROWS)
        data, logits = conflict_data(given, seed=0)
        return data, equal_inputs(model_config(given.world)), judged(data, logits)
    if config is None:
        raise ValueError(f"--config: is needed for {source}")
    path = path_of(source, os.environ)
    run = load_config(config, overrides, os.environ)
    return read_source(run, path, run.model.encoding, limit), run.model, None


def _say(run: dict[str, Any]) -> None:
    figures = ", ".join(f"{task} NE {cell['ne']['mean']:.4f}" for task, cell in run["tasks"].items())
    click.echo(f"{run['name']}: {figures}")
