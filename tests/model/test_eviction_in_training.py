"""Limits on embedding rows while a trainer runs: event time comes from the log, readers lose what the trainer lost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from freshrank.metrics import exposition, registry
from freshrank.scrape import Scrape
from freshrank.train import readings
from model.admission import AdmissionConfig
from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.field_ids import FieldIdsConfig
from model.learner import Learner
from model.optim import OptimConfig
from model.serving import ServingModel
from model.source import MemoryExampleSource
from model.trainer import Trainer
from tests.model import worlds
from tests.model.example_log import MODEL, Clock, new_trainer, partition_log
from tests.model.train_child import CONFIG

torch.set_num_threads(1)
LOG = {0: partition_log(seed=1, num_messages=14), 1: partition_log(seed=2, num_messages=9, first=3)}
LIMITED = replace(
    MODEL,
    embedding=EmbeddingConfig(
        width=4,
        new_rows="random",
        admission=AdmissionConfig(rule="probability", counter_bits=14),
        fields={
            "user_id": FieldIdsConfig(ttl_ms=4_000),
            "item_id": FieldIdsConfig(admission=2, admission_rule="count", max_rows=12),
        },
    ),
    optim=OptimConfig(row_half_life_ms=5_000),
)


def trained(folder: Path | None = None, *, rounds: list[int] | None = None, model: ModelConfig = LIMITED) -> Trainer:
    """Returns a trainer at the end of the log, killed and resumed after each of `rounds` of its loop."""
    config = replace(CONFIG, checkpoint_interval_ms=20)
    for num_rounds in [*(rounds or []), None]:
        looks = iter([False] * num_rounds) if num_rounds is not None else None
        trainer = new_trainer(
            source=MemoryExampleSource(LOG),
            checkpoint_dir=folder,
            config=config,
            clock=Clock(step_ms=1),
            model=model,
        )
        trainer.run(lambda looks=looks: next(looks, True) if looks is not None else False)
    return trainer


def test_a_resumed_trainer_evicts_and_admits_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, resumed = trained(), trained(tmp_path, rounds=[9, 7])
    expected, found = whole.learner.trained.state(), resumed.learner.trained.state()
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    counters = whole.learner.trained.table.counters
    assert counters["user_id"].evictions["expired"] > 0 and counters["item_id"].evictions["full"] > 0
    assert counters["user_id"].admissions > counters["user_id"].evictions["expired"], "some came back"
    assert 0 < int(found["rows.seen.now"][1]) <= whole.gauges.watermark_ms


def test_limits_may_change_over_a_resume(tmp_path: Path) -> None:
    trained(tmp_path, rounds=[12])
    tighter = replace(LIMITED, embedding=replace(LIMITED.embedding, max_rows=20, fields={}, new_rows="default"))
    table = trained(tmp_path, model=tighter).learner.trained.table
    assert table.occupancy().keys() == {"all"} and table.counters["item_id"].rows > 0


def test_the_pages_show_occupancy_and_why_rows_went() -> None:
    trainer = trained()
    scrape = Scrape.parse(exposition(registry("trainer", lambda: readings(trainer)))[0].decode())
    table = trainer.learner.trained.table
    assert scrape.value("freshrank_trainer_table_occupancy_ratio", "item_id") == table.counters["item_id"].rows / 12
    assert scrape.value("freshrank_trainer_table_occupancy_ratio", "user_id") is None, "no limit"
    expired = table.counters["user_id"].evictions["expired"]
    assert scrape.value("freshrank_trainer_table_evictions_total", "expired", "user_id") == expired > 0
    assert scrape.value("freshrank_trainer_table_evictions_total", "full", "user_id") == 0


def test_a_ranker_that_follows_deltas_has_the_trainers_rows_bit_for_bit() -> None:
    fields = {"item_id": FieldIdsConfig(max_rows=6, admission=1), "user_id": FieldIdsConfig(ttl_ms=20)}
    config = worlds.tiny_config(embedding=EmbeddingConfig(width=4, max_rows=40, fields=fields))
    model, rng = Learner(worlds.SCHEMA, config, seed=0), np.random.default_rng(0)
    serving, num_deletions, watermark_ms = None, 0, 1
    for _ in range(20):
        for _ in range(int(rng.integers(1, 4))):
            watermark_ms += int(rng.integers(0, 15))
            given = replace(worlds.labels(rng, 12), watermark_ms=watermark_ms)
            model.learn(model.encode(worlds.columns(rng, 3, 12)), given)
        if serving is None:
            serving = ServingModel.from_full(worlds.SCHEMA, config, model.trained.serving_full())
        else:
            delta = model.trained.serving_delta()
            num_deletions += len(delta["rows.evicted"])
            serving = serving.apply_delta(delta)
        if rng.random() < 0.7:
            model.trained.mark_promoted()
        assert rows_of(serving.tensors()) == rows_of(model.trained.serving_full())
    assert num_deletions > 50


def rows_of(tensors: dict[str, torch.Tensor]) -> dict[object, object]:
    rows = dict(zip(tensors["rows.keys"].tolist(), tensors["rows.weights"].tolist(), strict=True))
    return rows | {"reserved": tensors["rows.reserved"].tolist()}
