"""Look-up and update of rows that several ranks share out by key, around the ordinary table of each.

Each rank asks the owners for the distinct keys of its part of the micro-batch. An owner plans admissions over what all
ask, as one rank would, and answers with weights; gradients go back the same way and are added up in the order of the
ranks, before anything is clipped. The reserved rows are on every rank, and their gradients go to all.

Letters: F fields, N values of this rank's rows, K their distinct keys (by owner), A keys that ranks ask of this one,
U rows of theirs that this rank has, R reserved rows, W embedding width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.embedding import EmbeddingTable
from model.features import EncodedBatch
from model.hashing import MISSING_KEY, Int64Array
from model.lookup import Lookup
from model.optim import OptimConfig
from model.ranks import Ranks
from model.sharding import by_owner
from model.teacher_rows import FrozenRows, OldRows
from model.whole_rows import RowsStepped

_MISSING, _NO_ROW, _HAS_ROW, _GETS_ROW = range(4)
"""What there is of a value: no value; none but the default row; a row of its own; one that this batch admits."""


class Asked(NamedTuple):
    """Which keys this rank asked of the others, and they of it."""

    field_N: Int64Array
    """Field of each value of the flat order."""
    index_N: Int64Array
    """Place of each value's key among those asked for; -1 where the value is missing."""
    num_to: Int64Array
    """How many distinct keys each rank was asked for."""
    received: list[Int64Array]
    """What each rank asked: key, a field of it, examples that count towards its admission, examples in all, [.., 4]."""


class SharedLookup(NamedTuple):
    """The rows of this rank's part of a micro-batch, and what learning from all parts would change here."""

    weight_UW: Tensor
    """Weights of the K keys asked for, then of the reserved rows; those of a key without a row are not used."""
    index_N: Int64Array
    """Place in `weight_UW` of each value of the flat order."""
    owned: Lookup
    """What all parts together have of the rows that this rank owns, then all reserved rows."""
    asked: Asked
    key_of: list[Int64Array]
    """Place in the keys of `owned` of each key that a rank asked for, by rank."""
    counts: npt.NDArray[np.int64]
    """What `apply` needs the sum of over the ranks."""

    @property
    def num_own(self) -> int:
        """How many rows of the whole micro-batch are this rank's alone; the others are reserved."""
        return len(self.owned.rows_U) - len(self.weight_UW) + int(self.asked.num_to.sum())


