"""The learner: scores a micro-batch, then learns from it.

Letters: B rows, T tasks, M scenarios, C width of the representation, U embedding rows, W their width, N some of the
rows, or the values of a batch.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import ModelConfig
from model.features import EncodedBatch, FeatureEncoder, RowColumns
from model.gate_usage import GateUsage
from model.gradient_sums import add_up
from model.labels import LabelBatch
from model.losses import cells_of, hold_back_positives, with_negatives
from model.network import NetworkInputs
from model.optim import clip_dense, clip_rows
from model.precision import products_in
from model.ranks import Ranks
from model.ranks_config import check_ranks
from model.settled_rows import settled_of_all
from model.step_loss import StepRows, step_loss
from model.step_report import StepReport, no_step
from model.task_heads import SettledRows
from model.trained_model import TrainedModel
from model.training_forward import no_forward, training_forward
from model.whole_rows import RowsStepped
from stream.schema import SchemaConfig


class Together(NamedTuple):
    """What all ranks bring to a step."""

    num_rows: int
    has_negative_MT: npt.NDArray[np.bool_]
    """Where a negative was learned, this micro-batch included."""


class Learner:
    """A model in training. One thread only.

    Same seed, same batches, same bits (with a fixed number of torch threads). A batch that is not finite anywhere
    changes nothing. On several ranks each gives its own rows of a micro-batch, possibly none, in calls that all make in
    the same order: `learn`, `score` and `gate_usage`. Together they learn what one rank would from all the rows.
    """

    def __init__(
        self,
        schema: SchemaConfig,
        config: ModelConfig,
        seed: int,
        device: torch.device | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """`device`: where the arithmetic runs; the CPU if left out. `ranks`: who trains; one alone if left out.

        Raises:
            ValueError: a setting that cannot be, also because there are several ranks.
        """
        self._ranks = ranks or Ranks.alone()
        check_ranks(config, self._ranks.size)
        self.encoder = FeatureEncoder(schema, config.encoding)
        self.config = config
        self._num_tasks = len(schema.tasks)
        unknown = sorted(set(config.priors) - set(schema.tasks))
        if unknown:
            raise ValueError(f"priors: {unknown} are not tasks; {', '.join(schema.tasks)}")
        self._layout = config.input_layout(self.encoder.fields)
        self._device = device or torch.device("cpu")
        self.trained = TrainedModel(schema, self._layout, config, seed, self._device, self._ranks)

    @property
    def num_steps(self) -> int:
        """Steps made, skipped ones not counted."""
        return self.trained.num_steps

    def encode(self, columns: RowColumns) -> EncodedBatch:
        """Returns the columns as keys."""
        return self.encoder.encode_columns(columns)

    def score(self, batch: EncodedBatch) -> npt.NDArray[np.float32]:
        """Returns the logits, [B, T], and changes nothing."""
        inputs, order_B = self._inputs(self.resolved(batch))
        if not len(order_B):
            return np.empty((0, self._num_tasks), np.float32)
        with torch.no_grad(), products_in(self.config.precision, self._device.type):
            return _unsorted(self.trained.net(inputs), order_B)

    def resolved(self, batch: EncodedBatch) -> EncodedBatch:
        """Returns the batch with each row's scenario as the model has it now."""
        return batch.resolved(self.trained.registry.index)

    def gate_usage(self, batch: EncodedBatch) -> list[GateUsage]:
        """Returns what the gates of the network give to their experts on these rows; empty where it has none."""
        inputs, order_B = self._inputs(self.resolved(batch))
        with torch.no_grad():
            return self.trained.net.gate_usage(inputs) if len(order_B) else []

    def learn(self, batch: EncodedBatch, labels: LabelBatch) -> StepReport:
        """Learns from a batch, B at least 1 over all ranks: one step of the network, then of any auxiliary heads.

        Rows with neither a trained label nor a first emission do not reach the network. The report's logits are those
        of this rank's rows, all else in it is of all ranks.
        """
        batch, delayed, model = self.resolved(batch), labels.delayed, self.trained
        cold_BT, heads_BT = None, np.zeros(labels.mask_BT.shape, np.bool_)
        rows_B = np.arange(batch.num_rows)
        if delayed is not None:
            cold_BT, heads_BT = model.heads.cold_BT(delayed), delayed.needs_heads_BT() & delayed.settled_BT()
            labels = replace(labels, mask_BT=np.where(cold_BT, delayed.settled_BT(), labels.mask_BT))
            rows_B = np.flatnonzero((labels.mask_BT | labels.first_BT).any(axis=1))
        has_negative_MT = with_negatives(model.has_negative_MT, batch.scenario_B, labels.label_BT, labels.mask_BT)
        num_3, has_negative_MT = self._ranks.sum_arrays(
            [np.array([len(rows_B), heads_BT.sum(), delayed is not None]), has_negative_MT]
        )
        num_rows, num_settled, num_delayed = num_3.tolist()
        together = Together(num_rows, has_negative_MT)
        if num_rows == 0:
            report = no_step(self._num_tasks)
        elif len(rows_B) == batch.num_rows:
            report = self._step(batch, labels, cold_BT, together)
        else:
            report = self._step(
                batch.take(rows_B), labels.take(rows_B), None if cold_BT is None else cold_BT[rows_B], together
            )
        if len(rows_B) < batch.num_rows:
            logits_BT = np.full(labels.label_BT.shape, np.nan, np.float32)
            logits_BT[rows_B] = report.logits_BT
            report = replace(report, logits_BT=logits_BT)
        if not num_delayed or report.skipped is not None:
            return report
        num_skipped = self._learn_heads(batch, labels, heads_BT) if num_settled else 0
        newest_ms_T = np.full(self._num_tasks, -1) if delayed is None else model.heads.newest_ms_T(delayed)
        newest_ms_T = np.max(self._ranks.exchange([newest_ms_T] * self._ranks.size), axis=0)
        return replace(report, heads_skipped=num_skipped, policies_begun=tuple(model.heads.advance(newest_ms_T)))

    def _step(
        self, batch: EncodedBatch, labels: LabelBatch, cold_BT: npt.NDArray[np.bool_] | None, together: Together
    ) -> StepReport:
        """Makes one step of the network. The numbers are the order of a step."""
        model, optim = self.trained, self.config.optim
        batch, order_B, row_offsets = batch.by_scenario(model.net.num_scenarios)
        scenario_B, labels = batch.scenario_B, labels.take(order_B)
        trained_BT = hold_back_positives(together.has_negative_MT, scenario_B, labels.label_BT, labels.mask_BT)
        weighed_BT = trained_BT if cold_BT is None else trained_BT & ~cold_BT[order_B]
        # 1 look up
        counts_B: npt.NDArray[np.bool_] = np.any(labels.first_BT, axis=1)
        lookup = model.rows.lookup(batch, counts_B)
        leaf_UW = lookup.weight_UW.clone().requires_grad_()
        # 2 score
        if batch.num_rows:
            inputs = self._network_inputs(leaf_UW, lookup.index_N, batch, row_offsets)
            forward = training_forward(model.net, replace(inputs, noise=model.step_noise()), self.config.precision)
        else:
            forward = no_forward(model.net, self._device)
        # 3 (progressive metrics: the caller's, from the report's logits)
        # 4 loss
        taught = None
        if model.teacher is not None:
            taught = model.teacher.teach(
                batch, model.rows, lookup, row_offsets, labels, trained_BT, self.config.precision
            )
        rows = StepRows(
            scenario_B=scenario_B,
            labels=labels,
            trained_BT=trained_BT,
            weighed_BT=weighed_BT,
            num_rows=together.num_rows,
            taught=taught,
        )
        loss, num_capped, num_weighed, num_guarded = step_loss(model, self.config, forward, rows)
        # 5 backward
        model.adam.zero_grad(set_to_none=True)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped
        grad_UW = leaf_UW.grad if leaf_UW.grad is not None else torch.zeros_like(leaf_UW)
        grad_UW = model.rows.to_owners(lookup, grad_UW)
        row_norm_U = torch.linalg.vector_norm(grad_UW, dim=1)
        own = [forward.logits_BT, forward.score_BT, row_norm_U]
        counts = [num_capped, num_weighed, num_guarded, int(labels.mask_BT.sum() - trained_BT.sum())]
        is_over_U = row_norm_U > optim.row_clip
        counts_5, broken_3, cells_MT, rows_M, lookup_counts = add_up(
            self._ranks,
            model.parameters.values(),
            [
                np.array([*counts, int(is_over_U[: lookup.num_own].sum())]),
                np.array([not bool(torch.isfinite(part).all()) for part in own], np.int64),
                cells_of(scenario_B, trained_BT, model.net.num_scenarios),
                np.bincount(scenario_B, minlength=model.net.num_scenarios),
                lookup.counts,
            ],
        )
        grads = [parameter.grad for parameter in model.parameters.values() if parameter.grad is not None]
        # 6 finite check, before anything is written
        grad_norm = float(torch.nn.utils.get_total_norm(grads))
        broken = {
            "logits": bool(broken_3[0]),
            "scores": bool(broken_3[1]),
            "loss": not bool(torch.isfinite(loss)),
            "dense_gradient": not math.isfinite(grad_norm),
            "row_gradient": bool(broken_3[2]),
        }
        skipped = next((name for name, is_broken in broken.items() if is_broken), None)
        dense_clipped, num_rows_clipped, stepped = False, 0, RowsStepped(0, 0)
        if skipped is None:
            # 7 clip
            dense_clipped = clip_dense(grads, grad_norm, optim.dense_clip)
            num_rows_clipped = int(counts_5[4]) + int(is_over_U[lookup.num_own :].sum())
            if num_rows_clipped:
                grad_UW = clip_rows(grad_UW, row_norm_U, optim.row_clip)
            # 8 step dense and rows
            model.adam.step()
            model.net.after_step()
            model.weighting.after_step()
            stepped = model.rows.apply(lookup, grad_UW, lookup_counts, optim, labels.watermark_ms)
            # 9 shares, openings, first negatives (rows, their clock and admissions were written with the rows)
            model.shares.update(cells_MT, together.num_rows)
            model.open_scenarios(rows_M)
            model.has_negative_MT = together.has_negative_MT
            model.num_steps += 1
            if model.teacher is not None:
                model.teacher.after_step(model.net, scenario_B, forward.score_BT, labels, trained_BT)
        return StepReport(
            logits_BT=_unsorted(forward.score_BT, order_B),
            made=skipped is None,
            loss=loss.item(),
            grad_norm=grad_norm,
            skipped=skipped,
            dense_clipped=dense_clipped,
            rows_clipped=num_rows_clipped,
            rows_touched=stepped.touched,
            rows_admitted=stepped.admitted,
            weights_capped=int(counts_5[0]),
            positives_held_back=int(counts_5[3]),
            labels_weighed=int(counts_5[1]),
            labels_guarded=int(counts_5[2]),
        )

    def _learn_heads(self, batch: EncodedBatch, labels: LabelBatch, heads_BT: npt.NDArray[np.bool_]) -> int:
        """Learns auxiliary heads from cells that are settled. Returns for how many tasks that was not finite."""
        rows_B = np.flatnonzero(heads_BT.any(axis=1))
        c_BC = self._representation(batch.take(rows_B))
        delayed, by_task = labels.delayed, {}
        for task in np.flatnonzero(heads_BT.any(axis=0)).tolist():
            assert delayed is not None
            in_task = np.flatnonzero(heads_BT[rows_B, task])
            rows = rows_B[in_task]
            by_task[task] = SettledRows(
                c_NC=c_BC[torch.from_numpy(in_task)],
                scenario_N=torch.from_numpy(batch.scenario_B[rows]),
                label_N=labels.label_BT[rows, task],
                weight_N=np.minimum(labels.weight_BT[rows, task], self.config.loss.max_example_weight),
                delay_ms_N=delayed.delay_ms_BT[rows, task],
                observe_ms_N=delayed.observe_ms_BT[rows, task],
                window_ms_N=delayed.window_ms_BT[rows, task],
                place_N=rows if labels.place_B is None else labels.place_B[rows],
            )
        by_task = settled_of_all(self._ranks, by_task, c_BC.shape[1])
        return sum(not self.trained.heads.learn(task, settled) for task, settled in by_task.items())

    def _representation(self, batch: EncodedBatch) -> Tensor:
        """Returns what the network makes of rows before its tasks part, [B, C], on the host."""
        inputs, order_B = self._inputs(batch)
        c_BC = torch.empty(len(order_B), self.trained.net.representation_width)
        if len(order_B):
            with torch.no_grad(), products_in(self.config.precision, self._device.type):
                c_BC[torch.from_numpy(order_B)] = self.trained.net.representation(inputs).float().cpu()
        return c_BC

    def _inputs(self, batch: EncodedBatch) -> tuple[NetworkInputs, npt.NDArray[np.int64]]:
        """Returns what the network sees of the rows, sorted by scenario, to look at only, and their former places."""
        batch, order_B, row_offsets = batch.by_scenario(self.trained.net.num_scenarios)
        source_UW, index_N = self.trained.rows.read(batch)
        with torch.no_grad():
            return self._network_inputs(source_UW, index_N, batch, row_offsets), order_B

    def _network_inputs(
        self, source_UW: Tensor, index_N: npt.NDArray[np.int64], batch: EncodedBatch, row_offsets: list[int]
    ) -> NetworkInputs:
        index = torch.from_numpy(index_N).to(self._device)
        uses_sequence = self.trained.net.uses_sequence
        return self._layout.network_inputs(source_UW, index, batch, row_offsets, with_sequence=uses_sequence)


def _unsorted(logits_BT: Tensor, order_B: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    result_BT = np.empty(tuple(logits_BT.shape), np.float32)
    result_BT[order_B] = logits_BT.float().cpu().numpy()
    return result_BT
