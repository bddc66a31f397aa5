"""The means of the gates: what the rows give to their experts, kept per scenario, and no work unless somebody asks."""

import pytest
import torch

from freshrank.metrics import exposition, registry
from freshrank.scrape import Scrape
from freshrank.train import readings
from model.features import EncodedBatch
from model.gate_means import GateKey, GateMeans
from model.gate_usage import GateUsage
from model.source import MemoryExampleSource
from tests.model.example_log import new_trainer, partition_log

NOTHING: EncodedBatch = None  # type: ignore[assignment] # the usage given does not look at it


def usage_of(*rows: tuple[int, list[list[float]]]) -> list[GateUsage]:
    return [GateUsage(gate="cgc", scenario=at, task=0, weight_BK=torch.tensor(weight)) for at, weight in rows]


def look(means: GateMeans, now_ms: int) -> None:
    if means.is_due(now_ms):
        means.observe(NOTHING, now_ms)


def test_mean_is_over_rows_and_stays_where_a_batch_has_none() -> None:
    rounds = [usage_of((0, [[1.0, 0.0], [0.5, 0.5]]), (1, [[0.2, 0.8]])), usage_of((1, [[0.4, 0.6]]))]
    means = GateMeans(lambda _: rounds.pop(0), interval_ms=100)
    for now_ms in (0, 100):
        means.ask()
        look(means, now_ms)
    found = means.ask()
    assert found[GateKey("cgc", 0, 0, "0")] == pytest.approx(0.75)
    assert found[GateKey("cgc", 1, 0, "1")] == pytest.approx(0.6)


def test_nobody_looks_unless_asked_and_when_it_is_time() -> None:
    looked: list[int] = []
    means = GateMeans(lambda _: looked.append(1) or [], interval_ms=100)
    look(means, 0)
    assert looked == []
    means.ask()
    for now_ms in (1, 2, 50):
        means.ask()
        look(means, now_ms)
    assert len(looked) == 1
    look(means, 150)
    assert len(looked) == 2


def test_gate_without_a_choice_is_left_out() -> None:
    means = GateMeans(lambda _: usage_of((0, [[1.0], [1.0]])), interval_ms=1)
    means.ask()
    look(means, 0)
    assert means.ask() == {}


def test_trainer_shows_attention_and_gates_that_add_up_to_one_and_learns_the_same_bits() -> None:
    trainers = [new_trainer(source=MemoryExampleSource({0: partition_log(seed=1, num_messages=12)})) for _ in range(2)]
    trainers[0].gate_means.ask()
    for trainer in trainers:
        trainer.run(lambda: False)
    scrape = Scrape.parse(exposition(registry("trainer", lambda: readings(trainers[0])))[0].decode())
    sums: dict[tuple[str, ...], float] = {}
    for (name, labels), value in scrape.samples.items():
        if name == "freshrank_trainer_gate_ratio":
            sums[(name, *labels[1:])] = sums.get((name, *labels[1:]), 0.0) + value
        elif name == "freshrank_trainer_scenario_attention_ratio":
            other, scenario = labels
            assert other != scenario
            sums[(name, scenario)] = sums.get((name, scenario), 0.0) + value
    assert {name for name, *_ in sums} == {"freshrank_trainer_gate_ratio", "freshrank_trainer_scenario_attention_ratio"}
    assert all(total == pytest.approx(1.0) for total in sums.values())
    states = [dict(trainer.learner.trained.net.state_dict()) for trainer in trainers]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
