"""A training step whose batch is on the device already: no ids, nothing sent, nothing waited for.

The same arithmetic as `Learner.learn` on rows that have been looked up: gather, forward, loss, backward, clipping,
Adam, row-wise Adagrad, scatter. `check` compares it with the learner's own step: what is timed is what is trained.

Letters: R requests, B rows, N values of a batch, U distinct rows, W embedding width, T tasks.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from model.features import EncodedBatch
from model.inputs import RowInputs
from model.labels import LabelBatch
from model.learner import Learner
from model.network import NetworkInputs
from model.optim import rowwise_adagrad
from model.training_forward import training_forward


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedBatch:
    """What a step needs of a batch, on the device; rows are sorted by scenario."""

    rows_U: Tensor
    request_N: Tensor
    """Places in `rows_U` of the requests' values, [fields, R]."""
    item_N: Tensor
    """The same of the items' values, [fields, B]."""
    request_index_B: Tensor
    label_BT: Tensor
    cell_BT: Tensor
    """Weight of each label in the loss; 0 where there is none."""
    row_offsets: list[int]

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.label_BT)

    @property
    def num_bytes(self) -> int:
        """Bytes that have to come from the host for a step."""
        tensors = (self.rows_U, self.request_N, self.item_N, self.request_index_B, self.label_BT, self.cell_BT)
        return sum(tensor.nbytes for tensor in tensors)


class ResidentStep:
    """Steps of a learner's network and rows on staged batches; the learner's own table stays as it is.

    For networks without dropout, batch statistics or lists among their fields, and gradients without clipping by count:
    scales are tensors, so that nothing waits for the device.
    """

    def __init__(self, learner: Learner, device: torch.device) -> None:
        self._model, self._config, self._device = learner.trained, learner.config, device
        state = learner.trained.table.state()
        self.weight = state["weight"].to(device)
        self.accumulator = state["accumulator"].to(device)

    def stage(self, batch: EncodedBatch, labels: LabelBatch) -> StagedBatch:
        """Returns a batch of values that all have a row by now."""
        batch, order_B, row_offsets = batch.by_scenario(self._model.net.num_scenarios)
        if batch.request_lists or batch.item_lists:
            raise ValueError("lists of values are not staged")
        labels = labels.take(order_B)
        lookup = self._model.table.lookup(batch, np.zeros(batch.num_rows, np.bool_))
        num_request = batch.request_keys_FR.size
        most = self._config.loss.max_scenario_weight
        lambda_BT = self._model.shares.scenario_weights(most).astype(np.float32)[batch.scenario_B]
        return StagedBatch(
            rows_U=self._sent(lookup.rows_U),
            request_N=self._sent(lookup.index_N[:num_request].reshape(batch.request_keys_FR.shape)),
            item_N=self._sent(lookup.index_N[num_request:].reshape(batch.item_keys_FB.shape)),
            request_index_B=self._sent(batch.request_index_B),
            label_BT=self._sent(labels.label_BT),
            cell_BT=self._sent(labels.mask_BT * labels.weight_BT * lambda_BT),
            row_offsets=row_offsets,
        )

    def step(self, batch: StagedBatch) -> Tensor:
        """Makes a step. Returns the loss, on the device."""
        model, optim = self._model, self._config.optim
        leaf_UW = self.weight.index_select(0, batch.rows_U).float().requires_grad_()
        request = F.embedding(batch.request_N.t(), leaf_UW).flatten(1)
        item = F.embedding(batch.item_N.t(), leaf_UW).flatten(1)
        inputs = NetworkInputs(x=RowInputs(item, request, batch.request_index_B), row_offsets=batch.row_offsets)
        logits_BT = training_forward(model.net, inputs, self._config.precision).logits_BT
        loss = F.binary_cross_entropy_with_logits(logits_BT, batch.label_BT, batch.cell_BT, reduction="sum")
        loss = loss / batch.num_rows
        model.adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped
        grads = [parameter.grad for parameter in model.parameters.values() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        torch._foreach_mul_(grads, (optim.dense_clip / norm).clamp(max=1.0))
        grad_UW = cast(Tensor, leaf_UW.grad)
        row_norm_U = torch.linalg.vector_norm(grad_UW, dim=1, keepdim=True)
        grad_UW = grad_UW * (optim.row_clip / row_norm_U).clamp(max=1.0)
        model.adam.step()
        new_UW, accumulator_U = rowwise_adagrad(
            leaf_UW.detach(), self.accumulator[batch.rows_U], grad_UW, lr=optim.row_lr, eps=optim.row_eps
        )
        self.weight[batch.rows_U] = new_UW.to(self.weight.dtype)
        self.accumulator[batch.rows_U] = accumulator_U
        return loss.detach()

    def _sent(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def check(one: Learner, other: Learner, batch: EncodedBatch, labels: LabelBatch, device: torch.device) -> float:
    """Returns how far a resident step is from the learner's own: |difference| over |change| of the rows' weights.

    Two equal learners; both are changed.
    """
    resident = ResidentStep(other, device)
    before = one.trained.table.state()["weight"]
    resident.step(resident.stage(other.resolved(batch), labels))
    assert one.learn(batch, labels).made
    after, theirs = one.trained.table.state()["weight"], resident.weight.cpu()
    change = torch.linalg.vector_norm((after - before).float())
    return float(torch.linalg.vector_norm((after - theirs).float()) / change)
