"""What every store of learned weights must do: one suite, run on the one in memory and on a real Redis."""

import socket
from collections.abc import Callable, Iterator

import pytest
import redis

from tests.utility_blender.some_versions import some_version
from utility_blender.exceptions import BlenderUnavailableError, BlenderVersionError, PromotionError
from utility_blender.store import REFUSALS, BlenderStore, BlenderStoreConfig, MemoryBlenderStore, Pointer
from utility_blender.store_redis import RedisBlenderStore

OpenStore = Callable[[], BlenderStore]


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.integration)])
def open_store(request: pytest.FixtureRequest) -> Iterator[OpenStore]:
    """Opens stores that see the same content, as two processes would."""
    if request.param == "memory":
        shared = MemoryBlenderStore(BlenderStoreConfig(keep_rejected=2))
        yield lambda: shared
        return
    url: str = request.getfixturevalue("redis_server")
    opened: list[RedisBlenderStore] = []

    def open_redis() -> BlenderStore:
        config = BlenderStoreConfig(prefix=f"test:blender:{request.node.name}", keep_rejected=2, timeout_ms=4_000)
        opened.append(RedisBlenderStore(url, "main", config))
        return opened[-1]

    yield open_redis
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> BlenderStore:
    return open_store()


def publish(store: BlenderStore, version: int, base: int = 0, share: float = 1.0) -> None:
    store.put(some_version(version, base))
    pointer = store.pointer()
    assert store.promote(version, share=share, epoch=pointer.epoch if pointer else 0)


def refused(reason: str) -> "pytest.RaisesExc[PromotionError]":
    assert reason in REFUSALS
    return pytest.raises(PromotionError, check=lambda error: error.reason == reason)


def test_an_empty_store_has_nothing_and_nobody_explores(store: BlenderStore) -> None:
    assert (store.pointer(), store.versions(), store.rejected(), store.denied(), store.rollbacks()) == (
        None, [], [], set(), [],
    )  # fmt: skip
    assert (store.exploration(), store.exploration_reason()) == (False, "")
    with pytest.raises(BlenderVersionError, match="version 1 is not in the store"):
        store.get(1)


