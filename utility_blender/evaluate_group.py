"""The off-policy figures of requests that are judged together: a large scenario, or the small ones pooled.

Shape letters: N requests, M draws, C candidates, T tasks, A actions, K columns.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from utility_blender.bootstrap import Bootstrap, user_sums
from utility_blender.centring import angles
from utility_blender.contexts import Contexts, Floats
from utility_blender.cross_fit import CrossFit
from utility_blender.estimators import doubly_robust, effective_share, ips, snips
from utility_blender.gate_config import GateConfig
from utility_blender.inclusion import Inclusion, count_shown, importance, uncovered
from utility_blender.kernel import bandwidth, distance, kernel_means, kernel_weights
from utility_blender.ope_report import WEIGHT_BINS, GroupReport, Interval
from utility_blender.outcomes import Ints, Outcomes
from utility_blender.policy import Policy, directions
from utility_blender.redraw import redraw
from utility_blender.reward import RewardConfig, item_rewards

_CHUNK = 2_000_000
"""Utilities computed at once, which bounds the memory."""


class QModel(Protocol):
    """A model of the request's reward, fitted to requests that neither the policy nor this slice has seen."""

    def predict(self, contexts: Contexts, weights_NT: Floats, center_NT: Floats) -> Floats:
        """Returns the reward_N expected under some weights around a centre; only their direction counts."""


