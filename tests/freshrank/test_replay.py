"""A recorded log through the whole circle: true labels, honest scores, equal repeats, errors in one line."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import torch

from freshrank.cli import main
from freshrank.config import load_config
from freshrank.ranklens import convert_ranklens
from freshrank.replay import ReplayOutputs, ReplayProgress, replay_folder
from model.config import ModelConfig
from model.features import EncodingConfig
from model.hinet_config import HiNetConfig
from model.trainer_config import TrainerConfig
from sim.config import SimConfig
from sim.record import RecordedTruth, write_recorded_log
from sim.world import FEATURES
from stream.join import JoinConfig
from stream.schema import SchemaConfig, TaskConfig

torch.set_num_threads(1)

REPO = Path(__file__).parents[2]
REQUESTS = 200
SCHEMA = SchemaConfig(
    scenarios=("home", "search", "deals"),
    tasks={
        "click": TaskConfig(action="click", window_ms=8_000, policy="wait"),
        "order": TaskConfig(action="order", window_ms=20_000, policy="wait"),
        "hide": TaskConfig(action="hide", window_ms=8_000, policy="eager"),
    },
    features=FEATURES,
)
FILES = ("impressions", "feedback")
TINY = HiNetConfig(
    num_shared_experts=1,
    num_scenario_experts=1,
    expert_hidden=16,
    expert_width=8,
    task_hidden=16,
    task_width=8,
    tower=(8,),
)
SECTIONS: dict[str, Any] = {
    "schema": SCHEMA,
    "join": JoinConfig(grace_ms=2_500, out_of_orderness_ms=2_000, commit_interval_ms=200),
    "model": ModelConfig(preset="custom", hinet=TINY, encoding=EncodingConfig(history_length=5)),
    "trainer": TrainerConfig(batch_rows=64, publish_interval_ms=2_000),
}
WORLD = SimConfig(num_users=40, num_items=100, requests_per_s=4.0)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_recorded_log(folder, REQUESTS, 3, replace(WORLD, duplicate_share=0.05, disorder_share=0.1))
    return folder


class Replayed:
    """A replay with all its files."""

    def __init__(self, folder: Path, out: Path, **more: Any) -> None:
        out.mkdir(exist_ok=True)
        self.progress: list[ReplayProgress] = []
        self.outputs = ReplayOutputs(
            report=out / "report.html", json=out / "report.json", examples=out / "examples.arrow",
            dead_letter=out / "dead.jsonl",
        )  # fmt: skip
        self.result = replay_folder(
            folder, **SECTIONS, config_hash="c0ffee", outputs=self.outputs, on_progress=self.progress.append, **more
        )

    def rows(self) -> list[dict[str, Any]]:
        with pa.ipc.open_file(self.outputs.examples) as file:
            return [row for i in range(file.num_record_batches) for row in file.get_batch(i).to_pylist()]

    def labels(self) -> dict[tuple[str, str, str], list[int]]:
        """Every label by request, item and task, in the order they went out."""
        found: dict[tuple[str, str, str], list[int]] = {}
        for row in self.rows():
            for task in SCHEMA.tasks:
                for item_id, kind, label in zip(row["item_id"], row[f"kind.{task}"], row[f"label.{task}"], strict=True):
                    if kind:
                        found.setdefault((row["request_id"], item_id, task), []).append(label)
        return found


@pytest.fixture(scope="module")
def replayed(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    return Replayed(log, tmp_path_factory.mktemp("out"))


def true_labels(folder: Path) -> dict[tuple[str, str, str], list[int]]:
    with gzip.open(folder / "truth.jsonl.gz") as lines:
        truth = [msgspec.json.decode(line, type=RecordedTruth) for line in lines]
    return {
        (line.request_id, item_id, task): [int(0 <= delay_ms <= SCHEMA.tasks[task].window_ms)]
        for line in truth
        for task in SCHEMA.tasks
        for item_id, delay_ms in zip(line.item_id, line.delay_ms[task], strict=True)
    }


def test_each_label_goes_out_once_and_is_true(log: Path, replayed: Replayed) -> None:
    assert replayed.labels() == true_labels(log)
    join = replayed.result["join"]
    assert join["impressions"] == join["slates"] == REQUESTS
    assert join["feedback_duplicate"] > 0
    assert join["feedback_late"] == join["feedback_unmatched"] == join["malformed"] == 0
    assert join["labels"] == REQUESTS * 10 * len(SCHEMA.tasks)


def test_arrival_order_gives_the_same_labels_while_disorder_stays_within_its_bounds(log: Path, tmp_path: Path) -> None:
    arrival = Replayed(log, tmp_path, order="arrival")
    assert arrival.labels() == true_labels(log)


def test_two_replays_are_equal_but_for_the_timing(log: Path, replayed: Replayed, tmp_path: Path) -> None:
    again = Replayed(log, tmp_path)
    results = [json.loads(r.outputs.json.read_text()) for r in (replayed, again) if r.outputs.json]
    for result in results:
        assert result.pop("timing")["wall_s"] > 0
    assert json.dumps(results[0]) == json.dumps(results[1])
    assert replayed.outputs.examples is not None and again.outputs.examples is not None
    assert replayed.outputs.examples.read_bytes() == again.outputs.examples.read_bytes()


def test_the_figures_hold_together(replayed: Replayed) -> None:
    result = replayed.result
    rows = replayed.rows()
    assert result["examples"] == sum(len(row["item_id"]) for row in rows)
    for task in SCHEMA.tasks:
        figures = result["tasks"][task]
        assert set(figures) == {"all", *SCHEMA.scenarios}
        assert figures["all"]["n"] == sum(figures[name]["n"] for name in SCHEMA.scenarios) == REQUESTS * 10
        positives = sum(sum(row[f"label.{task}"]) for row in rows)
        assert figures["all"]["positives"] == positives
    assert result["steps"] > 10
    assert result["skipped_steps"] == 0
    assert result["snapshots"] == result["versions"]["full"] + result["versions"]["delta"] > 5
    assert result["versions"]["last"] == result["snapshots"]
    assert result["config_hash"] == "c0ffee"
    assert result["schema_hash"] == SCHEMA.schema_hash()
    assert result["curve"][-1]["examples"] == result["examples"]


def test_slates_are_scored_by_the_snapshot_that_was_live_when_they_were_shown(replayed: Replayed) -> None:
    rows = sorted((row for row in replayed.rows() if row["kind.click"][0]), key=lambda row: row["ts"])
    versions = [row["snapshot"] for row in rows]
    assert versions == sorted(versions)
    assert versions[0] == 0
    assert versions[-1] > 5
    for row in rows:
        assert all((score is None) == (row["snapshot"] == 0) for score in row["served.click"])
    assert 0 < replayed.result["skew"]["n"] < 3 * REQUESTS * 10


def test_no_score_knows_what_happened_after_its_slate(log: Path, replayed: Replayed, tmp_path: Path) -> None:
    """Feedback from a moment on is taken away: what was shown before that moment must have the very same scores."""
    shutil.copytree(log, tmp_path / "log")
    with gzip.open(log / "feedback.jsonl.gz") as lines:
        feedback = [(json.loads(line)["ts"], line) for line in lines]
    moment_ms = sorted(ts for ts, _ in feedback)[len(feedback) // 2]
    early = b"".join(line for ts, line in feedback if ts < moment_ms)
    (tmp_path / "log" / "feedback.jsonl.gz").write_bytes(gzip.compress(early))
    other = Replayed(tmp_path / "log", tmp_path / "out")

    def served(replayed: Replayed) -> dict[tuple[str, str], float]:
        return {
            (row["request_id"], item_id): score
            for row in replayed.rows()
            for item_id, score in zip(row["item_id"], row["served.click"], strict=True)
            if row["ts"] < moment_ms and row["snapshot"]
        }

    assert len(served(replayed)) > 300
    assert served(replayed) == served(other)
    assert replayed.result["tasks"] != other.result["tasks"]


def test_the_report_is_one_page_without_outside_assets(replayed: Replayed) -> None:
    assert replayed.outputs.report is not None
    page = replayed.outputs.report.read_text()
    assert page.count("<svg") == 3 * len(SCHEMA.tasks)
    assert "<script" not in page and "src=" not in page and "@import" not in page
    assert 'href="http' not in page and "url(http" not in page
    for scenario in SCHEMA.scenarios:
        assert f"<td>{scenario}</td>" in page
    for counter, count in replayed.result["join"].items():
        assert f"<code>{counter}</code>" in page
        assert f"{count:,}</td>" in page


def test_progress_is_told_up_to_the_end(replayed: Replayed) -> None:
    events = [progress.events for progress in replayed.progress]
    assert events == sorted(events)
    assert len(events) > 50
    assert replayed.progress[-1].events == replayed.progress[-1].total
    assert replayed.progress[-1].window["click"]["all"]["auc"] is not None


def test_malformed_lines_are_counted_and_everything_else_is_learned(
    log: Path, replayed: Replayed, tmp_path: Path
) -> None:
    shutil.copytree(log, tmp_path / "log")
    path = tmp_path / "log" / "feedback.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"torn\n[]\n' + gzip.decompress(path.read_bytes())))
    spoiled = Replayed(tmp_path / "log", tmp_path / "out")
    assert spoiled.result["join"]["malformed"] == 2
    assert spoiled.outputs.dead_letter is not None
    assert len(spoiled.outputs.dead_letter.read_text().splitlines()) == 2
    assert spoiled.result["tasks"] == replayed.result["tasks"]


def test_scores_of_the_log_are_kept(log: Path, tmp_path: Path) -> None:
    shutil.copytree(log, tmp_path / "log")
    path = tmp_path / "log" / "impressions.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for line in lines:
        line["items"]["scores"] = {"click": [0.25] * 10}
        line["served"] = {"snapshot": 77}
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    kept = Replayed(tmp_path / "log", tmp_path / "out")
    for row in kept.rows():
        assert row["snapshot"] == 77
        assert set(row["served.click"]) == {0.25}
    assert kept.result["tasks"]["click"]["all"]["auc"] == 0.5
    assert kept.result["pre_step"]["click"]["all"]["auc"] != 0.5


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "impressions.jsonl or impressions.jsonl.gz is needed"),
        (
            lambda folder: [
                folder.mkdir(),
                *((folder / f"{name}.jsonl").touch() for name in ("impressions", "feedback")),
            ],
            "none of its 0 lines is an event",
        ),
    ],
)
def test_a_folder_that_is_no_log_is_one_line_and_exit_code_2(
    tmp_path: Path, prepare: Callable[[Path], Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "log")
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(tmp_path / "log"), "--config", str(REPO / "configs/ranklens.yaml"), "--log-level", "error"])
    assert ended.value.code == 2
    assert said in capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif("FRESHRANK_RANKLENS" not in os.environ, reason="FRESHRANK_RANKLENS: no folder with RankLens given")
def test_ranklens_is_learned_while_it_is_replayed(tmp_path: Path) -> None:
    convert_ranklens(Path(os.environ["FRESHRANK_RANKLENS"]), tmp_path / "all")
    run = load_config(REPO / "configs/ranklens.yaml")
    first = tmp_path / "first"
    first.mkdir()
    requests = [f"s{number}" for number in range(3_000)]
    for name in ("impressions", "feedback"):
        with gzip.open(tmp_path / "all" / f"{name}.jsonl.gz") as lines:
            kept = [line for line in lines if json.loads(line)["request_id"] in set(requests)]
        (first / f"{name}.jsonl").write_bytes(b"".join(kept))
    result = replay_folder(first, schema=run.schema, join=run.join, model=run.model, trainer=run.trainer)
    everything = result["tasks"]["click"]["all"]
    assert everything["n"] == 72_000
    assert everything["auc"] > 0.7
    assert everything["ne"] < 0.95
    assert 0.9 < everything["calibration"] < 1.1
