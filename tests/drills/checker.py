"""Is an answer right? Each answer by itself, and all of them together. Pure: bytes and times in, sentences out."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from ranker.api import FeedbackResponse, RankResponse

_UTILITY_TOLERANCE = 1e-4
"""Scores travel as float32."""
_CLOCK_TOLERANCE_MS = 50
_REMEMBERED = 100
"""Newest versions that an answer may be compared with: more than come out while it is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a rank request asked for, as far as its answer must fit it."""

    item_ids: Sequence[str]
    scenario: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for all answers of a run."""

    tasks: Sequence[str]
    scale: Mapping[str, float] = field(default_factory=dict)
    """Of each task's score in the utility; 1 where none is named."""


def rank_problems(asked: Asked, rules: Rules, status: int, body: bytes) -> tuple[RankResponse | None, list[str]]:
    """Returns the slate, if there is one, and what is wrong with it by itself; nothing if all is as documented."""
    if status != 200:
        return None, []
    try:
        answer = msgspec.json.decode(body, type=RankResponse)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return None, [f"not a slate: {error}"]
    ids = [item.id for item in answer.items]
    problems = []
    if len(ids) != min(asked.size, len(asked.item_ids)):
        problems.append(f"{len(ids)} items where {asked.size} of {len(asked.item_ids)} were asked for")
    if len(set(ids)) < len(ids):
        problems.append("an item twice")
    if not set(ids) <= set(asked.item_ids):
        problems.append("an item that was no candidate")
    if [item.position for item in answer.items] != list(range(len(ids))):
        problems.append("positions do not count from 0")
    if any(item.propensity != (None if answer.explore else 1.0) for item in answer.items):
        problems.append("propensity does not fit explore")
    if len(set(answer.degraded)) < len(answer.degraded):
        problems.append("a degraded flag twice")
    is_unranked = bool({"no_model", "non_finite"} & set(answer.degraded))
    problems += _unranked_problems(asked, answer) if is_unranked else _ranked_problems(asked, rules, answer)
    return answer, problems


def _unranked_problems(asked: Asked, answer: RankResponse) -> list[str]:
    problems = []
    if [item.id for item in answer.items] != list(asked.item_ids[: len(answer.items)]):
        problems.append("not the order of the input, though no model ranked it")
    if answer.snapshot or answer.blender or answer.weights or answer.explore or answer.scenario is not None:
        problems.append("a version or weights, though no model ranked it")
    if answer.model_age_ms is not None or any(item.utility is not None or item.scores for item in answer.items):
        problems.append("scores or an age, though no model ranked it")
    return problems


def _ranked_problems(asked: Asked, rules: Rules, answer: RankResponse) -> list[str]:
    problems = []
    if answer.snapshot < 1 or answer.model_age_ms is None:
        problems.append("no version or age, and no flag that says why")
    if answer.scenario != asked.scenario:
        problems.append(f"scored as {answer.scenario}, asked for {asked.scenario}")
    if set(answer.weights) != set(rules.tasks) or not all(map(math.isfinite, answer.weights.values())):
        return [*problems, "weights that are not a finite number per task"]
    utilities = [item.utility for item in answer.items]
    if any(utility is None or not math.isfinite(utility) for utility in utilities):
        return [*problems, "a utility that is no finite number"]
    if any(set(item.scores) != set(rules.tasks) for item in answer.items):
        return [*problems, "scores that are not one per task"]
    if any(not 0.0 <= score <= 1.0 for item in answer.items for score in item.scores.values()):
        problems.append("a score that is no probability")
    if any(left < right for left, right in zip(utilities, utilities[1:], strict=False) if left is not None and right):
        problems.append("utilities do not descend")
    if answer.blender == 0:  # learned weights may bring a scale of their own along
        for item in answer.items:
            blended = sum(answer.weights[task] * item.scores[task] / rules.scale.get(task, 1.0) for task in rules.tasks)
            if item.utility is None or abs(item.utility - blended) > _UTILITY_TOLERANCE * max(1.0, abs(blended)):
                problems.append("a utility that is not the weighted sum of its scores")
                break
    return problems


def feedback_problems(num_sent: int, status: int, body: bytes) -> list[str]:
    """Returns what is wrong with the answer to feedback."""
    if status != 202:
        return []
    try:
        accepted = msgspec.json.decode(body, type=FeedbackResponse).accepted
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return [f"not an answer to feedback: {error}"]
    return [] if accepted == num_sent else [f"{accepted} actions accepted of {num_sent}"]


class Continuity:
    """What must hold between answers: ids are new, versions do not go back, one version knows up to one time.

    Threads may share it. A ranker that was started again may answer without a model until it has fetched one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: set[str] = set()
        self._newest: list[tuple[int, int]] = []
        """When the first answer of each version was there, and the version; ascending."""
        self._watermark_ms: dict[int, tuple[int, int]] = {}
        """Version -> between which times its watermark must lie, from all its answers."""
        self.trusts_clock = True
        """False while the ranker's clock is moved: its ages are not looked at."""
        self.may_be_new = False
        """Whether the ranker may have just been started: then no model is no step back."""

    def problems(self, answer: RankResponse, sent_ms: int, done_ms: int) -> list[str]:
        """Returns what of an answer does not fit the answers before; times are ms since the epoch."""
        with self._lock:
            return [*self._id(answer), *self._version(answer, sent_ms, done_ms), *self._age(answer, sent_ms, done_ms)]

    def _id(self, answer: RankResponse) -> list[str]:
        if answer.request_id in self._ids:
            return ["a request id for the second time"]
        self._ids.add(answer.request_id)
        return []

    def _version(self, answer: RankResponse, sent_ms: int, done_ms: int) -> list[str]:
        version = answer.snapshot
        known = max((served for at_ms, served in self._newest[-_REMEMBERED:] if at_ms < sent_ms), default=0)
        if not self._newest or version > self._newest[-1][1]:
            self._newest.append((done_ms, version))
        is_unranked = version == 0 and (self.may_be_new or "non_finite" in answer.degraded)
        return [] if version >= known or is_unranked else [f"version {version} after version {known}"]

    def _age(self, answer: RankResponse, sent_ms: int, done_ms: int) -> list[str]:
        if answer.model_age_ms is None or not self.trusts_clock:
            return []
        least, most = self._watermark_ms.get(answer.snapshot, (0, done_ms + _CLOCK_TOLERANCE_MS))
        least = max(least, sent_ms - answer.model_age_ms - _CLOCK_TOLERANCE_MS)
        most = min(most, done_ms - answer.model_age_ms + _CLOCK_TOLERANCE_MS)
        if least > most:
            return [f"age {answer.model_age_ms} ms does not fit what version {answer.snapshot} said before"]
        self._watermark_ms[answer.snapshot] = (least, most)
        return []
