"""The canary lane: versions serve some first, and serve all once nothing speaks against them.

A version that passed its gate serves the lane `canary` at once and the lane `stable` after `canary_ms`, unless a
sequential test finds the canary lane worse. The trainer judges from the examples it learns: which lane served an
impression follows from the version that scored it, newer than what was released at that time, or not.

Tests, per task, one-sided, each over impressions of both lanes; they begin anew every ten `canary_ms`, so that what
was good long ago does not hide what is bad now:

| test | trips if the canary lane has |
|---|---|
| `rate` | fewer positives (more of tasks in `bad_tasks`) per label |
| `ne` | a higher cross-entropy per label |
| `calibration` | scores further from labels, by the squared mean error |

They may be looked at as often as one likes: z must exceed the boundary of the normal mixture (Robbins 1970),
sqrt((1 + r/n) (2 ln(1/alpha) + ln(1 + n/r))), which it does with probability `alpha` at most, ever, without a
difference. Labels of one slate are no independent draws: `alpha` is shared by all tests, and `deflate` divides their
number.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.gate_report import Finding
from model.metrics import MAX_LOGIT, BoolArray, Float64Array, Int64Array, logit_of

N, POSITIVES, SCORES, LOSS, LOSS_SQUARED, ERROR_SQUARED = range(6)
_RELEASES_KEPT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryConfig:
    """How long a version serves the canary lane alone, and what may end that."""

    canary_ms: int = 0
    """Milliseconds a version must have served the lane `canary` before `stable` follows; 0: both at once. Rankers say
    by `ranker.lane` which one they are."""
    min_exposure: int = 2_000
    """Labels of a task in each lane before any verdict; at least 1."""
    alpha: float = 0.01
    """Probability of a false alarm over all tests and all looks; between 0 and 1."""
    deflate: float = 3.0
    """Labels that count as one, for those of one slate go together; at least 1."""
    bad_tasks: tuple[str, ...] = ("hide",)
    """Tasks of which more positives are worse."""

    def __post_init__(self) -> None:
        if self.canary_ms < 0:
            raise ValueError(f"canary_ms: {self.canary_ms} is not allowed; at least 0")
        if self.min_exposure < 1:
            raise ValueError(f"min_exposure: {self.min_exposure} is not allowed; at least 1")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha: {self.alpha} is not allowed; between 0 and 1")
        if not self.deflate >= 1:
            raise ValueError(f"deflate: {self.deflate} is not allowed; at least 1")


class Canary:
    """Holds promoted versions back from the stable lane and compares the lanes. Times are processing time in ms."""

    def __init__(self, config: CanaryConfig, tasks: Sequence[str]) -> None:
        self._config, self._tasks = config, tuple(tasks)
        self._pending: deque[tuple[int, int]] = deque()  # promoted at, version
        self._releases: deque[tuple[int, int]] = deque(maxlen=_RELEASES_KEPT)  # released at, version
        self._sums_LTS: Float64Array = np.zeros((2, len(tasks), 6))
        self._began_ms: int | None = None
        self.findings: list[Finding] = []

    @property
    def is_on(self) -> bool:
        """Whether there is a lane that goes first."""
        return self._config.canary_ms > 0

    def promoted(self, version: int, now_ms: int) -> None:
        """Takes note of a version that serves the canary lane from now on."""
        self._pending.append((now_ms, version))

    def due(self, now_ms: int) -> int | None:
        """Returns the newest version that has served long enough; None if there is none, or a test has tripped."""
        if any(finding.state == "block" for finding in self.findings):
            return None
        due = None
        while self._pending and now_ms - self._pending[0][0] >= self._config.canary_ms:
            due = self._pending.popleft()[1]
        return due

    def released(self, version: int, now_ms: int) -> None:
        """Takes note of the version that the stable lane serves from now on."""
        self._releases.append((now_ms, version))

    def observe(
        self,
        version_B: Int64Array,
        impression_ms_B: Int64Array,
        label_BT: npt.NDArray[np.floating],
        settled_BT: BoolArray,
        served_BT: npt.NDArray[np.floating],
    ) -> None:
        """Counts the settled labels in that have a served score; versions are those that scored the impressions."""
        if not self.is_on or not self._releases:
            return
        times_ms = np.array([at_ms for at_ms, _ in self._releases])
        versions = np.array([version for _, version in self._releases])
        place_B = np.searchsorted(times_ms, impression_ms_B, side="right") - 1
        is_canary_B = version_B > versions[np.maximum(place_B, 0)]
        is_known_B = (place_B >= 0) & (version_B > 0)
        row, task = np.nonzero(settled_BT & is_known_B[:, None] & ~np.isnan(served_BT))
        label = label_BT[row, task].astype(np.float64)
        score = served_BT[row, task].astype(np.float64)
        logit = np.clip(logit_of(score), -MAX_LOGIT, MAX_LOGIT)
        loss = np.logaddexp(0.0, logit) - label * logit
        cell = is_canary_B[row].astype(np.int64) * len(self._tasks) + task
        terms = (np.ones_like(label), label, score, loss, loss**2, (score - label) ** 2)
        sums = [np.bincount(cell, one, 2 * len(self._tasks)) for one in terms]
        self._sums_LTS += np.stack(sums, axis=1).reshape(self._sums_LTS.shape)

    def judge(self, now_ms: int) -> list[Finding]:
        """Returns what the tests say of the canary lane now; one that has tripped stays so."""
        if not self.is_on or any(finding.state == "block" for finding in self.findings):
            return self.findings
        if self._began_ms is None or now_ms - self._began_ms >= 10 * self._config.canary_ms:
            if self._began_ms is not None:
                self._sums_LTS[:] = 0
            self._began_ms = now_ms
        self.findings = []
        alpha = self._config.alpha / (3 * len(self._tasks))
        for index, task in enumerate(self._tasks):
            stable, canary = self._sums_LTS[:, index]
            if min(stable[N], canary[N]) < self._config.min_exposure:
                text = f"{canary[N]:.0f} labels of {task} in the canary lane, {stable[N]:.0f} in the stable one"
                self.findings.append(Finding(check="canary", state="not_judged", text=text))
                continue
            sign = -1.0 if task in self._config.bad_tasks else 1.0
            self.findings += [
                self._rate(task, stable, canary, sign, alpha),
                self._ne(task, stable, canary, alpha),
                self._calibration(task, stable, canary, alpha),
            ]
        return self.findings

    def _rate(self, task: str, stable: Float64Array, canary: Float64Array, sign: float, alpha: float) -> Finding:
        rate_s, rate_c = stable[POSITIVES] / stable[N], canary[POSITIVES] / canary[N]
        error = math.sqrt(rate_s * (1 - rate_s) / stable[N] + rate_c * (1 - rate_c) / canary[N])
        text = f"{task}: {rate_c:.2%} positive in the canary lane, {rate_s:.2%} in the stable one"
        return self._verdict("canary_rate", sign * (rate_s - rate_c), error, stable, canary, alpha, text)

    def _ne(self, task: str, stable: Float64Array, canary: Float64Array, alpha: float) -> Finding:
        means = [sums[LOSS] / sums[N] for sums in (stable, canary)]
        variances = [sums[LOSS_SQUARED] / sums[N] - mean**2 for sums, mean in zip((stable, canary), means, strict=True)]
        error = math.sqrt(max(0.0, variances[0]) / stable[N] + max(0.0, variances[1]) / canary[N])
        text = f"{task}: cross-entropy {means[1]:.4f} in the canary lane, {means[0]:.4f} in the stable one"
        return self._verdict("canary_ne", means[1] - means[0], error, stable, canary, alpha, text)

    def _calibration(self, task: str, stable: Float64Array, canary: Float64Array, alpha: float) -> Finding:
        offs = [abs(sums[SCORES] - sums[POSITIVES]) / sums[N] for sums in (stable, canary)]
        error = math.sqrt(sum(sums[ERROR_SQUARED] / sums[N] ** 2 for sums in (stable, canary)))
        text = f"{task}: scores off by {offs[1]:.4f} in the canary lane, {offs[0]:.4f} in the stable one"
        return self._verdict("canary_calibration", offs[1] - offs[0], error, stable, canary, alpha, text)

    def _verdict(
        self,
        check: str,
        worse: float,
        error: float,
        stable: Float64Array,
        canary: Float64Array,
        alpha: float,
        text: str,
    ) -> Finding:
        deflate, least = self._config.deflate, self._config.min_exposure / self._config.deflate
        num = min(stable[N], canary[N]) / deflate
        z = worse / (error * math.sqrt(deflate)) if error > 0 else 0.0
        boundary = math.sqrt((1 + least / num) * (2 * math.log(1 / alpha) + math.log(1 + num / least)))
        text = f"{text}; z = {z:.2f}, boundary {boundary:.2f}"
        return Finding(check=check, state="block" if z > boundary else "pass", text=text)
