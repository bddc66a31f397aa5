"""`freshrank compare`: networks, and online learners of others, over the same data in the same order."""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freshrank.command import CONFIG_PATH, OVERRIDE_HELP, need_folders
from freshrank.compare_page import compare_page, with_interval
from freshrank.config import load_config
from freshrank.data_sets import DATA_SETS, path_of
from freshrank.report import number

if TYPE_CHECKING:
    from freshrank.compare_run import PassReport

_FILE = click.Path(dir_okay=False, path_type=Path)
_COMMA = re.compile(r",(?![^\[]*\])")
"""Between models, not inside the list that a setting may be."""


@click.command()
@click.argument("source")
@click.option(
    "--models",
    default="hinet,vw,river_lr",
    show_default=True,
    metavar="A,B,...",
    help="Architectures, perhaps with settings (hinet:san=none, esmm:funnel=[click,like]), and vw, river_lr, river_fm.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Passes of each model.")
@click.option("--report", type=_FILE, help="Write an HTML page with tables and plots.")
@click.option("--json", "json_out", type=_FILE, help="Write the figures as JSON, anew after each model.")
@click.option("--config", type=CONFIG_PATH, help="YAML file of the run; configs/SOURCE.yaml for a data set.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=OVERRIDE_HELP)
@click.option("--data", type=click.Path(path_type=Path), help="Where the data set SOURCE is.")
@click.option(
    "--holdout",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the examples, the last ones, that is scored and not learned.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many examples.")
def compare(
    source: str,
    models: str,
    seeds: int,
    report: Path | None,
    json_out: Path | None,
    config: Path | None,
    overrides: tuple[str, ...],
    data: Path | None,
    holdout: float,
    limit: int | None,
) -> None:
    """Compares models on SOURCE: a recorded log, or a data set by name or folder.

    The data sets are ml-1m and ranklens. All models see the same batches in the same order, score each before learning
    it, and have the same embeddings and, within a tenth, as many dense parameters as HiNet with the widths of the
    configuration.

    \b
    Example:
      freshrank compare ml-1m --data ml-1m.whl --models hinet,mmoe,vw --seeds 3 --report report.html --json out.json
      freshrank compare recorded/shop --config configs/shop.yaml --models hinet,hinet:san=none --limit 50000
    """  # noqa: D301 - click wants the character
    import torch

    from freshrank.compare_models import check_name, equal_inputs
    from freshrank.compare_run import CompareConfig, Comparison
    from freshrank.one_pass import read_source

    need_folders(report, json_out)
    torch.set_num_threads(1)  # the last bits depend on their number, and CPU seconds are compared
    try:
        compared = CompareConfig(models=tuple(_COMMA.split(models)), seeds=seeds, holdout=holdout)
        for name in compared.models:
            check_name(name)
        path = path_of(source, os.environ, data)
        run = load_config(_config(source, path, config), overrides, os.environ)
        about = {
            "source": source,
            "config_hash": run.config_hash(),
            "tasks": list(run.schema.tasks),
            "scenarios": list(run.schema.scenarios),
            "batch_rows": run.trainer.batch_rows,
        }
        click.echo(f"Reading {path} ...", err=True)
        examples = read_source(run, path, equal_inputs(run.model).encoding, limit)
        comparison = Comparison(examples, run.model, compared, cpu_s=time.process_time)
        for name in compared.models:
            try:
                comparison.run(name, on_pass=_say)
            except KeyboardInterrupt:
                click.echo(f"Stopped in {name}; what is written holds the models before it.", err=True)
                raise
            result = about | comparison.result()
            if json_out is not None:
                _write(json_out, json.dumps(result, indent=1) + "\n")
            if report is not None:
                _write(report, compare_page(result))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    _show(result)


def _config(source: str, path: Path, given: Path | None) -> Path:
    from freshrank.compare_data import kind_of

    if given is not None:
        return given
    kind = kind_of(path)
    if kind not in DATA_SETS:
        raise ValueError(f"--config: is needed for {source}, a recorded log")
    return Path("configs") / f"{kind}.yaml"


def _write(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _say(one: "PassReport") -> None:
    """Prints a line per pass."""
    figures = ", ".join(
        f"{task} AUC {number(cells['all']['auc'], 4)} NE {number(cells['all']['ne'], 4)}"
        for task, cells in one.progressive.items()
    )
    size = "" if one.num_weights is None else f", {one.num_weights:,} parameters"
    click.echo(f"{one.model}, seed {one.seed}: {figures}; {one.examples_per_cpu_s:,.0f} examples/s{size}", err=True)


def _show(result: dict[str, Any]) -> None:
    """Prints the progressive figures over all scenarios."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    for task in result["tasks"]:
        shown = Table("model", "AUC", "NE", "GAUC", "parameters", "examples/CPU-s", title=task, box=SIMPLE)
        for name, figures in result["models"].items():
            cell, size = figures[task]["all"], result["params"][name]
            shown.add_row(
                name,
                *(with_interval(cell[figure], 4) for figure in ("auc", "ne", "gauc")),
                "-" if size is None else f"{size:,}",
                f"{result['examples_per_cpu_s'][name]:,.0f}",
            )
        Console(file=sys.stdout).print(shown)
