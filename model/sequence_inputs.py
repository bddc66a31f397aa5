"""A user's last actions, not pooled: what a network that reads histories sees beside x.

Letters: R requests, B rows, L actions of the longest history, W block width.
"""

from dataclasses import dataclass

from torch import Tensor

UNKNOWN_AGE_MS = 2**62
"""Age of an action whose time nobody gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceInputs:
    """Histories once per request, newest first, and what is asked of them: the candidate of each row."""

    item_RLW: Tensor
    """Embedding of each action's item; what it holds beyond a history plays no part."""
    action_RLW: Tensor
    """Embedding of each action's kind."""
    age_ms_RL: Tensor
    """Request time minus the action's event time; `UNKNOWN_AGE_MS` where that was not given. int64."""
    is_real_RL: Tensor
    """Whether there is an action, and it was before the request."""
    user_RW: Tensor
    """Embedding of the user; zeros where the user's id is no field."""
    request_index_B: Tensor
    """The request of each row, in [0, R)."""
    candidate_BW: Tensor
    """Embedding of each row's item: its block `item_id` of x."""
