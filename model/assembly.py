"""From an encoded batch to the network's input: which row each value is, and where its embedding goes.

Letters: R requests, B rows, F fields, N values of a batch, U rows gathered, W embedding width, D input width, L actions
of the longest history.

A batch's values in one flat order: request fields, request lists, item fields, item lists, as in `model.features`.
"""

import itertools
from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from model.features import EncodedBatch, Field, Side
from model.hashing import MISSING_KEY, Int64Array
from model.id_table import NO_ROW, IdTable
from model.inputs import RowInputs
from model.key_lists import KeyLists
from model.network import NetworkInputs, NetworkShape
from model.sequence_inputs import SequenceInputs
from stream.schema import SchemaConfig


class InputLayout:
    """Places of the fields in the input, and the rows that stand for unknown and missing values.

    Row 2f is the default row of field f (unknown, not admitted, evicted), row 2f + 1 its missing row (no value, empty
    list). A field that takes another's ids takes its default row as well.
    """

    def __init__(self, fields: Sequence[Field], *, width: int, interaction: bool) -> None:
        self.fields = tuple(fields)
        self.width = width
        names = [one.name for one in self.fields]
        self.num_reserved = 2 * len(names)
        default_of = [names.index(one.ids_of) if one.ids_of in names else names.index(one.name) for one in self.fields]
        self.default_row_F = 2 * np.array(default_of, np.int64)
        self.missing_row_F = 2 * np.arange(len(names)) + 1
        self.admission_F = np.array([one.admission for one in self.fields], np.int64)
        request_lists = [one.name for one in self.fields if one.side == "request" and one.many]
        self._history = request_lists.index("history_item") if "history_item" in request_lists else None
        single = {
            side: [one.name for one in self.fields if one.side == side and not one.many] for side in get_args(Side)
        }
        self._user = single["request"].index("user_id") if "user_id" in names else None
        self._has_interaction = interaction and self._history is not None and "item_id" in names
        self.blocks = (*names, "history_item*item_id") if self._has_interaction else tuple(names)
        """What x is made of, block by block."""

    def network_shape(self, schema: SchemaConfig) -> NetworkShape:
        """Returns what a network on this input is built for."""
        return NetworkShape(
            blocks=self.blocks,
            block_width=self.width,
            num_scenarios=len(schema.scenarios),
            tasks=tuple(schema.tasks),
        )

    def flat_keys(self, batch: EncodedBatch) -> Int64Array:
        """Returns the keys of all values, [N]."""
        blocks = [batch.request_keys_FR.ravel(), *(lists.keys_N for lists in batch.request_lists)]
        blocks += [batch.item_keys_FB.ravel(), *(lists.keys_N for lists in batch.item_lists)]
        return np.concatenate(blocks)

    def field_starts(self, batch: EncodedBatch) -> Int64Array:
        """Returns where the values of each field start in the flat order, [F + 1]; the last entry is N."""
        counts = [batch.num_requests] * len(batch.request_keys_FR)
        counts += [len(lists.keys_N) for lists in batch.request_lists]
        counts += [batch.num_rows] * len(batch.item_keys_FB)
        counts += [len(lists.keys_N) for lists in batch.item_lists]
        return np.fromiter(itertools.accumulate(counts, initial=0), np.int64)

    def rows(self, batch: EncodedBatch, keys_N: Int64Array, ids: IdTable) -> Int64Array:
        """Returns the row of each value, [N]: its own, or its field's missing or default row."""
        rows_N = ids.lookup(keys_N)
        without = np.flatnonzero(rows_N == NO_ROW)
        field = self.field_of(without, batch)
        is_missing = keys_N[without] == MISSING_KEY
        rows_N[without] = np.where(is_missing, self.missing_row_F[field], self.default_row_F[field])
        return rows_N

    def field_of(self, places: Int64Array, batch: EncodedBatch) -> Int64Array:
        """Returns the field of each place in the flat order."""
        return np.searchsorted(self.field_starts(batch), places, side="right") - 1

    def examples(self, batch: EncodedBatch, counts_B: npt.NDArray[np.bool_]) -> Int64Array:
        """Returns for each value of the flat order in how many of the rows with `counts_B` it stands, [N]."""
        per_row_B = counts_B.astype(np.int64)
        per_request_R = np.bincount(batch.request_index_B[counts_B], minlength=batch.num_requests)
        blocks = [np.tile(per_request_R, len(batch.request_keys_FR))]
        blocks += [np.repeat(per_request_R, lists.lengths) for lists in batch.request_lists]
        blocks += [np.tile(per_row_B, len(batch.item_keys_FB))]
        blocks += [np.repeat(per_row_B, lists.lengths) for lists in batch.item_lists]
        return np.concatenate(blocks)

    def network_inputs(
        self,
        source_UW: Tensor,
        index_N: Tensor,
        batch: EncodedBatch,
        row_offsets: Sequence[int],
        *,
        with_sequence: bool,
    ) -> NetworkInputs:
        """Returns what a network sees of a batch sorted by scenario, for an evaluation forward."""
        x = self.inputs(source_UW, index_N, batch)
        sequence = self.sequence(source_UW, index_N, batch) if with_sequence else None
        position_B = torch.from_numpy(batch.position_B).to(index_N.device)
        return NetworkInputs(x=x, row_offsets=row_offsets, sequence=sequence, position_B=position_B)

    def inputs(self, source_UW: Tensor, index_N: Tensor, batch: EncodedBatch) -> RowInputs:
        """Returns the input rows: `source_UW[index_N]` in the fields' places, lists mean pooled.

        x = [request fields | request lists || item fields | item lists | pooled history * item]
        """
        num_requests, num_rows = batch.num_requests, batch.num_rows
        request, request_list, item, item_list = _parts(index_N, batch)
        request_index_B = torch.from_numpy(batch.request_index_B).to(index_N.device)
        request_parts = [F.embedding(request.view(batch.request_keys_FR.shape).t(), source_UW)]
        item_parts = [F.embedding(item.view(batch.item_keys_FB.shape).t(), source_UW)]
        if batch.request_lists:
            request_parts.append(_pooled(source_UW, request_list, batch.request_lists, num_requests))
        if batch.item_lists:
            item_parts.append(_pooled(source_UW, item_list, batch.item_lists, num_rows))
        if self._has_interaction:
            assert self._history is not None
            history_RW = request_parts[1][:, self._history]
            item_parts.append((F.embedding(request_index_B, history_RW) * item_parts[0][:, 0])[:, None])
        return RowInputs(
            torch.cat(item_parts, dim=1).flatten(1), torch.cat(request_parts, dim=1).flatten(1), request_index_B
        )

    def sequence(self, source_UW: Tensor, index_N: Tensor, batch: EncodedBatch) -> SequenceInputs:
        """Returns the histories action by action, for a layout with a history and the item's id."""
        assert self._history is not None and batch.history_age_ms is not None
        request, request_list, item, _ = _parts(index_N, batch)
        history = batch.request_lists[self._history]
        longest = int(history.lengths.max(initial=0))
        place_L = np.arange(longest)
        # Places beyond a history show the last action of some history; they are not real.
        place_RL = (history.offsets[:-1, None] + place_L).clip(max=max(len(history.keys_N) - 1, 0))
        age_ms_RL = np.where(place_L < history.lengths[:, None], batch.history_age_ms.keys_N[place_RL], 0)
        starts = np.cumsum([0] + [len(one.keys_N) for one in batch.request_lists])[self._history :]
        item_RLW, action_RLW = (
            F.embedding(request_list[torch.from_numpy(place_RL + start).to(index_N.device)], source_UW)
            for start in starts[:2].tolist()
        )
        if self._user is None:
            user_RW = source_UW.new_zeros(batch.num_requests, self.width)
        else:
            user_RW = F.embedding(request.view(batch.request_keys_FR.shape)[self._user], source_UW)
        ages = torch.from_numpy(age_ms_RL).to(index_N.device)
        return SequenceInputs(
            item_RLW=item_RLW,
            action_RLW=action_RLW,
            age_ms_RL=ages,
            is_real_RL=ages > 0,
            user_RW=user_RW,
            request_index_B=torch.from_numpy(batch.request_index_B).to(index_N.device),
            candidate_BW=F.embedding(item.view(batch.item_keys_FB.shape)[0], source_UW),
        )


def _parts(index_N: Tensor, batch: EncodedBatch) -> tuple[Tensor, ...]:
    """Returns the flat order in its four parts: request fields, request lists, item fields, item lists."""
    sizes = [batch.request_keys_FR.size, sum(len(lists.keys_N) for lists in batch.request_lists)]
    sizes += [batch.item_keys_FB.size, sum(len(lists.keys_N) for lists in batch.item_lists)]
    return torch.split(index_N, sizes)


def _pooled(source_UW: Tensor, index: Tensor, lists: Sequence[KeyLists], num_entries: int) -> Tensor:
    """Returns the mean of each entry's values, [num_entries, fields, W]; a value that stands twice counts twice."""
    starts = np.cumsum([0] + [len(one.keys_N) for one in lists])
    offsets = np.concatenate([one.offsets[:-1] + start for one, start in zip(lists, starts, strict=False)])
    bags = F.embedding_bag(index, source_UW, torch.from_numpy(offsets).to(index.device), mode="mean")
    return bags.view(len(lists), num_entries, source_UW.shape[1]).transpose(0, 1)
