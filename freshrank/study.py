"""`freshrank study`: experiments, in worlds with known truth or on recorded logs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freshrank.command import need_folders, write_plots, write_results
from freshrank.study_blender_command import blender
from freshrank.study_freshness_command import freshness
from freshrank.study_frontier import frontier
from freshrank.study_networks_command import networks
from freshrank.study_stability_command import stability

if TYPE_CHECKING:
    from freshrank.study_delays import DelayStudyConfig

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def study() -> None:
    """Measures parts of the product in synthetic worlds with known truth."""


study.add_command(blender)
study.add_command(freshness)
study.add_command(frontier)
study.add_command(networks)
study.add_command(stability)


@study.command()
@click.option("--seeds", type=click.IntRange(min=1), help="Worlds of each kind; 3 if left out.")
@click.option("--hours", type=float, help="What is measured of each world, in hours; 48, at least a window.")
@click.option("--drift", type=float, help="How far each weight of the truth moves per hour; 0.03.")
@click.option("--window", "window_hours", type=float, help="Label window in hours; 24.")
@click.option("--observe", "observe_minutes", type=float, help="Early look of the policies that take one, minutes; 15.")
@click.option("--items-per-hour", type=float, help="Traffic; 600.")
@click.option("--traffic-factor", type=float, help="By how much traffic jumps where it does; 4.")
@click.option("--rate", type=float, help="Step size per row; 0.004.")
@click.option(
    "--model",
    type=click.Choice(["logistic", "hinet"]),
    default="logistic",
    show_default=True,
    help="`hinet`: the network itself, in the whole loop; slow, so only goal L4, with some of the policies.",
)
@click.option("--quick", is_flag=True, help="A smaller study: 2 seeds, one window measured, half the traffic.")
@click.option("--report", type=_FILE, help="Write an HTML page with tables and plots.")
@click.option("--json", "json_out", type=_FILE, help="Write the figures as JSON.")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Write the main plots as SVG here.")
def delays(
    model: str,
    quick: bool,
    report: Path | None,
    json_out: Path | None,
    plots: Path | None,
    **given: float | int | None,
) -> None:
    """Compares all label policies under delayed feedback, by NE, AUC and calibration against the oracle.

    Draws worlds that drift, jump or stand still, joins their events with the real join core, trains one online model
    per policy with the real weights, and judges every score by the truth. Takes a few minutes on one core.

    \b
    Example:
      freshrank study delays --quick
      freshrank study delays --seeds 3 --drift 0.08 --report report.html --json figures.json
      freshrank study delays --model hinet --seeds 2 --hours 24 --items-per-hour 200 --json figures.json
    """  # noqa: D301 - click wants the character
    from freshrank.study_delays import DelayStudyConfig, study_delays
    from freshrank.study_page import main_plots, study_page

    need_folders(report, json_out)
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if quick:
        window_hours = settings.get("window_hours", DelayStudyConfig().window_hours)
        settings = {"seeds": 2, "hours": window_hours, "items_per_hour": 300.0} | settings
    try:
        config = DelayStudyConfig(**settings)
        if model == "hinet":
            result = _with_hinet(config, report is not None or plots is not None)
        else:
            result = study_delays(config, on_progress=_say)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    write_results(result, study_page, json_out=json_out, report=report)
    if plots is not None:
        write_plots(main_plots(result), plots)
    _show(result)


def _with_hinet(config: "DelayStudyConfig", wants_plots: bool) -> dict[str, Any]:
    if wants_plots:
        raise ValueError("--model hinet: has no curves; leave out --report and --plots")
    import torch

    from freshrank.study_hinet import study_l4_hinet

    torch.set_num_threads(1)  # the last bits depend on their number, and small steps gain little from more
    return study_l4_hinet(config, on_progress=_say)


def _say(name: str, seed: int) -> None:
    click.echo(f"{name}, seed {seed} ...", err=True)


def _show(result: dict[str, Any]) -> None:
    """Prints the main table, if there is one, and goal L4."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout)
    if "policies" in result:
        shown = Table(
            "policy", "NE", "excess", "AUC", "calibration", title="Weights that drift (synthetic)", box=SIMPLE
        )
        for name, figures in sorted(result["policies"].items(), key=lambda pair: pair[1]["ne"]["mean"]):
            means = [figures[figure]["mean"] for figure in ("ne", "ne_excess", "auc", "calibration")]
            shown.add_row(name, *(f"{mean:.4f}" for mean in means))
        console.print(shown)
    l4 = result["l4"]
    shown = Table("policy", "bias", "worst seed", f"within {l4['goal']:.0%}", title="L4: window 60 s", box=SIMPLE)
    for name, figures in l4["policies"].items():
        worst, is_within = figures["worst"], figures["within_goal"]
        shown.add_row(name, f"{figures['bias']['mean']:+.4f}", f"{worst:.4f}", "yes" if is_within else "no")
    console.print(shown)
