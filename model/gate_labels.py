"""Level 1 of the publish gate, labels and scores: per scenario and task, over cohorts whose labels are complete.

| check | blocks |
|---|---|
| `label_rate` | a label rate far from that of past windows and of the same hour of past days, beyond chance |
| `ne` | normalized entropy of the scores before learning significantly above its bound |
| `ne_relative` | the same significantly worse than that of the served scores of the same rows |
| `calibration` | sum of scores far from sum of labels |

A cohort is the impressions of a stretch of event time. A task's cohort is closed when the watermark is its own label
window and grace past it: a task that settles in seconds does not wait for one that takes a day. `ne` and `calibration`
begin once they have passed, NE beyond chance: a model that is new, or was never any good, has nothing to fall from.
Labels of one slate are no independent draws: `deflate` divides their number in every standard error.

Letters: S sums per cell, C cells (scenario * T + task), T tasks, B rows.
"""

import math

import numpy as np
import numpy.typing as npt

from model.gate_config import GateConfig
from model.gate_report import Finding
from model.metrics import MAX_LOGIT, Arrays, BoolArray, Float64Array, Int64Array, logit_of

N, POSITIVES, SCORES, LOSS, LOSS_SQUARED, PAIRED, PAIRED_POSITIVES, GAP, GAP_SQUARED = range(9)
"""What is summed. A gap is the loss before learning minus the loss of the served score, where both are there."""
NUM_SUMS = 9
KEEP = 0.9
"""Weight of a window in the reference after the next one."""
MIN_WINDOWS = 3
MIN_EXPECTED = 50
"""Positives expected in a window from which its label rate is judged."""
SIGMAS = 3.0
"""Standard errors by which NE must miss its bound."""
HOUR_MS = 3_600_000


