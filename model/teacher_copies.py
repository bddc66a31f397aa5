"""The teacher that is a copy of the model: its network, and a view of its rows as they were.

Three of them at most: the one that teaches, the one before it (which teaches again when a version is rolled back), and
one that waits for its version to be promoted.

Letters: B rows, T tasks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from model.embedding import EmbeddingTable
from model.features import EncodedBatch
from model.hashing import MISSING_KEY
from model.metrics import BoolArray
from model.network import Network
from model.precision import Precision, products_in
from model.score_regularization import KnownId
from model.teacher_rows import FrozenRows, OldRows

Role = Literal["current", "previous", "candidate"]


@dataclass(frozen=True, slots=True)
class TeacherCopy:
    """A model as it was."""

    version: int
    """The version that it went live with; 0 where nothing is published."""
    taken_ms: int
    """Watermark at which it was taken."""
    net: Network
    rows: FrozenRows


class TeacherCopies:
    """Takes copies, and asks the one that teaches."""

    def __init__(
        self, table: EmbeddingTable, new_net: Callable[[int], Network], known_ids: tuple[KnownId, ...]
    ) -> None:
        """`new_net`: from a number of scenarios to a network as it is served, its values to be loaded."""
        self._table = table
        self._new_net = new_net
        self._known_ids = known_ids
        self._copies: dict[Role, TeacherCopy] = {}
        self._denied: set[int] = set()

    @property
    def current(self) -> TeacherCopy | None:
        """The one that teaches."""
        return self._copies.get("current")

    def take(self, version: int, watermark_ms: int, dense: Mapping[str, Tensor], num_scenarios: int) -> None:
        """Copies the model as it is now, with the network's values given; it teaches once `version` is promoted."""
        net = self._new_net(num_scenarios).requires_grad_(False)
        net.load_state_dict(dense)
        self._put("candidate", TeacherCopy(version, watermark_ms, net, self._table.freeze()))

    def promoted(self, version: int) -> None:
        """Lets the copy of a version teach, if there is one that waits for it."""
        candidate = self._copies.get("candidate")
        if candidate is None or candidate.version != version or version in self._denied:
            return
        self._put("previous", self._copies.pop("current", None))
        self._copies["current"] = self._copies.pop("candidate")

    def deny(self, version: int) -> None:
        """Lets a version teach no more: the copy before it, if it is not denied too, teaches in its place."""
        self._denied.add(version)
        for role in get_args(Role):
            copy = self._copies.get(role)
            if copy is not None and copy.version in self._denied:
                self._put(role, None)
        if "current" not in self._copies and "previous" in self._copies:
            self._copies["current"] = self._copies.pop("previous")

    def _put(self, role: Role, copy: TeacherCopy | None) -> None:
        old = self._copies.pop(role, None)
        if old is not None:
            self._table.release(old.rows)
        if copy is not None:
            self._copies[role] = copy

    def logits(
        self, batch: EncodedBatch, old: OldRows, row_offsets: list[int], precision: Precision, min_examples: int
    ) -> tuple[Tensor, dict[str, BoolArray]]:
        """Returns the teacher's logits of a batch, [B, T], and by reason where there are none, [B, 1].

        The batch is sorted by scenario; `old` are its rows as they were in `current.rows`. An evaluation forward
        without gradient; a scenario that it does not have is scored as its last one, and masked.
        """
        teacher = self._copies["current"]
        layout, num_scenarios = self._table.layout, teacher.net.num_scenarios
        offsets = [*row_offsets[:num_scenarios], row_offsets[-1]]
        z_BT = torch.empty(0, teacher.net.shape.num_tasks, device=old.source_VW.device)
        if batch.num_rows:
            index = torch.from_numpy(old.index_N).to(old.source_VW.device)
            with torch.no_grad(), products_in(precision, index.device.type):
                inputs = layout.network_inputs(
                    old.source_VW, index, batch, offsets, with_sequence=teacher.net.uses_sequence
                )
                z_BT = teacher.net(inputs).float()
        is_new_B = np.arange(batch.num_rows) >= row_offsets[min(num_scenarios, len(row_offsets) - 1)]
        is_unknown_B = self._has_unknown_id(batch, old, min_examples)
        return z_BT, {"new_scenario": is_new_B[:, None], "unknown_id": is_unknown_B[:, None]}

    def _has_unknown_id(self, batch: EncodedBatch, old: OldRows, min_examples: int) -> BoolArray:
        """Returns which rows have an id that had too few examples; a missing id is none."""
        layout = self._table.layout
        starts, keys_N = layout.field_starts(batch), layout.flat_keys(batch)
        is_unknown_B = np.zeros(batch.num_rows, np.bool_)
        for field, one in enumerate(layout.fields):
            if one.name not in self._known_ids or not one.admission:
                continue
            places = starts[field] + (np.arange(batch.num_rows) if one.side == "item" else batch.request_index_B)
            is_missing_B = keys_N[places] == MISSING_KEY
            is_unknown_B |= (old.examples_N[places] < min_examples) & ~is_missing_B
        return is_unknown_B

    def state(self) -> dict[str, Tensor]:
        """Returns the tensors of everything, as copies in host memory."""
        tensors = {"denied": torch.tensor(sorted(self._denied), dtype=torch.int64)}
        for role, copy in self._copies.items():
            tensors |= {f"{role}.rows.{name}": tensor for name, tensor in copy.rows.state().items()}
            dense = copy.net.state_dict().items()
            tensors |= {f"{role}.dense.{name}": tensor.to("cpu", copy=True) for name, tensor in dense}
        return tensors

    def state_meta(self) -> dict[str, Any]:
        """Returns the part of the state that is not tensors, as JSON values."""
        return {
            role: {"version": copy.version, "taken_ms": copy.taken_ms, "num_scenarios": copy.net.num_scenarios}
            for role, copy in self._copies.items()
        }

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned, after the table did; from nothing it starts anew."""
        self._copies.clear()
        self._denied = set(tensors["denied"].tolist()) if "denied" in tensors else set()
        for role in get_args(Role):
            if role not in meta:
                continue
            of_role = {name.removeprefix(f"{role}."): tensors[name] for name in tensors if name.startswith(f"{role}.")}
            dense = {name.removeprefix("dense."): of_role[name] for name in of_role if name.startswith("dense.")}
            kept = {name.removeprefix("rows."): of_role[name] for name in of_role if name.startswith("rows.")}
            net = self._new_net(meta[role]["num_scenarios"]).requires_grad_(False)
            net.load_state_dict(dense)
            rows = FrozenRows.restored(kept, self._table.weight.device)
            self._table.refreeze(rows)
            self._copies[role] = TeacherCopy(meta[role]["version"], meta[role]["taken_ms"], net, rows)
