"""A learned policy: static weights, and a chain of bounded steps away from them, each fitted in its own round.

Shape letters: N requests, X width of an encoded context, T tasks.
"""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from utility_blender.contexts import ContextEncoder, Contexts, Floats
from utility_blender.mlp import Mlp
from utility_blender.policy import Policy, StaticPolicy

DEFAULT = "default"
"""Key of `base` for scenarios without an entry of their own."""


@dataclass(frozen=True, slots=True)
class Link:
    """One step: `w = c + strength (clip(c + |c| g(x), between c / clip and c clip) - c)`, around weights c.

    g is relative to the length of c, so that one g serves scenarios whose weights differ in length. A clip of infinity
    bounds nothing; any other keeps the sign of every weight.
    """

    encoder: ContextEncoder
    mlp: Mlp
    """g: x_NX -> step_NT."""
    clip: float = 2.0
    strength: float = 1.0
    """Share of the step that is made, in [0, 1]."""

    def __call__(self, center_NT: Floats, contexts: Contexts) -> Floats:
        """Returns weights_NT, one step from `center_NT`."""
        return self.bounded(center_NT, self.mlp(self.encoder.encode(contexts)))

    def bounded(self, center_NT: Floats, step_NT: Floats) -> Floats:
        """Returns the weights that the step `step_NT = g(x)` leads to."""
        goal_NT = center_NT + np.linalg.norm(center_NT, axis=1, keepdims=True) * step_NT
        if self.clip < math.inf:
            near_NT, far_NT = center_NT / self.clip, center_NT * self.clip
            goal_NT = np.clip(goal_NT, np.minimum(near_NT, far_NT), np.maximum(near_NT, far_NT))
        weights_NT: Floats = center_NT + self.strength * (goal_NT - center_NT)
        return weights_NT


@dataclass(frozen=True, slots=True)
class LearnedPolicy:
    """Static weights by scenario, then every link in turn; between links, weights are brought back to their length.

    >>> policy = LearnedPolicy(("click", "order"), {"default": np.array([3.0, 4.0])})
    >>> policy.weights(Contexts(scenario=["home"], columns={}))
    array([[3., 4.]])
    """

    tasks: tuple[str, ...]
    base: Mapping[str, Floats]
    """Weights_T by scenario; `default` for scenarios not listed."""
    links: tuple[Link, ...] = ()

    kind = "learned"

    def weights(self, contexts: Contexts) -> Floats:
        """See `Policy.weights`.

        Raises:
            KeyError: a scenario that is not listed, and there is no `default`.
        """
        static_NT = self.static(contexts)
        length_N = np.linalg.norm(static_NT, axis=1)
        weights_NT = static_NT
        for link in self.links:
            weights_NT = weights_NT * (length_N / np.linalg.norm(weights_NT, axis=1))[:, None]
            weights_NT = link(weights_NT, contexts)
        return weights_NT

    def static(self, contexts: Contexts) -> Floats:
        """Returns the weights before any link."""
        names = [name if name in self.base else DEFAULT for name in contexts.scenario]
        return np.array([self.base[name] for name in names]).reshape(-1, len(self.tasks))

    def then(self, link: Link) -> "LearnedPolicy":
        """Returns the policy with one more step."""
        return replace(self, links=(*self.links, link))

    def as_dict(self) -> dict[str, Any]:
        """See `policy_to_dict`."""
        return {
            "tasks": list(self.tasks),
            "base": {scenario: weights_T.tolist() for scenario, weights_T in self.base.items()},
            "links": [
                {
                    "encoder": link.encoder.as_dict(),
                    "mlp": link.mlp.as_list(),
                    "clip": None if link.clip == math.inf else link.clip,
                    "strength": link.strength,
                }
                for link in self.links
            ],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "LearnedPolicy":
        """See `policy_from_dict`."""
        tasks = tuple(map(str, data["tasks"]))
        base = {str(scenario): _weights(given, len(tasks)) for scenario, given in data["base"].items()}
        links = tuple(_link(given, len(tasks)) for given in data["links"])
        return LearnedPolicy(tasks, base, links)


def as_learned(center: Policy, tasks: tuple[str, ...]) -> LearnedPolicy:
    """Returns a policy that links can be added to.

    Raises:
        ValueError: the policy is of another kind.
    """
    if isinstance(center, StaticPolicy):
        return LearnedPolicy(tasks, dict(center.weights_of))
    if isinstance(center, LearnedPolicy):
        return center
    raise ValueError(f"center: {type(center).__name__} is not allowed; StaticPolicy or LearnedPolicy")


@runtime_checkable
class StoredPolicy(Policy, Protocol):
    """A policy that can be written down."""

    kind: str
    """Its key in `POLICIES`."""

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data, for JSON; what `from_dict` of the same class takes."""


POLICIES: Mapping[str, str] = {
    "learned": "utility_blender.learned:LearnedPolicy",
    "quadratic_q": "utility_blender.quadratic_q:QuadraticPolicy",
    "grid_q": "utility_blender.grid_q:GridPolicy",
}
"""Kind of a policy -> its class, as `module:name`; imported when first met."""


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """Returns plain data, for JSON; `policy_from_dict` gives a policy with the same weights to the last bit.

    Raises:
        ValueError: the policy is of a kind that cannot be written down.
    """
    if isinstance(policy, StaticPolicy):
        policy = LearnedPolicy(_numbered(policy), dict(policy.weights_of))
    if not isinstance(policy, StoredPolicy) or policy.kind not in POLICIES:
        raise ValueError(f"policy: {type(policy).__name__} is not allowed; one of {', '.join(POLICIES)}")
    return {"kind": policy.kind, **policy.as_dict()}


def policy_from_dict(data: Mapping[str, Any]) -> Policy:
    """Returns the policy of plain data.

    Raises:
        ValueError: it is not a policy's.
    """
    kind = str(data.get("kind"))
    if kind not in POLICIES:
        raise ValueError(f"policy.kind: {kind} is not allowed; one of {', '.join(POLICIES)}")
    module, _, name = POLICIES[kind].partition(":")
    try:
        policy: Policy = getattr(importlib.import_module(module), name).from_dict(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"policy: this is no policy of kind {kind} ({error!r})") from None
    return policy


def _numbered(policy: StaticPolicy) -> tuple[str, ...]:
    width = len(next(iter(policy.weights_of.values()), ()))
    return tuple(f"task {number}" for number in range(width))


def _weights(given: Any, num_tasks: int) -> Floats:
    weights_T = np.array(given, np.float64)
    if weights_T.shape != (num_tasks,) or not np.isfinite(weights_T).all() or not weights_T.any():
        raise ValueError(f"base: {given} is not allowed; {num_tasks} finite numbers, not all 0")
    return weights_T


def _link(given: Mapping[str, Any], num_tasks: int) -> Link:
    clip = math.inf if given["clip"] is None else float(given["clip"])
    link = Link(
        ContextEncoder.from_dict(given["encoder"]),
        Mlp.from_list(given["mlp"]),
        clip,
        strength := float(given["strength"]),
    )
    if link.mlp.layers[0][0].shape[0] != link.encoder.width or link.mlp.layers[-1][1].shape != (num_tasks,):
        raise ValueError("links: the network does not fit the encoder or the tasks")
    if not clip >= 1 or not 0 <= strength <= 1:
        raise ValueError(f"links: clip {clip}, strength {strength} are not allowed; at least 1, in [0, 1]")
    return link
