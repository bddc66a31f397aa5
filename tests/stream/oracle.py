"""What the labels of a complete log are: slow, obvious, and written without a look at the join core.

Holds where no event is late: then neither the order of the topics against each other nor any crash may matter.
"""

from collections import Counter
from collections.abc import Sequence

from stream.emission import Outcome
from stream.schema import Feedback, Impression, SchemaConfig

Label = tuple[str, str, str, str, int, int]
"""(request_id, item_id, task, kind, label, delay_ms)"""


ROWS: dict[str, dict[str, list[tuple[str, int]]]] = {
    # policy: what goes out for a negative, for a positive by the early look (if any), and for a later positive
    "wait": {"no": [("final", 0)], "early": [("final", 1)], "late": [("final", 1)]},
    "eager": {"no": [("final", 0)], "early": [("final", 1)], "late": [("final", 1)]},
    "fnw": {
        "no": [("fake_negative", 0), ("matured", 0)],
        "late": [("fake_negative", 0), ("late_positive", 1), ("matured", 1)],
    },
    "fnw_rn": {
        "no": [("fake_negative", 0), ("real_negative_repeat", 0)],
        "late": [("fake_negative", 0), ("late_positive", 1), ("matured", 1)],
    },
    "vanilla": {
        "no": [("early_negative", 0), ("matured", 0)],
        "early": [("early_positive", 1), ("matured", 1)],
        "late": [("early_negative", 0), ("matured", 1)],
    },
    "es_dfm": {
        "no": [("early_negative", 0), ("matured", 0)],
        "early": [("early_positive", 1), ("matured", 1)],
        "late": [("early_negative", 0), ("late_positive", 1), ("matured", 1)],
    },
    "defer_neg": {
        "no": [("early_negative", 0), ("real_negative_repeat", 0)],
        "early": [("early_positive", 1), ("matured", 1)],
        "late": [("early_negative", 0), ("late_positive", 1), ("matured", 1)],
    },
    "defer": {
        "no": [("early_negative", 0), ("real_negative_repeat", 0)],
        "early": [("early_positive", 1), ("early_positive_repeat", 1)],
        "late": [("early_negative", 0), ("late_positive", 1), ("matured", 1)],
    },
}
ROWS["fnc"] = ROWS["fnw"]
ROWS["fsiw"] = ROWS["dfm"] = ROWS["vanilla"]
ROWS["vanilla_dup"] = ROWS["defuse"] = ROWS["es_dfm"]


def labels_of(schema: SchemaConfig, impressions: list[Impression], feedback: list[Feedback]) -> Counter[Label]:
    """Returns each label of the log as often as it must go out; both lists in the order in which they arrived."""
    labels: Counter[Label] = Counter()
    done = set()
    for impression in impressions:
        if impression.request_id in done:
            continue
        done.add(impression.request_id)
        for item in impression.items.id:
            for name, task in schema.tasks.items():
                delays = [
                    action.ts - impression.ts
                    for action in feedback
                    if (action.request_id, action.item_id, action.action) == (impression.request_id, item, task.action)
                    and impression.ts <= action.ts <= impression.ts + task.window_ms
                    and (task.at_least is None or action.value >= task.at_least)
                ]
                fate = "no" if not delays else "late"
                if delays and task.observe_ms is not None and delays[0] <= task.observe_ms:
                    fate = "early"
                for kind, label in ROWS[task.policy][fate]:
                    delay_ms = delays[0] if label else -1
                    labels[(impression.request_id, item, name, kind, label, delay_ms)] += 1
    return labels


Deeds = frozenset[tuple[str, str, float, int]]
"""(item, action, sum of the values, earliest event time) of what was done on one slate."""


def deeds_on(impression: Impression, feedback: Sequence[Feedback], window_ms: int) -> Deeds:
    """Returns what the outcome of a slate must hold, if all of `feedback` was read before it closed."""
    deeds: dict[tuple[str, str], tuple[float, int]] = {}
    met: list[str] = []
    for action in feedback:
        if action.request_id != impression.request_id or action.item_id not in impression.items.id:
            continue
        if action.ts < impression.ts or action.ts > impression.ts + window_ms or action.event_id in met:
            continue
        met.append(action.event_id)
        value, first_ms = deeds.get((action.item_id, action.action), (0.0, action.ts))
        deeds[action.item_id, action.action] = (value + action.value, min(first_ms, action.ts))
    return frozenset((item, action, value, first_ms) for (item, action), (value, first_ms) in deeds.items())


def deeds_of(outcome: Outcome) -> Deeds:
    """Returns what an outcome holds."""
    ids = outcome.impression.items.id
    totals = ((ids[row], action, *total) for action, rows in outcome.totals.items() for row, total in rows.items())
    return frozenset(totals)


def outcomes_of(
    impressions: Sequence[Impression], feedback: Sequence[Feedback], window_ms: int
) -> Counter[tuple[str, Deeds]]:
    """Returns each outcome of the log as often as it must go out; both lists in the order in which they arrived."""
    outcomes: Counter[tuple[str, Deeds]] = Counter()
    done = set()
    for impression in impressions:
        if impression.request_id not in done:
            done.add(impression.request_id)
            if impression.served is not None and (impression.served.explore or impression.served.law == "none"):
                outcomes[impression.request_id, deeds_on(impression, feedback, window_ms)] += 1
    return outcomes
