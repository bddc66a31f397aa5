"""What does it cost to keep ten million open items in a memory budget, and how soon does a restart go on?

Slates with two features per item and a window of seven days, so that all stay open; a click on one in ten soon after,
while its slate is in memory. Then clicks on slates drawn from all of them, which are mostly on disk, two snapshots, a
restart from the second, and the closes of the first slates. Beside it the same with all state in memory, of a million
items at most. CPU-seconds are user + system of the process with RocksDB's threads; making the events is not counted.
The short form has 400,000 items; the long one is `python -m benchmarks.spill --items 10000000 --hot-items 200000`.
"""

import argparse
import gc
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.harness import Figure
from stream.codec import EventDecoder, encode
from stream.join import JoinConfig, JoinCore, Resume
from stream.log import TopicPartition
from stream.schema import FeatureConfig, FeaturesConfig, Feedback, Impression, Items, SchemaConfig, TaskConfig
from stream.snapshot_record import SnapshotRecord
from stream.spill import Spill, SpillConfig

DAY_MS = 86_400_000
SCHEMA = SchemaConfig(
    scenarios=("home",),
    tasks={"order": TaskConfig(action="order", window_ms=7 * DAY_MS, policy="fnw")},
    features=FeaturesConfig(
        item={"category": FeatureConfig(kind="categorical"), "price": FeatureConfig(kind="numeric")}
    ),
)
CONFIG = JoinConfig()
START_MS = 1_790_000_000_000
CHUNK = 2_000
SHORT_ITEMS = 400_000
IN_MEMORY_ITEMS = 1_000_000
NUM_THAWED = 20_000
NUM_CLOSED = 200_000
PARTITION = TopicPartition("impressions", 0)
COMMAND = "python -m benchmarks.spill"


def request_id(number: int) -> str:
    """Returns an id without order, as real ones are."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def slate(number: int, num_items: int) -> Impression:
    first = number * 7919 % 50_000
    ids = [f"item-{first + 13 * row}" for row in range(num_items)]
    features = {
        "category": [f"c{row % 7}" for row in range(num_items)],
        "price": [1.5 * row for row in range(num_items)],
    }
    at_ms = START_MS + number
    return Impression(request_id(number), f"user-{number % 20_000}", "home", at_ms, Items(ids, features))


def order(number: int, at_ms: int) -> Feedback:
    first = number * 7919 % 50_000
    return Feedback(request_id(number), f"user-{number % 20_000}", f"item-{first}", "order", at_ms, 1.0, f"e{at_ms}")


def chunks(num_slates: int, num_items: int) -> Iterator[list[bytes]]:
    """Yields messages as they lie in the log: slates, each tenth followed by an order for one shown 500 before."""
    chunk: list[bytes] = []
    for number in range(num_slates):
        chunk.append(encode(slate(number, num_items)))
        if number % 10 == 9 and number >= 500:
            chunk.append(encode(order(number - 500, START_MS + number)))
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    yield chunk


def memory_mib(name: str) -> float:
    """Returns `VmRSS` (now) or `VmHWM` (most so far) of this process, in MiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


class Meter:
    """CPU-seconds of the process and wall seconds, with parts that do not count."""

    def __init__(self) -> None:
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        self._aside_cpu_s = self._aside_wall_s = 0.0

    def aside(self, cpu_start_s: float, wall_start_s: float) -> None:
        """Takes out what this thread has done since then (`time.thread_time()`, `time.perf_counter()`)."""
        self._aside_cpu_s += time.thread_time() - cpu_start_s
        self._aside_wall_s += time.perf_counter() - wall_start_s

    def read(self) -> tuple[float, float]:
        """Returns CPU-seconds and wall seconds."""
        return (
            time.process_time() - self._cpu_s - self._aside_cpu_s,
            time.perf_counter() - self._wall_s - self._aside_wall_s,
        )


