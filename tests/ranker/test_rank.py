"""The pure core: which slate, which propensity, and an impression from which everything can be computed again."""

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.features import RowColumns, SequenceColumns
from model.store import MemorySnapshotStore
from ranker.api import RankedItem
from ranker.live import LiveModel, next_live
from ranker.rank import Ranking, order_of, rank
from ranker.request import RequestDecoder, RequestLimits
from ranker.stats import RankerStats
from stream.codec import EventDecoder, encode
from stream.schema import Impression, Sequence
from tests.ranker.given import BLENDER, ITEMS, SCHEMA, Trainer, body
from tests.utility_blender.some_versions import some_version
from utility_blender.blend import Blender, BlenderConfig
from utility_blender.contexts import ContextEncoder
from utility_blender.explore import ExploreConfig, log_density
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import LearnedPolicy, Link, policy_from_dict, policy_to_dict
from utility_blender.mlp import Mlp
from utility_blender.serving import Lanes

NOW_MS = 5_000
SEQUENCE = Sequence(["i3", "i7"], ["click", "order"], [4_000, 1_000])
TASKS = tuple(SCHEMA.tasks)
EVERYONE = ExploreConfig(share=1.0, allow_above_cap=True)
STATIC = Blender(TASKS, SCHEMA.scenarios, BLENDER)
EXPLORING = Blender(TASKS, SCHEMA.scenarios, BlenderConfig(weights=BLENDER.weights, explore=EVERYONE))


@pytest.fixture(scope="module")
def live() -> LiveModel:
    trainer = Trainer(MemorySnapshotStore())
    for _ in range(20):
        trainer.learn()
    return next_live(SCHEMA, None, *trainer.build())


def ranked(live: LiveModel | None, blender: Blender = STATIC, request_id: str = "r-1", **changes: Any) -> Ranking:
    decoder = RequestDecoder(SCHEMA, RequestLimits(), RankerStats())
    request = decoder.rank(json.dumps(body(**changes)).encode())
    return rank(request, SEQUENCE, live, blender, request_id=request_id, now_ms=NOW_MS)


def ids(items: list[RankedItem]) -> list[str]:
    return [item.id for item in items]


def test_the_slate_is_the_candidates_with_the_highest_utility_in_order(live: LiveModel) -> None:
    slate = ranked(live).response
    everyone = ranked(live, size=12).response
    assert ids(slate.items) == ids(everyone.items)[:5]
    utility = [item.utility or 0.0 for item in everyone.items]
    assert utility == sorted(utility, reverse=True) and len(set(utility)) > 6
    assert [item.position for item in everyone.items] == list(range(12))
    for item in everyone.items:
        assert item.utility == pytest.approx(item.scores["click"] + 5 * item.scores["order"])
    assert (slate.snapshot, slate.blender, slate.explore, slate.degraded) == (1, 0, False, [])
    assert slate.model_age_ms == NOW_MS - 1_000


def test_the_order_of_the_candidates_in_the_request_plays_no_part(live: LiveModel) -> None:
    columns = body()["candidates"]
    turned = {
        "id": columns["id"][::-1],
        "features": {name: column[::-1] for name, column in columns["features"].items()},
    }
    assert ids(ranked(live, candidates=turned).response.items) == ids(ranked(live).response.items)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=30), st.randoms())
def test_equal_utilities_are_ordered_by_item_id(utility: list[float], random: Any) -> None:
    item_ids = [f"i{n}" for n in range(len(utility))]
    random.shuffle(item_ids)
    order = order_of(np.array(utility), item_ids, size=len(utility)).tolist()
    assert order == sorted(range(len(utility)), key=lambda n: (-utility[n], item_ids[n]))


def test_the_impression_is_the_slate_as_shown_and_passes_the_decoder(live: LiveModel) -> None:
    response, impression = ranked(live)
    decoded = EventDecoder(SCHEMA).impression(encode(impression))
    assert decoded == impression
    assert (decoded.request_id, decoded.ts, decoded.sequence) == (response.request_id, NOW_MS, SEQUENCE)
    assert decoded.items.id == ids(response.items)
    assert decoded.items.propensity == [1.0] * 5
    assert decoded.candidates is None
    row = ITEMS.index(decoded.items.id[0])
    assert decoded.items.features["price"][0] == body()["candidates"]["features"]["price"][row]
    served = decoded.served
    assert served is not None
    assert (served.snapshot, served.weights, served.explore) == (1, {"click": 1.0, "order": 5.0}, False)


