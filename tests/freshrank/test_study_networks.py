"""The study of networks: same rows for all, the truth the best of all, and every network better than the base rate."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from freshrank.cli import main
from freshrank.study_networks import NetworkStudyConfig, conflict_data, study_networks
from sim.conflict_world import ConflictWorldConfig

WORLD = ConflictWorldConfig(num_users=60, num_items=40, scenario_shares=(0.6, 0.4), taste_scale=0.3)


def test_a_world_is_judged_in_its_second_half_only() -> None:
    data, truth = conflict_data(NetworkStudyConfig(rows=1_000, batch_rows=100, world=WORLD), seed=0)
    assert [batch.judged_BT.all() for batch in data.batches] == [False] * 5 + [True] * 5
    assert [len(logits_BT) for logits_BT in truth] == [100] * 10


@pytest.mark.slow
def test_networks_learn_and_none_is_better_than_the_truth() -> None:
    config = NetworkStudyConfig(
        models=("hinet", "shared_bottom", "mmoe"), worlds=2, rows=16_000, world=WORLD, dense_lrs=(3e-3,)
    )
    result = study_networks(config)
    for name, by_task in result["models"].items():
        for cells in by_task.values():
            assert all(cell["ne"]["mean"] < 1 for cell in cells.values()), name
    excess = [cells["all"]["ne"]["mean"] for by_task in result["excess"].values() for cells in by_task.values()]
    assert len(excess) == 6 and np.min(excess) > 0
    claim = next(one for one in result["expected"] if (one["better"], one["other"]) == ("hinet", "shared_bottom"))
    for cells in claim["difference"].values():
        # Not worse: whatever the sign, by less than what two networks of one kind differ from world to world.
        assert abs(cells["all"]["ne"]["mean"]) < 0.02


def test_the_command_writes_its_figures_and_its_page(tmp_path: Path) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    argv = ["study", "networks", "--models", "hinet,mmoe", "--worlds", "2", "--rows", "1200", "--report", str(page)]
    done = CliRunner().invoke(main, [*argv, "--json", str(figures), "--dense-lr", "0.001", "--dense-lr", "0.003"])
    assert done.exit_code == 0, done.output
    result = json.loads(figures.read_text())
    assert set(result["excess"]) == {"hinet", "mmoe"} and result["dense_lr"].keys() == {"hinet", "mmoe"}
    assert "What papers claim" in page.read_text() and "hinet" in done.output


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--models", "hinett"], "'hinett' is not allowed; hinet"),
        (["--models", "mmoe,vw"], "models: vw is not allowed; only networks"),
        (["--models", "closeup"], "history"),
        (["--models", "mmoe,mmoe"], "'mmoe, mmoe' is not allowed; at least one, each once"),
        (["--models", "mmoe", "--rows", "10"], "rows: 10 is not allowed; so many that a task has both kinds of labels"),
        (["--task-correlation", "2"], "task_correlation: 2.0"),
    ],
)
def test_bad_settings_are_one_line(option: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["study", "networks", "--rows", "300", *option])
    assert done.exit_code == 2
    assert message in done.output and "Traceback" not in done.output
