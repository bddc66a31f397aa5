"""What the join core makes of a world of delayed feedback: the rows of each task, in order of their triggers.

Letters: S slates, N items, R rows. One core joins all tasks at once, as it would one topic with several policies.
"""

from array import array
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.study_world import DelayWorld
from stream.emission import Emission
from stream.join import JoinConfig, JoinCore
from stream.schema import KIND_CODE, Feedback, Impression, Items, SchemaConfig, TaskConfig

ACTION = "order"
_SCENARIO = "home"
_NONE = KIND_CODE["none"]

IntArray = npt.NDArray[np.integer[Any]]


class Rows(NamedTuple):
    """Labels of one task as they went out, in order of their triggers."""

    item_R: IntArray
    """Which item of the world."""
    kind_R: IntArray
    label_R: npt.NDArray[np.float64]
    delay_ms_R: IntArray
    """-1 for a negative."""
    trigger_ms_R: IntArray
    """Event time of what made the label known."""
    ratio_R: npt.NDArray[np.float64]
    """Traffic ratio; 1 where none is stamped."""

    def take(self, place_R: Any) -> "Rows":
        """Returns some rows, by places, mask or slice, in the order given."""
        columns: tuple[Any, ...] = self
        return Rows(*(column_R[place_R] for column_R in columns))


class _Collected:
    """Rows of one task while they come."""

    def __init__(self) -> None:
        self.columns: tuple[Any, ...] = tuple(array(code) for code in ("q", "b", "d", "q", "q", "d"))

    def rows(self) -> Rows:
        rows = Rows(*map(np.array, self.columns))
        rows = rows.take(rows.kind_R != _NONE)
        return rows.take(np.argsort(rows.trigger_ms_R, kind="stable"))


def in_time(world: DelayWorld) -> Iterable[tuple[int, int]]:
    """Yields (slate, -1) and (slate, item of the world) for each slate and feedback, in order of event time."""
    slates_S = np.arange(len(world.shown_ms_S))
    items_P = np.flatnonzero(world.delay_ms_N >= 0)
    times = np.concatenate([world.shown_ms_S, world.shown_ms_N[items_P] + world.delay_ms_N[items_P]])
    slates = np.concatenate([slates_S, items_P // world.config.slate_size])
    items = np.concatenate([np.full(len(slates_S), -1), items_P])
    order = np.argsort(times, kind="stable")
    return zip(slates[order].tolist(), items[order].tolist(), strict=True)


def join_rows(
    world: DelayWorld,
    tasks: Mapping[str, TaskConfig],
    config: JoinConfig,
    *,
    lag_ms: int = 0,
) -> dict[str, Rows]:
    """Returns the rows of each task, from the first slate until the last window has closed.

    The core reads both topics in order of event time; its watermark trails them by `out_of_orderness_ms` + `lag_ms`.
    Every task must have the action `order`.
    """
    schema = SchemaConfig(scenarios=(_SCENARIO,), tasks=dict(tasks))
    core = JoinCore(schema, config)
    collected = {task: _Collected() for task in tasks}
    size = world.config.slate_size
    ids = [str(row) for row in range(size)]
    shown_ms = world.shown_ms_S.tolist()
    delays_ms = world.delay_ms_N.tolist()
    num_impressions = num_feedback = 0
    for slate, item in in_time(world):
        request_id = str(slate)
        if item < 0:
            now_ms = shown_ms[slate]
            emissions = core.advance(now_ms - config.out_of_orderness_ms - lag_ms)
            impression = Impression(request_id, "user", _SCENARIO, now_ms, Items(id=ids))
            emissions += core.observe_impression(impression, num_impressions)
            num_impressions += 1
        else:
            now_ms = shown_ms[slate] + delays_ms[item]
            emissions = core.advance(now_ms - config.out_of_orderness_ms - lag_ms)
            feedback = Feedback(request_id, "user", ids[item % size], ACTION, now_ms, event_id=ids[item % size])
            emissions += core.observe_feedback(feedback, num_feedback)
            num_feedback += 1
        if emissions:
            _collect(collected, emissions, size)
    _collect(collected, core.advance(shown_ms[-1] + schema.max_window_ms + config.grace_ms + 1), size)
    return {task: rows.rows() for task, rows in collected.items()}


def as_oracle(rows: Rows, world: DelayWorld) -> Rows:
    """Returns the rows of `wait` as if their labels had been known when the slates were shown."""
    shown_ms_R = world.shown_ms_N[rows.item_R]
    return rows._replace(trigger_ms_R=shown_ms_R).take(np.argsort(shown_ms_R, kind="stable"))


def _collect(collected: Mapping[str, _Collected], emissions: Iterable[Emission], size: int) -> None:
    for emission in emissions:
        first = int(emission.impression.request_id) * size
        rows = [first + row for row in emission.rows]
        triggers_ms = [emission.trigger_ms] * len(rows)
        for task, column in emission.columns.items():
            item, kind, label, delay_ms, trigger_ms, ratio = collected[task].columns
            item.extend(rows)
            kind.extend([KIND_CODE[name] for name in column.kind])
            label.extend(column.label)
            delay_ms.extend(column.delay_ms)
            trigger_ms.extend(triggers_ms)
            ratio.extend([1.0] * len(rows) if column.ratio is None else column.ratio)
