"""The learner: scores a micro-batch, then learns from it; all state of a model in training.

Letters: B rows, T tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.assembly import InputLayout
from model.auxiliary import AuxiliaryHeads
from model.config import ModelConfig
from model.delayed_labels import DelayedLabels, PolicyWeights, policy_weights
from model.embedding import EmbeddingTable, FieldCounters
from model.features import EncodedBatch, FeatureEncoder, RowColumns
from model.hinet import HiNet
from model.label_policy import Estimate
from model.losses import ScenarioShares, hold_back_positives, multi_scenario_loss
from model.task_heads import SettledRows
from stream.schema import PolicyName, SchemaConfig

STATE_FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelBatch:
    """Labels of B rows: [B, T] each, tasks in the schema's order."""

    label_BT: npt.NDArray[np.float32]
    """0 or 1; anything where the mask is off."""
    mask_BT: npt.NDArray[np.bool_]
    """On where the cell is trained."""
    weight_BT: npt.NDArray[np.float32]
    """Sampling weight times traffic ratio, at least 0."""
    first_BT: npt.NDArray[np.bool_]
    """On where it is the cell's first emission: rows with any count towards admission."""
    delayed: DelayedLabels | None = None
    """What the policies need whose labels are corrected later; None: all labels are final and weigh 1."""

    def take(self, rows_B: npt.NDArray[np.int64]) -> "LabelBatch":
        """Returns some of the rows, in the given order."""
        return LabelBatch(
            label_BT=self.label_BT[rows_B],
            mask_BT=self.mask_BT[rows_B],
            weight_BT=self.weight_BT[rows_B],
            first_BT=self.first_BT[rows_B],
            delayed=None if self.delayed is None else self.delayed.take(rows_B),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step saw and did."""

    logits_BT: npt.NDArray[np.float32]
    """Pre-step logits, bit-equal to `Learner.score` of the same batch just before; NaN in rows that did not reach the
    network, because nothing but auxiliary heads learns from them."""
    made: bool
    """Whether the network made a step."""
    loss: float
    grad_norm: float
    """Of the network, before clipping."""
    skipped: str | None
    """Which part was not finite, and so nothing was changed; None: the step was made."""
    dense_clipped: bool
    rows_clipped: int
    """Embedding rows whose gradient was clipped."""
    rows_touched: int
    """Distinct embedding rows of the batch."""
    rows_admitted: int
    weights_capped: int
    """Example weights above `loss.max_example_weight`."""
    positives_held_back: int
    """Positive cells that were not learned, because their scenario and task had no negative yet."""
    labels_weighed: int = 0
    """Cells whose weight their label policy computed."""
    labels_guarded: int = 0
    """Those of them with an estimate or weight outside its valid range, cut to it."""
    heads_skipped: int = 0
    """Tasks whose auxiliary heads left out steps that were not finite."""
    policies_begun: tuple[str, ...] = ()
    """Tasks whose auxiliary heads have seen enough with this batch, so that their policy takes over."""


class Learner:
    """A model in training. One thread only.

    Same seed, same batches, same bits (with a fixed number of torch threads). A batch that is not finite anywhere
    changes nothing.
    """

    def __init__(self, schema: SchemaConfig, config: ModelConfig, seed: int) -> None:
        self.encoder = FeatureEncoder(schema, config.encoding)
        self.config = config
        self._num_scenarios, self._num_tasks = len(schema.scenarios), len(schema.tasks)
        self._layout = InputLayout(
            self.encoder.fields, width=config.embedding.width, interaction=config.encoding.history_interaction
        )
        self._table = EmbeddingTable(self._layout, config.embedding, seed)
        self._net = HiNet(
            config.network,
            num_scenarios=self._num_scenarios,
            num_tasks=self._num_tasks,
            width=self._layout.input_width,
            seed=seed,
        )
        for name, weights in (("task_weights", config.loss.task_weights), ("priors", config.priors)):
            unknown = set(weights) - set(schema.tasks)
            if unknown:
                raise ValueError(f"{name}: {sorted(unknown)} are not tasks; {', '.join(schema.tasks)}")
        for index, task in enumerate(schema.tasks):
            if task in config.priors:
                self._net.start_at(index, config.priors[task])
        self._parameters = dict(self._net.named_parameters())
        self._adam = torch.optim.Adam(self._parameters.values(), lr=config.optim.dense_lr, fused=True)
        self._shares = ScenarioShares(self._num_scenarios, self._num_tasks, config.loss.half_life_rows)
        self._task_weight_T = np.array([config.loss.task_weights.get(task, 1.0) for task in schema.tasks])
        self._has_negative_MT = np.zeros((self._num_scenarios, self._num_tasks), np.bool_)
        self._heads = AuxiliaryHeads(
            tuple(schema.tasks),
            width=self._net.representation_width,
            num_scenarios=self._num_scenarios,
            min_positives=config.loss.aux_min_positives,
            lr=config.optim.aux_lr,
            seed=seed,
        )
        self._num_steps = 0
        self._exported_clock = 0
        self._promoted_clock = 0

    @property
    def num_steps(self) -> int:
        """Steps made, skipped ones not counted."""
        return self._num_steps

    def encode(self, columns: RowColumns) -> EncodedBatch:
        """Returns the columns as keys."""
        return self.encoder.encode_columns(columns)

    def score(self, batch: EncodedBatch) -> npt.NDArray[np.float32]:
        """Returns the logits, [B, T], and changes nothing."""
        c_BC, order_B, row_offsets = self._representation(batch)
        with torch.no_grad():
            logits_BT = self._net.task_logits(c_BC, row_offsets)
        return _unsorted(logits_BT, order_B)

    def learn(self, batch: EncodedBatch, labels: LabelBatch) -> StepReport:
        """Learns from a batch, B at least 1: one step of the network, then of the auxiliary heads where there are any.

        Rows with neither a trained label nor a first emission do not reach the network.
        """
        delayed = labels.delayed
        if delayed is None:
            return self._step(batch, labels)
        cold_BT = self._heads.cold_BT(delayed)
        labels = replace(labels, mask_BT=np.where(cold_BT, delayed.settled_BT(), labels.mask_BT))
        rows_B = np.flatnonzero((labels.mask_BT | labels.first_BT).any(axis=1))
        if len(rows_B) == batch.num_rows:
            report = self._step(batch, labels, cold_BT)
        elif len(rows_B):
            report = self._step(batch.take(rows_B), labels.take(rows_B), cold_BT[rows_B])
        else:
            report = _no_step(self._num_tasks)
        logits_BT = np.full(labels.label_BT.shape, np.nan, np.float32)
        logits_BT[rows_B] = report.logits_BT
        report = replace(report, logits_BT=logits_BT)
        if report.skipped is not None:
            return report
        num_skipped = self._learn_heads(batch, labels, delayed)
        return replace(report, heads_skipped=num_skipped, policies_begun=tuple(self._heads.advance(delayed)))

    def _step(
        self, batch: EncodedBatch, labels: LabelBatch, cold_BT: npt.NDArray[np.bool_] | None = None
    ) -> StepReport:
        """Makes one step of the network. The numbers are the order of a step."""
        batch, order_B, row_offsets = batch.by_scenario(self._num_scenarios)
        scenario_B, label_BT, mask_BT = batch.scenario_B, labels.label_BT[order_B], labels.mask_BT[order_B]
        trained_BT, has_negative_MT = hold_back_positives(self._has_negative_MT, scenario_B, label_BT, mask_BT)
        # 1 look up
        counts_B: npt.NDArray[np.bool_] = np.any(labels.first_BT[order_B], axis=1)
        lookup = self._table.lookup(batch, counts_B)
        leaf_UW = lookup.weight_UW.clone().requires_grad_()
        # 2 score: no dropout, no batch statistics, so one forward serves the score and the loss
        x = self._layout.inputs(leaf_UW, torch.from_numpy(lookup.index_N), batch)
        c_BC = self._net.representation(x, row_offsets)
        logits_BT = self._net.task_logits(c_BC, row_offsets)
        # 3 (progressive metrics: the caller's, from the report's logits)
        # 4 loss
        lambda_BT = self._cell_weights()[scenario_B]
        weight_BT, weighed = labels.weight_BT[order_B], None
        if labels.delayed is not None:
            weighed_BT = trained_BT if cold_BT is None else trained_BT & ~cold_BT[order_B]
            weighed = self._policy_weights(
                labels.delayed.take(order_B), label_BT, weighed_BT, logits_BT.detach(), c_BC.detach(), scenario_B
            )
            label_BT, weight_BT = weighed.target_BT, weight_BT * weighed.factor_BT
        loss, num_capped = multi_scenario_loss(
            logits_BT,
            torch.from_numpy(label_BT),
            torch.from_numpy(trained_BT),
            torch.from_numpy(weight_BT),
            torch.from_numpy(lambda_BT),
            max_weight=self.config.loss.max_example_weight,
        )
        # 5 backward
        self._adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped
        grad_UW = leaf_UW.grad if leaf_UW.grad is not None else torch.zeros_like(leaf_UW)
        grads = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        # 6 finite check, before anything is written
        grad_norm = float(torch.nn.utils.get_total_norm(grads))
        row_norm_U = torch.linalg.vector_norm(grad_UW, dim=1)
        skipped = _first_not_finite(logits=logits_BT, loss=loss, dense_gradient=grad_norm, row_gradient=row_norm_U)
        optim = self.config.optim
        num_rows_clipped = 0
        if skipped is None:
            # 7 clip
            if grad_norm > optim.dense_clip:
                torch._foreach_mul_(grads, optim.dense_clip / grad_norm)
            over_U = row_norm_U > optim.row_clip
            num_rows_clipped = int(over_U.sum())
            if num_rows_clipped:
                grad_UW = grad_UW * torch.where(over_U, optim.row_clip / row_norm_U, 1.0)[:, None]
            # 8 step dense and rows
            self._adam.step()
            self._table.apply(lookup, grad_UW, optim)
            # 9 shares, first negatives (rows, their clock and admissions were written with the rows)
            self._shares.update(scenario_B, trained_BT)
            self._has_negative_MT = has_negative_MT
            self._num_steps += 1
        return StepReport(
            logits_BT=_unsorted(logits_BT.detach(), order_B),
            made=skipped is None,
            loss=loss.item(),
            grad_norm=grad_norm,
            skipped=skipped,
            dense_clipped=skipped is None and grad_norm > optim.dense_clip,
            rows_clipped=num_rows_clipped,
            rows_touched=len(lookup.rows_U),
            rows_admitted=len(lookup.admissions.keys) if skipped is None else 0,
            weights_capped=num_capped,
            positives_held_back=int(mask_BT.sum() - trained_BT.sum()),
            labels_weighed=weighed.num_weighed if weighed else 0,
            labels_guarded=weighed.num_guarded if weighed else 0,
        )

    def _policy_weights(
        self,
        delayed: DelayedLabels,
        label_BT: npt.NDArray[np.float32],
        weighed_BT: npt.NDArray[np.bool_],
        logits_BT: Tensor,
        c_BC: Tensor,
        scenario_B: npt.NDArray[np.int64],
    ) -> PolicyWeights:
        """Returns what the policies make of the rows; no input and no output has a gradient."""

        def estimates(policy: PolicyName, task: int, rows: npt.NDArray[np.int64]) -> dict[Estimate, Any]:
            scenario = torch.from_numpy(scenario_B[rows])
            return self._heads.estimates(policy, task, c_BC[torch.from_numpy(rows)], scenario, delayed.take(rows))

        return policy_weights(delayed, label_BT, weighed_BT, logits_BT.sigmoid().numpy(), estimates)

    def _learn_heads(self, batch: EncodedBatch, labels: LabelBatch, delayed: DelayedLabels) -> int:
        """Learns auxiliary heads from settled rows. Returns for how many tasks that was not finite."""
        heads_BT = delayed.needs_heads_BT() & delayed.settled_BT()
        rows_B = np.flatnonzero(heads_BT.any(axis=1))
        if not len(rows_B):
            return 0
        sorted_BC, order_B, _ = self._representation(batch.take(rows_B))
        c_BC = torch.empty_like(sorted_BC)
        c_BC[torch.from_numpy(order_B)] = sorted_BC
        num_skipped = 0
        for task in np.flatnonzero(heads_BT.any(axis=0)).tolist():
            in_task = np.flatnonzero(heads_BT[rows_B, task])
            rows = rows_B[in_task]
            settled = SettledRows(
                c_NC=c_BC[torch.from_numpy(in_task)],
                scenario_N=torch.from_numpy(batch.scenario_B[rows]),
                label_N=labels.label_BT[rows, task],
                weight_N=np.minimum(labels.weight_BT[rows, task], self.config.loss.max_example_weight),
                delay_ms_N=delayed.delay_ms_BT[rows, task],
                observe_ms_N=delayed.observe_ms_BT[rows, task],
                window_ms_N=delayed.window_ms_BT[rows, task],
            )
            num_skipped += not self._heads.learn(task, settled)
        return num_skipped

    def _representation(self, batch: EncodedBatch) -> tuple[Tensor, npt.NDArray[np.int64], list[int]]:
        """Returns C of the rows sorted by scenario, their former places, and where each scenario starts."""
        batch, order_B, row_offsets = batch.by_scenario(self._num_scenarios)
        rows_N = self._layout.rows(batch, self._layout.flat_keys(batch), self._table.ids)
        with torch.no_grad():
            x = self._layout.inputs(self._table.weight, torch.from_numpy(rows_N), batch)
            return self._net.representation(x, row_offsets), order_B, row_offsets

    def evict(self, keys: npt.NDArray[np.int64]) -> int:
        """Removes rows by key. Returns how many there were."""
        return self._table.evict(keys)

    def table_stats(self) -> dict[str, FieldCounters]:
        """Returns the counters of each field's ids, by field."""
        return dict(self._table.counters)

    def state(self) -> dict[str, Tensor]:
        """Returns everything for a bit-exact resume, flat, as copies."""
        tensors = {f"rows.{name}": tensor for name, tensor in self._table.state().items()}
        tensors |= {f"dense.{name}": tensor.clone() for name, tensor in self._net.state_dict().items()}
        for name, parameter in self._parameters.items():
            for moment, tensor in self._adam.state.get(parameter, {}).items():
                tensors[f"adam.{moment}.{name}"] = tensor.clone()
        tensors |= {f"heads.{name}": tensor for name, tensor in self._heads.state().items()}
        tensors["loss.share_MT"] = torch.from_numpy(self._shares.share_MT.copy())
        tensors["loss.has_negative_MT"] = torch.from_numpy(self._has_negative_MT.copy())
        return tensors

    def state_meta(self) -> dict[str, Any]:
        """Returns the part of the state that is not tensors, as JSON values."""
        return {
            "format": STATE_FORMAT,
            "num_steps": self._num_steps,
            "loss_rows": self._shares.num_rows,
            "exported_clock": self._exported_clock,
            "promoted_clock": self._promoted_clock,
        }

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Becomes the learner whose `state` and `state_meta` are given.

        Raises:
            ValueError: another format, or names or shapes that are not this model's; nothing is changed then.
        """
        if meta.get("format") != STATE_FORMAT:
            raise ValueError(f"format: {meta.get('format')!r} is not allowed; {STATE_FORMAT}")
        dense = _under("dense.", tensors)
        check_same_shapes(dense, self._net.state_dict())
        rows = _under("rows.", tensors)
        check_same_shapes(
            {"row": rows["weight"][:1], "counters": rows["admission.counts"]},
            {"row": self._table.weight[:1], "counters": self._table.state()["admission.counts"]},
        )
        self._net.load_state_dict(dense)
        self._adam.state.clear()
        for name, parameter in self._parameters.items():
            moments = {m: tensors.get(f"adam.{m}.{name}") for m in ("step", "exp_avg", "exp_avg_sq")}
            if moments["step"] is not None:
                self._adam.state[parameter] = {m: tensor.clone() for m, tensor in moments.items() if tensor is not None}
        self._table.load_state(rows)
        self._heads.load_state(_under("heads.", tensors))
        self._shares.share_MT = tensors["loss.share_MT"].numpy().copy()
        self._has_negative_MT = tensors["loss.has_negative_MT"].numpy().copy()
        self._shares.num_rows = int(meta["loss_rows"])
        self._num_steps = int(meta["num_steps"])
        self._exported_clock = int(meta["exported_clock"])
        self._promoted_clock = int(meta["promoted_clock"])

    def serving_full(self) -> dict[str, Tensor]:
        """Returns what serving needs, complete; no optimiser state."""
        return self._serving(since=0)

    def serving_delta(self) -> dict[str, Tensor]:
        """Returns what changed since the last promoted export: rows, evicted keys, and all that is small.

        A row that was changed and then evicted is only evicted; one that was evicted and admitted again is only a row.
        Before anything was promoted it is everything.
        """
        return self._serving(since=self._promoted_clock)

    def mark_promoted(self) -> None:
        """Makes the last export (`serving_full` or `serving_delta`) the base of the next delta."""
        self._promoted_clock = self._exported_clock
        self._table.forget_evicted(self._promoted_clock)

    def _serving(self, *, since: int) -> dict[str, Tensor]:
        keys, weights, evicted = self._table.changes(since)
        self._exported_clock = self._table.clock
        tensors = {f"dense.{name}": tensor.clone() for name, tensor in self._net.state_dict().items()}
        return tensors | {
            "rows.keys": torch.from_numpy(keys),
            "rows.weights": weights,
            "rows.evicted": torch.from_numpy(evicted),
            "rows.reserved": self._table.reserved(),
        }

    def _cell_weights(self) -> npt.NDArray[np.float32]:
        """Returns each (scenario, task)'s weight in the loss, [M, T]."""
        loss = self.config.loss
        if loss.scenario_weight == "inverse_size":
            lambda_MT = self._shares.scenario_weights(loss.max_scenario_weight)
        else:
            lambda_MT = np.ones((self._num_scenarios, self._num_tasks))
        cell_MT: npt.NDArray[np.float32] = (lambda_MT * self._task_weight_T).astype(np.float32)
        return cell_MT


def check_same_shapes(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuses weights of another model.

    Raises:
        ValueError: names the first difference.
    """
    for name in sorted(given.keys() | expected.keys()):
        theirs = tuple(given[name].shape) if name in given else "nothing"
        ours = tuple(expected[name].shape) if name in expected else "nothing"
        if theirs != ours:
            raise ValueError(f"{name}: the state has {theirs}, this configuration needs {ours}")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _no_step(num_tasks: int) -> StepReport:
    """The report of a batch without a row for the network."""
    return StepReport(
        logits_BT=np.empty((0, num_tasks), np.float32),
        made=False,
        loss=0.0,
        grad_norm=0.0,
        skipped=None,
        dense_clipped=False,
        rows_clipped=0,
        rows_touched=0,
        rows_admitted=0,
        weights_capped=0,
        positives_held_back=0,
    )


def _unsorted(logits_BT: Tensor, order_B: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    result_BT = np.empty(tuple(logits_BT.shape), np.float32)
    result_BT[order_B] = logits_BT.numpy()
    return result_BT


def _first_not_finite(**parts: Tensor | float) -> str | None:
    return next((name for name, part in parts.items() if not torch.isfinite(torch.as_tensor(part)).all()), None)
