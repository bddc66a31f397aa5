"""`freshrank churn`: from two checkpoints and a recorded log to figures, JSON and a page, never without a floor."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from freshrank.churn_models import version_of
from freshrank.churn_page import churn_page
from freshrank.churn_report import UTILITY, ChurnConfig, churn_report
from freshrank.churn_requests import ChurnRequests, Key, frozen_requests, read_requests
from freshrank.cli import main
from model.checkpoint import Checkpoint, CheckpointManifest, save_checkpoint
from model.compatibility import weights_depend_on
from model.config import ModelConfig
from model.exceptions import SnapshotMissingError
from model.labels import LabelBatch
from model.learner import Learner
from model.store import MemorySnapshotStore
from stream.recorded import RecordedLogWriter
from stream.schema import Feedback, Impression, Items
from tests.ranker.given import MODEL, SCHEMA, Trainer

torch.set_num_threads(1)
ITEMS = [f"i{n:02}" for n in range(12)]
NAMES = ("old", "new", "floor_old", "floor_new")


def slate(number: int, *, scenario: str = "home", size: int = 6, ts: int | None = None) -> Impression:
    rng = np.random.default_rng(number)
    return Impression(
        request_id=f"r{number}",
        user_id=f"u{number % 7}",
        scenario=scenario,
        ts=1_000 * number if ts is None else ts,
        items=Items(
            id=rng.choice(ITEMS, size, replace=False).tolist(), features={"category": ["a", "b", "c"] * (size // 3)}
        ),
        context={"device": "ios"},
    )


def clicked(shown: Impression, place: int, action: str = "click", after_ms: int = 500) -> Feedback:
    return Feedback(shown.request_id, shown.user_id, shown.items.id[place], action, shown.ts + after_ms)


def write_log(folder: Path, num_slates: int = 60) -> None:
    with RecordedLogWriter(folder) as log:
        for number in range(num_slates):
            shown = slate(number, scenario=SCHEMA.scenarios[number % 2])
            log.write(shown)
            log.write(clicked(shown, number % 6))
            if number % 3 == 0:
                log.write(clicked(shown, number % 6, "order"))
        log.write(slate(num_slates, ts=10_000_000))  # the windows of the others have closed


def write_checkpoint(folder: Path, seed: int) -> Path:
    learner = Learner(SCHEMA, MODEL, seed)
    batch = learner.encode(columns_of([slate(number) for number in range(8)]))
    shape = batch.num_rows, len(SCHEMA.tasks)
    for _ in range(3):
        labels = np.random.default_rng(seed).integers(0, 2, shape).astype(np.float32)
        is_on = np.ones(shape, np.bool_)
        learner.learn(batch, LabelBatch(label_BT=labels, mask_BT=is_on, weight_BT=labels * 0 + 1, first_BT=is_on))
    manifest = CheckpointManifest(
        step=learner.num_steps,
        positions={},
        watermarks_ms={},
        version=0,
        epoch=0,
        schema_hash=SCHEMA.schema_hash(),
        config_hash="",
        depends_on=weights_depend_on(SCHEMA, MODEL),
        learner_meta=learner.trained.state_meta(),
        counters={},
    )
    return save_checkpoint(folder, Checkpoint(manifest, learner.trained.state(), {}), keep=1)


def columns_of(slates: list[Impression]) -> Any:
    from freshrank.slate_scorer import slate_columns

    return slate_columns(slates, SCHEMA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("churn")
    write_log(folder / "log")
    for seed in range(3):
        write_checkpoint(folder / f"model-{seed}", seed)
    settings = {
        "scenarios": SCHEMA.scenarios,
        "tasks": SCHEMA.tasks,
        "features": SCHEMA.features,
        "model": {name: getattr(MODEL, name) for name in ("preset", "hinet")}
        | {"encoding": {"admission_ids": 1, "history_length": 10}, "embedding": {"width": 4}},
        "blender": {"weights": {"default": {"click": 1.0, "order": 5.0}}, "scale": {"order": 0.5}},
        "trainer": {"batch_rows": 32},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(json.loads(msgspec.json.encode(settings))))
    return folder


def run(folder: Path, *arguments: str) -> Any:
    shared = ["--requests", str(folder / "log"), "--config", str(folder / "run.yaml")]
    models = [str(folder / "model-0"), str(folder / "model-1")]
    return CliRunner().invoke(main, ["churn", *models, *shared, *arguments])


def given() -> tuple[ChurnRequests, dict[str, np.ndarray[Any, Any]]]:
    slates = [slate(number, scenario=SCHEMA.scenarios[number % 2]) for number in range(20)]
    actions = {Key(one.request_id, one.items.id[n % 6], "click"): one.ts + 10 for n, one in enumerate(slates)}
    requests = frozen_requests(slates, SCHEMA, actions, end_ms=10_000_000)
    rng = np.random.default_rng(0)
    return requests, {name: rng.random(requests.label_NKT.shape) for name in NAMES}


def test_requests_are_the_newest_of_each_scenario_with_their_labels(tmp_path: Path) -> None:
    write_log(tmp_path)
    requests = read_requests(tmp_path, SCHEMA, per_scenario=4)
    assert [one.request_id for one in requests.slates] == ["r54", "r56", "r58", "r60", "r53", "r55", "r57", "r59"]
    for n, one in enumerate(requests.slates[:3]):
        number = int(one.request_id[1:])
        ids = [one.items.id[place] for place in requests.order_NK[n]]
        assert ids == sorted(ids)
        liked = one.items.id[number % 6]
        assert [ids[k] for k in np.flatnonzero(requests.label_NKT[n, :, 0])] == [liked]
        assert requests.label_NKT[n, :, 1].sum() == (number % 3 == 0)
        assert requests.is_labelled_NKT[n].all()
    assert not requests.is_labelled_NKT[3].any()  # its window is open


@pytest.mark.parametrize(("after_ms", "is_positive"), [(-1, False), (0, True), (60_000, True), (60_001, False)])
def test_a_label_takes_what_comes_within_its_window(after_ms: int, is_positive: bool) -> None:
    shown = slate(1)
    first_ms = {Key(shown.request_id, shown.items.id[2], "click"): shown.ts + after_ms}
    requests = frozen_requests([shown], SCHEMA, first_ms, end_ms=10_000_000)
    assert bool(requests.label_NKT[..., 0].any()) == is_positive


def test_figures_are_those_of_a_plain_comparison() -> None:
    requests, scores = given()
    weights = np.tile([1.0, 10.0], (20, 1))
    report = churn_report(requests, list(SCHEMA.tasks), weights, scores, ChurnConfig(k=3))
    for what, (old, new) in {"churn": ("old", "new"), "floor": ("floor_old", "floor_new")}.items():
        for scenario, wanted in (("all", range(20)), ("search", range(1, 20, 2))):
            for name, weights_T in (("click", [1.0, 0.0]), (UTILITY, [1.0, 10.0])):
                orders = [
                    [np.argsort(-(scores[model][n] @ weights_T), kind="stable") for n in wanted] for model in (old, new)
                ]
                pairs = list(zip(*orders, strict=True))
                cell = report[what][scenario][name]
                assert cell["top1_changed"]["mean"] == pytest.approx(np.mean([a[0] != b[0] for a, b in pairs]))
                assert cell["affected"]["mean"] == pytest.approx(
                    np.mean([list(a[:3]) != list(b[:3]) for a, b in pairs])
                )
                shared = [len(set(a[:3]) & set(b[:3])) / 3 for a, b in pairs]
                assert cell["overlap"]["mean"] == pytest.approx(np.mean(shared), abs=1e-6)
                low, high = cell["overlap"]["ci"]
                assert low < cell["overlap"]["mean"] < high
    assert "psi" not in report["churn"]["all"][UTILITY]
    assert report["churn"]["all"]["order"]["wlr"] is None and report["churn"]["all"]["click"]["wlr"] is not None


def test_equal_models_do_not_churn() -> None:
    requests, scores = given()
    report = churn_report(
        requests, list(SCHEMA.tasks), np.ones((20, 2)), scores | {"new": scores["old"]}, ChurnConfig()
    )
    for cells in report["churn"].values():
        for cell in cells.values():
            assert cell["top1_changed"]["mean"] == cell["affected"]["mean"] == 0
            assert cell["rbo"]["mean"] == pytest.approx(1) and cell["kendall_tau_b"]["mean"] == pytest.approx(1)
            assert cell["overlap"]["mean"] == cell["jaccard"]["mean"] == 1
            assert [cell.get(name, 0) for name in ("spd", "logit_rmse", "psi")] == [0, 0, 0]


def test_there_is_no_report_without_a_floor() -> None:
    requests, scores = given()
    del scores["floor_new"]
    with pytest.raises(ValueError, match="floor_new missing; churn without its seed floor is not shown"):
        churn_report(requests, list(SCHEMA.tasks), np.ones((20, 2)), scores, ChurnConfig())


@pytest.mark.parametrize("settings", [{"k": 0}, {"depth": 0}, {"p": 1.0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(settings))}: .* is not allowed; "):
        ChurnConfig(**settings)


def test_command_writes_figures_and_page_beside_a_floor(folder: Path, tmp_path: Path) -> None:
    report, figures = tmp_path / "churn.html", tmp_path / "churn.json"
    third = str(folder / "model-2")
    done = run(folder, "--floor", third, "--out", str(report), "--json", str(figures), "-k", "3")
    assert done.exit_code == 0, done.output
    result = json.loads(figures.read_text())
    assert set(result["churn"]) == set(result["floor"]) == {"all", "home", "search"}
    assert set(result["churn"]["all"]) == {"click", "order", UTILITY}
    assert result["requests"]["all"] == 61 and result["users"] == 7
    assert result["churn"]["all"][UTILITY]["rbo"]["mean"] < 1
    page = report.read_text()
    assert page == churn_page(result)
    assert page.count("<td>floor</td>") == 3 * 3 + 3 * 2 + 3 * 2
    assert "floor" in done.output and "RBO" in done.output


def test_command_trains_the_floor_itself(folder: Path, tmp_path: Path) -> None:
    figures = tmp_path / "churn.json"
    done = run(folder, "--train-floor", "--json", str(figures))
    assert done.exit_code == 0, done.output
    result = json.loads(figures.read_text())
    assert result["floor_is"] == "two seeds on these requests' log"
    assert 0 < result["floor"]["all"][UTILITY]["rbo"]["mean"] < 1


@pytest.mark.parametrize("floors", [(), ("--floor", "x", "--train-floor")])
def test_command_refuses_to_go_without_one_floor(folder: Path, floors: tuple[str, ...]) -> None:
    done = run(folder, *floors)
    assert done.exit_code != 0
    assert "give one of --floor MODEL and --train-floor" in done.stderr


def test_what_is_no_model_is_refused_in_one_line(folder: Path) -> None:
    done = run(folder, "--floor", str(folder / "nothing"))
    assert done.exit_code != 0
    assert "neither the number of a version nor a folder with a checkpoint" in done.stderr.splitlines()[-1]


def test_a_published_version_is_built_from_its_full_one_and_deltas() -> None:
    store = MemorySnapshotStore()
    trainer = Trainer(store)
    for kind in ("full", "delta", "delta", "full"):
        trainer.publish(kind)
        if trainer.version == 3:
            wanted = trainer.learner.score(trainer.learner.encode(trainer.columns))
    model = version_of(SCHEMA, 3, store)
    score = model.score(model.encode(trainer.columns))
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-wanted)), rtol=1e-5)
    with pytest.raises(SnapshotMissingError, match="version 9 is not in the store"):
        version_of(SCHEMA, 9, store)


def test_own_model_is_kept_apart_from_other_sizes(folder: Path) -> None:
    """A checkpoint of another configuration is named, not scored."""
    other = replace(MODEL, embedding=replace(MODEL.embedding, width=8))
    assert isinstance(other, ModelConfig)
    done = run(folder, "--floor", str(folder / "model-2"), "--set", "model.embedding.width=8")
    assert done.exit_code != 0 and "embedding.width: was 4, is 8" in done.stderr
