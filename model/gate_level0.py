"""Level 0 of the publish gate: what a candidate must be, looked at before every publish; milliseconds, no labels.

| check | blocks |
|---|---|
| `finite` | NaN or infinity in a tensor, or in the score of a probe |
| `schema` | another schema than the run's |
| `version` | a number that is not after all before |
| `base` | a delta on anything but the last promoted version |
| `rows` | many times the usual rows per step |
| `psi`, `psi_hour` | probe scores whose distribution moved, per scenario and task |
| `churn`, `churn_hour` | too many probe requests with another first item after the blender |

`*_hour` compare with the scores of an hour ago, the others with the last promoted version. A young model moves a lot,
and its scores lie close together, so that the index saturates: it blocks only where the logits moved far more than is
usual, too. Independent changes add up like a random walk: after a pause, what is usual grows with the square root of
the steps since, up to tenfold.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from model.churn import logit_rmse, psi, ranks, top1_changed
from model.config import ModelConfig
from model.exceptions import StoreError
from model.gate_config import GateConfig
from model.gate_report import Finding, State
from model.metrics import Int64Array
from model.probe_set import ProbeModel, ProbeSample, ProbeScores, ProbeSet, ReadCold, Weights, by_cell
from model.serving import ServingModel
from model.snapshot import Manifest, first_non_finite
from stream.schema import SchemaConfig

logger = logging.getLogger(__name__)

USUAL_OVER = 20
"""Promoted deltas that "usual" is the median of; fewer are not judged."""
HOUR_MS = 3_600_000
MIN_PROBE_ROWS = 100
"""Rows of a scenario in the probe set from which their distribution is compared."""
_CHURNS_KEPT = 1_000
_JOLTS_OVER = 100
"""Promoted versions whose largest change is nothing unusual: a model that learns fast moves by jolts."""
_MAX_PAUSE = 100.0
"""Usual publishes without one after which a budget grows no more."""
_MOST_GROWTH = 1.5
"""What a pause adds to the share of other first items that is always too much."""
_REMEMBER_EVERY_MS = 60_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version on its way, with what the probe set needs to go on from it."""

    manifest: Manifest
    num_rows: int
    rows_learned: int
    tensors: Mapping[str, Tensor]
    model: ServingModel | None
    scores: ProbeScores | None
    churn: float | None
    distances: dict[str, float]
    """How far the logits of each scenario and task moved."""


