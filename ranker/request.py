"""From the bytes of a request to checked columns, or to one line that names the field and what is allowed.

Feature columns are cut out of the body as raw JSON first and then decoded by the type the config gives them: wrong
values are found while decoding, unknown names cost nothing, and 500 candidates take half the time of a generic decode.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from ranker.api import FeedbackRequest, Int64, RankRequest
from ranker.exceptions import RequestError
from ranker.stats import RankerStats
from stream.schema import FeatureConfig, Feedback, SchemaConfig

MAX_UNKNOWN_NAMES = 100
"""Unknown feature names that are counted one by one; further ones are counted as `other`."""

Decoded = TypeVar("Decoded")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What a request may ask for."""

    max_candidates: int = 2_000
    """Most candidates of one request; at least 1."""
    max_feedback: int = 1_000
    """Most actions of one feedback request; at least 1."""
    max_body_bytes: int = 4_194_304
    """Largest body; at least 1024 bytes."""
    max_id_chars: int = 256
    """Longest user, item, request or event id; at least 8 characters."""

    def __post_init__(self) -> None:
        for name, least in (("max_candidates", 1), ("max_feedback", 1), ("max_body_bytes", 1024), ("max_id_chars", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRequest:
    """A rank request that can be answered: ids are strings, columns have one value per candidate."""

    user_id: str
    scenario: str
    """As requested: one of the config's or, under `unknown_scenario: add`, any other. Under `default` one of the
    config's."""
    listed_scenario: str
    """The one of the config's that it stands for: itself, or the default one."""
    item_ids: list[str]
    item_features: dict[str, list[Any]]
    user_features: dict[str, Any]
    context_features: dict[str, Any]
    size: int
    """At most the number of candidates."""


class RequestDecoder:
    """Checks requests against the schema, and counts in `stats` what was put up with: unknown features, scenarios."""

    def __init__(self, schema: SchemaConfig, limits: RequestLimits, stats: RankerStats) -> None:
        self._schema = schema
        self._limits = limits
        self._stats = stats
        self._rank = msgspec.json.Decoder(RankRequest)
        self._feedback = msgspec.json.Decoder(FeedbackRequest | list[FeedbackRequest])
        features = schema.features
        self._columns = {name: _decoder(_type_of(f), is_column=True) for name, f in features.item.items()}
        self._user = {name: _decoder(_type_of(f)) for name, f in features.user.items()}
        self._context = {name: _decoder(_type_of(f)) for name, f in features.context.items()}

    def rank(self, body: bytes) -> CheckedRequest:
        """Returns a rank request, checked.

        Raises:
            RequestError: one line for the caller.
        """
        request = _decode(self._rank, body)
        if request.size < 1:
            raise RequestError(f"size: {request.size} is not allowed; at least 1")
        item_ids = self._item_ids(request.candidates.id)
        scenario = self._scenario(request.scenario)
        return CheckedRequest(
            user_id=self._id("user_id", request.user_id),
            scenario=scenario,
            listed_scenario=self._schema.listed(scenario),
            item_ids=item_ids,
            item_features=self._item_features(request.candidates.features, len(item_ids)),
            user_features=self._features("user", request.user, self._user),
            context_features=self._features("context", request.context, self._context),
            size=min(request.size, len(item_ids)),
        )

    def feedback(self, body: bytes, now_ms: int) -> list[Feedback]:
        """Returns the actions of a feedback request; those without a time get `now_ms`.

        Raises:
            RequestError: one line for the caller; none of the actions is taken then.
        """
        decoded = _decode(self._feedback, body)
        if isinstance(decoded, FeedbackRequest):
            return [self._one_feedback(decoded, "", now_ms)]
        if not 1 <= len(decoded) <= self._limits.max_feedback:
            raise RequestError(f"body: {len(decoded)} actions are not allowed; 1 to {self._limits.max_feedback}")
        return [self._one_feedback(feedback, f"[{n}].", now_ms) for n, feedback in enumerate(decoded)]

    def _one_feedback(self, feedback: FeedbackRequest, where: str, now_ms: int) -> Feedback:
        if not feedback.action:
            raise RequestError(f"{where}action: must not be empty")
        return Feedback(
            request_id=self._id(f"{where}request_id", feedback.request_id),
            user_id=self._id(f"{where}user_id", feedback.user_id),
            item_id=self._id(f"{where}item_id", feedback.item_id),
            action=feedback.action,
            ts=now_ms if feedback.ts is None else feedback.ts,
            value=feedback.value,
            event_id="" if feedback.event_id is None else self._id(f"{where}event_id", feedback.event_id),
        )

    def _id(self, field: str, value: str | int) -> str:
        text = str(value)
        if not 1 <= len(text) <= self._limits.max_id_chars:
            raise RequestError(f"{field}: {len(text)} characters are not allowed; 1 to {self._limits.max_id_chars}")
        return text

    def _item_ids(self, given: list[str | int]) -> list[str]:
        if not 1 <= len(given) <= self._limits.max_candidates:
            raise RequestError(
                f"candidates.id: {len(given)} candidates are not allowed; 1 to {self._limits.max_candidates}"
            )
        item_ids = [str(item_id) for item_id in given]
        if len(set(item_ids)) != len(item_ids):
            twice = next(item_id for item_id, count in Counter(item_ids).items() if count > 1)
            raise RequestError(f"candidates.id: {twice!r} is there twice; each item once")
        for edge in (min(item_ids, key=len), max(item_ids, key=len)):
            self._id("candidates.id", edge)
        return item_ids

    def _scenario(self, name: str) -> str:
        try:
            admitted = self._schema.admitted(name)
        except ValueError as error:
            raise RequestError(str(error)) from error
        self._stats.unknown_scenario += admitted != name
        return admitted

    def _item_features(self, given: Mapping[str, msgspec.Raw], num_items: int) -> dict[str, list[Any]]:
        columns: dict[str, list[Any] | None] = self._features("candidates.features", given, self._columns)
        present = {name: column for name, column in columns.items() if column is not None}
        for name, column in present.items():
            if len(column) != num_items:
                raise RequestError(
                    f"candidates.features.{name}: {len(column)} values for {num_items} candidates; one each"
                )
        return present

    def _features(
        self, side: str, given: Mapping[str, msgspec.Raw], decoders: Mapping[str, "msgspec.json.Decoder[Any]"]
    ) -> dict[str, Any]:
        for name in given.keys() - decoders.keys():
            counted = self._stats.unknown_features
            counted[name if name in counted or len(counted) < MAX_UNKNOWN_NAMES else "other"] += 1
        return {
            name: _decode(decoder, given[name], f"{side}.{name}") for name, decoder in decoders.items() if name in given
        }


def _type_of(feature: FeatureConfig) -> Any:
    """Returns the type of one value of a feature on the wire; null means missing."""
    if feature.kind == "numeric":
        return float | None
    return list[str | Int64] | None if feature.many else str | Int64 | None


def _decoder(value: Any, *, is_column: bool = False) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(list[value] | None if is_column else value)


_PLACE = re.compile(r" - at `\$(.*?)`$")
_MISSING = re.compile(r"missing required field `([^`]*)`")


def _decode(decoder: "msgspec.json.Decoder[Decoded]", data: bytes | msgspec.Raw, field: str = "") -> Decoded:
    """Decodes, or raises a `RequestError` whose path starts at `field`."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise RequestError(_explain(str(error), field)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{field or 'body'}: not JSON: {error}") from error
    except RecursionError as error:
        raise RequestError(f"{field or 'body'}: nested too deeply") from error


def _explain(error: str, field: str) -> str:
    """Returns a validation error of msgspec as `field: what is wrong`.

    >>> _explain("Expected `float | null`, got `str` - at `$[3]`", "candidates.features.price")
    'candidates.features.price[3]: expected float | null, got str'
    >>> _explain("Object missing required field `id` - at `$.candidates`", "")
    'candidates.id: required, but missing'
    """
    place = _PLACE.search(error)
    path = (field + (place[1] if place else "")).removeprefix(".")
    if missing := _MISSING.search(error):
        return f"{path}.{missing[1]}: required, but missing".removeprefix(".")
    what = _PLACE.sub("", error).replace("`", "")
    return f"{path or 'body'}: {what[0].lower()}{what[1:]}"
