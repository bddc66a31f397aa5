"""The freshness study: copies are as old as their interval says, and older ones know less."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from freshrank.cli import main
from freshrank.config import load_config
from freshrank.study_freshness import FreshnessStudyConfig, StudiedRun, study_freshness
from freshrank.study_freshness_page import study_freshness_page

torch.set_num_threads(1)

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
SMALL = ["sim.num_users=40", "sim.num_items=60", "sim.candidates=12", "sim.slate=5", "sim.requests_per_s=6",
         "sim.drift_period_s=300", "sim.item_life_s=60"]  # fmt: skip


def studied() -> StudiedRun:
    run = load_config(DEMO, SMALL)
    return StudiedRun(schema=run.schema, join=run.join, model=run.model, trainer=run.trainer, sim=run.sim)


def test_a_copy_of_every_second_scores_as_the_model_itself_and_old_copies_are_worse() -> None:
    config = FreshnessStudyConfig(seeds=1, hours=0.025, intervals_s=(1, 5, 90))
    result = study_freshness(studied(), config)
    first, second, last = result["curve"]
    assert first["auc_lost"]["mean"] == 0.0
    assert abs(second["auc_lost"]["mean"]) < 0.01 < last["auc_lost"]["mean"]
    assert last["ne_lost"]["mean"] > 0.0
    assert [point["interval_s"] for point in result["curve"]] == [1, 5, 90]
    page = study_freshness_page(result)
    assert "<svg" in page and f"{last['auc']['mean']:.4f}" in page


def test_the_same_worlds_give_the_same_bits() -> None:
    config = FreshnessStudyConfig(seeds=1, hours=0.004, intervals_s=(1, 10))
    assert study_freshness(studied(), config) == study_freshness(studied(), config)


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"seeds": 0}, "seeds"), ({"hours": 0.0}, "hours"), ({"intervals_s": ()}, "intervals_s"),
     ({"intervals_s": (10, 1)}, "intervals_s"), ({"intervals_s": (0, 1)}, "intervals_s")],
)  # fmt: skip
def test_settings_that_make_no_study_are_refused_by_name(settings: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: .* is not allowed"):
        FreshnessStudyConfig(**settings)  # type: ignore[arg-type]


def test_the_command_writes_what_it_says(tmp_path: Path) -> None:
    figures, report = tmp_path / "f.json", tmp_path / "f.html"
    given = [part for name in SMALL for part in ("--set", name)]
    options = ["--config", str(DEMO), "--seeds", "1", "--hours", "0.01", "--interval", "1", "--interval", "20"]
    args = ["study", "freshness", *options, *given, "--json", str(figures), "--report", str(report)]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    assert re.search(r"every +20 s +AUC 0\.\d{4}", done.output)
    assert [point["interval_s"] for point in json.loads(figures.read_text())["curve"]] == [1, 20]
    assert report.read_text().startswith("<!doctype html>")