def ingest(core: JoinCore, num_slates: int, num_items: int) -> tuple[dict[str, float], Resume]:
    """Reads all messages; returns what it cost, and how far it came."""
    decoder = EventDecoder(SCHEMA)
    meter = Meter()
    next_impression = next_feedback = newest_ms = 0
    decode_s = 0.0
    messages = chunks(num_slates, num_items)
    while True:
        start = time.thread_time(), time.perf_counter()
        chunk = next(messages, None)
        if chunk is None:
            break
        decoding_s = time.perf_counter()
        events = [decoder.feedback(data) if b'"event_id"' in data else decoder.impression(data) for data in chunk]
        decode_s += time.perf_counter() - decoding_s
        meter.aside(*start)
        for event in events:
            if isinstance(event, Impression):
                newest_ms = event.ts
                core.observe_impression(event, next_impression)
                next_impression += 1
            else:
                core.observe_feedback(event, next_feedback)
                next_feedback += 1
        core.advance(newest_ms - 500)
        core.oldest_needed(next_impression, next_feedback)
        del events
    cpu_s, wall_s = meter.read()
    found = {
        "events_per_cpu_s": (num_slates * num_items + next_feedback) / cpu_s,
        "events_per_s": (num_slates * num_items + next_feedback) / wall_s,
        "replay_s": decode_s + wall_s,
        "peak_mib": memory_mib("VmHWM"),
    }
    return found, Resume(next_impression, next_feedback, core.watermark_ms)


def close_first(core: JoinCore, num_slates: int) -> float:
    """Closes the first slates, a few at a time as a stream does; returns slates per CPU-second."""
    start_s = time.process_time()
    first_ms = START_MS + SCHEMA.max_window_ms + CONFIG.grace_ms
    num_closed = 0
    for at_ms in range(first_ms, first_ms + num_slates, CHUNK):
        num_closed += len(core.advance(at_ms + CHUNK))
    assert num_closed >= num_slates, num_closed
    return num_closed / (time.process_time() - start_s)


def in_memory(num_slates: int, num_items: int) -> dict[str, float]:
    """Returns the figures with all state in memory."""
    gc.set_threshold(50_000, 20, 100)
    before_mib = memory_mib("VmRSS")
    core = JoinCore(SCHEMA, CONFIG)
    found, _ = ingest(core, num_slates, num_items)
    found["peak_mib"] -= before_mib
    return found | {"closes_per_cpu_s": close_first(core, min(num_slates, NUM_CLOSED))}


def spilled(num_slates: int, num_items: int, hot_items: int, directory: str) -> dict[str, float]:
    """Returns the figures with a budget, and those of snapshot and restart."""
    gc.set_threshold(50_000, 20, 100)
    before_mib = memory_mib("VmRSS")
    spill = Spill(SpillConfig(directory=directory, hot_items=hot_items))
    state = spill.take_up(PARTITION, Resume(), "labels", "life").state
    core = JoinCore(SCHEMA, CONFIG, state=state)
    found, resume = ingest(core, num_slates, num_items)

    def save() -> float:
        start_s = time.perf_counter()
        spill.save(
            PARTITION,
            SnapshotRecord(
                labels="labels",
                lineage="life",
                next_impression=resume.next_impression,
                next_feedback=resume.next_feedback,
                watermark_ms=core.watermark_ms,
            ),
        )
        return time.perf_counter() - start_s

    found["first_snapshot_s"] = save()
    random = Random(1)
    orders = [order(random.randrange(num_slates), START_MS + num_slates + number) for number in range(NUM_THAWED)]
    before = state.num_thawed
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    for offset, feedback in enumerate(orders, resume.next_feedback):
        core.observe_feedback(feedback, offset)
    found["frozen_feedback_per_cpu_s"] = NUM_THAWED / (time.process_time() - cpu_s)
    found["frozen_feedback_per_s"] = NUM_THAWED / (time.perf_counter() - wall_s)
    found["thawed_share"] = (state.num_thawed - before) / NUM_THAWED
    resume = resume._replace(next_feedback=resume.next_feedback + NUM_THAWED)
    found["next_snapshot_s"] = save()
    spill.close()
    del core, state

    start_s = time.perf_counter()
    spill = Spill(SpillConfig(directory=directory, hot_items=hot_items))
    taken = spill.take_up(PARTITION, resume, "labels", "life")
    core = JoinCore(SCHEMA, CONFIG, resume, taken.state)
    found["restore_s"] = time.perf_counter() - start_s
    assert taken.record is not None
    assert taken.state.num_slates == num_slates
    found["closes_per_cpu_s"] = close_first(core, min(num_slates, NUM_CLOSED))
    found["peak_mib"] = memory_mib("VmHWM") - before_mib
    spill.close()
    found["disk_mib"] = sum(file.stat().st_size for file in Path(directory).rglob("snapshot-00000002/*")) / 2**20
    return found


