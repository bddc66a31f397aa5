"""Following the store: every good version is served, no bad one ever is, and the next full snapshot heals."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from model.payload_view import Payload
from model.snapshot import Manifest, payload_sha256
from model.store import Lane, MemorySnapshotStore, missing
from ranker.follow import SnapshotFollower
from ranker.freshness import FreshnessRecorder
from ranker.stats import RankerStats
from stream.schema import SchemaConfig, TaskConfig
from tests.ranker.given import SCHEMA, Trainer


class Given:
    """A store, a trainer that publishes into it, and a follower."""

    def __init__(self) -> None:
        self.store = MemorySnapshotStore()
        self.trainer = Trainer(self.store)
        self.stats = RankerStats()
        self.freshness = FreshnessRecorder(lambda: 5_000)
        self.follower = SnapshotFollower(self.store, SCHEMA, self.stats, self.freshness)

    @property
    def version(self) -> int:
        return self.follower.live.manifest.version if self.follower.live else 0

    def assert_serves_what_was_trained(self) -> None:
        """The live model's scores are the learner's."""
        assert self.follower.live is not None
        learner = self.trainer.learner
        logits_NT = learner.score(learner.encode(self.trainer.columns))
        scores_NT = self.follower.live.score(self.trainer.columns)
        np.testing.assert_allclose(scores_NT, 1 / (1 + np.exp(-logits_NT)), rtol=1e-5)


@pytest.fixture
def given() -> Given:
    return Given()


def test_an_empty_store_is_no_fault(given: Given) -> None:
    given.follower.round()
    assert given.follower.live is None and given.follower.is_current


def test_full_and_delta_versions_are_served_as_trained(given: Given) -> None:
    for kind in ("full", "delta", "delta", "full", "delta"):
        given.trainer.publish(kind)
        given.follower.round()
        assert given.version == given.trainer.version and given.follower.is_current
        given.assert_serves_what_was_trained()
    assert given.stats.snapshots_applied == 5 and not given.stats.snapshots_refused


def test_a_late_starter_goes_from_the_last_full_one_through_all_deltas_in_one_swap(given: Given) -> None:
    for kind in ("full", "delta", "full", "delta", "delta"):
        given.trainer.publish(kind)
    given.follower.round()
    assert given.version == 5 and given.stats.snapshots_applied == 1
    given.assert_serves_what_was_trained()


def test_versions_missed_in_between_are_caught_up_with(given: Given) -> None:
    given.trainer.publish("full")
    given.follower.round()
    for kind in ("delta", "delta", "full", "delta"):
        given.trainer.publish(kind)
    given.follower.round()
    assert given.version == 5 and given.stats.snapshots_applied == 2
    given.assert_serves_what_was_trained()


def test_nothing_new_is_nothing_done(given: Given) -> None:
    given.trainer.publish("full")
    given.follower.round()
    before = given.follower.live
    given.follower.round()
    assert given.follower.live is before and given.stats.snapshots_applied == 1


def flip_a_byte(payload: bytes) -> bytes:
    return payload[:-9] + bytes([payload[-9] ^ 1]) + payload[-8:]


def no_network() -> dict[str, Any]:
    return {"tensors": {"dense.intruder": torch.zeros(3)}}


def not_finite() -> dict[str, Any]:
    return {"tensors": {"rows.reserved": torch.full((32, 4), float("nan"))}}


NOT_SAFETENSORS = b"\x80\x04pickle"
FAULTS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "a byte was changed": ("hash", lambda: {"payload_is": flip_a_byte}),
    "torn": ("torn", lambda: {"payload_is": lambda payload: payload[:-1]}),
    "empty": ("torn", lambda: {"payload_is": lambda payload: b""}),
    "not safetensors": (
        "format",
        lambda: {
            "payload_is": lambda payload: NOT_SAFETENSORS,
            "payload_sha256": payload_sha256(NOT_SAFETENSORS),
            "payload_bytes": len(NOT_SAFETENSORS),
        },
    ),
    "tensors of another network": ("format", no_network),
    "longer than its manifest says": ("torn", lambda: {"payload_is": lambda payload: payload + b"x"}),
    "a tensor of another shape": ("format", lambda: {"tensors": {"rows.reserved": torch.zeros(31, 4)}}),
    "a tensor of another type": ("format", lambda: {"tensors": {"rows.reserved": torch.zeros(32, 4).to(torch.int32)}}),
    "weights of more rows than keys": ("format", lambda: {"tensors": {"rows.weights": torch.zeros(10_000, 4)}}),
    "a key that stands there twice": (
        "format",
        lambda: {"tensors": {"rows.keys": torch.tensor([7, 7]), "rows.weights": torch.zeros(2, 4)}},
    ),
    "NaN": ("non_finite", not_finite),
    "another schema": ("schema", lambda: {"schema_hash": "0123456789abcdef"}),
}


@pytest.mark.parametrize("kind", ["full", "delta"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_version_is_never_served_and_the_next_full_one_heals(given: Given, fault: str, kind: str) -> None:
    reason, changes = FAULTS[fault]
    given.trainer.publish("full")
    given.follower.round()
    good = given.follower.live
    given.trainer.publish(kind, **changes())
    for _ in range(2):
        given.follower.round()
        assert given.follower.live is good and not given.follower.is_current
    assert given.stats.snapshots_refused == {reason: 1}
    given.trainer.publish("delta")  # built on the bad one: not to be reached either
    given.follower.round()
    assert given.follower.live is good
    given.trainer.publish("full")
    given.follower.round()
    assert given.version == 4 and given.follower.is_current
    given.assert_serves_what_was_trained()


def test_a_bad_first_version_leaves_the_ranker_without_a_model(given: Given) -> None:
    given.trainer.publish("full", payload_is=flip_a_byte)
    given.follower.round()
    assert given.follower.live is None and not given.follower.is_current
    given.trainer.publish("full")
    given.follower.round()
    assert given.version == 2


def test_of_a_broken_chain_the_good_part_is_served(given: Given) -> None:
    given.trainer.publish("full")
    given.follower.round()
    given.trainer.publish("delta")
    given.trainer.publish("delta", payload_is=flip_a_byte)
    given.trainer.publish("delta")
    given.follower.round()
    assert given.version == 2 and not given.follower.is_current
    assert given.stats.snapshots_refused == {"hash": 1}


def test_scores_that_are_not_finite_though_all_tensors_are(given: Given) -> None:
    given.trainer.publish("full")
    given.follower.round()
    huge = {
        name: torch.full_like(tensor, 3e38)
        for name, tensor in given.trainer.learner.trained.serving_full().items()
        if name.startswith("dense.") and tensor.is_floating_point()
    }
    given.trainer.publish("full", tensors=huge)
    given.follower.round()
    assert given.version == 1 and given.stats.snapshots_refused == {"non_finite": 1}
    assert not given.follower.is_current


class Forgetful(MemorySnapshotStore):
    """A store that has lost some manifests or payloads, as after an eviction."""

    def __init__(self) -> None:
        super().__init__()
        self.lost_manifests: set[int] = set()
        self.lost_payloads: set[int] = set()

    def manifest(self, version: int) -> Manifest | None:
        return None if version in self.lost_manifests else super().manifest(version)

    def payload(self, manifest: Manifest) -> Payload:
        if manifest.version in self.lost_payloads:
            raise missing(manifest.version)
        return super().payload(manifest)


class GivenForgetful(Given):
    def __init__(self) -> None:
        super().__init__()
        self.forgetful = self.store = Forgetful()
        self.trainer = Trainer(self.store)
        self.follower = SnapshotFollower(self.store, SCHEMA, self.stats, self.freshness)


@pytest.mark.parametrize(("what", "reason"), [("lost_manifests", "gap"), ("lost_payloads", "missing")])
def test_a_hole_in_the_chain_is_counted_and_healed_by_the_next_full_one(what: str, reason: str) -> None:
    given = GivenForgetful()
    given.trainer.publish("full")
    given.follower.round()
    given.trainer.publish("delta")
    getattr(given.forgetful, what).add(2)
    given.trainer.publish("delta")
    given.follower.round()
    assert given.version == 1 and given.stats.snapshots_refused == {reason: 1}
    given.trainer.publish("full")
    given.trainer.publish("delta")
    given.follower.round()
    assert given.version == 5 and given.follower.is_current
    given.assert_serves_what_was_trained()


def test_a_hole_after_a_newer_full_one_is_healed_at_once() -> None:
    given = GivenForgetful()
    given.trainer.publish("full")
    given.follower.round()
    given.trainer.publish("full")
    given.trainer.publish("delta")
    given.forgetful.lost_manifests.add(3)
    given.trainer.publish("delta")
    given.follower.round()
    assert given.version == 2 and given.stats.snapshots_healed == 1 and not given.follower.is_current


class Backwards(MemorySnapshotStore):
    """A store whose pointer can be set back, as when an old backup is restored."""

    old: Manifest | None = None

    def pointer(self, lane: Lane = "canary") -> Manifest | None:
        return self.old or super().pointer(lane)


def test_a_pointer_that_goes_back_in_time_is_not_followed() -> None:
    given = Given()
    given.store = store = Backwards()
    given.trainer, given.follower = Trainer(store), SnapshotFollower(store, SCHEMA, given.stats, given.freshness)
    store.old = given.trainer.publish("full")
    store.old = None
    given.trainer.publish("full")
    given.follower.round()
    store.old = store.manifest(1)
    given.follower.round()
    assert given.version == 2 and given.follower.is_current


def test_a_line_that_starts_anew_with_lower_numbers_is_followed() -> None:
    """Redis lost everything and the trainer began from nothing: its first version is newer than our tenth."""
    given = Given()
    for _ in range(3):
        given.trainer.publish("full")
    given.follower.round()
    assert given.version == 3
    anew = MemorySnapshotStore()
    given.follower._store = anew
    given.trainer = Trainer(anew, seed=5)
    given.trainer.publish("full", created_ms=1_000)
    given.follower.round()
    assert given.version == 1
    given.assert_serves_what_was_trained()


def test_old_models_are_let_go(given: Given) -> None:
    given.trainer.publish("full")
    given.follower.round()
    assert given.follower.live is not None
    old = [weakref.ref(given.follower.live.model)]
    for kind in ("delta", "delta", "full"):
        given.trainer.publish(kind)
        given.follower.round()
        old.append(weakref.ref(given.follower.live.model))
    gc.collect()
    assert [model() is not None for model in old] == [False, False, False, True]


def test_a_version_for_other_tasks_is_refused_by_its_schema(given: Given) -> None:
    other = SchemaConfig(
        scenarios=SCHEMA.scenarios,
        tasks={"click": TaskConfig(action="click", window_ms=1)},
        features=SCHEMA.features,
    )
    Trainer(given.store, other).publish("full")
    given.follower.round()
    assert given.follower.live is None and given.stats.snapshots_refused == {"schema": 1}


def test_freshness_counts_each_action_once_when_first_used_and_not_what_was_there_before_we_started() -> None:
    given = Given()
    given.trainer.publish("full")  # feedback at 1,000: before we started
    given.follower.round()
    given.freshness.used(1, now_ms=10_000)
    assert given.freshness.summary().n == 0
    given.trainer.publish("delta")  # feedback at 2,000
    given.follower.round()
    given.trainer.publish("delta")  # at 3,000; version 2 never scored anything
    given.follower.round()
    given.freshness.used(3, now_ms=10_000)
    given.freshness.used(3, now_ms=99_000)
    summary = given.freshness.summary()
    assert (summary.n, summary.p50_ms) == (2, 7_500.0)


def test_freshness_counts_versions_that_were_skipped_over(given: Given) -> None:
    given.follower.round()
    for kind in ("full", "delta", "full"):  # feedback at 1,000, 2,000 and 3,000
        given.trainer.publish(kind)
    given.follower.round()
    given.freshness.used(3, now_ms=4_000)
    summary = given.freshness.summary()
    assert (summary.n, summary.p50_ms) == (3, 2_000.0)
