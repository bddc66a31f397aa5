"""Look-up and update of rows where one rank has them all: the table itself, as `model.sharded_rows` speaks of it."""

from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from model.embedding import EmbeddingTable
from model.features import EncodedBatch
from model.hashing import Int64Array
from model.lookup import Lookup
from model.metrics import BoolArray
from model.optim import OptimConfig
from model.teacher_rows import FrozenRows, OldRows


class RowsStepped(NamedTuple):
    """How many rows of all ranks a step touched, and how many it admitted."""

    touched: int
    admitted: int


L = TypeVar("L")


class Rows(Protocol[L]):
    """What the learner asks of rows; L is what it gets of a micro-batch."""

    def lookup(self, batch: EncodedBatch, counts_B: BoolArray) -> L:
        """Returns the rows of this rank's part of a batch; those with `counts_B` count towards admission."""

    def read(self, batch: EncodedBatch) -> tuple[Tensor, Int64Array]:
        """Returns weights of this rank's part of a batch, to look at only, and each value's place among them."""

    def old(self, lookup: L, view: FrozenRows) -> OldRows:
        """Returns the rows of this rank's part as they were in a view of them."""

    def to_owners(self, lookup: L, grad_UW: Tensor) -> Tensor:
        """Returns the gradients of the rows that this rank owns, of all parts, for those of its own part."""

    def apply(
        self, lookup: L, grad_UW: Tensor, counts: Int64Array, config: OptimConfig, watermark_ms: int
    ) -> RowsStepped:
        """Steps, admits and evicts; `counts` are those of the lookup, added up over the ranks."""


class WholeRows:
    """The rows of one rank alone."""

    def __init__(self, table: EmbeddingTable) -> None:
        self._table = table

    def lookup(self, batch: EncodedBatch, counts_B: BoolArray) -> Lookup:
        """Returns the rows of a batch; those with `counts_B` count towards admission."""
        return self._table.lookup(batch, counts_B)

    def read(self, batch: EncodedBatch) -> tuple[Tensor, Int64Array]:
        """Returns weights of a batch, to look at only, and each value's place among them."""
        layout = self._table.layout
        keys_N = layout.flat_keys(batch)
        return self._table.read(layout.rows(batch, keys_N, self._table.ids), keys_N)

    def old(self, lookup: Lookup, view: FrozenRows) -> OldRows:
        """Returns the rows of a batch as they were in a view of them."""
        return view.rows_of(self._table.batch_rows(lookup), self._table.layout)

    def to_owners(self, lookup: Lookup, grad_UW: Tensor) -> Tensor:
        """Returns the gradients as they are."""
        return grad_UW

    def apply(
        self, lookup: Lookup, grad_UW: Tensor, counts: Int64Array, config: OptimConfig, watermark_ms: int
    ) -> RowsStepped:
        """Steps, admits and evicts."""
        self._table.apply(lookup, grad_UW, config, watermark_ms=watermark_ms)
        return RowsStepped(len(lookup.rows_U), len(lookup.admissions.keys))