class ShardedRows:
    """The rows of all ranks. Every rank calls the same methods in the same order, also without a row of its own."""

    def __init__(self, table: EmbeddingTable, ranks: Ranks) -> None:
        self._table = table
        self._layout = table.layout
        self._ranks = ranks

    def lookup(self, batch: EncodedBatch, counts_B: npt.NDArray[np.bool_]) -> SharedLookup:
        """Returns the rows of this rank's part of a batch; those with `counts_B` count towards admission."""
        layout, num_fields = self._layout, len(self._layout.fields)
        asked = self._ask(batch, layout.examples(batch, counts_B))
        received_A4 = np.concatenate(asked.received)
        keys_K, first_K, place_A = np.unique(received_A4[:, 0], return_index=True, return_inverse=True)
        counted_K, examples_K = (
            np.bincount(place_A, received_A4[:, column], minlength=len(keys_K)).astype(np.int64) for column in (2, 3)
        )
        field_K, counts_A = received_A4[first_K, 1], received_A4[:, 2] > 0
        field_K[place_A[counts_A]] = received_A4[counts_A, 1]  # a value may also stand in a field that admits none
        owned = self._table.lookup_keys(keys_K, field_K, counted_K, examples_K)
        key_of = _parts(place_A, asked.received)
        num_own = len(owned.rows_U) - layout.num_reserved
        state_U = np.full(len(owned.rows_U), _HAS_ROW, np.float32)
        state_U[owned.new_U], state_U[num_own:] = _GETS_ROW, _NO_ROW
        answer_UW1 = torch.cat([owned.weight_UW, self._index(state_U)[:, None]], dim=1)
        answers = [answer_UW1[self._index(owned.index_N[places])] for places in key_of]
        weight_UW, state_K = self._answered(asked, answers, owned.weight_UW[num_own:])
        state_N = np.append(state_K, _MISSING)[asked.index_N]
        index_N = self._places(asked, state_N, len(state_K))
        reserved = index_N[index_N >= len(state_K)] - len(state_K)
        uses_R = np.bincount(reserved, minlength=layout.num_reserved)
        kinds = (slice(None), (state_N == _NO_ROW) | (state_N == _GETS_ROW), state_N == _MISSING)
        lookups_3F = [np.bincount(asked.field_N[kind], minlength=num_fields) for kind in kinds]
        return SharedLookup(
            weight_UW=weight_UW,
            index_N=index_N,
            owned=owned,
            asked=asked,
            key_of=key_of,
            counts=np.concatenate([*lookups_3F, owned.admitted_F, uses_R, [num_own]]),
        )

    def read(self, batch: EncodedBatch) -> tuple[Tensor, Int64Array]:
        """Returns weights of this rank's part of a batch, to look at only, and each value's place among them."""
        asked = self._ask(batch, np.zeros(int(self._layout.field_starts(batch)[-1]), np.int64))
        weight_AW, has_row_A = self._table.read_keys(np.concatenate(asked.received)[:, 0].copy())
        state_A = np.where(has_row_A, _HAS_ROW, _NO_ROW).astype(np.float32)
        answer_AW1 = torch.cat([weight_AW, self._index(state_A)[:, None]], dim=1)
        answers = torch.split(answer_AW1, [len(part) for part in asked.received])
        reserved_RW = self._table.weight[: self._layout.num_reserved].float()
        weight_UW, state_K = self._answered(asked, answers, reserved_RW)
        return weight_UW, self._places(asked, np.append(state_K, _MISSING)[asked.index_N], len(state_K))

    def old(self, lookup: SharedLookup, view: FrozenRows) -> OldRows:
        """Returns the rows of this rank's part as they were in a view that every rank took of its own."""
        old, asked = view.rows_of(self._table.batch_rows(lookup.owned), self._layout), lookup.asked
        examples_K = old.examples_N.astype(np.float32)
        answers = [
            torch.cat([old.source_VW[self._index(old.index_N[key])], self._index(examples_K[key])[:, None]], dim=1)
            for key in lookup.key_of
        ]
        source_VW, examples_K = self._answered(asked, answers, view.reserved_RW)
        examples_N = np.append(examples_K, -1)[asked.index_N].astype(np.int64)
        state_N = np.where(asked.index_N < 0, _MISSING, np.where(examples_N < 0, _NO_ROW, _HAS_ROW))
        return OldRows(source_VW, self._places(asked, state_N, len(examples_K)), examples_N)

    def to_owners(self, lookup: SharedLookup, grad_UW: Tensor) -> Tensor:
        """Returns the gradients of `lookup.owned`, added up over the ranks, for those of `lookup.weight_UW`."""
        sizes = [*lookup.asked.num_to.tolist(), self._layout.num_reserved]
        *parts, reserved_RW = torch.split(grad_UW, sizes)
        coming = [len(places) + len(reserved_RW) for places in lookup.key_of]
        received = self._ranks.exchange_tensors([torch.cat([part, reserved_RW]) for part in parts], coming)
        owned_UW = torch.zeros_like(lookup.owned.weight_UW)
        reserved = np.arange(lookup.num_own, len(owned_UW))
        for places, part in zip(lookup.key_of, received, strict=True):
            # Keys without a row are in the place of a default row; their gradients are zero.
            owned_UW.index_add_(0, self._index(np.concatenate([lookup.owned.index_N[places], reserved])), part)
        return owned_UW

    def apply(
        self,
        lookup: SharedLookup,
        grad_UW: Tensor,
        counts: npt.NDArray[np.int64],
        config: OptimConfig,
        watermark_ms: int,
    ) -> RowsStepped:
        """Steps, admits and evicts as one rank would; `grad_UW` are those of `lookup.owned`.

        `counts` are those of the lookup, added up over the ranks. A reserved row is stepped where any rank used it.
        """
        owned = lookup.owned
        by_field, uses_R, (num_own,) = np.split(counts, [4 * len(self._layout.fields), -1])
        *lookups_3F, admitted_F = by_field.reshape(4, -1)
        kept = np.concatenate([np.arange(lookup.num_own), lookup.num_own + np.flatnonzero(uses_R)])
        places = self._index(kept)
        agreed = owned._replace(
            rows_U=owned.rows_U[kept],
            weight_UW=owned.weight_UW[places],
            accumulator_U=owned.accumulator_U[places],
            examples_U=owned.examples_U[kept],
            lookups_F3=np.stack(lookups_3F, axis=1),
            admitted_F=admitted_F,
        )
        self._table.apply(agreed, grad_UW[places], config, watermark_ms=watermark_ms)
        return RowsStepped(int(num_own) + int(np.count_nonzero(uses_R)), int(admitted_F.sum()))

    def _ask(self, batch: EncodedBatch, examples_N: Int64Array) -> Asked:
        """Sends the owners the distinct keys of this rank's rows, and takes what the others ask."""
        layout = self._layout
        keys_N, field_N = (
            layout.flat_keys(batch),
            np.repeat(np.arange(len(layout.fields)), np.diff(layout.field_starts(batch))),
        )
        known = np.flatnonzero(keys_N != MISSING_KEY)
        keys_K, place = np.unique(keys_N[known], return_inverse=True)
        order_K, num_to = by_owner(keys_K, self._ranks.size)
        place = np.argsort(order_K)[place]
        admits = layout.admission_F[field_N[known]] > 0
        asked_K4 = np.empty((len(keys_K), 4), np.int64)
        asked_K4[:, 0] = keys_K[order_K]
        asked_K4[place, 1] = field_N[known]
        asked_K4[place[admits], 1] = field_N[known[admits]]
        asked_K4[:, 2] = np.bincount(place[admits], examples_N[known[admits]], minlength=len(keys_K))
        asked_K4[:, 3] = np.bincount(place, examples_N[known], minlength=len(keys_K))
        index_N = np.full(len(keys_N), -1, np.int64)
        index_N[known] = place
        received = self._ranks.exchange(np.split(asked_K4, np.cumsum(num_to)[:-1]))
        return Asked(field_N, index_N, num_to, received)

    def _answered(
        self, asked: Asked, answers: Sequence[Tensor], reserved_RW: Tensor
    ) -> tuple[Tensor, npt.NDArray[np.float32]]:
        """Sends each rank its answers: weights, and one number about the row, [.., W + 1].

        Returns the weights of the keys that this rank asked for, followed by the reserved rows, and the numbers, [K].
        """
        answer_KW1 = torch.cat(self._ranks.exchange_tensors(answers, asked.num_to.tolist()))
        return torch.cat([answer_KW1[:, :-1], reserved_RW]), answer_KW1[:, -1].cpu().numpy()

    def _places(self, asked: Asked, state_N: npt.NDArray[np.generic], num_keys: int) -> Int64Array:
        """Returns the place of each value among the keys' rows and the reserved ones, [N]."""
        layout, field_N = self._layout, asked.field_N
        missing = state_N == _MISSING
        reserved_N = np.where(missing, layout.missing_row_F[field_N], layout.default_row_F[field_N])
        return np.where(missing | (state_N == _NO_ROW), num_keys + reserved_N, asked.index_N)

    def _index(self, places: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(places).to(self._table.weight.device)


def _parts(array_A: Int64Array, like: Sequence[Int64Array]) -> list[Int64Array]:
    """Returns the array in parts as long as those of `like`."""
    return np.split(array_A, np.cumsum([len(part) for part in like])[:-1])
