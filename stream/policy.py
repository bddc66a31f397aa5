"""Label policies: which labels of a task go out at which trigger.

A policy is a table with one kind per trigger; `None` means that nothing goes out. The join core asks it at each
trigger and knows nothing else about it, so that a new policy is a new line here. What the kinds weigh in the loss is
the trainer's business (`model.label_policy`): the joiner only says what is known when.

    slate         slate + observe          slate + window
      |----- early -----|-------- late ---------|              d: the delay of the first qualifying feedback to arrive
      ^ shown           ^ observed              ^ closed       (each with + grace, when the watermark passes it)

| trigger | when | label |
|---|---|---|
| `shown` | the slate is read | 0 |
| `early_positive`, `early_negative` | the watermark passes slate + observe + grace | 1 if d <= observe, else 0 |
| `positive` | the feedback is read, but never before the early look | 1 |
| `missed_positive` | the same, for d <= observe when the early look is over: it came beyond the grace | 1 |
| `close_early_positive`, `close_positive`, `close_negative` | the watermark passes slate + window + grace | 1, 1, 0 |

`close_early_positive` is that of labels with d <= observe. Under every policy each (item, task) gets exactly one label
of a settled kind (`stream.schema.SETTLED_KINDS`), at the feedback (`eager`) or at the close.
"""

from typing import NamedTuple

from stream.schema import KindName, PolicyName


class Policy(NamedTuple):
    """What goes out at each trigger: a kind, or None for nothing."""

    shown: KindName | None = None
    early_positive: KindName | None = None
    early_negative: KindName | None = None
    positive: KindName | None = None
    missed_positive: KindName | None = None
    close_early_positive: KindName | None = None
    close_positive: KindName | None = None
    close_negative: KindName | None = None

    @property
    def kinds(self) -> frozenset[KindName]:
        """Every kind that labels of this policy may have."""
        return frozenset(kind for kind in self if kind is not None)


_LOOK = Policy(
    early_positive="early_positive",
    early_negative="early_negative",
    close_early_positive="matured",
    close_positive="matured",
    close_negative="matured",
)
"""One look at slate + observe; the truth follows for metrics and auxiliary heads."""
_LOOK_AND_CORRECT = _LOOK._replace(positive="late_positive", missed_positive="late_positive")
"""The same, and a second row for each positive that the look did not see."""
_FAKE_NEGATIVES = Policy(
    shown="fake_negative", positive="late_positive", close_positive="matured", close_negative="matured"
)
"""A negative at once, a positive when it comes."""

POLICIES: dict[PolicyName, Policy] = {
    # Everything at the close: the label of a closed window, as an offline job over the complete log would give it.
    "wait": Policy(close_positive="final", close_negative="final"),
    # As soon as it is final: a positive is final at its feedback, a negative only at the close. Each label once.
    "eager": Policy(positive="final", close_negative="final"),
    # The truth at the time of the slate. No joiner can know it; simulations put the rows of `wait` back there.
    "oracle": Policy(close_positive="final", close_negative="final"),
    "vanilla": _LOOK,
    "vanilla_dup": _LOOK_AND_CORRECT,
    "fsiw": _LOOK,
    "dfm": _LOOK,
    "es_dfm": _LOOK_AND_CORRECT,
    "defuse": _LOOK_AND_CORRECT,
    "defer_neg": _LOOK_AND_CORRECT._replace(close_negative="real_negative_repeat"),
    # Every item exactly twice. A missed positive takes its second row at the close, with the other early ones: whether
    # one was missed depends on how the topics were interleaved, and no replay could tell.
    "defer": _LOOK_AND_CORRECT._replace(
        missed_positive=None, close_early_positive="early_positive_repeat", close_negative="real_negative_repeat"
    ),
    "fnw": _FAKE_NEGATIVES,
    "fnc": _FAKE_NEGATIVES,
    "fnw_rn": _FAKE_NEGATIVES._replace(close_negative="real_negative_repeat"),
}