class Level0:
    """Judges candidates one after the other and remembers what was promoted."""

    def __init__(self, config: GateConfig, schema: SchemaConfig, model_config: ModelConfig, weights: Weights) -> None:
        self._config, self._schema, self._model_config, self._weights = config, schema, model_config, weights
        self._schema_hash = schema.schema_hash()
        self.sample = ProbeSample(config.probe_requests)
        self.last_version = 0
        self.read_cold: ReadCold | None = None
        """Finds the rows of the next candidate that its tensors do not hold; None: they hold all."""
        self._promoted: Manifest | None = None
        self._promoted_at_rows = 0
        self._rows_per_step: deque[float] = deque(maxlen=USUAL_OVER)
        self._steps: deque[int] = deque(maxlen=USUAL_OVER)
        self._churns: deque[float] = deque(maxlen=_CHURNS_KEPT)
        self._distances: dict[str, deque[float]] = {}
        self._probes: ProbeSet | None = None
        self._probe_model: ProbeModel | None = None
        self._probes_since_ms = 0
        self._promoted_scores: ProbeScores | None = None
        self._hour: deque[tuple[int, ProbeScores]] = deque()
        self._candidate: Candidate | None = None

    def judge(
        self, manifest: Manifest, tensors: Mapping[str, Tensor], *, num_rows: int, rows_learned: int
    ) -> list[Finding]:
        """Returns what every check says of a candidate. `rows_learned`: by the model in training, over all time."""
        found = [self._finite(tensors), self._schema_check(manifest), self._version(manifest)]
        if manifest.kind == "delta":
            found.append(self._base(manifest))
            if self._config.rows_factor is not None:
                found.append(self._rows(manifest, num_rows, self._config.rows_factor))
        self._candidate = Candidate(manifest, num_rows, rows_learned, tensors, None, None, None, {})
        if any(finding.state == "block" for finding in found):
            return found
        return found + self._probe(manifest, tensors, num_rows, rows_learned)

    def _finite(self, tensors: Mapping[str, Tensor]) -> Finding:
        bad = first_non_finite(dict(tensors))
        text = "all values are finite" if bad is None else f"tensor {bad} holds NaN or infinity"
        return _finding("finite", bad is not None, text)

    def _schema_check(self, manifest: Manifest) -> Finding:
        text = f"made for schema {manifest.schema_hash}, this run's is {self._schema_hash}"
        return _finding("schema", manifest.schema_hash != self._schema_hash, text)

    def _version(self, manifest: Manifest) -> Finding:
        text = f"version {manifest.version} after version {self.last_version}"
        is_after, self.last_version = manifest.version > self.last_version, max(self.last_version, manifest.version)
        return _finding("version", not is_after, text if is_after else text.replace(" after", " is not after"))

    def _base(self, manifest: Manifest) -> Finding:
        live = self._promoted.version if self._promoted is not None else 0
        text = f"its base is version {manifest.base_version}, the last promoted one is {live}"
        return _finding("base", self._promoted is None or manifest.base_version != live, text)

    def _rows(self, manifest: Manifest, num_rows: int, factor: float) -> Finding:
        if len(self._rows_per_step) < USUAL_OVER:
            return Finding(check="rows", state="not_judged", text=f"fewer than {USUAL_OVER} deltas before")
        usual, now = statistics.median(self._rows_per_step), num_rows / self._num_steps(manifest)
        return _finding("rows", now > factor * usual, f"{now:.0f} rows per step, usual are {usual:.0f}")

    def _num_steps(self, manifest: Manifest) -> int:
        return max(1, manifest.step - (self._promoted.step if self._promoted is not None else 0))

    def _probe(
        self, manifest: Manifest, tensors: Mapping[str, Tensor], num_rows: int, rows_learned: int
    ) -> list[Finding]:
        if self._probes is None or self._probe_model is None:
            return [Finding(check="psi", state="not_judged", text="no probe set yet")]
        try:
            model = self._probe_model.candidate(manifest, tensors, self.read_cold)
        except ValueError as error:
            return [_finding("finite", True, f"tensors make no network: {error}")]
        if model is None:
            return [Finding(check="psi", state="not_judged", text="the probe set begins with the next full version")]
        scores = self._probes.scores(model, tuple(manifest.scenarios))
        if not np.isfinite(scores.score_BT).all():
            return [_finding("finite", True, "scores of the probe set are not finite")]
        churn = self._churn(self._promoted_scores, scores)
        distances = self._distances_to(self._promoted_scores, scores, manifest)
        self._candidate = Candidate(manifest, num_rows, rows_learned, tensors, model, scores, churn, distances)
        if self._promoted_scores is None or self._promoted_at_rows < self._config.warm_up_rows:
            return [Finding(check="psi", state="not_judged", text=f"fewer than {self._config.warm_up_rows} rows")]
        found = self._psi("psi", self._promoted_scores, scores, manifest, self._config.psi, distances)
        if self._config.churn_factor is not None and churn is not None:
            found.append(self._churn_finding(manifest, churn, self._config.churn_factor))
        if self._hour and self._hour[0][0] <= manifest.created_ms - HOUR_MS:
            before = self._hour[0][1]
            distances = self._distances_to(before, scores, manifest)
            found += self._psi("psi_hour", before, scores, manifest, self._config.psi_hour, distances)
            hourly = self._churn(before, scores)
            if self._config.churn_factor is not None and hourly is not None:
                most = self._config.churn_most
                text = (
                    f"{hourly:.1%} of the probe requests have another first item than an hour ago, allowed {most:.1%}"
                )
                found.append(_finding("churn_hour", hourly > most, text))
        return found

    def _cells(self, manifest: Manifest) -> Iterator[tuple[str, Int64Array, int]]:
        """Yields the name of each scenario and task that the probe set can judge, its rows, and the task's index."""
        if self._probes is None:
            return
        for scenario, rows_N in by_cell(self._probes.batch.scenario_B, MIN_PROBE_ROWS).items():
            for index, task in enumerate(manifest.tasks):
                yield f"({manifest.scenarios[scenario]}, {task})", rows_N, index

    def _distances_to(self, before: ProbeScores | None, now: ProbeScores, manifest: Manifest) -> dict[str, float]:
        if before is None:
            return {}
        return {
            where: logit_rmse(before.score_BT[rows_N, index], now.score_BT[rows_N, index])
            for where, rows_N, index in self._cells(manifest)
        }

    def _psi(
        self,
        check: str,
        before: ProbeScores,
        now: ProbeScores,
        manifest: Manifest,
        limit: float | None,
        distances: Mapping[str, float],
    ) -> list[Finding]:
        if limit is None:
            return []
        warn = self._config.psi_warn if self._config.psi_warn is not None else math.inf
        found = []
        for where, rows_N, index in self._cells(manifest):
            moved = psi(before.score_BT[rows_N, index], now.score_BT[rows_N, index])
            is_large = distances[where] > self._far(check, where, manifest)
            state: State = "block" if moved > limit and is_large else "warn" if moved > warn and is_large else "pass"
            text = f"probe scores moved by {moved:.3f}, allowed {limit}; by {distances[where]:.2f} in the logit {where}"
            found.append(Finding(check=check, state=state, text=text))
        return found

    def _far(self, check: str, where: str, manifest: Manifest) -> float:
        """Returns beyond which change of the logits an index counts."""
        if check == "psi_hour":
            return 2 * self._config.psi_logit
        past = self._distances.get(where, ())
        if len(past) < USUAL_OVER:
            return 2 * self._config.psi_logit
        return max(self._config.psi_logit, 2 * max(past) * self._pause(manifest))

    def _pause(self, manifest: Manifest) -> float:
        """Returns how much more than usual a version may differ, because more steps than usual went by."""
        if len(self._steps) < USUAL_OVER:
            return 1.0
        return math.sqrt(min(_MAX_PAUSE, max(1.0, self._num_steps(manifest) / statistics.median(self._steps))))

    def _churn(self, before: ProbeScores | None, now: ProbeScores) -> float | None:
        if before is None or before.utility_RK is None or now.utility_RK is None or self._probes is None:
            return None
        is_item_RK = self._probes.is_item_RK
        before_RK, now_RK = ranks(before.utility_RK, is_item_RK), ranks(now.utility_RK, is_item_RK)
        return float(top1_changed(before_RK, now_RK).mean())

    def _churn_finding(self, manifest: Manifest, churn: float, factor: float) -> Finding:
        # A model that has moved for good must not be refused for ever.
        most = min(1.0, self._config.churn_most * min(_MOST_GROWTH, self._pause(manifest)))
        budget = most
        if len(self._churns) >= USUAL_OVER:
            recent = list(self._churns)[-_JOLTS_OVER:]
            budget = max(factor * statistics.median(self._churns) * self._pause(manifest), 1.5 * max(recent))
        budget = min(most, max(self._config.churn_least, budget))
        text = f"{churn:.1%} of the probe requests have another first item, allowed {budget:.1%}"
        return _finding("churn", churn > budget, text)

    def promoted(self, manifest: Manifest) -> None:
        """Takes note that this version, the one judged last, went live."""
        candidate = self._candidate
        assert candidate is not None and candidate.manifest.version == manifest.version
        if manifest.kind == "delta":
            self._rows_per_step.append(candidate.num_rows / self._num_steps(manifest))
            self._steps.append(self._num_steps(manifest))
        self._promoted, self._promoted_at_rows = manifest, candidate.rows_learned
        if self._probe_model is not None:
            self._probe_model.hold(candidate.model)
        self._promoted_scores = candidate.scores
        if candidate.rows_learned >= self._config.warm_up_rows / 2:
            if candidate.churn is not None:
                self._churns.append(candidate.churn)
            for where, distance in candidate.distances.items():
                self._distances.setdefault(where, deque(maxlen=_JOLTS_OVER)).append(distance)
        if candidate.scores is not None and candidate.rows_learned >= 10 * self._config.warm_up_rows:
            self._remember(manifest.created_ms, candidate.scores)
        if manifest.kind == "full" and self._is_due(manifest.created_ms):
            self._renew(candidate)
        self._candidate = None

    def _remember(self, now_ms: int, scores: ProbeScores) -> None:
        if not self._hour or now_ms - self._hour[-1][0] >= _REMEMBER_EVERY_MS:
            self._hour.append((now_ms, scores))
        while len(self._hour) > 1 and self._hour[1][0] <= now_ms - HOUR_MS:
            self._hour.popleft()

    def _is_due(self, now_ms: int) -> bool:
        if not self.sample.num_slates():
            return False
        if self._probes is None or now_ms - self._probes_since_ms >= self._config.probe_refresh_ms:
            return True
        return self.sample.num_slates() >= 1.5 * self._probes.batch.num_requests  # it has not had its size yet

    def _renew(self, candidate: Candidate) -> None:
        """Takes the newest slates; the version that goes live is the first one scored on them."""
        probes = ProbeSet(self.sample.batch(), self._schema, self._model_config, self._weights)
        probe_model = ProbeModel(self._schema, self._model_config, probes)
        try:
            model = probe_model.candidate(candidate.manifest, candidate.tensors, self.read_cold)
        except StoreError as error:
            logger.warning("The probe set stays as it is until the next full version error=%s", error)
            return
        assert model is not None, "it is a full version"
        probe_model.hold(model)
        self._probes, self._probe_model = probes, probe_model
        self._probes_since_ms = candidate.manifest.created_ms
        self._promoted_scores = self._probes.scores(model, tuple(candidate.manifest.scenarios))
        self._hour.clear()


def _finding(check: str, is_blocked: bool, text: str) -> Finding:
    return Finding(check=check, state="block" if is_blocked else "pass", text=text)
