"""A recorded log without a ranker: random slates, what users did with them, and the truth about both.

Event time is simulated, nothing reads a clock: the same seed gives the same bytes.
"""

import gzip
import heapq
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from sim.behaviour import Interest, Truth, sample_actions, truth
from sim.config import ACTIONS, SimConfig
from sim.delivery import Delivery
from sim.traffic import Traffic
from sim.world import World
from stream.schema import Feedback, Impression, Items, Sequence

START_MS = 1_790_000_000_000
"""Event time of the start of every recorded log."""


class RecordedFeedback(Feedback):
    """A line of `feedback.jsonl.gz`: also says when it arrived, where that is not its event time."""

    arrival_ts: int | None = None


class RecordedTruth(msgspec.Struct):
    """A line of `truth.jsonl.gz`: one impression with its shown items as columns."""

    request_id: str
    user_id: str
    scenario: str
    ts: int
    item_id: list[str]
    probability: dict[str, list[float]]
    """By action: the true probability that it happens to the item at its position, at any time."""
    outcome: dict[str, list[int]]
    """By action: 1 if it happened."""
    delay_ms: dict[str, list[int]]
    """By action: when it happened after the slate, in ms; -1 if it did not."""


@dataclass(slots=True, kw_only=True)
class RecordSummary:
    """How much was written."""

    impressions: int = 0
    items: int = 0
    feedback: int = 0
    """Lines, duplicates included."""
    clicks: int = 0
    orders: int = 0
    hides: int = 0


