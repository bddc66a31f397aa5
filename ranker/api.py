"""What goes over HTTP: requests and answers, field by field. The OpenAPI document is made from these structs."""

from typing import Annotated, Literal

import msgspec

from stream.codec import MAX_TIME_MS

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""Integers that every reader of the log can hold."""
Id = Annotated[str | Int64, msgspec.Meta(description="A string that is not empty; integers are turned into strings.")]


DegradedReason = Literal["no_model", "non_finite", "sequence", "rows", "impressions", "snapshots"]
"""What an answer had to do without: any model (input order), finite scores (input order), the user's sequence (empty),
rows that are not in memory (default ones), the log (the impression was dropped), news from the snapshot store (the last
version goes on)."""


class CandidateColumns(msgspec.Struct):
    """What is to be ranked, as columns of equal length."""

    id: list[Id]
    """Each item once."""
    features: dict[str, msgspec.Raw] = {}
    """Item features by the names of the config, a value per candidate, null where missing. Other names are ignored."""


class RankRequest(msgspec.Struct):
    """Body of `POST /v1/rank`."""

    user_id: Id
    """Who the ranking is for."""
    scenario: str
    """One of the scenarios of the config, or another one where the config lets it in (`unknown_scenario`)."""
    candidates: CandidateColumns
    """What may be shown."""
    size: int
    """How many items to show; at least 1, all candidates if there are fewer."""
    user: dict[str, msgspec.Raw] = {}
    """User features by the names of the config."""
    context: dict[str, msgspec.Raw] = {}
    """Context features by the names of the config."""


class RankedItem(msgspec.Struct):
    """One item of the slate."""

    id: str
    """One of the candidates'."""
    position: int
    """0 is the top."""
    utility: float | None
    """What the slate is ordered by; null when no model ranked it."""
    scores: dict[str, float]
    """Probability of each task; empty when no model ranked it."""
    propensity: float | None
    """Probability of the item being in the slate, given the weights: 1, or null when the weights were drawn."""


class RankResponse(msgspec.Struct):
    """Answer of `POST /v1/rank`."""

    request_id: str
    """To be sent back with each feedback on this slate."""
    items: list[RankedItem]
    """The slate, the top first."""
    snapshot: int
    """Version of the model that scored; 0: none yet."""
    blender: int
    """Version of the weights; 0: those of the config."""
    weights: dict[str, float]
    """Weight of each task in the utility; empty when no model ranked it."""
    fallback: str | None
    """Why the weights of the config served where learned ones should have; null where all was well."""
    model_age_ms: int | None
    """How far the model's knowledge lies behind now; null without a model."""
    explore: bool
    """Whether the weights of this request were drawn."""
    scenario: str | None
    """The scenario whose part of the model scored: the requested one or, if the model has none for it, the default one;
    null without a model."""
    degraded: list[DegradedReason] = []
    """What this answer had to do without."""


class FeedbackRequest(msgspec.Struct):
    """One action of a user on one item of a slate; `POST /v1/feedback` takes one or a list.

    To be safe to send twice, an action needs its own `ts` or an `event_id`: one is a duplicate of the other then.
    """

    request_id: Id
    """The slate's, as `POST /v1/rank` answered it."""
    user_id: Id
    """The slate's user."""
    item_id: Id
    """One of the slate's items."""
    action: str
    """What was done; the tasks of the config say which action makes which label."""
    ts: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_MS)] | None = None
    """When it happened, in ms since the Unix epoch; now if absent."""
    value: float = 1.0
    """How much: seconds viewed, price paid, stars."""
    event_id: Id | None = None
    """Names the action: the same one twice counts once."""


class FeedbackResponse(msgspec.Struct):
    """Answer of `POST /v1/feedback`."""

    accepted: int
    """How many actions are on their way to the log."""


class ErrorResponse(msgspec.Struct):
    """Answer to a request that was refused."""

    error: str
    """One line: the field, and what is allowed."""


class HealthResponse(msgspec.Struct):
    """Answer of `GET /v1/health`."""

    status: Literal["starting", "ready", "degraded", "draining"]
    """`starting`, with HTTP 503: it has not asked for a snapshot yet; `degraded`: it does without something;
    `draining`, with HTTP 503: it is about to end and still answers, but wants no new clients."""
    degraded: list[DegradedReason]
    """What it does without; empty when ready."""


class FreshnessResponse(msgspec.Struct):
    """From a user's action to the first request scored by a version that had learned it."""

    p50_ms: float | None
    """Half of the actions were as fast; null before the first."""
    p99_ms: float | None
    """99 of 100 were as fast; null before the first."""
    n: int
    """How many actions were measured since the start."""


class ModelResponse(msgspec.Struct):
    """Answer of `GET /v1/model`."""

    version: int
    """0: no model yet."""
    kind: str | None
    """`full` or `delta`: how this version arrived."""
    step: int | None
    """Optimiser steps behind this version."""
    model_age_ms: int | None
    """How far the model's knowledge lies behind now; null without a model."""
    blender: int
    """Newest version of the weights; 0: those of the config."""
    blender_share: float
    """Share of the requests that it serves; below 1 while it is on trial."""
    exploring: bool
    """Whether requests may explore: the config has a share for it, and the switch is on."""
    freshness: FreshnessResponse
    """How soon actions were learned and served."""
    counters: dict[str, int | dict[str, int]]
    """What the ranker has counted since its start."""