class Group:
    """Requests, and the draws around their centres that serve all policies."""

    def __init__(
        self,
        name: str,
        outcomes: Outcomes,
        center: Policy,
        reward: RewardConfig,
        config: GateConfig,
        *,
        seed: int,
        q_model: QModel | None,
    ) -> None:
        self._name, self._outcomes, self._config, self._seed = name, outcomes, config, seed
        self._center_NT = center.weights(outcomes.contexts)
        self._item_NC = item_rewards(outcomes, reward)
        self._reward_N = self._item_NC.sum(axis=1)
        self._bandwidth = bandwidth(distance(outcomes.weights_NT, outcomes.center_NT))
        self._q: CrossFit | _Given
        if q_model is None:
            self._q = CrossFit(outcomes, self._reward_N, seed=seed)
        else:
            self._q = _Given(q_model, outcomes)
        self._inclusion = Inclusion(self._count_shown(), config.inclusion_draws)
        self._central_N = self._kernel_weights(self._center_NT)

    def of(self, policy: Policy) -> GroupReport:
        """Returns the figures of a policy."""
        outcomes, center_NT = self._outcomes, self._center_NT
        weights_NT = policy.weights(outcomes.contexts)
        angle_N = angles(weights_NT, center_NT)
        explored_N = angles(outcomes.weights_NT, outcomes.center_NT)
        columns, omega_NC, omega_N = self._columns(weights_NT)
        sums = Bootstrap(
            user_sums(np.stack(list(columns.values()), axis=1), outcomes.user_id),
            self._config.resamples,
            np.random.default_rng([self._seed, 3]),
        )
        of = _Statistics(list(columns), sums)
        shown = omega_NC[outcomes.shown_NC]
        return GroupReport(
            name=self._name,
            scenarios=tuple(sorted(set(outcomes.contexts.scenario))),
            num_requests=outcomes.num_requests,
            num_users=len(set(outcomes.user_id)),
            mean_reward=float(self._reward_N.mean()),
            sd_reward=float(self._reward_N.std()),
            value_center=of.mean("item_center"),
            item=of.mean("item", "item_center"),
            dr=of.robust(),
            dm=of.mean("q", "q_center").value,
            kernel_ips=of.mean("kernel_reward", "kernel_reward_center"),
            kernel_snips=of.self_normalised(),
            static_mean=of.mean("item", "item_mean") if "item_mean" in columns else None,
            mean_weights={
                "item": of.ratio("item_weight", "size"),
                "kernel": of.ratio("kernel", "one"),
                "item_center": of.ratio("item_weight_center", "size"),
                "kernel_center": of.ratio("kernel_center", "one"),
            },
            ess=effective_share(omega_N),
            uncovered=of.ratio("uncovered", "size").value,
            bandwidth=self._bandwidth,
            angle=float(np.median(angle_N)),
            angle_p95=float(np.quantile(angle_N, 0.95)),
            angle_explored=float(np.sqrt((explored_N**2).mean())),
            actions={
                scope: {action: of.relative(f"{scope}/{action}") for action in actions}
                for scope, actions in self._guardable().items()
            },
            weight_counts={"item": _histogram(shown), "kernel": _histogram(omega_N)},
        )

    def _columns(self, weights_NT: Floats) -> tuple[dict[str, Floats], Floats, Floats]:
        """Returns what every estimate is made of, per request, and the item and the kernel weights."""
        outcomes, center_NT, reward_N = self._outcomes, self._center_NT, self._reward_N
        omega_NC = importance(outcomes, self._inclusion, weights_NT)
        central_NC = importance(outcomes, self._inclusion, center_NT)
        kernel_N, central_N = self._kernel_weights(weights_NT), self._central_N
        residual_N = reward_N - self._q.predict(outcomes.weights_NT)
        columns = {
            "one": np.ones(outcomes.num_requests),
            "size": outcomes.size_N.astype(np.float64),
            "item": (omega_NC * self._item_NC).sum(axis=1),
            "item_center": (central_NC * self._item_NC).sum(axis=1),
            "item_weight": omega_NC.sum(axis=1),
            "item_weight_center": central_NC.sum(axis=1),
            "uncovered": uncovered(outcomes, self._inclusion, weights_NT),
            "kernel": kernel_N,
            "kernel_center": central_N,
            "kernel_reward": kernel_N * reward_N,
            "kernel_reward_center": central_N * reward_N,
            "kernel_residual": kernel_N * residual_N,
            "kernel_residual_center": central_N * residual_N,
            "q": self._q.predict(weights_NT),
            "q_center": self._q.predict(center_NT),
        }
        pull_N = central_N / central_N.sum() - kernel_N / kernel_N.sum()
        each_N = np.full(outcomes.num_requests, 1 / outcomes.num_requests)
        columns["dr_noise"] = outcomes.num_requests * self._q.noise(
            [(each_N, weights_NT), (-each_N, center_NT), (pull_N, outcomes.weights_NT)]
        )
        mean_NT = self._mean_weights(weights_NT)
        if not np.allclose(angles(weights_NT, mean_NT), 0.0, atol=1e-3):
            columns["item_mean"] = (importance(outcomes, self._inclusion, mean_NT) * self._item_NC).sum(axis=1)
        for scope, actions in self._guardable().items():
            rows_N = self._rows(scope)
            for action in actions:
                value_NC = outcomes.value_NCA[:, :, outcomes.actions.index(action)]
                columns[f"{scope}/{action}"] = rows_N * (omega_NC * value_NC).sum(axis=1)
                columns[f"{scope}/{action}/center"] = rows_N * (central_NC * value_NC).sum(axis=1)
        return columns, omega_NC, kernel_N

    def _guardable(self) -> dict[str, list[str]]:
        """Returns the actions met: of the group, and of each of its scenarios if there are several."""
        outcomes = self._outcomes
        scenarios = sorted(set(outcomes.contexts.scenario))
        scopes = [self._name, *(scenarios if len(scenarios) > 1 else [])]
        total_NA = np.abs(outcomes.value_NCA).sum(axis=1)
        return {
            scope: [a for a, met in zip(outcomes.actions, self._rows(scope) @ total_NA, strict=True) if met > 0]
            for scope in scopes
        }

    def _rows(self, scope: str) -> Floats:
        """Returns 1 for the requests of a scope, the whole group or one of its scenarios, and 0 for the others."""
        names = np.array(self._outcomes.contexts.scenario)
        rows_N: Floats = np.logical_or(scope == self._name, names == scope).astype(np.float64)
        return rows_N

    def _mean_weights(self, weights_NT: Floats) -> Floats:
        """Returns the mean direction of the policy's weights in each scenario."""
        mean_NT = directions(weights_NT, self._center_NT)
        names = np.array(self._outcomes.contexts.scenario)
        for name in np.unique(names):
            mean_NT[names == name] = mean_NT[names == name].mean(axis=0)
        return mean_NT

    def _count_shown(self) -> Ints:
        num = self._config.inclusion_draws
        per_request = num * self._outcomes.position_NC.shape[1]
        counts = [count_shown(part, draws) for part, draws, _ in self._draws(num, per_request)]
        count_NC: Ints = np.concatenate(counts)
        return count_NC

    def _kernel_weights(self, weights_NT: Floats) -> Floats:
        num = self._config.kernel_draws
        parts = self._draws(num, num * len(self._outcomes.tasks))
        means = [kernel_means(weights_NT[rows], draws, self._bandwidth) for _, draws, rows in parts]
        return kernel_weights(weights_NT, self._outcomes.weights_NT, np.concatenate(means), self._bandwidth)

    def _draws(self, num: int, per_request: int) -> Iterator[tuple[Outcomes, Floats, Ints]]:
        """Yields requests, `num` fresh draws of each, and which ones they are; the same draws at each call."""
        rng = np.random.default_rng([self._seed, num])
        at_once = max(1, _CHUNK // per_request)
        for start in range(0, self._outcomes.num_requests, at_once):
            rows = np.arange(start, min(start + at_once, self._outcomes.num_requests))
            part = self._outcomes.take(rows)
            yield part, redraw(part, num, rng), rows


class _Statistics:
    """Estimates by the names of the columns they are made of."""

    def __init__(self, names: list[str], sums: Bootstrap) -> None:
        self._place = {name: index for index, name in enumerate(names)}
        self._sums = sums

    def mean(self, name: str, minus: str | None = None) -> Interval:
        """Returns the mean of a column over all requests, less that of another."""
        at = self._place

        def statistic(sums: Floats) -> Floats:
            total = sums[..., at[name]] - (0.0 if minus is None else sums[..., at[minus]])
            return ips(total, sums[..., at["one"]])

        return self._sums.interval(statistic)

    def ratio(self, name: str, of: str) -> Interval:
        """Returns the ratio of two columns' sums."""
        at = self._place
        return self._sums.interval(lambda sums: snips(sums[..., at[name]], sums[..., at[of]]))

    def relative(self, name: str) -> Interval:
        """Returns by how much a column is more than that of the centre, relatively."""
        interval = self.ratio(name, f"{name}/center")
        return Interval(interval.value - 1, interval.se, interval.low - 1, interval.high - 1)

    def self_normalised(self) -> Interval:
        """Returns the lift of kernel SNIPS."""
        at = self._place

        def value(sums: Floats, of: str) -> Floats:
            return snips(sums[..., at[f"kernel_reward{of}"]], sums[..., at[f"kernel{of}"]])

        return self._sums.interval(lambda sums: value(sums, "") - value(sums, "_center"))

    def robust(self) -> Interval:
        """Returns the lift of the doubly robust estimate."""
        at = self._place

        def value(sums: Floats, of: str) -> Floats:
            parts = (f"q{of}", "one", f"kernel_residual{of}", f"kernel{of}")
            return doubly_robust(*(sums[..., at[part]] for part in parts))

        def lift(sums: Floats) -> Floats:
            return value(sums, "") - value(sums, "_center") + ips(sums[..., at["dr_noise"]], sums[..., at["one"]])

        return self._sums.interval(lift)


class _Given:
    """A model fitted elsewhere: its own error is not in the interval."""

    def __init__(self, model: QModel, outcomes: Outcomes) -> None:
        self._model, self._outcomes = model, outcomes

    def predict(self, weights_NT: Floats) -> Floats:
        """See `CrossFit.predict`."""
        return self._model.predict(self._outcomes.contexts, weights_NT, self._outcomes.center_NT)

    def noise(self, terms: Sequence[tuple[Floats, Floats]]) -> Floats:
        """See `CrossFit.noise`."""
        return np.zeros(self._outcomes.num_requests)


def _histogram(weights: Floats) -> list[int]:
    counts, _ = np.histogram(weights, bins=[*WEIGHT_BINS, np.inf])
    return [int(count) for count in counts]
