"""The older model that scores are held to: when it is renewed, what it says of a batch, and when it has to be silent.

Only versions that went live teach. All of it moves with event time and steps alone, so that replay and resume give the
same bits. Sources and prices: `docs/stability.md`.

Letters: B rows, M scenarios, T tasks.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.calibrator import Pairs
from model.drift_guard import DriftGuard
from model.embedding import EmbeddingTable
from model.features import EncodedBatch
from model.labels import LabelBatch
from model.metrics import BoolArray, Int64Array, cross_entropy
from model.network import Network
from model.precision import Precision
from model.ranks import Ranks
from model.scenario_registry import ScenarioRegistry
from model.score_regularization import MeanScores, ScoreRegularizationConfig, scale_of
from model.served_teacher import ServedTeacher
from model.teacher_copies import TeacherCopies
from model.whole_rows import Rows
from stream.schema import SchemaConfig

L = TypeVar("L")
REASONS = (
    "no_teacher",
    "resting",
    "new_scenario",
    "unknown_id",
    "unscored",
    "unknown_version",
    "denied_version",
    "not_finite",
)
"""Why a label is not held to the teacher's score."""


class Taught(NamedTuple):
    """What the teacher says of a batch."""

    z_BT: Tensor
    """Its logits; anything where it says nothing."""
    is_held_BT: BoolArray
    """t: where it says something."""
    factor_BT: npt.NDArray[np.float32]
    """Weight of the term, scaled by task and by how far an alarm lets it count."""


