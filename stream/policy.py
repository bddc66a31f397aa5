"""Label policies: which label goes out at which trigger.

A policy is a table with one kind per trigger; `None` means that nothing goes out. The join core asks it at each
trigger and knows nothing else about it, so that a new policy is a new line here (and, if it needs one, a new trigger).

| trigger | when | label |
|---|---|---|
| `positive` | the first qualifying feedback of an (item, task) is observed while its label is open | 1 |
| `close_positive` | the watermark passes slate + window + grace, and there was one | 1 |
| `close_negative` | the same, and there was none | 0 |
"""

from typing import NamedTuple

from stream.schema import KindName, PolicyName


class Policy(NamedTuple):
    """What goes out at each trigger: a kind, or None for nothing."""

    positive: KindName | None
    close_positive: KindName | None
    close_negative: KindName | None


POLICIES: dict[PolicyName, Policy] = {
    # Everything at the close: the label of a closed window, as an offline job over the complete log would give it.
    "wait": Policy(positive=None, close_positive="final", close_negative="final"),
    # As soon as it is final: a positive is final at its feedback, a negative only at the close. Each label once.
    "eager": Policy(positive="final", close_positive=None, close_negative="final"),
}
