"""Churn between versions: what the ranker says of a swap is what a plain comparison of both rankings says."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from freshrank.metrics import Reading
from freshrank.rank import readings
from model.store import MemorySnapshotStore
from ranker.follow import SnapshotFollower
from ranker.freshness import FreshnessRecorder
from ranker.live import LiveModel
from ranker.rank import order_of
from ranker.stats import RankerStats
from ranker.version_churn import INTERVAL_S, MAX_REQUESTS, VersionChurn
from tests.ranker.given import BLENDER, ITEMS, SCHEMA, Trainer, body, parts
from utility_blender.blend import Blender

WEIGHTS = Blender(tuple(SCHEMA.tasks), SCHEMA.scenarios, BLENDER)


def versions(number: int) -> tuple[Trainer, list[LiveModel]]:
    store = MemorySnapshotStore()
    trainer, lives = Trainer(store), []
    follower = SnapshotFollower(store, SCHEMA, RankerStats(), FreshnessRecorder(lambda: 0))
    for _ in range(number):
        for _ in range(5):
            trainer.learn()
        trainer.publish()
        follower.round()
        assert follower.live is not None
        lives.append(follower.live)
    return trainer, lives


def clock(step_s: float = INTERVAL_S) -> Callable[[], float]:
    """Returns a clock that goes on by a step each time it is looked at."""
    return itertools.count(0.0, step_s).__next__


def test_swaps_that_follow_too_soon_cost_nothing() -> None:
    trainer, (old, new) = versions(2)
    churn = VersionChurn(WEIGHTS, clock(INTERVAL_S / 4))
    churn.saw(trainer.columns, "home")
    for _ in range(12):
        churn.compare(old, new)
    assert 2 <= len(churn._swaps) <= 4  # noqa: SLF001 - how often is what this is about


def test_a_swap_is_measured_as_both_rankings_differ() -> None:
    trainer, (old, new) = versions(2)
    churn = VersionChurn(WEIGHTS, clock())
    assert [churn.top1_changed_share, churn.rbo] == [None, None]
    users = [
        replace(trainer.columns, user_id=[f"u{n}"], user={"city": ["lyon"], "spend": [4.0 * n]})
        for n in range(MAX_REQUESTS)
    ]
    for n, columns in enumerate(users):
        churn.saw(columns, SCHEMA.scenarios[n % 2])
    churn.compare(old, new)
    num_changed, overlaps = 0, []
    for columns in users:
        first, second = (
            order_of(live.score(columns) @ np.array([1.0, 5.0]), ITEMS, 10).tolist() for live in (old, new)
        )
        num_changed += first[0] != second[0]
        by_depth = [0.9**d * len(set(first[: d + 1]) & set(second[: d + 1])) / (d + 1) for d in range(10)]
        overlaps.append(sum(by_depth) / sum(0.9**d for d in range(10)))
    assert churn.top1_changed_share == pytest.approx(num_changed / MAX_REQUESTS)
    assert churn.rbo == pytest.approx(np.mean(overlaps))
    assert np.mean(overlaps) < 1


def test_equal_versions_have_none_and_halve_the_mean() -> None:
    trainer, (old, new) = versions(2)
    churn = VersionChurn(WEIGHTS, clock())
    churn.saw(trainer.columns, "home")
    churn.compare(old, old)
    assert [churn.top1_changed_share, churn.rbo] == [0.0, pytest.approx(1.0)]
    churn.compare(old, new)
    both = churn.rbo
    alone = VersionChurn(WEIGHTS, clock())
    alone.saw(trainer.columns, "home")
    alone.compare(old, new)
    assert alone.rbo is not None and both == pytest.approx((1 + alone.rbo) / 2)


def test_long_requests_are_fewer_but_never_none() -> None:
    trainer, (old, new) = versions(2)
    churn, many = VersionChurn(WEIGHTS, clock()), 600
    long = replace(
        trainer.columns,
        item_id=[f"i{n:03}" for n in range(many)],
        request_index_B=np.zeros(many, np.int64),
        item={name: list(column) * (many // len(ITEMS)) for name, column in trainer.columns.item.items()},
    )
    for _ in range(MAX_REQUESTS):
        churn.saw(long, "home")
    churn.compare(old, new)
    assert churn._swaps[-1].num_requests == 1  # noqa: SLF001 - the budget is nobody else's business


def test_the_ranker_tells_it_about_requests_and_swaps() -> None:
    given = parts()
    churn = given.ranker.follower.churn = VersionChurn(given.ranker.blender, clock())
    trainer = Trainer(given.store)
    trainer.publish()
    given.ranker.follower.round()
    assert not [one for one in readings(given.ranker) if one.name == "freshrank_ranker_churn_ratio"]
    asyncio.run(given.ranker.rank(msgspec.json.encode(body())))
    trainer.publish("delta")
    given.ranker.follower.round()
    shown = [one for one in readings(given.ranker) if one.name == "freshrank_ranker_churn_ratio"]
    assert churn.rbo is not None and churn.top1_changed_share is not None
    assert shown == [
        Reading("freshrank_ranker_churn_ratio", churn.top1_changed_share, ("top1_changed",)),
        Reading("freshrank_ranker_churn_ratio", churn.rbo, ("rbo",)),
    ]
