"""What the labels of a complete log are: slow, obvious, and written without a look at the join core.

Holds where no event is late: then neither the order of the topics against each other nor any crash may matter.
"""

from collections import Counter

from stream.schema import Feedback, Impression, SchemaConfig

Label = tuple[str, str, str, str, int, int]
"""(request_id, item_id, task, kind, label, delay_ms)"""


def final_labels(schema: SchemaConfig, impressions: list[Impression], feedback: list[Feedback]) -> Counter[Label]:
    """Returns each label of the log, once; both lists in the order in which they arrived."""
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
                outcome = (1, delays[0]) if delays else (0, -1)
                labels[(impression.request_id, item, name, "final", *outcome)] += 1
    return labels
