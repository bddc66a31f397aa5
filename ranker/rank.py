"""Scores to a slate: the pure core of the ranker. The same arguments always give the same slate.

Shape letters: N candidates, T tasks.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.features import RowColumns, SequenceColumns
from ranker.api import DegradedReason, RankedItem, RankResponse
from ranker.live import LiveModel
from ranker.request import CheckedRequest
from stream.schema import CONTROL_LAW, Candidates, Impression, Items, Sequence, Served
from utility_blender.blend import Blender, Draw


class Ranking(NamedTuple):
    """The answer to a request, and what is logged about it."""

    response: RankResponse
    impression: Impression


@dataclass(frozen=True, slots=True)
class Scored:
    """A model's opinion of a request."""

    scores_NT: NDArray[np.float32]
    utility_N: NDArray[np.float64]
    served: Served
    """What of it is logged: versions, weights, and the density of the weights if they were drawn."""


def request_columns(request: CheckedRequest, sequence: Sequence, now_ms: int) -> RowColumns:
    """Returns a request as the columns the model encodes; training builds the same ones from the logged impression."""
    return RowColumns(
        scenario=[request.scenario],
        user_id=[request.user_id],
        item_id=request.item_ids,
        request_index_B=np.zeros(len(request.item_ids), np.int64),
        user={name: [value] for name, value in request.user_features.items()},
        context={name: [value] for name, value in request.context_features.items()},
        item=request.item_features,
        sequence=SequenceColumns(
            item_id=[sequence.item_id],
            action=[sequence.action],
            age_ms=[[now_ms - event_ms for event_ms in sequence.ts]],
        ),
    )


def order_of(utility_N: NDArray[np.float64], item_ids: list[str], size: int) -> NDArray[np.int64]:
    """Returns the `size` best candidates, best first; equal utilities by item id, so the input's order plays no part.

    >>> order_of(np.array([0.5, 0.9, 0.5]), ["b", "c", "a"], size=3).tolist()
    [1, 2, 0]
    """
    order_N = np.argsort(-utility_N, kind="stable")
    sorted_N = utility_N[order_N]
    if (sorted_N[1:] == sorted_N[:-1]).any():  # rare, and sorting strings costs more than all the rest
        order_N = np.lexsort((np.array(item_ids), -utility_N))
    return order_N[:size]


def rank(
    request: CheckedRequest,
    sequence: Sequence,
    live: LiveModel | None,
    blender: Blender,
    *,
    request_id: str,
    now_ms: int,
    scores_NT: NDArray[np.float32] | None = None,
) -> Ranking:
    """Returns the slate of a request and its impression. `scores_NT`: the model's, where they are known already.

    Without a model, or if the model's scores are not finite, the slate is the input's order and says so in `degraded`.
    Propensity is 1 where the order followed from fixed weights. Where the weights were drawn it is left out: what is
    known then is their density (`served.log_density`), and the candidates that were not shown are logged with their
    scores, from which the probability of any slate can be computed.
    """
    scored = None
    if live is not None:
        scored = _score(request, sequence, live, blender, request_id=request_id, now_ms=now_ms, scores_NT=scores_NT)
    if live is None or scored is None:
        return _in_input_order(request, sequence, "no_model" if live is None else "non_finite", request_id, now_ms)
    order_N = order_of(scored.utility_N, request.item_ids, request.size)
    shown, served = order_N.tolist(), scored.served
    item_ids = [request.item_ids[row] for row in shown]
    scores = _score_columns(blender, scored.scores_NT[order_N])
    utility: list[float] = scored.utility_N[order_N].tolist()
    propensity = None if served.explore else 1.0
    items = Items(
        id=item_ids,
        features={name: [column[row] for row in shown] for name, column in request.item_features.items()},
        scores=scores,
        utility=utility,
        propensity=None if propensity is None else [propensity] * len(shown),
    )
    per_item = zip(*scores.values(), strict=True)
    response = RankResponse(
        request_id=request_id,
        items=[
            RankedItem(
                id=item_ids[position],
                position=position,
                utility=utility[position],
                scores=dict(zip(blender.tasks, of_item, strict=True)),
                propensity=propensity,
            )
            for position, of_item in enumerate(per_item)
        ],
        snapshot=served.snapshot,
        blender=served.blender,
        weights=served.weights,
        fallback=served.fallback or None,
        model_age_ms=served.model_age_ms,
        explore=served.explore,
        scenario=live.scored_as(request.scenario),
    )
    impression = _impression(request, sequence, items, request_id, now_ms)
    impression.served = served
    if served.explore:
        rest_N = np.delete(np.arange(len(request.item_ids)), order_N)
        impression.candidates = Candidates(
            id=[request.item_ids[row] for row in rest_N.tolist()],
            scores=_score_columns(blender, scored.scores_NT[rest_N]),
        )
    return Ranking(response, impression)


