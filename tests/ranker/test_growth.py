"""A scenario that is not listed, from the trainer through the snapshot store to the answers of a ranker."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.store import MemorySnapshotStore, SnapshotStore, StoreConfig
from model.store_redis import RedisSnapshotStore
from model.trainer import Trainer
from model.trainer_config import TrainerConfig
from ranker.api import RankResponse
from ranker.exceptions import RequestError
from stream.schema import SchemaConfig
from tests.model.example_log import METRICS, Clock, new_trainer
from tests.model.growing_log import GROWING, GROWING_MODEL, deals_from, growing_log
from tests.ranker.given import BLENDER, Parts, parts, redis_process
from utility_blender.blend import BlenderConfig
from utility_blender.explore import ExploreConfig

torch.set_num_threads(1)

LOG = growing_log(1, 16, deals_from(12))
REQUEST = {
    "user_id": "u3",
    "candidates": {
        "id": [f"i{n}" for n in range(12)],
        "features": {"category": ["red", None] * 6, "price": [float(n) for n in range(12)], "tags": [["x"]] * 12},
    },
    "size": 12,
    "user": {"city": "lyon", "age": 33},
    "context": {"device": "ios", "topics": ["a"]},
}


class Loop:
    """A trainer that publishes after each message, and a ranker that follows at once."""

    def __init__(
        self,
        schema: SchemaConfig = GROWING,
        blender: BlenderConfig = BLENDER,
        store: SnapshotStore | None = None,
    ) -> None:
        self.clock = Clock()
        store = store or MemorySnapshotStore()
        config = TrainerConfig(batch_rows=12, publish_interval_ms=1, metrics=METRICS)
        self.trainer: Trainer = new_trainer(
            store=store, config=config, clock=self.clock, schema=schema, model=GROWING_MODEL
        )
        self.ranker: Parts = parts(store=store, schema=schema, blender=blender)
        self.num_learned = 0

    def learn(self, num_messages: int) -> None:
        for message in LOG[self.num_learned : self.num_learned + num_messages]:
            self.clock.ms += 10
            self.trainer.train_message(message, 0, self.num_learned)
            self.num_learned += 1
            self.publish()

    def learn_until_added(self) -> None:
        while not self.trainer.stats.scenarios_added:
            self.learn(1)

    def publish(self) -> None:
        self.trainer.publish()
        self.ranker.ranker.follower.round()
        assert not self.ranker.stats.snapshots_refused

    def ask(self, scenario: str) -> RankResponse:
        body = json.dumps(REQUEST | {"scenario": scenario}).encode()
        return asyncio.run(self.ranker.ranker.rank(body))


def scores(answer: RankResponse) -> dict[str, dict[str, float]]:
    return {item.id: item.scores for item in answer.items}


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[SnapshotStore]:
    if request.param == "memory":
        yield MemorySnapshotStore()
        return
    with redis_process() as redis:
        of_redis = RedisSnapshotStore(redis.url, "main", StoreConfig())
        yield of_redis
        of_redis.close()


def test_old_scenarios_keep_every_bit_and_the_new_one_starts_as_its_donor(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(store=store)
    model = loop.trainer.learner.trained
    grow: Callable[[str], None] = model.add_scenario
    answers: dict[str, list[RankResponse]] = {"home": [], "search": [], "deals": []}

    def watched(name: str) -> None:
        for is_grown in (False, True):
            if is_grown:
                grow(name)
            loop.publish()
            for scenario, given in answers.items():
                given.append(loop.ask(scenario))

    monkeypatch.setattr(model, "add_scenario", watched)
    loop.learn_until_added()
    for scenario, (before, after) in answers.items():
        assert after.snapshot == before.snapshot + 1
        assert scores(after) == scores(before), scenario
    assert [answer.scenario for answer in answers["deals"]] == ["home", "deals"]
    assert scores(answers["deals"][1]) == scores(answers["home"][1]) != scores(answers["search"][1])
    live = loop.ranker.ranker.follower.live
    assert live is not None and live.manifest.scenario_parents == {"deals": "home"}

    monkeypatch.undo()
    loop.learn(4)
    assert scores(loop.ask("deals")) != scores(loop.ask("home"))
    assert loop.ask("deals").scenario == "deals" and loop.ask("moon").scenario == "home"


def test_the_answer_says_what_it_was_scored_as_and_the_log_keeps_what_was_asked_for() -> None:
    loop = Loop()
    assert loop.ask("deals").scenario is None  # no model yet
    loop.learn(1)
    assert loop.ask("deals").scenario == "home" and scores(loop.ask("deals")) == scores(loop.ask("home"))
    assert loop.ranker.stats.unknown_scenario == 2
    loop.learn_until_added()
    assert loop.ask("deals").scenario == "deals"
    assert loop.ranker.stats.unknown_scenario == 2
    logged = [impression.scenario for impression in loop.ranker.log.impressions(GROWING)]
    assert logged == ["deals", "deals", "deals", "home", "deals"]


def test_a_ranker_that_starts_late_serves_what_has_grown() -> None:
    loop = Loop()
    loop.learn_until_added()
    loop.learn(2)
    late = parts(store=loop.ranker.store, schema=GROWING)
    late.ranker.follower.round()
    body = json.dumps(REQUEST | {"scenario": "deals"}).encode()
    answer = asyncio.run(late.ranker.rank(body))
    assert answer.scenario == "deals" and scores(answer) == scores(loop.ask("deals"))


def test_a_snapshot_whose_scenarios_have_no_parents_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    loop.learn(1)
    model = loop.trainer.learner.trained
    monkeypatch.setattr(model.growth, "registry", replace(model.registry, names=("home", "search", "deals")))
    assert loop.trainer.publish() is None  # its gate reads it as a ranker would
    monkeypatch.setattr(loop.trainer.gate, "judge", lambda *args, **named: [])
    monkeypatch.setattr(loop.trainer.gate, "promoted", lambda manifest: None)
    assert loop.trainer.publish() is not None
    loop.ranker.ranker.follower.round()
    assert loop.ranker.stats.snapshots_refused == {"format": 1}
    assert loop.ask("home").snapshot == 1


@pytest.mark.parametrize(
    ("mode", "name", "error"),
    [
        ("reject", "deals", "scenario: 'deals' is not one of home, search"),
        ("add", "two words", "scenario: 'two words' is not allowed; 1 to 64 letters, digits"),
        ("add", "all", "scenario: 'all' is not allowed"),
    ],
)
def test_what_is_not_let_in_is_an_error(mode: Any, name: str, error: str) -> None:
    loop = Loop(replace(GROWING, unknown_scenario=mode))
    with pytest.raises(RequestError, match=error):
        loop.ask(name)


def test_under_default_the_default_scenario_is_asked_for_and_logged() -> None:
    schema = replace(GROWING, unknown_scenario="default", default_scenario="search")
    loop = Loop(schema)
    loop.learn(1)
    assert scores(loop.ask("deals")) == scores(loop.ask("search")) != scores(loop.ask("home"))
    assert loop.ask("deals").scenario == "search"
    assert loop.ranker.stats.unknown_scenario == 2
    assert {impression.scenario for impression in loop.ranker.log.impressions(schema)} == {"home", "search"}


def test_a_scenario_that_is_not_listed_is_blended_and_explored_as_the_default_one() -> None:
    weights = {"default": {"click": 1.0, "order": 5.0}, "search": {"click": 7.0}}
    explore = ExploreConfig(share=1.0, allow_above_cap=True, excluded_scenarios=("home",))
    blender = BlenderConfig(weights=weights, explore=explore)
    for default, is_drawn in (("home", False), ("search", True)):
        loop = Loop(replace(GROWING, default_scenario=default), blender)
        loop.learn_until_added()
        for name in ("deals", "moon"):
            answer = loop.ask(name)
            assert answer.explore == is_drawn and answer.scenario == (name if name == "deals" else default)
            served = loop.ranker.log.impressions(GROWING)[-1].served
            assert served is not None
            assert (served.weights == {"click": 1.0, "order": 5.0}) == (not is_drawn)
    calm = BlenderConfig(weights=weights)
    loop = Loop(replace(GROWING, default_scenario="search"), calm)
    loop.learn_until_added()
    loop.ask("deals")
    served = loop.ranker.log.impressions(GROWING)[-1].served
    assert served is not None and served.weights == {"click": 7.0, "order": 5.0}