def test_scoring_the_logged_impression_gives_the_logged_scores(live: LiveModel) -> None:
    """What training will see is what serving saw: every column, the sequence and its ages."""
    impression = EventDecoder(SCHEMA).impression(encode(ranked(live, scenario="search").impression))
    scores_NT = live.score(columns_of(impression))
    for task, name in enumerate(TASKS):
        np.testing.assert_allclose(scores_NT[:, task], impression.items.scores[name], rtol=1e-5)
    without = columns_of(impression)
    assert without.sequence is not None
    blind = RowColumns(
        scenario=without.scenario,
        user_id=without.user_id,
        item_id=without.item_id,
        request_index_B=without.request_index_B,
    )
    assert not np.allclose(live.score(blind)[:, 0], impression.items.scores["click"], rtol=1e-5)  # so it can fail


def columns_of(impression: Impression) -> RowColumns:
    sequence = impression.sequence
    assert sequence is not None
    return RowColumns(
        scenario=[impression.scenario],
        user_id=[impression.user_id],
        item_id=impression.items.id,
        request_index_B=np.zeros(len(impression.items.id), np.int64),
        user={name: [value] for name, value in impression.user.items()},
        context={name: [value] for name, value in impression.context.items()},
        item=impression.items.features,
        sequence=SequenceColumns(
            item_id=[sequence.item_id],
            action=[sequence.action],
            age_ms=[[impression.ts - ts for ts in sequence.ts]],
        ),
    )


def test_an_explored_request_logs_its_draw_its_density_and_all_candidates(live: LiveModel) -> None:
    response, impression = ranked(live, EXPLORING)
    served, rest = impression.served, impression.candidates
    assert response.explore and served is not None and rest is not None
    assert served.explore and served.weights != {"click": 1.0, "order": 5.0}
    weights_T = np.array([served.weights[task] for task in TASKS])
    assert served.log_density == pytest.approx(log_density(weights_T, np.array([1.0, 5.0]), EVERYONE))
    assert sorted(impression.items.id + rest.id) == sorted(ITEMS)
    assert impression.items.propensity is None
    assert all(item.propensity is None for item in response.items)


def learned_blender(share: float = 1.0) -> Blender:
    """Weights that depend on the device, on a scale of their own, for `home` alone; explored where they are stable."""
    config = BlenderConfig(weights=BLENDER.weights, explore=EVERYONE, learn=LearnConfig(context=("context.device",)))
    blender = Blender(TASKS, SCHEMA.scenarios, config, busy_s=lambda: 0.0)
    encoder = ContextEncoder(scenarios=("home",), values={"context.device": ("ios", "web")}, numbers={})
    layer = (np.array([[0.1, 0.0], [0.4, -0.3], [-0.4, 0.3]]), np.zeros(2))
    policy = LearnedPolicy(TASKS, {"home": np.array([0.1, 0.1])}, (Link(encoder, Mlp((layer,))),))
    version = some_version(scale={"home": {"click": 0.1, "order": 0.02}}, policy=policy_to_dict(policy))
    ready = blender.made_ready(version, policy_from_dict(version.policy))
    blender.lanes = Lanes(stable=ready) if share == 1 else Lanes(trial=ready, share=share)
    return blender