class Teacher:
    """The teacher of one model in training, and the state of score regularization."""

    def __init__(
        self,
        schema: SchemaConfig,
        config: ScoreRegularizationConfig,
        table: EmbeddingTable,
        new_net: Callable[[int], Network],
        half_life_rows: float,
        ranks: Ranks,
    ) -> None:
        """`new_net`: from a number of scenarios to a network as it is served, its values to be loaded."""
        tasks = tuple(schema.tasks)
        self._config = config
        self._tasks = tasks
        self._ranks = ranks
        self._weight_T = config.weights(tasks)
        self._new_net = new_net
        self._device = table.weight.device
        self._means = MeanScores(len(schema.scenarios), len(tasks), half_life_rows)
        self._guard = None if config.drift_guard is None else DriftGuard(config.drift_guard)
        policies = [task.policy for task in schema.tasks.values()]
        self._served = ServedTeacher(policies, config.max_versions) if config.teacher == "served" else None
        self._copies = TeacherCopies(table, new_net, config.known_ids)
        self._mean_net: Network | None = None
        self._due_ms = self._alarm_ms = 0
        self._asked = False
        self.num_alarms = 0
        """Times that the term was put to rest because the loss had risen."""
        self.num_held = 0
        """Labels of first emissions that were held to the teacher's score."""
        self.masked: Counter[str] = Counter()
        """Those that were not, by reason, since the process started: `no_teacher` (none yet), `resting` (after an
        alarm), `new_scenario`, `unknown_id`, `unscored`, `unknown_version`, `denied_version`, `not_finite`."""
        self.age_ms = 0.0
        """Mean age of what the last batch was held to."""

    @property
    def is_due(self) -> bool:
        """Whether the next version that goes live is to be copied."""
        return self._served is None and self._due_ms > 0 and self._asked

    def falls_due(self, watermark_ms: int) -> bool:
        """Takes note of the event time. Returns whether a new copy is due, once each time."""
        if self._served is not None or watermark_ms <= 0:
            return False
        self._due_ms = self._due_ms or watermark_ms + self._config.teacher_refresh_ms
        if self._asked or watermark_ms < self._due_ms:
            return False
        self._asked = True
        return True

    def take(self, version: int, watermark_ms: int, net: Network, num_scenarios: int) -> None:
        """Copies the model as it is now; the copy teaches once its version is promoted."""
        dense = (self._mean_net or net).for_serving().state_dict()
        self._copies.take(version, watermark_ms, dense, num_scenarios)
        self._due_ms, self._asked = watermark_ms + self._config.teacher_refresh_ms, False

    def promoted(self, version: int, scenarios: tuple[str, ...], calibration: Pairs) -> None:
        """Lets a version that went live teach."""
        if self._served is not None:
            self._served.promoted(version, scenarios, self._tasks, calibration)
        else:
            self._copies.promoted(version)

    def deny(self, version: int) -> None:
        """Lets a version that was rolled back teach no more, from now on."""
        if self._served is not None:
            self._served.deny(version)
        else:
            self._copies.deny(version)

    def teach(
        self,
        batch: EncodedBatch,
        rows: Rows[L],
        lookup: L,
        row_offsets: list[int],
        labels: LabelBatch,
        trained_BT: BoolArray,
        precision: Precision,
    ) -> Taught | None:
        """Returns what the teacher says of a batch sorted by scenario, before it is learned; None: nothing at all.

        It is asked of the first emissions that are trained; repeats say nothing new about the score. On several ranks
        each asks of its own rows; what is counted is of all.
        """
        asked_BT = trained_BT & labels.first_BT & (self._weight_T > 0)
        share = self._share(labels.watermark_ms)
        copy = self._copies.current
        scenario_B = batch.scenario_B
        age_ms_B = np.zeros(len(scenario_B), np.int64)
        z_BT = None
        reasons: dict[str, BoolArray] = {}
        if share == 0 or (self._served is None and copy is None):
            reasons = {"resting" if share == 0 else "no_teacher": np.ones((len(scenario_B), 1), np.bool_)}
        elif self._served is not None:
            if labels.served is None:
                reasons = {"unscored": np.ones((len(scenario_B), 1), np.bool_)}
            else:
                logits_BT, reasons = self._served.logits(scenario_B, labels.served)
                z_BT = torch.from_numpy(logits_BT.astype(np.float32)).to(self._device)
                age_ms_B = labels.watermark_ms - labels.served.impression_ms_B
        else:
            assert copy is not None
            old = rows.old(lookup, copy.rows)
            z_BT, reasons = self._copies.logits(batch, old, row_offsets, precision, self._config.min_examples)
            age_ms_B = np.full(len(scenario_B), labels.watermark_ms - copy.taken_ms)
        if z_BT is not None:
            reasons |= {"not_finite": ~torch.isfinite(z_BT).cpu().numpy()}
        held_BT, masked = asked_BT, dict.fromkeys(REASONS, 0)
        for reason, is_silent in reasons.items():
            masked[reason] = int((held_BT & is_silent).sum())
            held_BT = held_BT & ~is_silent
        counts = [int(held_BT.sum()), float((held_BT.sum(axis=1) * age_ms_B).sum()), *masked.values()]
        (summed,) = self._ranks.sum_arrays([np.array(counts)])
        num_held, age_ms, *num_masked = summed.tolist()
        self.masked.update({reason: int(num) for reason, num in zip(REASONS, num_masked, strict=True) if num})
        if share and (self._served is not None or copy is not None):
            self.num_held += int(num_held)
            self.age_ms = age_ms / num_held if num_held else 0.0
        if z_BT is None:
            return None
        factor_MT = share * self._weight_T * self._scale_MT()
        return Taught(z_BT, held_BT, factor_MT[scenario_B].astype(np.float32))

    def after_step(
        self,
        net: Network,
        scenario_B: Int64Array,
        score_BT: Tensor,
        labels: LabelBatch,
        trained_BT: BoolArray,
    ) -> None:
        """Takes note of a step that was made: the scores before it, and the network after it."""
        logit_BT = score_BT.double().cpu().numpy()
        cells_BT = trained_BT & labels.first_BT
        count_MT, sum_MT = np.zeros_like(self._means.mean_MT), np.zeros_like(self._means.mean_MT)
        np.add.at(count_MT, scenario_B, cells_BT)
        np.add.at(sum_MT, scenario_B, np.where(cells_BT, 1 / (1 + np.exp(-logit_BT)), 0.0))
        loss_N = cross_entropy(logit_BT[cells_BT], labels.label_BT[cells_BT].astype(np.float64))
        count_MT, sum_MT, loss = self._ranks.sum_arrays([count_MT, sum_MT, np.array(loss_N.sum())])
        self._means.update(count_MT, sum_MT)
        if self._config.teacher == "ema":
            self._average(net)
        if self._guard is None or not count_MT.any():
            return
        has_risen = self._guard.update(float(loss / count_MT.sum()))
        if has_risen and self._share(labels.watermark_ms) == 1 and labels.watermark_ms > 0:
            self.num_alarms += 1
            self._alarm_ms = labels.watermark_ms
            # The next copy is one of the new world: it has learned nothing else for as long as the term rests.
            self._due_ms, self._asked = labels.watermark_ms + self._config.teacher_refresh_ms, False

    def add_scenario(self, donor: int) -> None:
        """Makes room for one more scenario, which starts as `donor`."""
        self._means.add_scenario(donor)
        if self._mean_net is not None:
            self._mean_net.add_scenario(donor)

    def _scale_MT(self) -> npt.NDArray[np.float64]:
        if self._config.scale == "none":
            return np.ones_like(self._means.mean_MT)
        return scale_of(self._config.form, self._means.mean_MT)

    def _share(self, watermark_ms: int) -> float:
        """Returns how far the term counts: after an alarm not at all for one refresh, then more and more for one."""
        if not self._alarm_ms:
            return 1.0
        return min(max((watermark_ms - self._alarm_ms) / self._config.teacher_refresh_ms - 1, 0.0), 1.0)

    def _average(self, net: Network) -> None:
        served = net.for_serving().state_dict()
        if self._mean_net is None:
            self._mean_net = self._new_net(net.num_scenarios).requires_grad_(False)
            self._mean_net.load_state_dict(served)
            return
        share = 1 - 2.0 ** (-1 / self._config.ema_half_life_steps)
        for name, mean in self._mean_net.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(served[name], share)
            else:
                mean.copy_(served[name])

    def state(self) -> dict[str, Tensor]:
        """Returns the tensors of everything for a bit-exact resume, as copies in host memory."""
        tensors = {f"copies.{name}": tensor for name, tensor in self._copies.state().items()}
        if self._served is not None:
            tensors |= {f"served.{name}": tensor for name, tensor in self._served.state().items()}
        if self._guard is not None:
            tensors |= {f"guard.{name}": torch.from_numpy(array) for name, array in self._guard.state().items()}
        if self._mean_net is not None:
            tensors |= {f"mean.{name}": t.to("cpu", copy=True) for name, t in self._mean_net.state_dict().items()}
        tensors["scores.mean_MT"] = torch.from_numpy(self._means.mean_MT.copy())
        tensors["scores.num_MT"] = torch.from_numpy(self._means.num_MT.copy())
        return tensors

    def state_meta(self) -> dict[str, Any]:
        """Returns the part of the state that is not tensors, as JSON values."""
        return {
            "teacher": self._config.teacher,
            "due_ms": self._due_ms,
            "alarm_ms": self._alarm_ms,
            "asked": self._asked,
            "num_alarms": self.num_alarms,
            "num_held": self.num_held,
            "copies": self._copies.state_meta(),
        }

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], registry: ScenarioRegistry) -> None:
        """Goes on from what `state` returned, after the table did; from none, or another teacher's, it starts anew."""
        for name in registry.names[len(self._means.mean_MT) :]:
            self._means.add_scenario(registry.index(registry.parents[name]))
        if meta.get("teacher") != self._config.teacher:
            return
        self._due_ms, self._alarm_ms, self._asked = meta["due_ms"], meta["alarm_ms"], meta["asked"]
        self.num_alarms, self.num_held = meta["num_alarms"], meta["num_held"]
        self._means.mean_MT = tensors["scores.mean_MT"].numpy().copy()
        self._means.num_MT = tensors["scores.num_MT"].numpy().copy()

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}

        if self._served is not None:
            self._served.load_state(under("served."))
        guard = under("guard.")
        if self._guard is not None and guard:
            self._guard.load_state({name: tensor.numpy() for name, tensor in guard.items()})
        mean = under("mean.")
        if mean:
            self._mean_net = self._new_net(len(registry.names)).requires_grad_(False)
            self._mean_net.load_state_dict(mean)
        self._copies.load_state(under("copies."), meta["copies"])