def write_recorded_log(
    folder: Path,
    requests: int,
    seed: int,
    config: SimConfig,
    on_progress: Callable[[int], None] = lambda _: None,
) -> RecordSummary:
    """Writes `impressions.jsonl.gz`, `feedback.jsonl.gz` and `truth.jsonl.gz` into `folder`, each in arrival order.

    The log is that of a service which ranks at random, so an item's propensity to be in the slate is
    slate / candidates. Each file is written aside and renamed at the end. `seed` takes the place of the config's;
    `on_progress` gets the number of requests done so far.

    Raises:
        ValueError: `requests` is less than 1.
    """
    if requests < 1:
        raise ValueError(f"requests: {requests} is not allowed; at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    encoder = msgspec.json.Encoder()
    summary = RecordSummary()
    with ExitStack() as files:
        lines = {
            kind: files.enter_context(_gzip_aside(folder / f"{name}.jsonl.gz"))
            for kind, name in (
                (Impression, "impressions"),
                (RecordedFeedback, "feedback"),
                (RecordedTruth, "truth"),
            )
        }
        for record in record_events(replace(config, seed=seed), requests):
            lines[type(record)].write(encoder.encode(record) + b"\n")
            match record:
                case RecordedTruth():
                    summary.clicks += sum(record.outcome["click"])
                    summary.orders += sum(record.outcome["order"])
                    summary.hides += sum(record.outcome["hide"])
                case Impression():
                    summary.impressions += 1
                    summary.items += len(record.items.id)
                    on_progress(summary.impressions)
                case RecordedFeedback():
                    summary.feedback += 1
    return summary


def record_events(config: SimConfig, num_requests: int) -> Iterator[Impression | RecordedFeedback | RecordedTruth]:
    """Yields a log in arrival order; each impression is followed by its truth."""
    world = World(config)
    rng = np.random.default_rng([config.seed, 7])
    traffic = Traffic(config, world.users(), rng)
    interest = Interest(config.interest_half_life_s)
    delivery = Delivery(config, rng)
    history = _History(config.sequence_length)
    now_ms = START_MS
    for number in range(num_requests):
        now_ms += max(1, round(1_000 * traffic.gap_s()))
        yield from _arrivals(delivery, now_ms)
        user_id, scenario = traffic.next((now_ms - START_MS) / 1_000)
        candidates = world.candidates(user_id, scenario, now_ms, config.candidates)
        shown_K = rng.permutation(config.candidates)[: config.slate]
        known = truth(
            world,
            user_id=user_id,
            scenario=scenario,
            now_ms=now_ms,
            candidates=candidates,
            interest_D=interest.at(user_id, now_ms),
        )
        request_id = f"r{config.seed}-{number}"
        item_id = [candidates.id[place] for place in shown_K.tolist()]
        yield Impression(
            request_id=request_id,
            user_id=user_id,
            scenario=scenario,
            ts=now_ms,
            items=Items(
                id=item_id,
                features={
                    name: [column[place] for place in shown_K.tolist()] for name, column in candidates.features.items()
                },
                propensity=[config.slate / config.candidates] * config.slate,
            ),
            context=world.context(user_id, scenario, now_ms),
            user=world.user_features(user_id),
            sequence=history.at(user_id, now_ms),
        )
        outcome = {action: [0] * config.slate for action in ACTIONS}
        delay_ms = {action: [-1] * config.slate for action in ACTIONS}
        for action in sample_actions(known, shown_K, config, rng):
            event_ms = now_ms + action.delay_ms
            outcome[action.action][action.position] = 1
            delay_ms[action.action][action.position] = action.delay_ms
            if action.action == "click":
                interest.clicked(user_id, candidates.vec_ND[shown_K[action.position]], event_ms)
            history.add(user_id, item_id[action.position], action.action, event_ms)
            delivery.add(
                Feedback(
                    request_id=request_id,
                    user_id=user_id,
                    item_id=item_id[action.position],
                    action=action.action,
                    ts=event_ms,
                    event_id=f"{request_id}:{action.position}:{action.action}",
                )
            )
        yield RecordedTruth(
            request_id=request_id,
            user_id=user_id,
            scenario=scenario,
            ts=now_ms,
            item_id=item_id,
            probability=_shown_probability(known, shown_K),
            outcome=outcome,
            delay_ms=delay_ms,
        )
    yield from _arrivals(delivery, None)


def _arrivals(delivery: Delivery, until_ms: int | None) -> Iterator[RecordedFeedback]:
    """Yields the feedback that arrives up to a moment; None: all that is left."""
    while (due_ms := delivery.next_due_ms()) is not None and (until_ms is None or due_ms <= until_ms):
        for arrival_ms, feedback in delivery.due(due_ms, 1):
            late_ms = None if arrival_ms == feedback.ts else arrival_ms
            yield RecordedFeedback(**msgspec.structs.asdict(feedback), arrival_ts=late_ms)


def _shown_probability(known: Truth, shown_K: NDArray[np.int64]) -> dict[str, list[float]]:
    examined_K = known.examined(len(shown_K))
    by_action = {"click": known.click_N, "order": known.order_N, "hide": known.hide_N}
    return {action: np.round(column[shown_K] * examined_K, 6).tolist() for action, column in by_action.items()}


class _History:
    """Every user's last actions, as a service that keeps sequences would know them: by event time, without delay."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._ahead: dict[str, list[tuple[int, str, str]]] = {}
        self._known: dict[str, deque[tuple[int, str, str]]] = {}

    def add(self, user_id: str, item_id: str, action: str, event_ms: int) -> None:
        heapq.heappush(self._ahead.setdefault(user_id, []), (event_ms, item_id, action))

    def at(self, user_id: str, now_ms: int) -> Sequence:
        """Returns what had happened before `now_ms`, newest first."""
        known = self._known.setdefault(user_id, deque(maxlen=self._length))
        ahead = self._ahead.get(user_id, [])
        while ahead and ahead[0][0] < now_ms:
            known.appendleft(heapq.heappop(ahead))
        return Sequence(
            item_id=[item_id for _, item_id, _ in known],
            action=[action for _, _, action in known],
            ts=[event_ms for event_ms, _, _ in known],
        )


@contextmanager
def _gzip_aside(path: Path) -> Iterator[gzip.GzipFile]:
    """Opens a gzip file that appears under its name only when complete; its bytes hold neither time nor name."""
    aside = path.with_name(path.name + ".part")
    try:
        with (
            aside.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed,
        ):
            yield packed
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    aside.replace(path)
