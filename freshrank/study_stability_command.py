"""`freshrank study stability`: how much less rankings change under score regularization, and what that costs."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from freshrank.command import CONFIG_PATH, need_folders, write_plots, write_results
from freshrank.config import load_config

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--log", "source", metavar="SOURCE", help="A recorded log or `ranklens` instead of synthetic worlds.")
@click.option("--config", type=CONFIG_PATH, help="YAML file of the run whose schema and model the log gets.")
@click.option("--rows", type=click.IntRange(min=1), default=30_000, show_default=True, help="Of the log, the first.")
@click.option("--seeds", type=click.IntRange(min=1), help="Worlds, or models on a log; 5, on a log 3.")
@click.option("--weight", "weights", type=float, multiple=True, help="Weights of the term; repeat; rising.")
@click.option("--dense-lr", type=float, help="Learning rate of the network in the worlds; 0.003.")
@click.option("--quick", is_flag=True, help="A smaller study: 2 seeds, short periods, few weights.")
@click.option("--report", "--out", "report", type=_FILE, help="Write an HTML page with tables and plots.")
@click.option("--json", "json_out", type=_FILE, help="Write the figures as JSON; `curve` has the points of the plots.")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Write the plots as SVG here.")
def stability(
    source: str | None,
    config: Path | None,
    rows: int,
    seeds: int | None,
    weights: tuple[float, ...],
    dense_lr: float | None,
    quick: bool,
    report: Path | None,
    json_out: Path | None,
    plots: Path | None,
) -> None:
    """Measures churn against quality: score regularization by form, weight and age of the teacher.

    In worlds that drift: one pass over a stream, a planted jump, and a refit per period from scratch and warm. On a log
    the stream alone, with the model of --config. Every churn stands beside what chance alone changes.

    \b
    Example:
      freshrank study stability --quick
      freshrank study stability --report stability.html --json stability.json
      freshrank study stability --log ranklens --config configs/ranklens.yaml --json ranklens.json
    """  # noqa: D301 - click wants the character
    import torch

    from freshrank.data_sets import path_of
    from freshrank.stability_log import LogStudyConfig, study_stability_on_log
    from freshrank.study_stability import StabilityStudyConfig, quick_study, study_stability
    from freshrank.study_stability_page import study_stability_page, svg_files

    need_folders(report, json_out)
    torch.set_num_threads(1)  # the last bits depend on their number
    given: dict[str, Any] = {} if seeds is None else {"seeds": seeds}
    if weights:
        given["weights"] = weights
    if source is None and dense_lr is not None:
        given["dense_lr"] = dense_lr
    try:
        if source is not None:
            if config is None:
                raise ValueError("--config: needed with --log, such as configs/ranklens.yaml")
            path, run = path_of(source, os.environ), load_config(config, (), os.environ)
            result = study_stability_on_log(run, source, path, LogStudyConfig(rows=rows, **given), on_progress=_say)
        else:
            worlds = replace(quick_study(), **given) if quick else StabilityStudyConfig(**given)
            result = study_stability(worlds, on_progress=_say)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    write_results(result, study_stability_page, json_out=json_out, report=report)
    if plots is not None:
        write_plots(svg_files(result), plots)
    _show(result)


def _say(part: str, seed: int) -> None:
    click.echo(f"{part}, seed {seed} ...", err=True)


def _show(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from freshrank.study_stability_page import seed_floor, with_interval

    console = Console()
    shown = Table("one pass", "NE - base", "top-1 changed", "over base's", "1 - RBO.9", "calibration", box=SIMPLE)
    for name, found in result["stream"].items():
        cells = [with_interval(found["ne_difference"], 4)]
        cells += [with_interval(found[figure], 3) for figure in ("top1_changed", "top1_ratio", "rbo_distance")]
        shown.add_row(name, *cells, with_interval(found["calibration"], 3))
    floor = seed_floor(result)
    top1, distance = (with_interval(floor[figure], 3) for figure in ("top1_changed", "rbo_distance"))
    shown.add_row("seed floor", "", top1, "", distance, "")
    console.print(shown)
    if "refits" in result:
        refits = result["refits"]
        shown = Table("refits", "NE", "top-1 changed", "over scratch's", "over warm's", "NE - warm's", box=SIMPLE)
        for name, found in refits["against_scratch"].items():
            warm = refits["against_warm"][name]
            cells = [with_interval(found["ne"], 4), with_interval(found["top1_changed"], 3)]
            cells += [with_interval(found["top1_ratio"], 3), with_interval(warm["top1_ratio"], 3)]
            shown.add_row(name, *cells, with_interval(warm["ne_difference"], 4))
        shown.add_row("seed floor (scratch)", "", with_interval(refits["floor"]["top1_changed"], 3), "", "", "")
        console.print(shown)
    if "drift" in result:
        shown = Table("after a jump", "NE - base, times periods", box=SIMPLE)
        for name, found in result["drift"]["variants"].items():
            shown.add_row(name, with_interval(found["area"], 4))
        console.print(shown)
