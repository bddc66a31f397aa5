"""Spilled state and snapshots change what a joiner costs, never what it says."""

import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.emission import ItemLabel, JoinCounters, Outcome
from stream.exceptions import LocalStoreError
from stream.join import JoinCore, Resume
from stream.log import EXAMPLES, FEEDBACK, IMPRESSIONS, TopicPartition
from stream.schema import Feedback, Impression, SchemaConfig, TaskConfig
from stream.snapshot_record import SnapshotRecord
from stream.spill import Spill, SpillConfig, TakenUp
from stream.state import Held, Slate
from tests.stream import test_join_recovery as recovery
from tests.stream.build import did, explored, schema, shown
from tests.stream.cluster import Cluster
from tests.stream.oracle import deeds_of
from tests.stream.test_join_recovery import (
    END,
    Process,
    Step,
    check_counters,
    check_labels,
    check_outcomes,
    runs,
    schemas,
    state,
)
from tests.stream.test_joiner import CONFIG, PLAIN, SCHEMA, assert_outputs, traffic

FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A folder in memory: RocksDB waits for the disk whenever it opens a store."""
PARTITION = TopicPartition(IMPRESSIONS, 0)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=FAST))
    yield path
    shutil.rmtree(path)


def config(folder: Path, **more: int) -> SpillConfig:
    return SpillConfig(directory=str(folder), **({"hot_items": 4, "store_mib": 16, "snapshot_interval_ms": 1} | more))


def record(resume: Resume, *, labels: str = "labels", lineage: str = "life") -> SnapshotRecord:
    return SnapshotRecord(
        labels=labels,
        lineage=lineage,
        next_impression=resume.next_impression,
        next_feedback=resume.next_feedback,
        watermark_ms=resume.watermark_ms,
    )


def taken_up(spill: Spill, resume: Resume = Resume(), *, labels: str = "labels", lineage: str = "life") -> TakenUp:
    return spill.take_up(PARTITION, resume, labels, lineage)


@settings(max_examples=60, deadline=None)
@given(schemas(), runs(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_snapshot_and_a_replay_of_the_rest_rebuild_the_state_and_repeat_nothing(
    schema: SchemaConfig, run: tuple[list[Impression], list[Feedback], list[Step]], hot_items: int, rng: Any
) -> None:
    """The recovery test of the core, with tiny budgets and snapshots of some commits only."""
    impressions, feedback, steps = run
    folder = Path(tempfile.mkdtemp(dir=FAST))
    spill = Spill(config(folder, hot_items=hot_items))
    core = JoinCore(schema, recovery.CONFIG, state=taken_up(spill).state)
    process = Process(core, Resume(), 0, 0, feedback=feedback)
    committed: Counter[ItemLabel] = Counter()
    outcomes: list[Outcome] = []
    resume, oldest = Resume(), (0, 0)
    counted = JoinCounters()
    at_commit = state(process.core, [])
    for step in [*steps, "commit", "crash", *(["impression", "feedback"] * 30), END, "commit"]:
        if step == "crash":
            taken = taken_up(spill, resume)
            start = oldest
            if taken.record is not None:
                start = max(start[0], taken.record.next_impression), max(start[1], taken.record.next_feedback)
            process = Process(JoinCore(schema, recovery.CONFIG, resume, taken.state), resume, *start, feedback=feedback)
            while not process.is_caught_up():
                is_impression = process.next_impression < resume.next_impression and (
                    process.next_feedback >= resume.next_feedback or rng.random() < 0.5
                )
                process.read(impressions, feedback, is_impression=is_impression)
            assert (process.labels, process.core.outcomes) == ([], []), "all of it is committed already"
            assert state(process.core, impressions[: process.next_impression]) == at_commit
            assert process.core.counters == JoinCounters(), "replay counts nothing"
        elif step == "commit":
            committed.update(process.labels)
            process.labels.clear()
            outcomes += process.core.outcomes
            process.core.outcomes = []
            counted.add(process.core.counters)
            process.core.counters = JoinCounters()
            resume = Resume(process.next_impression, process.next_feedback, process.core.watermark_ms)
            oldest = process.core.oldest_needed(process.next_impression, process.next_feedback)
            at_commit = state(process.core, impressions[: process.next_impression])
            if rng.random() < 0.5:
                spill.save(PARTITION, record(resume))
        elif isinstance(step, int):
            process.advance(step)
        else:
            process.read(impressions, feedback, is_impression=step == "impression")
    check_labels(schema, committed, impressions, feedback)
    check_outcomes(outcomes, committed, impressions)
    check_counters(counted, committed, len(impressions), len(feedback))
    assert process.core.oldest_needed(99, 99) == (99, 99), "nothing stays needed for ever"
    spill.close()
    shutil.rmtree(folder)


@settings(max_examples=40, deadline=None)
@given(schemas(), runs(), st.integers(1, 9))
def test_a_core_with_spilled_state_says_what_one_with_all_in_memory_says(
    schema: SchemaConfig, run: tuple[list[Impression], list[Feedback], list[Step]], hot_items: int
) -> None:
    impressions, feedback, steps = run
    folder = Path(tempfile.mkdtemp(dir=FAST))
    spill = Spill(config(folder, hot_items=hot_items))
    cores = [JoinCore(schema, recovery.CONFIG), JoinCore(schema, recovery.CONFIG, state=taken_up(spill).state)]
    processes = [Process(core, Resume(), 0, 0, feedback=feedback) for core in cores]
    for step in [*steps, *(["impression", "feedback"] * 30), END]:
        for process in processes:
            if isinstance(step, int):
                process.advance(step)
            elif step in ("impression", "feedback"):
                process.read(impressions, feedback, is_impression=step == "impression")
        assert Counter(processes[0].labels) == Counter(processes[1].labels)
        assert cores[0].oldest_needed(99, 99) == cores[1].oldest_needed(99, 99)
    assert Counter(map(repr, cores[0].outcomes)) == Counter(map(repr, cores[1].outcomes))
    assert cores[0].counters == cores[1].counters
    spill.close()
    shutil.rmtree(folder)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sets(st.integers(0, 400), max_size=8),
    st.lists(
        st.tuples(st.integers(0, 45), st.sampled_from(["start", "kill"]), st.sampled_from(["one", "two"])), max_size=6
    ),
)
def test_crashes_and_rebalances_change_nothing(
    seed: int, crash_at: set[int], changes: list[tuple[int, str, str]]
) -> None:
    """Each joiner has a folder of its own, in which snapshots of partitions grow old while another one owns them."""
    folder = Path(tempfile.mkdtemp(dir=FAST))
    cluster = Cluster(SCHEMA, CONFIG, spill=config(folder))
    cluster.crashes.crash_at = crash_at
    arrivals = traffic(seed)
    cluster.play(arrivals, changes)
    assert_outputs(cluster, arrivals)
    for spill in cluster.spills.values():
        spill.close()
    shutil.rmtree(folder)


def ratios(cluster: Cluster) -> Counter[Any]:
    """Returns each emission of task `click` with its traffic ratios."""
    import pyarrow as pa

    found: Counter[Any] = Counter()
    for message in cluster.messages(EXAMPLES):
        for row in pa.ipc.open_stream(message.value).read_all().to_pylist():
            found[repr((row["request_id"], row["item_id"], row["kind.click"], row["ratio.click"]))] += 1
    return found


def test_traffic_ratios_go_on_from_a_snapshot(folder: Path) -> None:
    tasks = schema(click=TaskConfig(action="click", window_ms=10_000, policy="eager", traffic_ratio=True))
    runs = []
    for name, crash_every in (("calm", 10**6), ("crashing", 7)):
        cluster = Cluster(tasks, CONFIG, num_partitions=1, spill=config(folder / name))
        cluster.start()
        for second in range(60):
            cluster.now_ms += 1_000
            for number in range(1 + second // 20):
                request = f"r{second}.{number}"
                cluster.send(shown(request, at=cluster.now_ms), did(at=cluster.now_ms + 5, on=request))
            cluster.turn()
            if second % crash_every == crash_every - 1:
                cluster.kill()
                cluster.start()
                cluster.turn()
        cluster.settle()
        assert len({repr(ratio) for ratio in ratios(cluster)}) > 60
        runs.append(ratios(cluster))
        for spill in cluster.spills.values():
            spill.close()
    assert runs[0] == runs[1]


def test_a_restart_reads_only_what_came_after_the_snapshot(folder: Path) -> None:
    cluster = Cluster(schema(), PLAIN, num_partitions=1, spill=config(folder))
    cluster.start()
    cluster.send(*(shown(f"r{number}", at=number) for number in range(50)))
    for _ in range(3):
        cluster.now_ms += 200
        cluster.turn()
    cluster.kill()
    read: list[int] = []
    joiner = cluster.start()
    observe = joiner._decoder.impression
    joiner._decoder.impression = lambda data: (read.append(1), observe(data))[1]  # type: ignore[method-assign, func-returns-value]
    cluster.send(did(at=60, on="r7"))
    cluster.now_ms += 200
    cluster.turn()
    pair = joiner.pairs[0]
    assert (len(read), pair.core.state.num_slates, pair.core.oldest_needed(50, 1)) == (0, 50, (0, 1))
    cluster.settle()
    assert cluster.labels()[("r7", "a", "click", "final", 1, 53)] == 1
    assert cluster.labels().total() == 50


def test_quiet_partitions_get_a_snapshot_each_and_then_no_more(folder: Path) -> None:
    """Both are read in one commit, one snapshot is taken after a commit, and then there is nothing more to commit."""
    cluster = Cluster(schema(), PLAIN, spill=config(folder, snapshot_interval_ms=5_000))
    cluster.start()
    cluster.turn()
    cluster.send(*(shown(f"r{number}", at=0, user=f"u{number}") for number in range(20)))
    counts = []
    for _ in range(12):
        cluster.now_ms += 1_500
        cluster.turn()
        counts.append(cluster.spills["one"].num_snapshots)
    assert (counts[2], counts[-1]) == (0, 2)
    assert len(list(folder.glob("one/impressions/*/snapshot-*"))) == 2


def test_a_joiner_that_stops_leaves_a_snapshot_of_all_it_has_read(folder: Path) -> None:
    cluster = Cluster(schema(), PLAIN, num_partitions=1, spill=config(folder, snapshot_interval_ms=3_600_000))
    joiner = cluster.start()
    cluster.turn()
    cluster.send(shown(at=0))
    for _ in range(3):
        cluster.now_ms += 1_500
        cluster.turn()
    assert cluster.spills["one"].num_snapshots == 0
    joiner.run(should_stop=lambda: True)
    cluster.kill()
    pair_of = cluster.start().pairs
    cluster.turn()
    assert [pair.core.state.num_slates for pair in pair_of.values()] == [1]
    assert list(pair_of[0].next_offsets.values()) == [1, 0]


def test_what_retention_deleted_is_given_up_for_good(folder: Path) -> None:
    """The feedback that made a label positive is gone: no snapshot of before may bring its slate back, now or later."""
    cluster = Cluster(schema(), replace(PLAIN, when_lost="give_up"), num_partitions=1, spill=config(folder))

    def run() -> list[str]:
        """Returns the slates found at the start of a joiner that then runs until it has committed."""
        joiner = cluster.start()
        cluster.turn()
        cluster.turn()
        found = [slate.impression.request_id for slate in joiner.pairs[0].core.state.slates()]
        cluster.now_ms += 200
        cluster.turn()
        cluster.kill()
        return found

    cluster.send(shown(at=0), did(at=1))
    run()
    snapshots = folder / "one" / IMPRESSIONS / "0"
    shutil.copytree(snapshots, folder / "old")
    assert run() == ["r"]
    cluster.broker.delete_before(TopicPartition(FEEDBACK, 0), 1)
    cluster.send(shown("later", at=500))
    assert run() == ["later"]
    assert cluster.counters().lost_messages == 1
    shutil.rmtree(snapshots)
    shutil.copytree(folder / "old", snapshots)  # as on a host that did not own the partition meanwhile
    assert run() == ["later"], "by replay: the snapshot is of another life of the log"


def saved(folder: Path, *, num_slates: int = 3, times: int = 1) -> Path:
    """Writes snapshots of a state; returns the newest."""
    spill = Spill(config(folder))
    state = taken_up(spill).state
    for number in range(num_slates):
        state.add(Slate(shown(f"r{number}", at=number), number), due_ms=100)
    for _ in range(times):
        spill.save(PARTITION, record(Resume(num_slates, 0, 5)))
    spill.close()
    return max((folder / IMPRESSIONS / "0").glob("snapshot-*"))


COMMITTED = Resume(next_impression=9, next_feedback=9, watermark_ms=50)


@pytest.mark.parametrize(
    ("resume", "labels", "lineage", "num_slates"),
    [
        (COMMITTED, "labels", "life", 3),
        (Resume(3, 0, 5), "labels", "life", 3),
        (Resume(2, 9, 50), "labels", "life", 0),
        (Resume(9, -1, 50), "labels", "life", 0),
        (Resume(9, 9, 4), "labels", "life", 0),
        (COMMITTED, "other settings", "life", 0),
        (COMMITTED, "labels", "another life", 0),
    ],
    ids=["older", "same commit", "impressions", "feedback", "watermark", "settings", "log"],
)
def test_a_snapshot_fits_what_is_committed_or_is_not_used(
    folder: Path, resume: Resume, labels: str, lineage: str, num_slates: int
) -> None:
    saved(folder)
    spill = Spill(config(folder))
    taken = taken_up(spill, resume, labels=labels, lineage=lineage)
    assert (taken.state.num_slates, taken.record is not None) == (num_slates, num_slates > 0)
    assert spill.num_rejected == 0
    spill.close()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("pattern", ["record", "MANIFEST-*", "*.sst"])
def test_a_damaged_snapshot_is_never_taken_for_a_state(
    folder: Path, pattern: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    newest = saved(folder, num_slates=30, times=2)
    file = max(newest.glob(pattern))
    shutil.copyfile(file, folder / "copy")  # tables are linked: damage this snapshot's alone
    file.unlink()
    shutil.copyfile(folder / "copy", file)
    damage(file)
    spill = Spill(config(folder))
    taken = taken_up(spill, Resume(30, 0, 5))
    assert taken.record is not None
    if spill.num_rejected:
        assert "cannot be used" in caplog.text
        assert sorted(slate.offset for slate in taken.state.slates()) == list(range(30)), "the one before"
    else:  # a table that is whole but for one bit: found when the bit is read
        with pytest.raises(LocalStoreError, match="Corruption"):
            list(taken.state.slates())
        taken = taken_up(spill, Resume(30, 0, 5))
        assert (taken.record, taken.state.num_slates, spill.num_rejected) == (None, 0, 2), "tables may be shared"
    spill.close()


def test_a_snapshot_that_was_not_finished_is_not_used(folder: Path) -> None:
    newest = saved(folder)
    (newest / "record").unlink()
    (newest.parent / "snapshot-00000002.tmp").mkdir()
    spill = Spill(config(folder))
    assert (taken_up(spill, COMMITTED).record, spill.num_rejected) == (None, 1)
    assert sorted(path.name for path in newest.parent.iterdir()) == ["live", newest.name]
    spill.close()


def test_the_last_two_snapshots_are_kept(folder: Path) -> None:
    newest = saved(folder, times=5)
    assert newest.name == "snapshot-00000005"
    assert sorted(path.name for path in newest.parent.glob("snapshot-*")) == ["snapshot-00000004", newest.name]


def test_the_budget_is_shared_by_the_partitions(folder: Path) -> None:
    spill = Spill(config(folder, hot_items=400))
    first = spill.take_up(TopicPartition(IMPRESSIONS, 0), Resume(), "labels", "life").state
    for number in range(1_000):
        first.add(Slate(shown(f"r{number}"), number), due_ms=100)
        first.hold(Held(did(at=1, on=f"q{number}"), number, is_new=True), expiry_ms=100)
    assert (300 <= first.hot_items <= 400, first.num_slates, first.num_pending) == (True, 1_000, 1_000)
    spill.take_up(TopicPartition(IMPRESSIONS, 1), Resume(), "labels", "life")
    first.add(Slate(shown("one more"), 1_000), due_ms=100)
    first.hold(Held(did(at=1, on="one more"), 1_000, is_new=True), expiry_ms=100)
    assert first.hot_items <= 200
    spill.drop(TopicPartition(IMPRESSIONS, 1))
    assert list(spill.states) == [PARTITION]
    spill.close()


def test_a_folder_is_for_one_process(folder: Path) -> None:
    spill = Spill(config(folder))
    with pytest.raises(LocalStoreError, match="in use by another process; give each joiner a folder of its own"):
        Spill(config(folder))
    spill.close()
    Spill(config(folder)).close()


def test_a_folder_that_cannot_be_made_is_named(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(LocalStoreError, match=r"spill.directory: .*/file/below cannot be used: Not a directory$"):
        Spill(config(folder / "file" / "below"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hot_items", 0, "hot_items: 0 is not allowed; at least 1"),
        ("store_mib", 15, "store_mib: 15 is not allowed; at least 16"),
        ("snapshot_interval_ms", 0, "snapshot_interval_ms: 0 is not allowed; at least 1"),
        ("directory", "", "directory: must not be empty"),
    ],
)
def test_a_setting_out_of_range_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpillConfig(**{field: value})


DISK_IS_FULL = """
import os, sys
from dataclasses import replace
from pathlib import Path
from stream.exceptions import LocalStoreError
from stream.local_store import LocalStore, StoreMemory
store = LocalStore(Path(sys.argv[1]), StoreMemory(16))
try:
    for number in range(1_000):
        store.write([(b"%d.%d" % (number, part), os.urandom(1_000)) for part in range(100)])
        if number == 20:
            store.checkpoint(Path(sys.argv[1]).with_name("snapshot"))