class LabelChecks:
    """Sums labels and scores by cohort, and judges a window of closed ones against those before."""

    def __init__(
        self, config: GateConfig, scenarios: tuple[str, ...], windows_ms: dict[str, int], cohort_ms: int
    ) -> None:
        """`windows_ms`: label window of each task."""
        self._config, self._scenarios, self._tasks = config, scenarios, tuple(windows_ms)
        self._windows_ms = list(windows_ms.values())
        self._cohort_ms = cohort_ms
        num_cells = len(scenarios) * len(self._tasks)
        self._open: dict[int, Float64Array] = {}
        self._closed_before_T = [0] * len(self._tasks)
        self._window_CS = np.zeros((num_cells, NUM_SUMS))
        self._recent_CS = np.zeros((num_cells, NUM_SUMS))
        """Until there are enough positives for NE and calibration."""
        self._paired_CS = np.zeros((num_cells, NUM_SUMS))
        self._rates_C3 = np.zeros((num_cells, 3))
        """Reference: labels, positives, windows."""
        self._hours_HC2 = np.zeros((24, num_cells, 2))
        """Labels and positives by hour of the day, halved each day."""
        self._passed_2C = np.zeros((2, num_cells), np.bool_)
        """Where NE, and calibration, have ever passed."""
        self._hour = -1
        self.last_judged_ms: int | None = None
        """Processing time at which a NE was last judged."""

    def add_scenario(self, name: str) -> None:
        """Makes room for one more scenario, whose index is the next one."""
        num_tasks = len(self._tasks)
        self._scenarios += (name,)
        for name_of in ("_window_CS", "_recent_CS", "_paired_CS", "_rates_C3"):
            old = getattr(self, name_of)
            setattr(self, name_of, np.concatenate([old, np.zeros((num_tasks, old.shape[1]))]))
        self._hours_HC2 = np.concatenate([self._hours_HC2, np.zeros((24, num_tasks, 2))], axis=1)
        self._passed_2C = np.concatenate([self._passed_2C, np.zeros((2, num_tasks), np.bool_)], axis=1)
        grown = np.zeros((num_tasks, NUM_SUMS))
        self._open = {cohort: np.concatenate([sums_CS, grown]) for cohort, sums_CS in self._open.items()}

    def observe(
        self,
        scenario_B: Int64Array,
        impression_ms_B: Int64Array,
        label_BT: npt.NDArray[np.floating],
        settled_BT: BoolArray,
        logit_BT: npt.NDArray[np.floating],
        served_BT: npt.NDArray[np.floating],
    ) -> None:
        """Counts the settled labels of a batch in; scores as logits and as probabilities, NaN where there are none."""
        row, task = np.nonzero(settled_BT & ~np.isnan(logit_BT))
        label = label_BT[row, task].astype(np.float64)
        logit = np.clip(logit_BT[row, task].astype(np.float64), -MAX_LOGIT, MAX_LOGIT)
        loss = np.logaddexp(0.0, logit) - label * logit
        served = logit_of(served_BT[row, task])
        is_paired = ~np.isnan(served)
        served = np.where(is_paired, served, 0.0)
        gap = np.where(is_paired, loss - (np.logaddexp(0.0, served) - label * served), 0.0)
        score = 1.0 / (1.0 + np.exp(-logit))
        terms = [np.ones_like(label), label, score, loss, loss**2, is_paired, is_paired * label, gap, gap**2]
        cell, cohort = scenario_B[row] * len(self._tasks) + task, impression_ms_B[row] // self._cohort_ms
        num_cells = len(self._window_CS)
        for index in np.unique(cohort).tolist():
            here = cohort == index
            sums_CS = np.stack([np.bincount(cell[here], one[here], num_cells) for one in terms], axis=1).astype(
                np.float64
            )
            late_T = np.array([index < closed for closed in self._closed_before_T])
            is_late_C = np.tile(late_T, num_cells // len(self._tasks))
            self._window_CS[is_late_C] += sums_CS[is_late_C]
            if not is_late_C.all():
                sums_CS[is_late_C] = 0
                before_CS = self._open.get(index)
                self._open[index] = sums_CS if before_CS is None else before_CS + sums_CS

    def advance(self, watermark_ms: int, grace_ms: int) -> None:
        """Closes every task's cohorts whose labels must all have arrived."""
        for task, window_ms in enumerate(self._windows_ms):
            before = (watermark_ms - window_ms - grace_ms) // self._cohort_ms
            if before <= self._closed_before_T[task]:
                continue
            self._closed_before_T[task] = before
            cells = slice(task, None, len(self._tasks))
            for cohort, sums_CS in self._open.items():
                if cohort < before:
                    self._window_CS[cells] += sums_CS[cells]
                    sums_CS[cells] = 0
        done = min(self._closed_before_T)
        self._open = {cohort: sums_CS for cohort, sums_CS in self._open.items() if cohort >= done}

    def judge(self, now_ms: int, grace_ms: int) -> list[Finding]:
        """Returns what every check says of the window so far."""
        self._recent_CS += self._window_CS
        self._paired_CS += self._window_CS
        found: list[Finding] = []
        for cell in range(len(self._window_CS)):
            scenario, task = divmod(cell, len(self._tasks))
            where = f"({self._scenarios[scenario]}, {self._tasks[task]})"
            delay_ms = self._windows_ms[task] + grace_ms + self._cohort_ms
            found += self._label_rate(cell, where, delay_ms, now_ms)
            found += self._quality(cell, where, delay_ms, now_ms)
            found += self._relative(cell, where, delay_ms)
        return found

    def _label_rate(self, cell: int, where: str, delay_ms: int, now_ms: int) -> list[Finding]:
        limit = self._config.label_rate_ratio
        num, positives = self._window_CS[cell, N], self._window_CS[cell, POSITIVES]
        past_num, past_positives, num_windows = self._rates_C3[cell]
        if limit is None or not num:
            return []
        if num_windows < MIN_WINDOWS or num * past_positives < MIN_EXPECTED * past_num:
            return [Finding(check="label_rate", state="not_judged", text=f"too few labels {where}")]
        same_num, same_positives = self._hours_HC2[now_ms // HOUR_MS % 24, cell]
        rate, text = positives / num, ""
        for past_n, past_p in ((past_num, past_positives), (same_num, same_positives)):
            if past_p < MIN_EXPECTED:
                continue
            past = past_p / past_n
            error = math.sqrt(self._config.deflate * past * (1 - past) * (1 / num + 1 / past_n))
            is_far = not 1 / limit <= rate / past <= limit
            if not (is_far and abs(rate - past) > self._config.label_rate_z * error):
                return [Finding(check="label_rate", state="pass", text=f"{rate:.2%} are positive {where}")]
            text = text or f"{rate:.2%} are positive, before {past:.2%} {where}"
        return [Finding(check="label_rate", state="block" if text else "pass", text=text, delay_ms=delay_ms)]

    def _quality(self, cell: int, where: str, delay_ms: int, now_ms: int) -> list[Finding]:
        sums = self._recent_CS[cell].copy()
        num, positives = sums[N], sums[POSITIVES]
        if positives < self._config.min_positives or positives >= num:
            return [Finding(check="ne", state="not_judged", text=f"{positives:.0f} positives {where}")] if num else []
        self._recent_CS[cell] = 0
        self.last_judged_ms = now_ms
        rate, found = positives / num, []
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        if self._config.ne is not None:
            mean = sums[LOSS] / num
            error = SIGMAS * self._error(sums[LOSS_SQUARED], mean, num) / entropy
            ne = mean / entropy
            self._passed_2C[0, cell] |= ne + error < self._config.ne
            text = f"{ne:.3f}, allowed {self._config.ne} {where}"
            found.append(self._armed(0, cell, "ne", ne - error > self._config.ne, text, delay_ms))
        if self._config.calibration is not None:
            limit = max(self._config.calibration, 4 / math.sqrt(positives))
            off = math.log(sums[SCORES] / positives) if sums[SCORES] > 0 else -math.inf
            text = f"scores are {math.exp(off):.2f} times the labels, allowed {math.exp(limit):.2f} {where}"
            self._passed_2C[1, cell] |= abs(off) <= limit
            found.append(self._armed(1, cell, "calibration", abs(off) > limit, text, delay_ms))
        return found

    def _armed(self, which: int, cell: int, check: str, is_bad: bool, text: str, delay_ms: int) -> Finding:
        if not is_bad:
            return Finding(check=check, state="pass", text=text)
        state = "block" if self._passed_2C[which, cell] else "not_judged"
        return Finding(check=check, state=state, text=text, delay_ms=delay_ms)  # type: ignore[arg-type]  # joins to str

    def _relative(self, cell: int, where: str, delay_ms: int) -> list[Finding]:
        limit, sums = self._config.ne_margin, self._paired_CS[cell].copy()
        num, positives = sums[PAIRED], sums[PAIRED_POSITIVES]
        if limit is None or positives < self._config.ne_positives or positives >= num:
            return []
        self._paired_CS[cell] = 0
        rate = positives / num
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        mean = sums[GAP] / num
        error = self._error(sums[GAP_SQUARED], mean, num) / entropy
        gap = mean / entropy
        text = f"NE {gap:+.4f} +- {error:.4f} of what is served, allowed {limit:+} {where}"
        state = "block" if gap - SIGMAS * error > limit else "pass"
        return [Finding(check="ne_relative", state=state, text=text, delay_ms=delay_ms)]  # type: ignore[arg-type]

    def _error(self, sum_of_squares: float, mean: float, num: float) -> float:
        """Returns the standard error of a mean over labels."""
        return math.sqrt(self._config.deflate * max(sum_of_squares / num - mean**2, 0.0) / num)

    def close(self, *, is_kept: bool, now_ms: int) -> None:
        """Starts the next window; this one joins the reference if `is_kept`."""
        if is_kept:
            window_C2 = self._window_CS[:, [N, POSITIVES]]
            has_labels_C = window_C2[:, 0] > 0
            self._rates_C3[has_labels_C] *= (KEEP, KEEP, 1)
            self._rates_C3[:, :2] += window_C2
            self._rates_C3[:, 2] += has_labels_C
            hour = now_ms // HOUR_MS % 24
            if hour != self._hour:
                self._hours_HC2[hour] /= 2
                self._hour = hour
            self._hours_HC2[hour] += window_C2
        else:
            self._recent_CS[:] = self._paired_CS[:] = 0
        self._window_CS[:] = 0

    def restart(self) -> None:
        """Leaves aside every label that has come and was not judged; the reference stays."""
        self._open = {}
        self._window_CS[:] = self._recent_CS[:] = self._paired_CS[:] = 0

    def forget(self) -> None:
        """Takes what comes next for the usual."""
        self._rates_C3[:] = self._hours_HC2[:] = self._recent_CS[:] = self._paired_CS[:] = 0
        self._passed_2C[:] = False

    def state(self) -> Arrays:
        """Returns the reference; cohorts that are open now are not part of it."""
        names = ("_rates_C3", "_hours_HC2", "_passed_2C")
        return {name.strip("_"): getattr(self, name).copy() for name in names}

    def load_state(self, state: Arrays) -> None:
        """Takes up a reference; one over other scenarios or tasks is left aside."""
        for name in ("_rates_C3", "_hours_HC2", "_passed_2C"):
            if state[name.strip("_")].shape == getattr(self, name).shape:
                setattr(self, name, state[name.strip("_")].copy())