def _score(
    request: CheckedRequest,
    sequence: Sequence,
    live: LiveModel,
    blender: Blender,
    *,
    request_id: str,
    now_ms: int,
    scores_NT: NDArray[np.float32] | None,
) -> Scored | None:
    """Scores and blends; None if a utility is not finite."""
    features = {"user": request.user_features, "context": request.context_features}
    drawn = blender.weights(
        request.listed_scenario,
        request_id,
        features,
        user_id=request.user_id,
        num_actions=len(sequence.item_id),
    )
    if scores_NT is None:
        scores_NT = live.score(request_columns(request, sequence, now_ms))
    utility_N = blender.utility(scores_NT, drawn.weights_T, drawn.scale_T)
    if not np.isfinite(utility_N).all():
        return None
    served = _served(blender, drawn)
    served.snapshot = live.manifest.version
    served.model_age_ms = now_ms - live.manifest.watermark_ms
    return Scored(scores_NT, utility_N, served)


def _served(blender: Blender, drawn: Draw) -> Served:
    """Returns what is logged of the weights; of an explored request all that its density can be computed from again."""
    served = Served(
        blender=drawn.version,
        weights=_by_task(blender, drawn.weights_T),
        fallback=drawn.fallback or "",
    )
    if drawn.is_control:
        served.law = CONTROL_LAW
        served.center, served.scale = served.weights, _by_task(blender, drawn.scale_T)
    if drawn.center_T is not None:
        served.explore = True
        served.log_density = drawn.log_density
        served.center = _by_task(blender, drawn.center_T)
        served.scale = _by_task(blender, drawn.scale_T)
        law = blender.law
        served.law = law.law
        if law.law == "lognormal":
            served.tau, served.truncate = law.tau, law.truncate
    return served


def _in_input_order(
    request: CheckedRequest, sequence: Sequence, reason: DegradedReason, request_id: str, now_ms: int
) -> Ranking:
    item_ids = request.item_ids[: request.size]
    items = Items(
        id=item_ids,
        features={name: column[: request.size] for name, column in request.item_features.items()},
        propensity=[1.0] * len(item_ids),
    )
    impression = _impression(request, sequence, items, request_id, now_ms)
    impression.served = Served()
    response = RankResponse(
        request_id=request_id,
        items=[
            RankedItem(id=item_id, position=position, utility=None, scores={}, propensity=1.0)
            for position, item_id in enumerate(item_ids)
        ],
        snapshot=0,
        blender=0,
        weights={},
        fallback=None,
        model_age_ms=None,
        explore=False,
        scenario=None,
        degraded=[reason],
    )
    return Ranking(response, impression)


def _impression(request: CheckedRequest, sequence: Sequence, items: Items, request_id: str, now_ms: int) -> Impression:
    return Impression(
        request_id=request_id,
        user_id=request.user_id,
        scenario=request.scenario,
        ts=now_ms,
        items=items,
        context=request.context_features,
        user=request.user_features,
        sequence=sequence,
    )


def _by_task(blender: Blender, values_T: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(blender.tasks, values_T.tolist(), strict=True))


def _score_columns(blender: Blender, scores_NT: NDArray[Any]) -> dict[str, list[float]]:
    return dict(zip(blender.tasks, scores_NT.T.tolist(), strict=True))
