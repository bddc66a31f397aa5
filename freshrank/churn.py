"""`freshrank churn`: how far the rankings of two models are apart, and how much of it is chance."""

import sys
from pathlib import Path

import click

from freshrank.command import need_folders, run_options, write_results
from freshrank.config import RunConfig

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("old")
@click.argument("new")
@run_options()
@click.option(
    "--requests", "folder", type=_FOLDER, required=True, help="A recorded log, whose newest slates are ranked."
)
@click.option("--floor", metavar="MODEL", help="A model like NEW but for its seed and the order of its data.")
@click.option("--train-floor", is_flag=True, help="Train two models on the log that differ by chance alone.")
@click.option("--per-scenario", type=click.IntRange(min=1), default=500, show_default=True, help="Slates of each.")
@click.option("-k", "k", type=click.IntRange(min=1), default=10, show_default=True, help="Items that are shown.")
@click.option("--report", "--out", "report", type=_FILE, help="Write an HTML page.")
@click.option("--json", "json_out", type=_FILE, help="Write the figures as JSON.")
def churn(
    run: RunConfig,
    old: str,
    new: str,
    folder: Path,
    floor: str | None,
    train_floor: bool,
    per_scenario: int,
    k: int,
    report: Path | None,
    json_out: Path | None,
) -> None:
    """Compares the rankings of two models, OLD and NEW, on the same requests, before and after the blender.

    A model is the number of a published version, a checkpoint, or a folder whose newest checkpoint is taken. Churn says
    nothing without what chance alone changes, so a floor is always needed: a third model, or --train-floor.

    \b
    Example:
      freshrank churn monday tuesday --requests recorded --train-floor --config configs/demo.yaml
      freshrank churn 1200 1260 --floor checkpoints/other-seed --requests recorded --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    import numpy as np
    import torch

    from freshrank.churn_models import floor_models, model_of
    from freshrank.churn_page import churn_page, churn_table
    from freshrank.churn_report import ChurnConfig, churn_report
    from freshrank.churn_requests import read_requests
    from model.store_redis import RedisSnapshotStore
    from utility_blender.blend import Blender

    need_folders(report, json_out)
    if (floor is None) == (not train_floor):
        raise click.ClickException(
            "floor: give one of --floor MODEL and --train-floor; churn without what chance alone changes is not shown"
        )
    torch.set_num_threads(1)
    store = RedisSnapshotStore(run.redis.address, run.trainer.model_name, run.store)  # connects only when asked
    try:
        blender = Blender(list(run.schema.tasks), run.schema.scenarios, run.blender)
        # The utility of a score of 1 in one task alone, as a vector: weight over scale.
        units = np.eye(len(run.schema.tasks))
        factor_T = {name: blender.utility(units, blender.production(name)) for name in run.schema.scenarios}
        requests = read_requests(folder, run.schema, per_scenario=per_scenario)
        models = {}
        old_is, models["old"] = model_of(run, old, store)
        new_is, models["new"] = model_of(run, new, store)
        if floor is not None:
            floor_is, models["floor_new"] = model_of(run, floor, store)
            floor_is, models["floor_old"] = f"{new_is} against {floor_is}", models["new"]
        else:
            models["floor_old"], models["floor_new"] = floor_models(run, folder)
            floor_is = "two seeds on these requests' log"
        result = {"old": old_is, "new": new_is, "folder": str(folder), "floor_is": floor_is} | churn_report(
            requests,
            list(run.schema.tasks),
            np.stack([factor_T[run.schema.listed(name)] for name in requests.scenarios]),
            {name: requests.scores(model, run.schema) for name, model in models.items()},
            ChurnConfig(k=k),
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    finally:
        store.close()
    write_results(result, churn_page, json_out=json_out, report=report)
    churn_table(result, sys.stdout)
