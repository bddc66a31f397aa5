"""A snapshot of a model whose rows are spread over ranks: every rank exports what it has, the lead gets it all.

All export at the same step. The order of one publish:

1. the lead finds out from the store whether a full version or a delta is due, and says so; nothing is due: go to 4
2. every rank exports its rows; the lead gets them
3. the lead puts the candidate into the store, has it judged and promotes it, or not
4. the lead says what came of it, and every rank takes that for the base of its next delta

Of rows that left memory the lead asks for what it writes into the row store, between 2 and 3.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from model.hashing import Int64Array
from model.lead import heard
from model.ranks import Ranks
from model.scenario_registry import ScenarioRegistry
from model.snapshot import SnapshotKind
from model.trained_model import TrainedModel

_ROWS, _REPLICATED = "rows.", "rows.reserved"


class Export(msgspec.Struct, frozen=True, tag=True):
    """Said by the lead: export now."""

    kind: SnapshotKind


ColdPart = Literal["number", "first piece", "next piece", "cooled", "evicted"]


class AskCold(msgspec.Struct, frozen=True, tag=True):
    """Said by the lead: hand over this part of what you know of rows that left memory."""

    part: ColdPart


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """Said by the lead: what came of a publish, that is, whether a version went live."""

    is_live: bool


class GatheredModel:
    """A model of several ranks as the lead's publisher sees it: an export of it is that of all ranks."""

    def __init__(self, model: TrainedModel, ranks: Ranks) -> None:
        self._model, self._ranks = model, ranks
        self._cold = ColdParts(model)

    @property
    def registry(self) -> ScenarioRegistry:
        """The scenarios it has, by index."""
        return self._model.registry

    def serving_full(self) -> dict[str, Tensor]:
        """Returns what serving needs, complete."""
        return self._gathered("full")

    def serving_delta(self) -> dict[str, Tensor]:
        """Returns what changed since the last promoted export."""
        return self._gathered("delta")

    def mark_promoted(self) -> None:
        """Makes the last export the base of the lead's next delta; the others do so when they hear of it."""
        self._model.mark_promoted()

    @property
    def num_cold(self) -> int:
        """Rows that are not in memory."""
        return int(self._ask("number")["rows.number"].sum())

    def cold_rows(self) -> Iterator[tuple[Int64Array, Tensor]]:
        """Yields keys and weights of all rows that are not in memory, a piece of every rank at a time."""
        piece = self._ask("first piece")
        while len(piece["rows.keys"]):
            yield piece["rows.keys"].numpy(), piece["rows.weights"]
            piece = self._ask("next piece")

    def cooled(self) -> tuple[Int64Array, Tensor]:
        """Returns keys and weights of the rows that left memory since the last promoted export and are not back."""
        found = self._ask("cooled")
        return found["rows.keys"].numpy(), found["rows.weights"]

    def evicted(self) -> Int64Array:
        """Returns the keys that lost their row, in memory or not, since the last promoted export."""
        keys: Int64Array = self._ask("evicted")["rows.keys"].numpy()
        return keys

    def _gathered(self, kind: SnapshotKind) -> dict[str, Tensor]:
        self._ranks.broadcast(msgspec.msgpack.encode(Export(kind)))
        return gathered(self._ranks, _export(self._model, kind))

    def _ask(self, part: ColdPart) -> dict[str, Tensor]:
        self._ranks.broadcast(msgspec.msgpack.encode(AskCold(part)))
        return gathered(self._ranks, self._cold.of(part))


class ColdParts:
    """What one rank knows of rows that left memory, part by part."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model
        self._pieces: Iterator[tuple[Int64Array, Tensor]] = iter(())

    def of(self, part: ColdPart) -> dict[str, Tensor]:
        """Returns one part as tensors; an empty piece after the last."""
        if part == "number":
            return {"rows.number": torch.tensor([self._model.num_cold])}
        if part == "evicted":
            return {"rows.keys": torch.from_numpy(self._model.evicted())}
        if part == "cooled":
            keys, weights = self._model.cooled()
            return {"rows.keys": torch.from_numpy(keys), "rows.weights": weights}
        if part == "first piece":
            self._pieces = self._model.cold_rows()
        nothing = np.empty(0, np.int64), self._model.table.weight[:0].cpu()
        keys, weights = next(self._pieces, nothing)
        return {"rows.keys": torch.from_numpy(keys), "rows.weights": weights}


def follow(ranks: Ranks, model: TrainedModel) -> None:
    """Takes part in the lead's publish, on another rank.

    Raises:
        RankLostError: the lead ends.
    """
    cold = ColdParts(model)
    while True:
        word: Export | AskCold | Outcome = heard(ranks.broadcast(None), Export | AskCold | Outcome)
        if isinstance(word, Outcome):
            break
        gathered(ranks, cold.of(word.part) if isinstance(word, AskCold) else _export(model, word.kind))
    if word.is_live:
        model.mark_promoted()


def gathered(ranks: Ranks, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns on the lead the rows of all ranks, by rank, beside its own of what all have; elsewhere what is given."""
    result = dict(tensors)
    for name in sorted(tensors):
        if not name.startswith(_ROWS) or name == _REPLICATED:
            continue
        mine = tensors[name].contiguous()
        lengths = [int.from_bytes(m, "little") for m in ranks.all_gather(len(mine).to_bytes(8, "little"))]
        sent = [mine, *[mine[:0]] * (ranks.size - 1)]
        received = ranks.exchange_tensors(sent, lengths if ranks.is_lead else [0] * ranks.size)
        if ranks.is_lead:
            result[name] = torch.cat(received)
    return result


def _export(model: TrainedModel, kind: SnapshotKind) -> dict[str, Tensor]:
    return model.serving_full() if kind == "full" else model.serving_delta()
