"""Progressive validation: each settled label is scored once, by a score made before anything of it was learned.

Letters: B rows, S scenarios, T tasks.

Four series, kept apart: `served`, the score logged with the impression; `pre_step`, the trainer's own just before
learning; `calibrated`, the same as it would be served (`model.calibrator`; empty without calibration); and `counted`,
the one that counts: served where the log has it, else calibrated. The mean distance of served and calibrated is the
train/serve skew. Under a policy that corrects labels later the truth comes in a row of its own (a settled
kind), when the trainer may have learned the item already: there the pre-step score is that of the item's first
emission, kept until then where none was served. A score of a repeated row is never a metric.

Three spans: `lifetime` and `window` count a label when it is emitted. Under the `eager` policy positives are emitted up
to a label window before the negatives of the same slates, so their edges mix early positives with old negatives: read
them as provisional. `closed` counts an impression only when all labels of its cohort (impressions of one stretch of
event time) must have arrived: unbiased, but a label window old.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from model.calibrator import CalibrationConfig, Calibrator, Pairs
from model.delayed_labels import DelayedLabels, probability_logits
from model.kept_scores import KeptScores
from model.metrics import (
    MAX_LOGIT,
    Arrays,
    BoolArray,
    Figures,
    Float64Array,
    Int64Array,
    ScoredLabels,
    Tally,
    logit_of,
    scored_labels,
)
from stream.schema import KIND_CODE

SeriesName = Literal["counted", "served", "pre_step", "calibrated"]
Span = Literal["lifetime", "window", "closed"]
Report = dict[str, dict[str, Figures]]
"""Task -> "all" or scenario -> figures."""
_TASK_FACTOR = np.int64(0x27D4EB2F165667C5)
"""Keeps the tasks of one item apart; odd."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """Widths of the metrics' windows."""

    window_labels: int = 100_000
    """Final labels (of all tasks together) in the sliding window; at least 1."""
    window_buckets: int = 8
    """Parts of the sliding window; the oldest part leaves at once; at least 2."""
    cohort_ms: int = 10_000
    """Impressions of so many ms of event time are judged together when their labels are complete; at least 1.
    Never less than a twelfth of the longest label window, so that few cohorts are open at once."""
    kept_scores: int = 1_000_000
    """Pre-step scores that wait for their settled label, at most; only where a policy corrects labels later and the
    log has no served score. About 70 bytes each; at least 1."""

    def __post_init__(self) -> None:
        for name, least in (("window_labels", 1), ("window_buckets", 2), ("cohort_ms", 1), ("kept_scores", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")


class Series:
    """One kind of score over all time and over about the last `window_labels` labels.

    The window is a ring of tallies: the current one takes labels until it has its share, then the oldest is cleared.
    A share ends with the micro-batch that fills it.
    """

    def __init__(self, num_cells: int, config: MetricsConfig) -> None:
        self._share = config.window_labels / config.window_buckets
        self._current = 0
        self.lifetime = Tally(num_cells)
        self._ring = [Tally(num_cells) for _ in range(config.window_buckets)]

    def add(self, scored: ScoredLabels) -> None:
        """Counts some labels in."""
        self.lifetime.add(scored)
        if self._ring[self._current].sums[0].sum() >= self._share:
            self._current = (self._current + 1) % len(self._ring)
            self._ring[self._current].clear()
        self._ring[self._current].add(scored)

    def add_cells(self, num_cells: int) -> None:
        """Makes room for more cells, after those there are; whoever reads meanwhile sees the old ones or the new."""
        self.lifetime = self.lifetime.with_cells(num_cells)
        self._ring = [tally.with_cells(num_cells) for tally in self._ring]

    def window(self) -> Tally:
        """Returns the sums over the sliding window."""
        return Tally.total(self._ring)

    def state(self) -> Arrays:
        """Returns all that is needed to go on exactly."""
        return {"current": np.array([self._current])} | _states(self._named())

    def load_state(self, state: Arrays) -> None:
        """Takes up a state of the same shape."""
        self._current = int(state["current"][0])
        _load_states(self._named(), state)

    def _named(self) -> dict[str, Tally]:
        return {"lifetime": self.lifetime} | {f"bucket{index}": tally for index, tally in enumerate(self._ring)}


class Cohorts:
    """Labels by the event time of their impression, shown when the cohort is closed.

    A cohort closes when the watermark is `settle_ms` (longest label window + grace) past its end. A label that comes
    later still is as true as the others: it is counted with the closed ones.
    """

    def __init__(self, num_cells: int, cohort_ms: int) -> None:
        self._num_cells = num_cells
        self._cohort_ms = cohort_ms
        self._closed_before = 0
        self._open: dict[int, Tally] = {}
        self.closed = Tally(num_cells)

    def add_cells(self, num_cells: int) -> None:
        """Makes room for more cells, after those there are."""
        self._num_cells += num_cells
        self.closed = self.closed.with_cells(num_cells)
        self._open = {index: tally.with_cells(num_cells) for index, tally in self._open.items()}

    def add(self, scored: ScoredLabels, impression_ms: Int64Array) -> None:
        """Counts some labels in, each under its impression's time."""
        cohort = impression_ms // self._cohort_ms
        for index in np.unique(cohort).tolist():
            tally = self.closed if index < self._closed_before else self._open.setdefault(index, Tally(self._num_cells))
            tally.add(scored.take(cohort == index))

    def advance(self, watermark_ms: int, settle_ms: int) -> None:
        """Closes the cohorts whose labels must all have arrived."""
        closed_before = (watermark_ms - settle_ms) // self._cohort_ms
        if closed_before > self._closed_before:
            self._closed_before = closed_before
            for index in sorted(index for index in self._open if index < closed_before):
                self.closed.merge(self._open.pop(index))

    def state(self) -> Arrays:
        """Returns all that is needed to go on exactly."""
        here = {"closed_before": np.array([self._closed_before]), "open": np.array(sorted(self._open), np.int64)}
        return here | _states(self._named())

    def load_state(self, state: Arrays) -> None:
        """Takes up a state of the same shape."""
        self._closed_before = int(state["closed_before"][0])
        self._open = {int(index): Tally(self._num_cells) for index in state["open"]}
        _load_states(self._named(), state)

    def _named(self) -> dict[str, Tally]:
        return {"closed": self.closed} | {f"cohort{index}": self._open[index] for index in sorted(self._open)}


class ProgressiveMetrics:
    """All series and spans of one trainer."""

    def __init__(
        self,
        scenarios: Sequence[str],
        tasks: Sequence[str],
        config: MetricsConfig,
        max_window_ms: int,
        calibration: CalibrationConfig | None = None,
    ) -> None:
        """`calibration`: how scores are calibrated when they are served; None: not at all."""
        self._scenarios, self._tasks = tuple(scenarios), tuple(tasks)
        num_cells = len(self._scenarios) * len(self._tasks)
        self._series: dict[SeriesName, Series] = {name: Series(num_cells, config) for name in get_args(SeriesName)}
        cohort_ms = max(config.cohort_ms, max_window_ms // 12)
        self._cohorts = Cohorts(num_cells, cohort_ms)
        self._calibrator: Calibrator | None = None
        if calibration is not None and calibration.form == "affine":
            self._calibrator, self._own_cohorts = Calibrator(num_cells, calibration), Cohorts(num_cells, cohort_ms)
        self._skew = np.zeros(2)  # n, sum of |served - pre-step| as probabilities
        self._kept = KeptScores(config.kept_scores)
        self._watermark_ms = self._settle_ms = self._num_unscored = 0

    def add_scenario(self, name: str) -> None:
        """Makes room for one more scenario, whose index is the next one."""
        for series in self._series.values():
            series.add_cells(len(self._tasks))
        self._cohorts.add_cells(len(self._tasks))
        if self._calibrator is not None:
            self._calibrator.add_cells(len(self._tasks))
            self._own_cohorts.add_cells(len(self._tasks))
        self._scenarios += (name,)  # last, for whoever reads a report meanwhile

    def update(
        self,
        *,
        scenario_B: Int64Array,
        impression_ms_B: Int64Array,
        label_BT: npt.NDArray[np.floating],
        settled_BT: BoolArray,
        pre_step_logit_BT: npt.NDArray[np.floating],
        served_BT: npt.NDArray[np.floating],
        first_BT: BoolArray | None = None,
        delayed: DelayedLabels | None = None,
    ) -> None:
        """Counts the settled labels of a batch in, before the batch is learned.

        `served_BT` holds probabilities, NaN where none was logged. Labels that are not settled are not looked at; with
        `delayed` the scores of first emissions (`first_BT`) are kept.
        """
        if delayed is not None and first_BT is not None:
            is_kept_BT = first_BT & ~settled_BT & np.isnan(served_BT)
            pre_step_logit_BT = self._first_scores(delayed, pre_step_logit_BT, settled_BT, is_kept_BT)
        row, task = np.nonzero(settled_BT)
        pre_step = np.clip(pre_step_logit_BT[row, task].astype(np.float64), -MAX_LOGIT, MAX_LOGIT)
        served = logit_of(served_BT[row, task])
        has_served = ~np.isnan(served)
        has_pre_step = ~np.isnan(pre_step)
        if not has_pre_step.all():
            has_score = has_served | has_pre_step
            self._num_unscored += int((~has_score).sum())
            row, task, pre_step, served = row[has_score], task[has_score], pre_step[has_score], served[has_score]
            has_served, has_pre_step = has_served[has_score], has_pre_step[has_score]
        label = label_BT[row, task].astype(np.float64)
        cell = scenario_B[row] * len(self._tasks) + task
        own = scored_labels(cell[has_pre_step], label[has_pre_step], pre_step[has_pre_step])
        self._series["pre_step"].add(own)
        if self._calibrator is not None:
            pre_step = np.clip(self._calibrator.calibrated(cell, pre_step), -MAX_LOGIT, MAX_LOGIT)
            calibrated = scored_labels(cell[has_pre_step], label[has_pre_step], pre_step[has_pre_step])
            self._series["calibrated"].add(calibrated)
            self._own_cohorts.add(own, impression_ms_B[row[has_pre_step]])
        counted = scored_labels(cell, label, np.where(has_served, served, pre_step))
        self._series["counted"].add(counted)
        self._series["served"].add(counted.take(has_served))
        self._cohorts.add(counted, impression_ms_B[row])
        both = has_served & has_pre_step
        distance = np.abs(_sigmoid(served[both]) - _sigmoid(pre_step[both]))
        self._skew += (len(distance), distance.sum())

    def _first_scores(
        self,
        delayed: DelayedLabels,
        logit_BT: npt.NDArray[np.floating],
        settled_BT: BoolArray,
        is_kept_BT: BoolArray,
    ) -> Float64Array:
        """Keeps the scores of `is_kept_BT`. Returns logits of P(y=1), of settled cells those of their first emission.

        NaN where none was kept.
        """
        first_logit_BT = probability_logits(delayed, logit_BT)
        key_BT = delayed.key_B[:, None] + np.arange(len(self._tasks)) * _TASK_FACTOR
        row, task = np.nonzero(is_kept_BT)
        if len(row):
            lasts_ms = np.maximum(delayed.window_ms_BT[row, task], self._settle_ms)
            settles_ms = delayed.impression_ms_B[row] + lasts_ms
            self._kept.keep(key_BT[row, task], first_logit_BT[row, task], settles_ms, self._watermark_ms)
        # What is final is its own first emission.
        is_later_BT = settled_BT & (delayed.kind_BT != KIND_CODE["final"])
        first_logit_BT[is_later_BT] = self._kept.take(key_BT[is_later_BT])
        return first_logit_BT

    @property
    def scenarios(self) -> tuple[str, ...]:
        """The scenarios by index."""
        return self._scenarios

    @property
    def num_unscored(self) -> int:
        """Settled labels that are in no figure, because no score of them is left."""
        return self._num_unscored

    @property
    def num_scores_dropped(self) -> int:
        """Kept scores that were refused for want of room, or given up because their label never came."""
        return self._kept.num_dropped

    def advance(self, watermark_ms: int, settle_ms: int) -> None:
        """Closes the cohorts whose labels must all have arrived: `settle_ms` = longest label window + grace."""
        self._watermark_ms, self._settle_ms = watermark_ms, settle_ms
        self._cohorts.advance(watermark_ms, settle_ms)
        if self._calibrator is not None:
            self._own_cohorts.advance(watermark_ms, settle_ms)
            self._calibrator.learn(self._own_cohorts.closed)
            self._own_cohorts.closed.clear()

    def calibration(self) -> Pairs:
        """Returns the calibration with which the model is to be served now; empty where it is served as it is."""
        return {} if self._calibrator is None else self._calibrator.pairs(self._scenarios, self._tasks)

    def report(self, span: Span = "lifetime", series: SeriesName = "counted") -> Report:
        """Returns the figures of one span and series; `closed` exists for `counted` only.

        Raises:
            ValueError: `closed` of another series than `counted`.
        """
        tally = self._tally(span, series)
        num_tasks = len(self._tasks)
        report: Report = {}
        for index, task in enumerate(self._tasks):
            cells = [scenario * num_tasks + index for scenario in range(len(self._scenarios))]
            report[task] = {"all": tally.figures(cells)}
            for name, cell in zip(self._scenarios, cells, strict=True):
                report[task][name] = tally.figures([cell])
        return report

    def _tally(self, span: Span, series: SeriesName) -> Tally:
        if span == "closed":
            if series != "counted":
                raise ValueError(f"series: {series!r} is not kept by closed cohorts; counted")
            return self._cohorts.closed
        return self._series[series].lifetime if span == "lifetime" else self._series[series].window()

    @property
    def num_skew(self) -> int:
        """How many settled labels had both a served and a pre-step score."""
        return int(self._skew[0])

    @property
    def mean_skew(self) -> float:
        """Mean |served - pre-step| as probabilities over all time; 0 before the first."""
        return float(self._skew[1] / self._skew[0]) if self._skew[0] else 0.0

    def state(self) -> Arrays:
        """Returns all that is needed to go on exactly."""
        clock = [self._watermark_ms, self._settle_ms, self._num_unscored]
        arrays: Arrays = {"skew": self._skew.copy(), "clock": np.array(clock)}
        for name, part in self._parts():
            arrays |= {f"{name}/{key}": value for key, value in part.state().items()}
        return arrays

    def load_state(self, state: Arrays) -> None:
        """Takes up the state of metrics with the same scenarios, tasks and config."""
        self._skew[:] = state["skew"]
        self._watermark_ms, self._settle_ms, self._num_unscored = state["clock"].tolist()
        for name, part in self._parts():
            prefix = f"{name}/"
            part.load_state({key.removeprefix(prefix): a for key, a in state.items() if key.startswith(prefix)})

    def _parts(self) -> Iterator[tuple[str, Series | Cohorts | KeptScores | Calibrator]]:
        yield from self._series.items()
        yield "cohorts", self._cohorts
        yield "kept", self._kept
        if self._calibrator is not None:
            yield "own_cohorts", self._own_cohorts
            yield "calibrator", self._calibrator


def _sigmoid(logit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-logit))


def _states(tallies: dict[str, Tally]) -> Arrays:
    return {f"{name}.{key}": array for name, tally in tallies.items() for key, array in tally.state().items()}


def _load_states(tallies: dict[str, Tally], state: Arrays) -> None:
    for name, tally in tallies.items():
        tally.load_state({key: state[f"{name}.{key}"] for key in ("sums", "bins", "counts")})
