"""The publish gate: what must be true of a version, and of the data behind it, before anybody may serve it.

Level 0 looks at every candidate (`model.gate_level0`), level 1 at every window of data and labels (`model.gate_data`,
`model.gate_labels`). A candidate goes live if neither blocks. After `freeze_after` rejections in a row nothing is tried
any more until a window is in order. "Not judged" is a state of its own: it neither passes nor blocks, but not for
longer than `max_unjudged_ms`.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from model.config import ModelConfig
from model.features import EncodedBatch, FeatureEncoder
from model.gate_config import GateConfig
from model.gate_data import BatchCounts, DataChecks
from model.gate_labels import LabelChecks
from model.gate_level0 import Level0
from model.gate_report import Finding, State, blocked, sentence, state_of
from model.lookup import FieldCounters
from model.metrics import Arrays
from model.probe_set import Weights
from model.snapshot import Manifest
from model.step_columns import StepColumns
from stream.schema import SchemaConfig

logger = logging.getLogger(__name__)
_COHORTS = 10
"""Cohorts of labels as long as a window."""


@dataclass(slots=True)
class GateStats:
    """Counts of one gate, since the process started."""

    windows: Counter[str] = field(default_factory=lambda: Counter({"pass": 0, "warn": 0, "block": 0, "not_judged": 0}))
    """Windows of data and labels, by what was said of them."""
    blocks: Counter[str] = field(default_factory=Counter)
    """Findings that blocked, by check."""


class PublishGate:
    """One trainer's gate. Reads no clock: times are passed in."""

    def __init__(
        self,
        config: GateConfig,
        schema: SchemaConfig,
        model_config: ModelConfig,
        *,
        weights: Weights | None = None,
        judged_share: float = 1.0,
    ) -> None:
        """Makes a gate that has seen nothing.

        `weights`: production weights of the tasks, for the churn of the ranking; without them it is not judged.
        `judged_share`: the share of all micro-batches that it is shown.
        """
        self._config = config
        self._layout = model_config.input_layout(FeatureEncoder(schema, model_config.encoding).fields)
        self.level0 = Level0(config, schema, model_config, weights or {})
        self._data = DataChecks(config, self._layout, judged_share)
        windows_ms = {name: task.window_ms for name, task in schema.tasks.items()}
        self._labels = LabelChecks(config, schema.scenarios, windows_ms, max(1, config.window_ms // _COHORTS))
        self.stats = GateStats()
        self.findings: list[Finding] = []
        """Of the last version judged, level 0."""
        self.window_findings: list[Finding] = []
        """Of the last window that was judged, level 1."""
        self.is_holding = False
        """Whether the trainer looks at its examples without learning them."""
        self.is_frozen = False
        self._rejected_in_row = 0
        self._num_labels = 0
        self._window_began_ms: int | None = None
        self._began_ms: int | None = None
        self._failing_since_ms: int | None = None

    @property
    def state(self) -> State:
        """What the gate says as a whole, of the last version and the last window that was judged."""
        return state_of([*self.findings, *self.window_findings])

    @property
    def window_state(self) -> State:
        """What it says of the last window that was judged."""
        return state_of(self.window_findings)

    def count(self, batch: EncodedBatch, counters: Mapping[str, FieldCounters]) -> BatchCounts:
        """Returns what the checks of data take in of some rows, whose scenarios are resolved."""
        lookups_F2 = np.array([(c.lookups, c.default_lookups) for c in counters.values()], np.float64)
        return self._data.count(batch, lookups_F2)

    def observe(
        self, seen: StepColumns, counts: BatchCounts, slates: EncodedBatch, *, now_ms: int, watermark_ms: int
    ) -> None:
        """Counts a micro-batch in. `slates`: those of its rows that are here, for the probe set."""
        self._began_ms = self._began_ms if self._began_ms is not None else now_ms
        self._window_began_ms = self._window_began_ms if self._window_began_ms is not None else now_ms
        self._data.observe(counts, seen.impression_ms_B, now_ms=now_ms, watermark_ms=watermark_ms)
        self._labels.observe(
            seen.scenario_B, seen.impression_ms_B, seen.label_BT, seen.settled_BT, seen.logit_BT, seen.served_BT
        )
        self._num_labels += int(seen.settled_BT.sum())
        if not self.is_holding:
            self.level0.sample.offer(slates)

    def add_scenario(self, name: str) -> None:
        """Makes room for one more scenario, whose index is the next one."""
        self._labels.add_scenario(name)

    def is_window_due(self, now_ms: int) -> bool:
        """Tells whether the window of data and labels is over."""
        if self._window_began_ms is None:
            return False
        is_over = not 0 <= now_ms - self._window_began_ms < self._config.window_ms  # or the clock was set back
        return is_over or self._num_labels >= self._config.window_labels

    def close_window(self, *, now_ms: int, watermark_ms: int, grace_ms: int, rows_learned: int) -> list[Finding]:
        """Judges the window and starts the next one. Returns what every check says; empty before the model is warm."""
        self._window_began_ms, self._num_labels = None, 0
        self._labels.advance(watermark_ms, grace_ms)
        if rows_learned < self._config.warm_up_rows:
            self._data.close(is_kept=False)
            self._labels.close(is_kept=False, now_ms=now_ms)
            self.stats.windows["not_judged"] += 1
            return []
        findings = [*self._data.judge(), *self._labels.judge(now_ms, grace_ms)]
        state = state_of(findings)
        self.stats.windows[state] += 1
        self.stats.blocks.update(finding.check for finding in blocked(findings))
        is_clear = state in ("pass", "warn") and (not self.is_holding or self._sees_labels(findings))
        is_adopted = self._adopts(is_clear or (state == "not_judged" and not self.is_holding), now_ms)
        self._data.close(is_kept=state != "block" or is_adopted)
        self._labels.close(is_kept=state != "block" or is_adopted, now_ms=now_ms)
        if is_adopted:
            findings = []
        elif state == "block":
            logger.error("Data or labels are not in order: %s", sentence(findings))
        if state != "not_judged" or is_adopted:
            self.window_findings = findings
            if is_clear or is_adopted:
                self.is_holding = self.is_frozen = False
                self._rejected_in_row = 0
        return findings

    def _sees_labels(self, findings: Sequence[Finding]) -> bool:
        """Returns whether a label rate is known to be in order: data look well long before their labels are in."""
        is_off = self._config.label_rate_ratio is None
        return is_off or any(finding.check == "label_rate" and finding.state == "pass" for finding in findings)

    def _adopts(self, is_well: bool, now_ms: int) -> bool:
        """Returns whether a shift has lasted so long that it is the new normal."""
        if is_well:
            self._failing_since_ms = None
            return False
        self._failing_since_ms = self._failing_since_ms if self._failing_since_ms is not None else now_ms
        if now_ms - self._failing_since_ms < self._config.adopt_ms:
            return False
        logger.warning("What failed for %d s is the new normal", self._config.adopt_ms // 1_000)
        self._data.forget()
        self._labels.forget()
        self._failing_since_ms = None
        return True

    def hold(self) -> None:
        """From now on examples are looked at and not learned, until a window is in order.

        What was seen before counts no more: a window of before must not speak for what comes.
        """
        self.is_holding = True
        self._window_began_ms, self._num_labels = None, 0
        self._data.close(is_kept=False)
        self._labels.restart()

    def judge(
        self, manifest: Manifest, tensors: Mapping[str, Tensor], *, num_rows: int, rows_learned: int
    ) -> list[Finding]:
        """Returns what both levels say of a candidate; it may go live if nothing blocks."""
        found = self.level0.judge(manifest, tensors, num_rows=num_rows, rows_learned=rows_learned)
        self.findings = found + self._unjudged(manifest.created_ms)
        self.stats.blocks.update(finding.check for finding in blocked(self.findings))
        return self.findings + self.window_findings

    def _unjudged(self, now_ms: int) -> list[Finding]:
        most_ms, since_ms = self._config.max_unjudged_ms, self._labels.last_judged_ms or self._began_ms
        if most_ms is None or since_ms is None or self._config.ne is None:
            return []
        text = f"no NE could be judged for {(now_ms - since_ms) // 1_000} s, allowed {most_ms // 1_000} s"
        return [Finding(check="unjudged", state="block", text=text)] if now_ms - since_ms > most_ms else []

    def promoted(self, manifest: Manifest) -> None:
        """Takes note that the version judged last went live."""
        self.level0.promoted(manifest)
        self._rejected_in_row = 0

    def rejected(self) -> None:
        """Takes note that the version judged last did not."""
        self._rejected_in_row += 1
        if self._rejected_in_row >= self._config.freeze_after and not self.is_frozen:
            self.is_frozen = True
            logger.error("Nothing is published until a window is in order rejected_in_row=%d", self._rejected_in_row)

    def state_arrays(self) -> Arrays:
        """Returns what a resume needs to go on judging: the references, and whether the trainer holds."""
        arrays: Arrays = {"gate/holding": np.array([self.is_holding])}
        for name, part in (("data", self._data), ("labels", self._labels)):
            arrays |= {f"gate/{name}/{key}": value for key, value in part.state().items()}
        return arrays

    def load_state(self, arrays: Arrays) -> None:
        """Takes up the state of a gate; a checkpoint from before there was one leaves it new."""
        if "gate/holding" not in arrays:
            return
        self.is_holding = bool(arrays["gate/holding"][0])
        for name, part in (("data", self._data), ("labels", self._labels)):
            prefix = f"gate/{name}/"
            part.load_state({key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)})
