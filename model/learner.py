"""The learner: scores a micro-batch, then learns from it.

Letters: B rows, T tasks, M scenarios, C width of the representation, U embedding rows, W their width, N some of the
rows, or the values of a batch.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import ModelConfig
from model.delayed_labels import DelayedLabels
from model.features import EncodedBatch, FeatureEncoder, RowColumns
from model.gate_usage import GateUsage
from model.labels import LabelBatch
from model.losses import hold_back_positives
from model.network import NetworkInputs
from model.optim import clip_dense, clip_rows
from model.precision import products_in
from model.step_loss import StepRows, step_loss
from model.step_report import StepReport, no_step
from model.task_heads import SettledRows
from model.trained_model import TrainedModel
from model.training_forward import training_forward
from stream.schema import SchemaConfig


class Learner:
    """A model in training. One thread only.

    Same seed, same batches, same bits (with a fixed number of torch threads). A batch that is not finite anywhere
    changes nothing.
    """

    def __init__(
        self, schema: SchemaConfig, config: ModelConfig, seed: int, device: torch.device | None = None
    ) -> None:
        """`device`: where the arithmetic runs; the CPU if left out."""
        self.encoder = FeatureEncoder(schema, config.encoding)
        self.config = config
        self._num_tasks = len(schema.tasks)
        unknown = sorted(set(config.priors) - set(schema.tasks))
        if unknown:
            raise ValueError(f"priors: {unknown} are not tasks; {', '.join(schema.tasks)}")
        self._layout = config.input_layout(self.encoder.fields)
        self._device = device or torch.device("cpu")
        self.trained = TrainedModel(schema, self._layout, config, seed, self._device)

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
        with torch.no_grad(), products_in(self.config.precision, self._device.type):
            return _unsorted(self.trained.net(inputs), order_B)

    def resolved(self, batch: EncodedBatch) -> EncodedBatch:
        """Returns the batch with each row's scenario as the model has it now."""
        return batch.resolved(self.trained.registry.index)

    def gate_usage(self, batch: EncodedBatch) -> list[GateUsage]:
        """Returns what the gates of the network give to their experts on these rows; empty where it has none."""
        inputs, _ = self._inputs(self.resolved(batch))
        with torch.no_grad():
            return self.trained.net.gate_usage(inputs)

    def learn(self, batch: EncodedBatch, labels: LabelBatch) -> StepReport:
        """Learns from a batch, B at least 1: one step of the network, then of the auxiliary heads where there are any.

        Rows with neither a trained label nor a first emission do not reach the network.
        """
        batch, delayed = self.resolved(batch), labels.delayed
        if delayed is None:
            return self._step(batch, labels)
        cold_BT = self.trained.heads.cold_BT(delayed)
        labels = replace(labels, mask_BT=np.where(cold_BT, delayed.settled_BT(), labels.mask_BT))
        rows_B = np.flatnonzero((labels.mask_BT | labels.first_BT).any(axis=1))
        if len(rows_B) == batch.num_rows:
            report = self._step(batch, labels, cold_BT)
        elif len(rows_B):
            report = self._step(batch.take(rows_B), labels.take(rows_B), cold_BT[rows_B])
        else:
            report = no_step(self._num_tasks)
        logits_BT = np.full(labels.label_BT.shape, np.nan, np.float32)
        logits_BT[rows_B] = report.logits_BT
        report = replace(report, logits_BT=logits_BT)
        if report.skipped is not None:
            return report
        num_skipped = self._learn_heads(batch, labels, delayed)
        return replace(report, heads_skipped=num_skipped, policies_begun=tuple(self.trained.heads.advance(delayed)))

    def _step(
        self, batch: EncodedBatch, labels: LabelBatch, cold_BT: npt.NDArray[np.bool_] | None = None
    ) -> StepReport:
        """Makes one step of the network. The numbers are the order of a step."""
        model, optim = self.trained, self.config.optim
        batch, order_B, row_offsets = batch.by_scenario(model.net.num_scenarios)
        scenario_B, labels = batch.scenario_B, labels.take(order_B)
        trained_BT, has_negative_MT = hold_back_positives(
            model.has_negative_MT, scenario_B, labels.label_BT, labels.mask_BT
        )
        weighed_BT = trained_BT if cold_BT is None else trained_BT & ~cold_BT[order_B]
        # 1 look up
        counts_B: npt.NDArray[np.bool_] = np.any(labels.first_BT, axis=1)
        lookup = model.table.lookup(batch, counts_B)
        leaf_UW = lookup.weight_UW.clone().requires_grad_()
        inputs = self._network_inputs(leaf_UW, lookup.index_N, batch, row_offsets)
        # 2 score
        forward = training_forward(model.net, replace(inputs, noise=model.step_noise()), self.config.precision)
        # 3 (progressive metrics: the caller's, from the report's logits)
        # 4 loss
        taught = None
        if model.teacher is not None:
            taught = model.teacher.teach(
                batch, model.table, lookup, row_offsets, labels, trained_BT, self.config.precision
            )
        rows = StepRows(
            scenario_B=scenario_B, labels=labels, trained_BT=trained_BT, weighed_BT=weighed_BT, taught=taught
        )
        loss, num_capped, num_weighed, num_guarded = step_loss(model, self.config, forward, rows)
        # 5 backward
        model.adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped
        grad_UW = leaf_UW.grad if leaf_UW.grad is not None else torch.zeros_like(leaf_UW)
        grads = [parameter.grad for parameter in model.parameters.values() if parameter.grad is not None]
        # 6 finite check, before anything is written
        grad_norm = float(torch.nn.utils.get_total_norm(grads))
        row_norm_U = torch.linalg.vector_norm(grad_UW, dim=1)
        skipped = _first_not_finite(
            logits=forward.logits_BT,
            scores=forward.score_BT,
            loss=loss,
            dense_gradient=grad_norm,
            row_gradient=row_norm_U,
        )
        dense_clipped, num_rows_clipped = False, 0
        if skipped is None:
            # 7 clip
            dense_clipped = clip_dense(grads, grad_norm, optim.dense_clip)
            grad_UW, num_rows_clipped = clip_rows(grad_UW, row_norm_U, optim.row_clip)
            # 8 step dense and rows
            model.adam.step()
            model.net.after_step()
            model.weighting.after_step()
            model.table.apply(lookup, grad_UW, optim, watermark_ms=labels.watermark_ms)
            # 9 shares, openings, first negatives (rows, their clock and admissions were written with the rows)
            model.shares.update(scenario_B, trained_BT)
            model.open_scenarios(scenario_B)
            model.has_negative_MT = has_negative_MT
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
            rows_touched=len(lookup.rows_U),
            rows_admitted=len(lookup.admissions.keys) if skipped is None else 0,
            weights_capped=num_capped,
            positives_held_back=int(labels.mask_BT.sum() - trained_BT.sum()),
            labels_weighed=num_weighed,
            labels_guarded=num_guarded,
        )

    def _learn_heads(self, batch: EncodedBatch, labels: LabelBatch, delayed: DelayedLabels) -> int:
        """Learns auxiliary heads from settled rows. Returns for how many tasks that was not finite."""
        heads_BT = delayed.needs_heads_BT() & delayed.settled_BT()
        rows_B = np.flatnonzero(heads_BT.any(axis=1))
        if not len(rows_B):
            return 0
        inputs, order_B = self._inputs(batch.take(rows_B))
        with torch.no_grad(), products_in(self.config.precision, self._device.type):
            sorted_BC = self.trained.net.representation(inputs).float().cpu()
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
            num_skipped += not self.trained.heads.learn(task, settled)
        return num_skipped

    def _inputs(self, batch: EncodedBatch) -> tuple[NetworkInputs, npt.NDArray[np.int64]]:
        """Returns what the network sees of the rows, sorted by scenario, to look at only, and their former places."""
        batch, order_B, row_offsets = batch.by_scenario(self.trained.net.num_scenarios)
        keys_N = self._layout.flat_keys(batch)
        rows_N = self._layout.rows(batch, keys_N, self.trained.table.ids)
        source_UW, index_N = self.trained.table.read(rows_N, keys_N)
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


def _first_not_finite(**parts: Tensor | float) -> str | None:
    return next((name for name, part in parts.items() if not torch.isfinite(torch.as_tensor(part)).all()), None)
