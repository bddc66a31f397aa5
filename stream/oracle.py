"""What may have become of one label: the truth a second time, slow, plain, and without a look at the joiner.

It shares no code with the join core, so that no mistake can be in both. From one slate and the feedback on it, in the
order in which it was logged, it tells every history of (item, task) that the settings allow. Where nothing came too
late there is exactly one. Where an event came so late that the label may have been closed when it was read, there are
several: which of them it is depends on when the joiner read what, and the log does not tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stream.schema import KindName, TaskConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleConfig:
    """The settings of the joiner that decide labels, in ms; `stream.join.JoinConfig` says what each means."""

    grace_ms: int
    out_of_orderness_ms: int
    max_ahead_ms: int
    refuse_ahead_ms: int
    idle_ms: int
    duplicate_ms: int
    outcome_window_ms: int | None = None


class Sent(NamedTuple):
    """One label of an (item, task), as it goes out."""

    kind: KindName
    label: int
    delay_ms: int
    """Slate to feedback; -1 for a negative."""


class Action(NamedTuple):
    """One feedback on an item of a slate."""

    action: str
    ts: int
    value: float
    bound_ms: int
    """No joiner's watermark was further than this when it read the feedback (`stream.oracle_clock`)."""


class History(NamedTuple):
    """Everything that goes out for one (item, task), in this order, if `action` is what made the label positive."""

    sent: tuple[Sent, ...]
    action: int | None = None
    """Index of the feedback that made the label positive; None: nothing did."""


def histories(
    task: TaskConfig, config: OracleConfig, slate_ms: int, slate_bound_ms: int, actions: Sequence[Action]
) -> list[History]:
    """Returns what may go out for one (item, task) of a slate that was joined; one history where nothing was late.

    `actions` are the feedback on the item in the order of the log.
    """
    close_ms = slate_ms + task.window_ms + config.grace_ms
    allowed: list[History] = []
    for index, action in enumerate(actions):
        if not _qualifies(task, slate_ms, action):
            continue
        delay_ms = action.ts - slate_ms
        # The later of the two readings finds the other event; the watermark was within both bounds then at the latest.
        bound_ms = max(slate_bound_ms, action.bound_ms)
        for is_seen in _seen_early(task, config, slate_ms, delay_ms, bound_ms):
            allowed.append(History(_sent(task, delay_ms, is_seen), index))
        if bound_ms <= close_ms:
            return allowed  # in time for certain: nothing logged after it can be the first
    allowed.append(History(_sent(task, None, is_seen=False)))
    return allowed


def late_actions(
    task: TaskConfig, config: OracleConfig, slate_ms: int, slate_bound_ms: int, actions: Sequence[Action]
) -> list[int]:
    """Returns the indices of the qualifying feedback that may have been read when the label was closed already."""
    close_ms = slate_ms + task.window_ms + config.grace_ms
    return [
        index
        for index, action in enumerate(actions)
        if _qualifies(task, slate_ms, action) and max(slate_bound_ms, action.bound_ms) > close_ms
    ]


def _qualifies(task: TaskConfig, slate_ms: int, action: Action) -> bool:
    return (
        action.action == task.action
        and slate_ms <= action.ts <= slate_ms + task.window_ms
        and (task.at_least is None or action.value >= task.at_least)
    )


def _seen_early(task: TaskConfig, config: OracleConfig, slate_ms: int, delay_ms: int, bound_ms: int) -> list[bool]:
    """Returns whether the early look saw the feedback; both answers where it may have come after the look."""
    if task.observe_ms is None or delay_ms > task.observe_ms:
        return [False]
    return [True] if bound_ms <= slate_ms + task.observe_ms + config.grace_ms else [True, False]


def _sent(task: TaskConfig, delay_ms: int | None, is_seen: bool) -> tuple[Sent, ...]:
    """Returns what goes out under the task's policy; `delay_ms` None: no feedback counted."""

    def negative(kind: KindName) -> Sent:
        return Sent(kind, 0, -1)

    def positive(kind: KindName) -> Sent:
        assert delay_ms is not None
        return Sent(kind, 1, delay_ms)

    is_positive = delay_ms is not None

    def truth(kind: KindName) -> Sent:
        return positive(kind) if is_positive else negative(kind)

    look = positive("early_positive") if is_seen else negative("early_negative")
    correction = [positive("late_positive")] if is_positive and not is_seen else []
    match task.policy:
        case "wait" | "eager" | "oracle":
            sent = [truth("final")]
        case "fnw" | "fnc":
            sent = [negative("fake_negative"), *correction, truth("matured")]
        case "fnw_rn":
            sent = [negative("fake_negative"), *correction, truth("matured" if is_positive else "real_negative_repeat")]
        case "vanilla" | "fsiw" | "dfm":
            sent = [look, truth("matured")]
        case "vanilla_dup" | "es_dfm" | "defuse":
            sent = [look, *correction, truth("matured")]
        case "defer_neg":
            sent = [look, *correction, truth("matured" if is_positive else "real_negative_repeat")]
        case "defer":
            assert task.observe_ms is not None
            if delay_ms is None:
                sent = [look, negative("real_negative_repeat")]
            elif delay_ms <= task.observe_ms:
                sent = [look, positive("early_positive_repeat")]
            else:
                sent = [look, positive("late_positive"), positive("matured")]
    return tuple(sent)


class Timing(NamedTuple):
    """Between which watermarks a label may go out: above `after_ms`, at most `until_ms`; None: no bound."""

    after_ms: int | None = None
    until_ms: int | None = None


def timing(task: TaskConfig, config: OracleConfig, slate_ms: int, slate_bound_ms: int, sent: Sent) -> Timing:
    """Returns when a label may go out: at a close or a look not before the watermark has passed it."""
    close_ms = slate_ms + task.window_ms + config.grace_ms
    if task.policy == "oracle":
        return Timing()
    if sent.kind in ("matured", "early_positive_repeat", "real_negative_repeat"):
        return Timing(after_ms=close_ms)
    if sent.kind == "final" and (task.policy == "wait" or not sent.label):
        return Timing(after_ms=close_ms)
    if task.observe_ms is not None:
        return Timing(after_ms=slate_ms + task.observe_ms + config.grace_ms)
    # At the slate or at the feedback, with the label still open; a slate that came late is settled when it comes.
    return Timing(until_ms=close_ms if slate_bound_ms <= close_ms else None)
