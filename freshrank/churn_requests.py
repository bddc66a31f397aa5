"""The requests of a churn report: the newest slates of a recorded log, frozen, with what is known of their labels.

Letters: N requests, K candidates (padded, by rising item id), B rows, T tasks.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from freshrank.slate_scorer import slate_columns
from model.serving import ServingModel
from stream.recorded import RecordedLog
from stream.schema import Feedback, Impression, SchemaConfig

CHUNK_REQUESTS = 64
"""Requests scored at once."""
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class Key(NamedTuple):
    """What a label is about."""

    request_id: str
    item_id: str
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnRequests:
    """Requests that stand still."""

    slates: list[Impression]
    is_item_NK: BoolArray
    order_NK: npt.NDArray[np.int64]
    """Place in its slate of each candidate."""
    label_NKT: Float64Array
    is_labelled_NKT: BoolArray
    """Whether the label window had closed when the log ended."""

    @property
    def scenarios(self) -> list[str]:
        """Of each request."""
        return [slate.scenario for slate in self.slates]

    @property
    def users(self) -> list[str]:
        """Of each request."""
        return [slate.user_id for slate in self.slates]

    def scores(self, model: ServingModel, schema: SchemaConfig) -> Float64Array:
        """Returns a model's probabilities, [N, K, T]; 0 where there is no candidate."""
        found = np.zeros(self.label_NKT.shape)
        for start in range(0, len(self.slates), CHUNK_REQUESTS):
            chunk = self.slates[start : start + CHUNK_REQUESTS]
            score_BT = model.score(model.encode(slate_columns(chunk, schema))).astype(np.float64)
            ends = np.cumsum([len(slate.items.id) for slate in chunk])
            for n, score_KT in enumerate(np.split(score_BT, ends[:-1]), start=start):
                found[n, : len(score_KT)] = score_KT[self.order_NK[n, : len(score_KT)]]
        return found


def read_requests(folder: Path, schema: SchemaConfig, *, per_scenario: int) -> ChurnRequests:
    """Returns the newest slates of each scenario of a recorded log, at most `per_scenario`, and their labels.

    A label is 1 if its action came within the task's window after the slate.

    Raises:
        ValueError: no recorded log, a line in it that cannot be read, or no slate with two items.
    """
    newest: defaultdict[str, deque[Impression]] = defaultdict(lambda: deque(maxlen=per_scenario))
    first_ms: dict[Key, int] = {}
    end_ms = 0
    actions = {task.action for task in schema.tasks.values()}
    with TemporaryDirectory() as aside, RecordedLog(folder, schema, dead_letter=Path(aside) / "dead") as log:
        for event, _ in log:
            end_ms = max(end_ms, event.ts)
            if isinstance(event, Impression):
                if len(event.items.id) > 1:
                    newest[event.scenario].append(event)
            elif isinstance(event, Feedback) and event.action in actions:
                key = Key(event.request_id, event.item_id, event.action)
                first_ms[key] = min(event.ts, first_ms.get(key, event.ts))
        if log.counters.malformed:
            raise ValueError(f"{folder}: {log.counters.malformed} lines cannot be read; `freshrank replay` names them")
    if not newest:
        raise ValueError(f"{folder}: there is no slate of at least two items in it")
    order = [name for name in schema.scenarios if name in newest] + sorted(set(newest) - set(schema.scenarios))
    return frozen_requests([slate for name in order for slate in newest[name]], schema, first_ms, end_ms)


def frozen_requests(
    slates: list[Impression], schema: SchemaConfig, first_ms: dict[Key, int], end_ms: int
) -> ChurnRequests:
    """Returns slates with their labels, given when each action came first and when the log ended."""
    shape = len(slates), max(len(slate.items.id) for slate in slates)
    is_item_NK, order_NK = np.zeros(shape, np.bool_), np.zeros(shape, np.int64)
    label_NKT = np.zeros((*shape, len(schema.tasks)))
    is_labelled_NKT = np.zeros(label_NKT.shape, np.bool_)
    for n, slate in enumerate(slates):
        ids, size = slate.items.id, len(slate.items.id)
        order_NK[n, :size] = sorted(range(size), key=ids.__getitem__)
        is_item_NK[n, :size] = True
        for t, task in enumerate(schema.tasks.values()):
            came = (first_ms.get(Key(slate.request_id, ids[k], task.action)) for k in order_NK[n, :size])
            label_NKT[n, :size, t] = _within(came, slate.ts, task.window_ms)
            is_labelled_NKT[n, :size, t] = end_ms > slate.ts + task.window_ms
    return ChurnRequests(
        slates=slates,
        is_item_NK=is_item_NK,
        order_NK=order_NK,
        label_NKT=label_NKT,
        is_labelled_NKT=is_labelled_NKT,
    )


def _within(came_ms: Iterable[int | None], shown_ms: int, window_ms: int) -> list[bool]:
    return [ms is not None and 0 <= ms - shown_ms <= window_ms for ms in came_ms]
