"""`freshrank tune`: a search over a model's settings by progressive NE."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from freshrank.command import need_folders, run_options, write_results
from freshrank.config import RunConfig
from freshrank.data_sets import path_of

if TYPE_CHECKING:
    from freshrank.tune_study import SamplerName, Trial

_FILE = click.Path(dir_okay=False, path_type=Path)


class Wanted(NamedTuple):
    """What is searched, how, and where it is kept."""

    source: Path
    vary: tuple[str, ...]
    architecture: str | None
    trials: int
    sampler: "SamplerName"
    storage: Path
    seed: int
    limit: int | None


def search(
    run: RunConfig,
    wanted: Wanted,
    *,
    on_trial: Callable[[int, "Trial"], None] = lambda number, trial: None,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Returns the figures of a search, as JSON values, after going on with it to `wanted.trials`.

    Raises:
        ValueError: a source that cannot be read, a setting that is none, a storage of another search.
    """
    import yaml

    from freshrank.one_pass import one_pass, read_source
    from freshrank.tune_space import as_settings, at, check_space, default_space, parse_space, written_out
    from freshrank.tune_study import import_optuna, open_search

    import_optuna()  # before the source is read, which takes a while
    model = written_out(run.model, wanted.architecture)
    space = parse_space(wanted.vary) if wanted.vary else default_space(model)
    check_space(model, space)
    started_s = monotonic_s()
    data = read_source(run, wanted.source, model.encoding, wanted.limit)
    about = {"configuration": run.config_hash(), "architecture": model.architecture, "examples": data.num_rows}
    with open_search(wanted.storage, space=space, sampler=wanted.sampler, seed=wanted.seed, about=about) as running:
        baseline = running.baseline(lambda: one_pass(data, model, wanted.seed))
        running.run(wanted.trials, lambda point: one_pass(data, at(model, point), wanted.seed), on_trial)
        trials = running.trials()
    ended = [trial for trial in trials if trial.mean_ne is not None]
    best = min(ended, key=lambda trial: trial.mean_ne or 0.0) if ended else None
    return {
        "source": str(wanted.source),
        "examples": data.num_rows,
        "architecture": model.architecture,
        "sampler": wanted.sampler,
        "seed": wanted.seed,
        "space": {path: values._asdict() for path, values in space.items()},
        "baseline": baseline,
        "best": _entry(trials.index(best), best) if best else None,
        "best_yaml": yaml.safe_dump(as_settings(at(model, best.point), space), sort_keys=False) if best else None,
        "trials": [_entry(number, trial) for number, trial in enumerate(trials)],
        "timing": {"wall_s": round(monotonic_s() - started_s, 1)},
    }


def _entry(number: int, trial: "Trial") -> dict[str, Any]:
    entry = {"number": number, "mean_ne": trial.mean_ne, "point": dict(trial.point), **trial.figures}
    return entry if trial.mean_ne is not None else entry | {"reason": trial.reason}


@click.command()
@click.argument("source")
@run_options()
@click.option("--trials", type=click.IntRange(min=1), default=30, show_default=True, help="In all, earlier ones too.")
@click.option(
    "--sampler",
    type=click.Choice(["tpe", "grid"]),
    default="tpe",
    show_default=True,
    help="`grid`: the points of the grid, in random order; `tpe`: each where the ones before it were good.",
)
@click.option(
    "--vary",
    multiple=True,
    metavar="PATH=VALUES",
    help="A setting inside `model` and its values, `a,b,c`, or `low..high`; may be given several times. If left out: "
    "experts, widths, embedding width, scenario weights, learning rates.",
)
@click.option("--architecture", metavar="NAME", help="The network; the configuration's if left out.")
@click.option(
    "--storage", type=_FILE, default=Path("tune.db"), show_default=True, help="Holds the trials; goes on where it was."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights and search.")
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Use the first so many examples only.")
@click.option("--report", type=_FILE, help="Write an HTML page.")
@click.option("--json", "json_out", type=_FILE, help="Write the figures as JSON.")
def tune(run: RunConfig, source: str, report: Path | None, json_out: Path | None, **given: Any) -> None:
    """Searches for the settings of a model with the least progressive NE on SOURCE, as mean over its tasks.

    SOURCE is what `freshrank compare` takes: a recorded log, RankLens, or MovieLens-1M. It is encoded once; each trial
    is one pass. Needs the extra `studies`.

    \b
    Example:
      freshrank tune recorded --config configs/demo.yaml --trials 40 --report tune.html
      freshrank tune recorded --config configs/demo.yaml --sampler grid --vary optim.dense_lr=0.001,0.003 \\
          --vary optim.row_lr=0.05,0.2
    """  # noqa: D301 - click wants the character
    import torch

    from freshrank.tune_page import tune_page

    need_folders(report, json_out, given["storage"])
    torch.set_num_threads(1)  # the last bits depend on their number, and small steps gain little from more
    try:
        result = search(run, Wanted(source=path_of(source, os.environ), **given), on_trial=_say)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    write_results(result, tune_page, json_out=json_out, report=report)
    _show(result)


def _say(number: int, trial: "Trial") -> None:
    figure = f"{trial.mean_ne:.4f}" if trial.mean_ne is not None else f"failed: {trial.reason}"
    point = " ".join(f"{path}={value}" for path, value in trial.point.items())
    click.echo(f"trial {number}: {figure}  {point}", err=True)


def _show(result: dict[str, Any]) -> None:
    best, baseline = result["best"], result["baseline"]
    click.echo(f"as configured: mean NE {baseline['mean_ne']:.4f}", file=sys.stdout)
    if best is None:
        click.echo("no trial ended well; the JSON and the report say why each failed")
        return
    click.echo(f"best: mean NE {best['mean_ne']:.4f}, trial {best['number']} of {len(result['trials'])}")
    click.echo(result["best_yaml"].rstrip())
