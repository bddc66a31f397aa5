"""What the checks of a publish gate say."""

from collections.abc import Iterable
from typing import Literal

import msgspec

State = Literal["pass", "not_judged", "warn", "block"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check of one thing."""

    check: str
    """Name of the check: the keys of `docs/safe-publishing.md`."""
    state: State
    text: str
    """A sentence: what was seen, and what is allowed."""
    delay_ms: int = 0
    """How much earlier than the window that was judged the cause may lie: what it looks at waits for its labels."""


def blocked(findings: Iterable[Finding]) -> list[Finding]:
    """Returns those that keep a version from being served."""
    return [finding for finding in findings if finding.state == "block"]


def state_of(findings: Iterable[Finding]) -> State:
    """Returns the gravest state; that nothing was judged is only said where no check passed.

    >>> state_of([]), state_of([Finding(check="psi", state="pass", text="")])
    ('not_judged', 'pass')
    """
    states = {finding.state for finding in findings}
    for state in ("block", "warn", "pass"):
        if state in states:
            return state
    return "not_judged"


def sentence(findings: Iterable[Finding]) -> str:
    """Returns the texts of the findings that block, each after its check's name."""
    return "; ".join(f"{finding.check}: {finding.text}" for finding in blocked(findings))
