"""The frontier of several tasks: PE-LTR with one vector of least weights after the other, each a pass over a source.

Where tasks conflict no run is best for all. A run is efficient if no other is at least as good for every task and
better for one; of all runs least misery takes the one whose worst task is best, min max L_j (Lin et al., RecSys 2019).
Departure: L_j is the NE, the log loss over the entropy of the base rate, since a rare task's log loss is always small;
by the log loss itself the pick is given beside it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from freshrank.compare_data import CompareData
from freshrank.compare_metrics import over_seeds
from freshrank.one_pass import Pass, one_pass
from model.config import ModelConfig
from model.gradient_weighting import PeLtrConfig
from model.loss_weighting import loss_weighting

AS_CONFIGURED = "as configured"
_FIGURES = ("ne", "log_loss")

Bounds = Mapping[str, float]


def parse_bounds(text: str) -> dict[str, float]:
    """Returns the bounds of a text as `click=0.4,order=0.2`.

    Raises:
        ValueError: not of this form.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        bounds = {task.strip(): float(bound) for task, _, bound in pairs}
    except ValueError as error:
        raise ValueError(f"--bounds {text}: must be TASK=WEIGHT,TASK=WEIGHT,...") from error
    if len(bounds) < len(pairs):
        raise ValueError(f"--bounds {text}: a task is given twice")
    return bounds


def grid_of_bounds(tasks: Sequence[str], parts: int, total: float) -> list[dict[str, float]]:
    """Returns no bound at all, then all ways to share `total` among the tasks in `parts` equal parts.

    >>> grid_of_bounds(["click", "order"], 2, 0.8)
    [{}, {'order': 0.8}, {'click': 0.4, 'order': 0.4}, {'click': 0.8}]
    """
    points = [counts for counts in itertools.product(range(parts + 1), repeat=len(tasks)) if sum(counts) == parts]
    shared = [
        {task: round(total * count / parts, 6) for task, count in zip(tasks, counts, strict=True) if count}
        for counts in points
    ]
    return [{}, *shared]


def with_bounds(model: ModelConfig, bounds: Bounds) -> ModelConfig:
    """Returns the configuration with PE-LTR and these bounds; its other settings of PE-LTR stay.

    Raises:
        ValueError: a bound is below 0, or their sum above 1.
    """
    pe_ltr = replace(model.loss.pe_ltr or PeLtrConfig(), bounds=dict(bounds))
    others: dict[str, Any] = {"task_weights": {}, "uncertainty": None, "mgda": None}
    return replace(model, loss=replace(model.loss, weighting="pe_ltr", pe_ltr=pe_ltr, **others))


def frontier(
    data: CompareData,
    model: ModelConfig,
    vectors: Sequence[Bounds],
    seeds: int,
    on_run: Callable[[dict[str, Any]], None] = lambda run: None,
) -> dict[str, Any]:
    """Returns one run per vector and the configuration as given, and which of them least misery takes.

    Raises:
        ValueError: a vector that is not allowed or names no task, or a pass that cannot be judged.
    """
    models = {AS_CONFIGURED: model} | {name_of(bounds): with_bounds(model, bounds) for bounds in vectors}
    for config in models.values():
        loss_weighting(config.loss, list(data.schema.tasks))
    runs = []
    for name, config in models.items():
        runs.append(_run(name, config, [one_pass(data, config, seed) for seed in range(seeds)]))
        on_run(runs[-1])
    for run in runs:
        run["is_efficient"] = not any(_dominates(other, run) for other in runs)
    return {
        "tasks": list(data.schema.tasks),
        "examples": data.num_rows,
        "seeds": seeds,
        "runs": runs,
        "least_misery": {figure: _least_misery(runs, figure) for figure in _FIGURES},
    }


def name_of(bounds: Bounds) -> str:
    """Returns bounds as text."""
    return " ".join(f"{task}>={bound:g}" for task, bound in bounds.items() if bound) or "no bounds"


def _run(name: str, config: ModelConfig, passes: Sequence[Pass]) -> dict[str, Any]:
    tasks = list(passes[0].tasks)
    bounds = config.loss.pe_ltr.bounds if config.loss.pe_ltr else {}
    return {
        "name": name,
        "weighting": config.loss.weighting,
        "bounds": dict(bounds),
        "weights": {task: round(sum(one.weights[task] for one in passes) / len(passes), 4) for task in tasks},
        "tasks": {
            task: {figure: over_seeds([getattr(one.tasks[task], figure) for one in passes]) for figure in _FIGURES}
            for task in tasks
        },
    }


def _means(run: Mapping[str, Any], figure: str) -> list[float]:
    return [cell[figure]["mean"] for cell in run["tasks"].values()]


def _dominates(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    ours, theirs = _means(one, "ne"), _means(other, "ne")
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def _least_misery(runs: Sequence[Mapping[str, Any]], figure: str) -> str:
    return str(min(runs, key=lambda run: max(_means(run, figure)))["name"])
