"""The frontier: which runs are efficient, which one least misery takes, and the command on a recorded log."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from freshrank import frontier as subject
from freshrank.cli import main
from freshrank.compare_data import CompareData
from freshrank.frontier import AS_CONFIGURED, frontier, grid_of_bounds, name_of, parse_bounds, with_bounds
from freshrank.frontier_page import frontier_page
from freshrank.one_pass import Pass, TaskFigures
from model.config import ModelConfig
from model.gradient_weighting import PeLtrConfig
from model.losses import LossConfig
from tests.freshrank import searched_log
from tests.model.worlds import SCHEMA

torch.set_num_threads(1)

NE = {
    AS_CONFIGURED: (0.95, 0.95),
    "no bounds": (0.90, 0.99),
    "order>=0.8": (0.97, 0.80),
    "click>=0.4 order>=0.4": (0.93, 0.90),
    "click>=0.8": (0.90, 1.00),
}


def figures_of(data: CompareData, config: ModelConfig, seed: int) -> Pass:
    bounds = config.loss.pe_ltr.bounds if config.loss.pe_ltr else None
    click, order = NE[AS_CONFIGURED if bounds is None else name_of(bounds)]
    tasks = {"click": TaskFigures(click, click), "order": TaskFigures(order, order / 10)}
    return Pass(tasks=tasks, weights={"click": 0.5, "order": 0.5}, num_parameters=1, num_skipped=0)


def test_efficient_runs_and_the_least_misery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "one_pass", figures_of)
    data = CompareData(schema=SCHEMA, fields=(), batches=[])
    result = frontier(data, ModelConfig(), grid_of_bounds(["click", "order"], 2, 0.8), seeds=2)
    assert [run["name"] for run in result["runs"]] == list(NE)
    efficient = {run["name"]: run["is_efficient"] for run in result["runs"]}
    assert efficient == dict.fromkeys(NE, True) | {AS_CONFIGURED: False, "click>=0.8": False}
    assert result["least_misery"] == {"ne": "click>=0.4 order>=0.4", "log_loss": "no bounds"}
    page = frontier_page({"source": "log", "truth": None} | result)
    assert page.count("<circle") == len(NE) and "click&gt;=0.4 order&gt;=0.4" in page


def test_bounds_replace_the_weights_and_leave_the_rest() -> None:
    model = ModelConfig(loss=LossConfig(task_weights={"click": 4.0}, max_scenario_weight=3.0))
    changed = with_bounds(model, {"order": 0.4}).loss
    assert (changed.weighting, changed.task_weights, changed.max_scenario_weight) == ("pe_ltr", {}, 3.0)
    slow = ModelConfig(loss=LossConfig(weighting="pe_ltr", pe_ltr=PeLtrConfig(every_steps=7)))
    assert with_bounds(slow, {"order": 0.4}).loss.pe_ltr == PeLtrConfig(bounds={"order": 0.4}, every_steps=7)


def test_bounds_as_text() -> None:
    assert parse_bounds("click=0.4, order=.2") == {"click": 0.4, "order": 0.2}
    for text in ("click", "click=a", "click=1,"):
        with pytest.raises(ValueError, match="^--bounds .*: must be TASK=WEIGHT,TASK=WEIGHT,...$"):
            parse_bounds(text)
    with pytest.raises(ValueError, match="a task is given twice$"):
        parse_bounds("a=1,a=1")


def test_the_command_on_a_recorded_log(tmp_path: Path) -> None:
    log, config = searched_log.write(tmp_path)

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["study", "frontier", str(log), "--config", str(config), *arguments])

    json_out, report = tmp_path / "f.json", tmp_path / "f.html"
    done = call("--bounds", "click=0.9", "--bounds", "order=0.9", "--json", str(json_out), "--report", str(report))
    assert done.exit_code == 0, done.output
    result = json.loads(json_out.read_text())
    assert [run["name"] for run in result["runs"]] == [AS_CONFIGURED, "click>=0.9", "order>=0.9"]
    for run, task in zip(result["runs"][1:], ("click", "order"), strict=True):
        assert run["weights"][task] >= 0.9 and sum(run["weights"].values()) == pytest.approx(1.0, abs=1e-3)
    click_first, order_first = (
        [run["tasks"][task]["ne"]["mean"] for task in ("click", "order")] for run in result["runs"][1:]
    )
    assert click_first != order_first
    assert report.read_text().count("<svg") == 3
    assert result["truth"] is None
    assert "['like'] are not tasks; click, order, hide" in call("--bounds", "like=0.1").output
    assert "a sum of 1.4 is not allowed; at most 1" in call("--bounds", "click=0.7,order=0.7").output


def test_in_the_world_whose_truth_is_known_a_task_pays_for_the_other(tmp_path: Path) -> None:
    json_out = tmp_path / "f.json"
    arguments = ["--limit", "6000", "--bounds", "task-0=0.95", "--bounds", "task-1=0.95", "--json", str(json_out)]
    done = CliRunner().invoke(main, ["study", "frontier", *arguments])
    assert done.exit_code == 0, done.output
    result = json.loads(json_out.read_text())
    for_first, for_second = (
        {task: cell["ne"]["mean"] for task, cell in run["tasks"].items()} for run in result["runs"][1:]
    )
    assert for_first["task-0"] < for_second["task-0"] and for_first["task-1"] > for_second["task-1"]
    for run in result["runs"]:
        assert all(cell["ne"]["mean"] > result["truth"][task]["ne"] for task, cell in run["tasks"].items())
    refused = CliRunner().invoke(main, ["study", "frontier", "--config", "x.yaml"]).output
    assert "--config, --set: go with SOURCE only" in refused
    refused = CliRunner().invoke(main, ["study", "frontier", str(tmp_path)]).output
    assert "--config: is needed for" in refused