def in_child(function: Any, *arguments: Any) -> dict[str, float]:
    """Returns what a function returns in a process of its own, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, float] = pool.apply(function, arguments)
    return found


def compare(num_items: int, slate_size: int, hot_items: int) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the figures with the budget, and with all state in memory (of a million items at most)."""
    with tempfile.TemporaryDirectory() as directory:
        with_budget = in_child(spilled, num_items // slate_size, slate_size, hot_items, directory)
    return with_budget, in_child(in_memory, min(num_items, IN_MEMORY_ITEMS) // slate_size, slate_size)


def measure(num_items: int = SHORT_ITEMS, hot_items: int = 100_000) -> dict[str, Figure]:
    """Returns the cost of the budget for slates of 1, with slates of 20 beside it."""
    of_1, memory_1 = compare(num_items, 1, hot_items)
    of_20, memory_20 = compare(num_items, 20, hot_items)
    scale = num_items / min(num_items, IN_MEMORY_ITEMS)

    def figure(name: str, unit: str, note: str, **peers: float) -> Figure:
        value = of_1[name]
        beside = {label.replace("_", " "): peer for label, peer in peers.items()}
        return Figure(
            value=value,
            unit=unit,
            ci=(value, value),
            command=f"{COMMAND} --items {num_items} --hot-items {hot_items}",
            peers={"slates of 20": of_20[name]} | beside,
            note=f"{note}; {num_items:,} open items in slates of 1, {hot_items:,} in memory",
        )

    def with_memory(name: str, unit: str, note: str) -> Figure:
        return figure(name, unit, note, in_memory=memory_1[name], in_memory_slates_of_20=memory_20[name])

    return {
        "spill.peak": with_memory("peak_mib", "MiB", "most memory beyond that of the empty process"),
        "spill.ingest": with_memory("events_per_cpu_s", "events/CPU-s", "decoded events into the core"),
        "spill.close": with_memory("closes_per_cpu_s", "slates/CPU-s", "closes after a restart, all read from disk"),
        "spill.feedback": figure("frozen_feedback_per_cpu_s", "events/CPU-s", "feedback on slates drawn from all"),
        "spill.snapshot": figure(
            "first_snapshot_s",
            "s",
            "pause of the first snapshot",
            next_one=of_1["next_snapshot_s"],
            next_one_slates_of_20=of_20["next_snapshot_s"],
        ),
        "spill.restore": figure(
            "restore_s",
            "s",
            "from an open snapshot to reading on; beside it decoding and joining the log anew",
            replay=memory_1["replay_s"] * scale,
            replay_slates_of_20=memory_20["replay_s"] * scale,
        ),
        "spill.disk": figure("disk_mib", "MiB", "one snapshot"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=SHORT_ITEMS)
    parser.add_argument("--hot-items", type=int, default=100_000)
    arguments = parser.parse_args()
    for key, figure in measure(arguments.items, arguments.hot_items).items():
        print(key, figure.as_json(), flush=True)