@pytest.mark.parametrize("blender", [EXPLORING, learned_blender()], ids=["production", "learned"])
def test_replaying_the_logged_weights_gives_the_logged_slate(live: LiveModel, blender: Blender) -> None:
    """Whoever has the log alone can compute every slate again, to the last bit: 100 of 100."""
    slates, centers = set(), set()
    for number in range(100):
        changes = {"context": {"device": ("ios", "web", None)[number % 3]}}
        impression = EventDecoder(SCHEMA).impression(encode(ranked(live, blender, f"r-{number}", **changes).impression))
        served, rest, shown = impression.served, impression.candidates, impression.items
        assert served is not None and rest is not None
        all_ids = rest.id + shown.id
        scores_NT = np.array([rest.scores[t] + shown.scores[t] for t in TASKS], np.float32).T
        weights_T, center_T, scale_T = (
            np.array([by_task[task] for task in TASKS]) for by_task in (served.weights, served.center, served.scale)
        )
        utility_N = (scores_NT * (weights_T / scale_T)).sum(axis=1, dtype=np.float64)
        order = order_of(utility_N, all_ids, size=len(shown.id)).tolist()
        assert [all_ids[row] for row in order] == shown.id
        assert utility_N[order].tolist() == shown.utility
        assert (served.law, served.tau, served.truncate) == ("lognormal", 0.3, 2.0)
        assert served.log_density == pytest.approx(log_density(weights_T, center_T, EVERYONE))
        assert (served.blender, served.fallback, served.lane) == (blender.version, "", "")
        slates.add(tuple(shown.id))
        centers.add(tuple(center_T.tolist()))
    assert len(slates) > 1
    assert len(centers) == (1 if blender is EXPLORING else 3)


def test_what_falls_back_says_so_is_not_explored_and_counts_as_production(live: LiveModel) -> None:
    response, impression = ranked(live, learned_blender(), scenario="search")
    served = impression.served
    assert served is not None
    assert (served.blender, served.fallback, served.explore, served.center) == (0, "scenario", False, {})
    assert (response.blender, response.fallback, response.weights) == (0, "scenario", {"click": 1.0, "order": 5.0})
    assert impression.candidates is None


def test_a_request_on_trial_is_logged_to_be_compared_with_others(live: LiveModel) -> None:
    blender = learned_blender(share=0.5)
    blender.explore_until_s = 0.0
    logged = [ranked(live, blender, f"r-{number}").impression.served for number in range(60)]
    assert {(one.blender, one.law) for one in logged if one is not None} == {(0, ""), (1, "none")}


def test_as_many_requests_as_explore_are_logged_to_compare_them_with(live: LiveModel) -> None:
    explore = ExploreConfig(share=0.3, allow_above_cap=True, kill_switch=False)
    blender = Blender(TASKS, SCHEMA.scenarios, BlenderConfig(weights=BLENDER.weights, explore=explore))
    logged = [ranked(live, blender, f"r-{number}").impression for number in range(600)]
    counts = Counter(one.served.law for one in logged if one.served is not None)
    for law in ("lognormal", "none"):
        assert abs(counts[law] / 600 - 0.3) < 4 * (0.21 / 600) ** 0.5
    control = next(one for one in logged if one.served is not None and one.served.law == "none")
    assert control.served is not None and control.served.center == control.served.weights == BLENDER.weights["default"]
    assert (control.served.explore, control.served.log_density, control.candidates) == (False, None, None)
    assert control.items.propensity == [1.0] * len(control.items.id)


def test_the_same_request_id_gets_the_same_slate(live: LiveModel) -> None:
    assert ranked(live, EXPLORING, "r-9") == ranked(live, EXPLORING, "r-9")


def test_without_a_model_the_slate_is_the_inputs_order_and_says_so() -> None:
    response, impression = ranked(None)
    assert ids(response.items) == ITEMS[:5]
    assert (response.degraded, response.snapshot, response.model_age_ms) == (["no_model"], 0, None)
    assert all(item.utility is None and item.scores == {} and item.propensity == 1.0 for item in response.items)
    decoded = EventDecoder(SCHEMA).impression(encode(impression))
    assert decoded.items.id == ITEMS[:5] and decoded.items.scores == {} and decoded.candidates is None
    assert decoded.served is not None and decoded.served.snapshot == 0


def test_scores_that_are_not_finite_never_order_a_slate(live: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = np.full((12, 2), math.nan, np.float32)
    monkeypatch.setattr(LiveModel, "score", lambda self, columns: broken)
    response = ranked(live).response
    assert (response.degraded, response.snapshot) == (["non_finite"], 0)
    assert ids(response.items) == ITEMS[:5]


def test_one_candidate_is_a_slate_of_one(live: LiveModel) -> None:
    assert ids(ranked(live, EXPLORING, candidates={"id": ["new"]}).response.items) == ["new"]
