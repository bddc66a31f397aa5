"""`freshrank study freshness`: AUC against the publish interval, where tastes drift and items come and go."""

from pathlib import Path
from typing import Any

import click

from freshrank.command import need_folders, run_options, write_results
from freshrank.config import RunConfig

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@run_options(default=Path("configs/demo.yaml"))
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Worlds.")
@click.option("--hours", type=float, default=2.0, show_default=True, help="What is measured of each, in hours.")
@click.option("--interval", "intervals_s", type=int, multiple=True, help="Seconds between publishes; repeat; rising.")
@click.option("--drift-period", type=float, default=14_400.0, show_default=True, help="Of the tastes, in seconds.")
@click.option("--requests-per-s", type=float, default=8.0, show_default=True, help="Slates of 5 per second.")
@click.option("--quick", is_flag=True, help="A smaller study: one world, a quarter of an hour, up to 5 minutes.")
@click.option("--report", type=_FILE, help="Write an HTML page with the plot.")
@click.option("--json", "json_out", type=_FILE, help="Write the figures as JSON.")
def freshness(
    run: RunConfig,
    seeds: int,
    hours: float,
    intervals_s: tuple[int, ...],
    drift_period: float,
    requests_per_s: float,
    quick: bool,
    report: Path | None,
    json_out: Path | None,
) -> None:
    """Measures what is lost where models are published less often.

    Draws worlds whose tastes drift, trains one model on each through the real join core, and scores every slate with
    copies of different age; the true probabilities are the judge. Takes some ten minutes on one core.

    \b
    Example:
      freshrank study freshness --quick
      freshrank study freshness --seeds 3 --report freshness.html --json freshness.json
    """  # noqa: D301 - click wants the character
    from dataclasses import replace

    import torch

    from freshrank.study_freshness import FreshnessStudyConfig, StudiedRun, study_freshness
    from freshrank.study_freshness_page import study_freshness_page

    need_folders(report, json_out)
    torch.set_num_threads(1)  # the last bits depend on their number
    settings: dict[str, Any] = {"seeds": seeds, "hours": hours}
    if quick:
        settings = {"seeds": 1, "hours": 0.25, "intervals_s": (1, 10, 60, 300)}
    if intervals_s:
        settings["intervals_s"] = intervals_s
    try:
        sim = replace(run.sim, drift_period_s=drift_period, requests_per_s=requests_per_s, slate=5, moods={})
        studied = StudiedRun(schema=run.schema, join=run.join, model=run.model, trainer=run.trainer, sim=sim)
        result = study_freshness(studied, FreshnessStudyConfig(**settings), _say)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    write_results(result, study_freshness_page, json_out=json_out, report=report)
    for point in result["curve"]:
        auc, lost = point["auc"], point["auc_lost"]
        click.echo(f"every {point['interval_s']:>5} s   AUC {auc['mean']:.4f}   lost {lost['mean']:.4f}")


def _say(seed: int, share: float) -> None:
    click.echo(f"world {seed}: {share:.0%}", err=True)
