"""Every disorder that `docs/joiner.md` lists, one millisecond before the edge, at it, and after it.

What concerns one core alone stands in `test_join.py`; here are clocks, quiet and uneven partitions, topics far apart,
reused requests, and slates and windows of any size.
"""

import pytest

from stream.emission import JoinCounters
from stream.examples import ExampleEncoder
from stream.join import JoinConfig, JoinCore
from stream.log import IMPRESSIONS
from stream.memory_broker import partition_hash
from stream.schema import TaskConfig
from tests.stream.build import did, schema, shown
from tests.stream.cluster import Cluster, labels_in
from tests.stream.test_join import Token, run

WINDOW_MS, GRACE_MS, BEHIND_MS, IDLE_MS, DUPLICATE_MS, AHEAD_MS, REFUSE_MS = 10_000, 500, 2_000, 1_000, 700, 300, 5_000
SCHEMA = schema(click=TaskConfig(action="click", window_ms=WINDOW_MS))
CONFIG = JoinConfig(
    grace_ms=GRACE_MS,
    out_of_orderness_ms=BEHIND_MS,
    max_ahead_ms=AHEAD_MS,
    refuse_ahead_ms=REFUSE_MS,
    idle_ms=IDLE_MS,
    duplicate_ms=DUPLICATE_MS,
    commit_interval_ms=1,
)
CLOSED_MS = WINDOW_MS + GRACE_MS
NOW_MS = 100_000
EDGE = pytest.mark.parametrize(("off_ms", "is_past"), [(-1, False), (0, False), (1, True)])


def cluster_with_one_slate(num_partitions: int = 1) -> Cluster:
    """A joiner that has read a slate at 0 and feedback of the same time."""
    cluster = Cluster(SCHEMA, CONFIG, num_partitions, now_ms=NOW_MS)
    cluster.start()
    cluster.turn()
    cluster.send(shown(at=0), did("share", at=0, on="other"))
    cluster.turn()
    return cluster


def num_labels(cluster: Cluster) -> int:
    for _ in range(2):
        cluster.now_ms += 1
        cluster.turn()
    return cluster.labels().total()


def committed(cluster: Cluster) -> JoinCounters:
    cluster.now_ms += 1
    cluster.turn()
    return cluster.counters()


def core_counters(*log: Token) -> JoinCounters:
    core = JoinCore(SCHEMA, CONFIG)
    run(core, log)
    return core.counters


@EDGE
def test_the_slower_topic_decides_when_a_window_closes(off_ms: int, is_past: bool) -> None:
    cluster = cluster_with_one_slate()
    edge_ms = CLOSED_MS + BEHIND_MS
    cluster.send(shown("far", at=50_000))
    assert num_labels(cluster) == 0, "the impressions alone may be an hour ahead"
    cluster.send(did("share", at=edge_ms + off_ms, on="other"))
    assert num_labels(cluster) == int(is_past)


@EDGE
def test_feedback_far_ahead_waits_for_its_impression(off_ms: int, is_past: bool) -> None:
    """Pending feedback expires by the pair's watermark: the impressions', however far the feedback is."""
    cluster = Cluster(SCHEMA, CONFIG, 1, now_ms=NOW_MS)
    cluster.start()
    cluster.turn()
    cluster.send(did(at=20_000), did("share", at=90_000, on="other"))
    cluster.turn()
    cluster.send(shown("before", at=20_000 + CLOSED_MS + BEHIND_MS + off_ms))
    cluster.turn()
    cluster.send(shown(at=20_000))
    cluster.turn()
    counters = committed(cluster)
    assert (counters.feedback_positive, counters.feedback_unmatched) == (int(not is_past), int(is_past))
    assert counters.impression_late == int(is_past)


@pytest.mark.parametrize(("off_ms", "is_past"), [(-1, False), (0, True), (1, True)])
def test_an_idle_topic_holds_back_for_idle_ms_and_not_longer(off_ms: int, is_past: bool) -> None:
    cluster = cluster_with_one_slate()
    last_ms = cluster.now_ms
    cluster.now_ms = last_ms + IDLE_MS + off_ms
    cluster.send(shown("next", at=CLOSED_MS + BEHIND_MS + 1))
    cluster.turn()
    cluster.turn()
    assert bool(cluster.labels()) == is_past


def test_a_silent_partition_does_not_hold_back_a_busy_one() -> None:
    cluster = Cluster(SCHEMA, CONFIG, 2, now_ms=NOW_MS)
    cluster.start()
    cluster.turn()
    users = {user: partition_hash(user.encode()) % 2 for user in ("u", "v", "w", "x", "y")}
    busy = next(user for user in users if users[user] == 0)
    silent = next(user for user in users if users[user] == 1)
    cluster.send(shown("quiet", at=0, user=silent), shown("busy", at=0, user=busy))
    cluster.send(shown("later", at=50_000, user=busy), did("share", at=50_000, on="later", user=busy))
    cluster.turn()
    cluster.now_ms += 1
    cluster.turn()
    assert {label[0] for label in cluster.labels()} == {"busy"}