def test_version_numbers_are_given_out_once(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    assert [first.next_version(), second.next_version(), first.next_version()] == [1, 2, 3]


def test_a_version_comes_back_as_it_was_put_and_is_written_once(store: BlenderStore) -> None:
    store.put(some_version(1))
    assert store.get(1) == some_version(1)
    assert store.pointer() is None
    with refused("order"):
        store.put(some_version(1, method="one_step"))
    assert store.get(1) == some_version(1)


def test_a_version_goes_from_stage_to_stage(store: BlenderStore) -> None:
    publish(store, 1)
    store.put(some_version(2, base=1))
    for share in (0.001, 0.01, 0.1):
        assert store.promote(2, share=share, epoch=0)
        assert store.pointer() == Pointer(2, share, 0, 1)
        assert store.versions() == [1]
    assert store.promote(2, share=0.1, epoch=0) is False
    with refused("share"):
        store.promote(2, share=0.01, epoch=0)
    assert store.promote(2, share=1.0, epoch=0)
    assert store.versions() == [1, 2]
    assert store.promote(2, share=1.0, epoch=0) is False


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_is_above_0_and_at_most_1(store: BlenderStore, share: float) -> None:
    store.put(some_version(1))
    with refused("share"):
        store.promote(1, share=share, epoch=0)
    assert store.pointer() is None


def test_what_was_not_put_or_did_not_pass_is_never_served(store: BlenderStore) -> None:
    with refused("missing"):
        store.promote(1, share=1.0, epoch=0)
    for number, gate in enumerate(({}, {"passed": False}, {"passed": "yes"}), start=1):
        store.put(some_version(number, gate=gate))
        with refused("gate"):
            store.promote(number, share=1.0, epoch=0)
    assert store.pointer() is None


def test_the_pointer_moves_forward_only(store: BlenderStore) -> None:
    store.put(some_version(1))
    publish(store, 2)
    with refused("order"):
        store.promote(1, share=1.0, epoch=0)
    assert store.pointer() == Pointer(2, 1.0, 0, 0)


def test_a_version_must_be_fitted_around_the_one_in_service(store: BlenderStore) -> None:
    publish(store, 1)
    store.put(some_version(2, base=0))
    with refused("base"):
        store.promote(2, share=0.1, epoch=0)
    publish(store, 3, base=1, share=0.1)  # on trial: version 1 is still the one in service
    store.put(some_version(4, base=3))
    with refused("base"):
        store.promote(4, share=0.1, epoch=0)
    publish(store, 5, base=1, share=0.1)
    assert store.pointer() == Pointer(5, 0.1, 0, 1)


def test_a_rollback_goes_back_under_a_higher_epoch_and_denies_what_it_leaves(store: BlenderStore) -> None:
    for version in (1, 2, 3):
        publish(store, version, base=version - 1)
    publish(store, 4, base=3, share=0.01)
    assert store.rollback(1, "hides rose") == [2, 3, 4]
    assert store.pointer() == Pointer(1, 1.0, 1, 1)
    assert store.denied() == {2, 3, 4}
    assert store.rollbacks() == ["4 -> 1: hides rose"]
    assert store.get(1) == some_version(1)


def test_a_denied_version_is_never_served_again_nor_a_centre(store: BlenderStore) -> None:
    publish(store, 1)
    publish(store, 2, base=1)
    store.rollback(1, "bad")
    with refused("denied"):
        store.promote(2, share=1.0, epoch=1)
    store.put(some_version(3, base=2))
    with refused("denied"):
        store.promote(3, share=0.1, epoch=1)
    with refused("denied"):
        store.rollback(2, "was it so bad")
    publish(store, 4, base=1)
    assert store.pointer() == Pointer(4, 1.0, 1, 1)


def test_a_decision_from_before_a_rollback_does_not_count(open_store: OpenStore) -> None:
    worker, operator = open_store(), open_store()
    publish(worker, 1)
    worker.put(some_version(2, base=1))
    before = worker.pointer()
    assert before is not None
    operator.rollback(1, "freeze")  # back to where it is: nothing is denied, but decisions are
    with refused("stale"):
        worker.promote(2, share=0.1, epoch=before.epoch)
    assert operator.pointer() == Pointer(1, 1.0, 1, 1)
    assert worker.promote(2, share=0.1, epoch=1)


def test_a_rollback_goes_to_what_served_everybody_or_to_the_production_weights(store: BlenderStore) -> None:
    publish(store, 1)
    publish(store, 2, base=1, share=0.1)
    store.put(some_version(3, base=1))
    for never in (2, 3, 9):
        with refused("order"):
            store.rollback(never, "typo")
    assert store.rollback(0, "static") == [1, 2]
    assert store.pointer() == Pointer(0, 1.0, 1, 0)
    publish(store, 4, base=0, share=0.1)
    assert store.pointer() == Pointer(4, 0.1, 1, 0)


def test_a_rollback_of_nothing_is_a_freeze(store: BlenderStore) -> None:
    assert store.rollback(0, "wait") == []
    assert store.pointer() == Pointer(0, 1.0, 1, 0)


def test_rejected_versions_are_kept_newest_first_up_to_the_limit(store: BlenderStore) -> None:
    for version in (1, 2, 3):
        store.reject(some_version(version, gate={"passed": False}), [f"reason {version}", "another"])
    assert [(entry.version.version, entry.reasons) for entry in store.rejected()] == [
        (3, ("reason 3", "another")),
        (2, ("reason 2", "another")),
    ]
    assert store.pointer() is None


def test_exploration_is_switched_for_everybody_with_a_reason(open_store: OpenStore) -> None:
    guard, ranker = open_store(), open_store()
    guard.set_exploration(True, "start: of the day")
    assert (ranker.exploration(), ranker.exploration_reason()) == (True, "start: of the day")
    guard.set_exploration(False, "hides rose")
    assert (ranker.exploration(), ranker.exploration_reason()) == (False, "hides rose")


@pytest.mark.parametrize("step", ["put", "pointer"])
def test_a_crash_between_the_steps_leaves_the_pointer(step: str) -> None:
    def crash(reached: str) -> None:
        if reached == step and crashing:
            raise RuntimeError(step)

    crashing = False
    store = MemoryBlenderStore(on_step=crash)
    publish(store, 1)
    crashing = True
    with pytest.raises(RuntimeError):
        publish(store, 2, base=1)
    assert store.pointer() == Pointer(1, 1.0, 0, 0)


@pytest.mark.integration
def test_what_lies_in_redis_is_checked(redis_server: str) -> None:
    store = RedisBlenderStore(redis_server, "main", BlenderStoreConfig(prefix="test:torn", timeout_ms=4_000))
    with redis.Redis.from_url(redis_server) as client:
        publish(store, 1)
        key = "test:torn:{main}:version:1"
        whole = client.get(key)
        assert isinstance(whole, bytes)
        for data, reason in ((whole[:-1], "hash"), (some_version(2).encode(), "format")):
            client.set(key, data)
            with pytest.raises(BlenderVersionError) as error:
                store.get(1)
            assert error.value.reason == reason
        for said in (b"", b"maybe", b"onwards", b"true", b"\xff"):
            client.set("test:torn:{main}:exploration", said)
            assert store.exploration() is False
        client.delete("test:torn:{main}:exploration")
        client.rpush("test:torn:{main}:exploration", "on: a list")
        with pytest.raises(BlenderUnavailableError):
            store.exploration()
    store.close()


def test_a_store_that_is_down_says_so() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = RedisBlenderStore(f"redis://127.0.0.1:{port}", "main", BlenderStoreConfig(timeout_ms=200))
    for call in (store.pointer, store.exploration, store.denied, store.next_version, lambda: store.rollback(0, "")):
        with pytest.raises(BlenderUnavailableError, match="blender store does not answer"):
            call()
    store.close()