except LocalStoreError as error:
    print(error)
"""


def test_a_full_disk_is_one_line(folder: Path) -> None:
    """No file may exceed a megabyte here, which to RocksDB is one more way in which a disk takes no more."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    argv = [sys.executable, "-c", DISK_IS_FULL, str(folder / "live")]
    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=limit, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{folder}/live: IO error: "), line
    assert line.endswith("make room on the disk or replace it, then start again")


def test_an_outcome_that_went_out_after_the_snapshot_does_not_go_out_again(folder: Path) -> None:
    tasks = schema(click=TaskConfig(action="click", window_ms=20))
    spill = Spill(config(folder))
    core = JoinCore(tasks, recovery.CONFIG, state=taken_up(spill).state)
    core.observe_impression(explored(shown(at=100), tasks.tasks), 0)
    core.observe_feedback(did("share", at=101, value=2.5), 0)
    spill.save(PARTITION, record(Resume(1, 1, 100)))
    close_ms = 100 + recovery.OUTCOME_CLOSE_MS
    for committed_ms, num_left in ((close_ms, 1), (close_ms + 1, 0)):
        core = JoinCore(tasks, recovery.CONFIG, resume := Resume(1, 1, committed_ms), taken_up(spill, resume).state)
        assert core.outcomes == []
        core.advance(close_ms + 1)
        assert [deeds_of(outcome) for outcome in core.outcomes] == num_left * [{("a", "share", 2.5, 101)}]
        assert core.counters.outcomes == num_left
    spill.close()