@EDGE
def test_a_clock_ahead_moves_the_watermark_to_max_ahead_ms_and_no_further(off_ms: int, is_past: bool) -> None:
    cluster = Cluster(SCHEMA, CONFIG, 1, now_ms=NOW_MS)
    cluster.start()
    cluster.turn()
    at_ms = NOW_MS + AHEAD_MS + off_ms
    cluster.send(shown(at=at_ms), did("share", at=at_ms, on="other"))
    cluster.turn()
    assert cluster.joiners["one"].pairs[0].core.watermark_ms == min(at_ms, NOW_MS + AHEAD_MS) - BEHIND_MS
    cluster.settle()
    assert cluster.counters().clock_ahead == 2 * is_past
    assert cluster.labels().total() == 1, "clamped, counted, and joined all the same"


@EDGE
def test_a_clock_too_far_ahead_is_malformed(off_ms: int, is_past: bool) -> None:
    cluster = Cluster(SCHEMA, CONFIG, 1, now_ms=NOW_MS)
    cluster.start()
    cluster.turn()
    cluster.send(shown(at=NOW_MS + REFUSE_MS + off_ms))
    cluster.settle()
    assert cluster.counters().malformed == int(is_past)
    assert cluster.labels().total() == int(not is_past)


@EDGE
def test_a_clock_behind_is_late_beyond_the_last_close(off_ms: int, is_past: bool) -> None:
    cluster = cluster_with_one_slate()
    newest_ms = 40_000
    cluster.send(shown("new", at=newest_ms), did("share", at=newest_ms, on="other"))
    cluster.turn()
    cluster.send(shown("old", at=newest_ms - BEHIND_MS - CLOSED_MS - off_ms))
    cluster.turn()
    assert committed(cluster).impression_late == int(is_past)


@EDGE
def test_a_request_used_twice_is_one_slate_while_it_is_remembered(off_ms: int, is_past: bool) -> None:
    forgotten_ms = CLOSED_MS + DUPLICATE_MS
    counters = core_counters(shown("r", "a", at=0), forgotten_ms + off_ms, shown("r", "b", at=60_000))
    assert (counters.impression_duplicate, counters.impression_conflict) == (int(not is_past),) * 2
    assert counters.slates == 1 + is_past


@pytest.mark.parametrize(
    ("again", "is_conflict"),
    [
        (shown("r", "a", "b", at=5), False),
        (shown("r", "b", "a", at=0), True),
        (shown("r", "a", "b", at=0, user="x"), True),
    ],
)
def test_a_copy_with_other_contents_is_counted_as_a_conflict(again: Token, is_conflict: bool) -> None:
    counters = core_counters(shown("r", "a", "b", at=0), again)
    assert (counters.slates, counters.impression_duplicate, counters.impression_conflict) == (1, 1, int(is_conflict))


def test_an_item_twice_in_a_slate_is_malformed_and_the_others_go_on() -> None:
    cluster = Cluster(SCHEMA, CONFIG, 1)
    cluster.start()
    cluster.send_bytes(
        IMPRESSIONS,
        b'{"request_id":"twice","user_id":"u","scenario":"home","ts":0,"items":{"id":["a","b","a"]}}',
    )
    cluster.send(shown(at=0))
    cluster.settle()
    assert cluster.counters().malformed == 1
    assert {label[0] for label in cluster.labels()} == {"r"}


def test_both_topics_sent_twice_give_the_same_labels() -> None:
    cluster = Cluster(SCHEMA, CONFIG, 1)
    cluster.start()
    for _ in range(2):
        cluster.send(shown("r", "a", "b", at=0), did(at=5), did(item="b", at=5, event_id="e"))
    cluster.settle()
    counters = cluster.counters()
    assert sorted(label[3:] for label in cluster.labels()) == [("final", 1, 5)] * 2
    assert (counters.impression_duplicate, counters.impression_conflict, counters.feedback_duplicate) == (1, 0, 2)


@pytest.mark.parametrize("num_items", [1, 2_000])
def test_slates_of_any_size_get_each_label_once(num_items: int) -> None:
    items = [f"i{number}" for number in range(num_items)]
    core = JoinCore(SCHEMA, CONFIG)
    emissions = run(core, [shown("r", *items, at=0), did(item=items[-1], at=9), CLOSED_MS + 1])
    messages = ExampleEncoder(SCHEMA, CONFIG).encode(emissions)
    found = [label for message in messages for label in labels_in(message, SCHEMA)]
    assert len(found) == num_items == len({label[1] for label in found})
    assert [label[1] for label in found if label[4]] == [items[-1]]


SECOND_MS, DAY_MS = 1_000, 86_400_000


@pytest.mark.parametrize("window_ms", [SECOND_MS, 60 * SECOND_MS, 3_600 * SECOND_MS, DAY_MS, 7 * DAY_MS])
@pytest.mark.parametrize(("off_ms", "is_positive"), [(-1, True), (0, True), (1, False)])
def test_windows_of_any_length_have_sharp_ends(window_ms: int, off_ms: int, is_positive: bool) -> None:
    core = JoinCore(schema(click=TaskConfig(action="click", window_ms=window_ms, traffic_ratio=False)), CONFIG)
    log: list[Token] = [shown(at=7), did(at=7 + window_ms + off_ms), 7 + window_ms + GRACE_MS]
    before = [label.label for emission in run(core, log) for label in emission.labels()]
    after = [label.label for emission in core.advance(7 + window_ms + GRACE_MS + 1) for label in emission.labels()]
    assert (before, after) == (([1], []) if is_positive else ([], [0]))
