"""A scenario that appears in the middle of a recorded log becomes part of the model by `freshrank replay`."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from freshrank.cli import main
from sim.config import SimConfig
from sim.record import write_recorded_log

REPO_ROOT = Path(__file__).parents[2]
REQUESTS, APPEARS_AT = 240, 0.4
SETTINGS = (
    "scenarios=[home, search]",
    "model.hinet.expert_hidden=8",
    "model.hinet.task_hidden=8",
    "model.encoding.history_length=5",
    "model.growth={scenario_admission: 100, open_from_rows: 100, open_full_rows: 200}",
    "trainer.batch_rows=64",
    "trainer.publish_interval_ms=5000",
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenarios; `deals` is not there before 40 % of the slates."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("log")
    write_recorded_log(folder, REQUESTS, 3, SimConfig(num_users=40, num_items=100, requests_per_s=4.0))
    path = folder / "impressions.jsonl.gz"
    slates = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    first_ms, last_ms = (pick(slate["ts"] for slate in slates) for pick in (min, max))
    appears_ms = first_ms + APPEARS_AT * (last_ms - first_ms)
    kept = [slate for slate in slates if slate["scenario"] != "deals" or slate["ts"] >= appears_ms]
    assert 0 < sum(slate["scenario"] == "deals" for slate in kept) < len(kept) < len(slates)
    path.write_bytes(gzip.compress("".join(json.dumps(slate) + "\n" for slate in kept).encode()))
    return folder


def replayed(folder: Path, out: Path, *settings: str) -> dict[str, Any]:
    arguments = ["replay", str(folder), "--config", str(REPO_ROOT / "configs" / "demo.yaml"), "--json", str(out)]
    arguments += ["--report", str(out.with_suffix(".html")), "--dead-letter", str(out.with_suffix(".dead"))]
    for setting in (*SETTINGS, *settings):
        arguments += ["--set", setting]
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 0
    result: dict[str, Any] = json.loads(out.read_text())
    del result["timing"]
    return result


def test_it_is_scored_learned_and_reported_by_its_name(log: Path, tmp_path: Path) -> None:
    result = replayed(log, tmp_path / "add.json", "unknown_scenario=add")
    click = result["tasks"]["click"]
    assert list(click) == ["all", "home", "search", "deals"] and click["deals"]["n"] > 100
    assert result["join"]["malformed"] == 0
    assert result["scenarios_added"] == {"deals": "home"} and result["unknown_rows"] >= 100
    assert result["versions"]["full"] >= 2
    assert "deals" in (tmp_path / "add.html").read_text()
    assert "deals" not in result["curve"][0]["tasks"]["click"]
    assert replayed(log, tmp_path / "again.json", "unknown_scenario=add") == result


def test_without_it_the_same_log_is_refused_or_taken_as_the_default(log: Path, tmp_path: Path) -> None:
    rejected = replayed(log, tmp_path / "reject.json", "unknown_scenario=reject")
    assert rejected["join"]["malformed"] > 20
    default = replayed(log, tmp_path / "default.json", "unknown_scenario=default", "default_scenario=search")
    assert default["join"]["malformed"] == 0
    for result in (rejected, default):
        assert list(result["tasks"]["click"]) == ["all", "home", "search"] and not result["scenarios_added"]
