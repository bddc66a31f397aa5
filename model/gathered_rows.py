"""A snapshot of a model whose rows are spread over ranks: every rank exports what it has, the lead gets it all.

All export at the same step. The order of one publish:

1. the lead finds out from the store whether a full version or a delta is due, and says so; nothing is due: go to 4
2. every rank exports its rows; the lead gets them
3. the lead puts the candidate into the store, has it judged and promotes it, or not
4. the lead says what came of it, and every rank takes that for the base of its next delta
"""

from collections.abc import Mapping

import msgspec
import torch
from torch import Tensor

from model.lead import heard
from model.ranks import Ranks
from model.scenario_registry import ScenarioRegistry
from model.snapshot import SnapshotKind
from model.trained_model import TrainedModel

_ROWS, _REPLICATED = "rows.", "rows.reserved"


class Export(msgspec.Struct, frozen=True, tag=True):
    """Said by the lead: export now."""

    kind: SnapshotKind


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """Said by the lead: what came of a publish, that is, whether a version went live."""

    is_live: bool


class GatheredModel:
    """A model of several ranks as the lead's publisher sees it: an export of it is that of all ranks."""

    def __init__(self, model: TrainedModel, ranks: Ranks) -> None:
        self._model, self._ranks = model, ranks

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

    def _gathered(self, kind: SnapshotKind) -> dict[str, Tensor]:
        self._ranks.broadcast(msgspec.msgpack.encode(Export(kind)))
        return gathered(self._ranks, _export(self._model, kind))


def follow(ranks: Ranks, model: TrainedModel) -> None:
    """Takes part in the lead's publish, on another rank.

    Raises:
        RankLostError: the lead ends.
    """
    while True:
        word: Export | Outcome = heard(ranks.broadcast(None), Export | Outcome)
        if isinstance(word, Outcome):
            break
        gathered(ranks, _export(model, word.kind))
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
