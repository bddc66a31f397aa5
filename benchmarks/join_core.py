"""P2: how many decoded events per CPU-second can the join core label?

Events = impression items + feedback, 10 items a slate, in arrival order with jitter; one click on a quarter of the
slates; a watermark every 500 messages, as after a poll. A window of ten seconds and twenty seconds of events at 2,000
slates a second: 24,000 slates are open while others close. The peer is the least that could do the job: one dict and
one deque, no grace per task, no duplicates, no disorder, no recovery. Both must find the same labels. The decoded
events are kept out of the garbage collector's sight (`gc.freeze`): a stream does not hold its past in memory; its
thresholds are those of `freshrank join`.
"""

import gc
from collections import Counter, deque

import numpy as np

from benchmarks.harness import Figure, cpu_rate
from freshrank.join import GC_THRESHOLDS
from stream.join import JoinConfig, JoinCore
from stream.schema import Feedback, Impression, Items, SchemaConfig, TaskConfig

WINDOW_MS, GRACE_MS, JITTER_MS = 10_000, 2_000, 500
SCHEMA = SchemaConfig(
    scenarios=("home",), tasks={"click": TaskConfig(action="click", window_ms=WINDOW_MS, policy="eager")}
)
COMMAND = "python -m benchmarks.join_core"


def arrivals(num_slates: int, slate_size: int, seed: int = 1) -> list[Impression | Feedback]:
    """Returns slates and clicks by time of arrival."""
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.integers(0, num_slates // 2, num_slates)) + 1_790_000_000_000
    found: list[tuple[float, Impression | Feedback]] = []
    for number, start in enumerate(starts.tolist()):
        first, step = rng.integers(50_000), rng.integers(1, 1_000)
        ids = [f"item-{first + index * step}" for index in range(slate_size)]
        user = f"user-{number % 20_000}"
        found.append((start + rng.random() * JITTER_MS, Impression(f"r-{number:x}", user, "home", start, Items(ids))))
        if rng.random() < 0.25:
            # Never before its slate has arrived: the peer would lose it.
            at = start + min(JITTER_MS + int(rng.exponential(1_500)), WINDOW_MS)
            click = Feedback(
                f"r-{number:x}", user, ids[int(rng.integers(slate_size))], "click", at, 1.0, f"e-{number:x}"
            )
            found.append((at + 1 + rng.random() * JITTER_MS, click))
    return [event for _, event in sorted(found, key=lambda arrival: arrival[0])]


def join(events: list[Impression | Feedback]) -> Counter[int]:
    """Runs the join core over all events; returns how many labels of each value it gave."""
    core = JoinCore(SCHEMA, JoinConfig(grace_ms=GRACE_MS, out_of_orderness_ms=JITTER_MS, max_ahead_ms=0))
    newest_ms = 0
    emissions = []
    for offset, event in enumerate(events):
        newest_ms = max(newest_ms, event.ts)
        if isinstance(event, Impression):
            emissions += core.observe_impression(event, offset)
        else:
            emissions += core.observe_feedback(event, offset)
        if offset % 500 == 0:
            emissions += core.advance(newest_ms - JITTER_MS)
            core.oldest_needed(offset + 1, offset + 1)
            emissions.clear()  # as after a commit
    core.advance(newest_ms * 2)
    return Counter({1: core.counters.positives, 0: core.counters.negatives})


def dict_join(events: list[Impression | Feedback]) -> Counter[int]:
    """The same labels by the plainest loop there is."""
    counts: Counter[int] = Counter()
    open_slates: dict[str, tuple[Impression, set[str]]] = {}
    order: deque[tuple[int, str]] = deque()
    newest_ms = 0
    for event in events:
        newest_ms = max(newest_ms, event.ts)
        if isinstance(event, Impression):
            open_slates[event.request_id] = (event, set())
            order.append((event.ts, event.request_id))
        elif event.request_id in open_slates:
            slate, clicked = open_slates[event.request_id]
            in_window = 0 <= event.ts - slate.ts <= WINDOW_MS
            if in_window and event.item_id in slate.items.id and event.item_id not in clicked:
                clicked.add(event.item_id)
                counts[1] += 1
        while order and order[0][0] + WINDOW_MS + GRACE_MS < newest_ms - JITTER_MS:
            slate, clicked = open_slates.pop(order.popleft()[1])
            counts[0] += sum(1 for item in slate.items.id if item not in clicked)
    counts[0] += sum(len(slate.items.id) - len(clicked) for slate, clicked in open_slates.values())
    return counts


def rates(num_slates: int, slate_size: int, repeats: int) -> tuple[float, tuple[float, float], float]:
    """Returns the core's events/CPU-s with its range, and the dict join's."""
    events = arrivals(num_slates, slate_size)
    num_events = sum(len(event.items.id) if isinstance(event, Impression) else 1 for event in events)
    gc.freeze()
    if join(events) != dict_join(events):
        raise RuntimeError(f"the join core and the dict join disagree: {join(events)}, {dict_join(events)}")

    def run_core() -> int:
        join(events)
        return num_events

    def run_peer() -> int:
        dict_join(events)
        return num_events

    core, peer = cpu_rate(run_core, repeats=repeats), cpu_rate(run_peer, repeats=repeats)
    gc.unfreeze()
    return core.per_cpu_s, core.per_cpu_s_range, peer.per_cpu_s


def measure(num_slates: int = 40_000, repeats: int = 5) -> dict[str, Figure]:
    """Returns P2 for slates of 10, with slates of 1 and 20 beside it."""
    gc.set_threshold(*GC_THRESHOLDS)
    value, ci, peer = rates(num_slates, 10, repeats)
    peers = {"dict join, slates of 10": peer}
    for size in (1, 20):
        core_rate, _, peer_rate = rates(num_slates // 2, size, max(1, repeats // 2))
        peers |= {f"this core, slates of {size}": core_rate, f"dict join, slates of {size}": peer_rate}
    return {
        "P2": Figure(
            value=value,
            unit="events/CPU-s",
            ci=ci,
            command=COMMAND,
            peers=peers,
            note="decoded events (impression items + feedback), slates of 10, one task, policy eager",
        )
    }


if __name__ == "__main__":
    for key, figure in measure().items():
        print(key, figure.as_json())
