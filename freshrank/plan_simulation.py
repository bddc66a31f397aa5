"""A simulation of the pipeline, from actions to the first rankings that know them: seeded, in event order, no clock.

    action --way--> joiner --next commit, transaction--> visible --reader's look--> micro-batch, step --> publish
           --store, gate--> live --fetch, apply--> served by the next request

Joiners commit `commit_interval_ms` after the commit before has ended (a renewal process); the trainer is one server
with bulk service: it takes a micro-batch when `batch_rows` rows are there or the oldest has waited `max_wait_ms`, and
publishes between two steps. Rows come evenly; a sample of actions among them is followed.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from freshrank.plan_pipeline import FloatArray, Outage, Pipeline

IntArray = npt.NDArray[np.int64]
_MESSAGES_PER_BATCH = 4
"""A commit's rows come in messages of at most such a part of a micro-batch."""
_TINY = 1e-6
"""Rows by which a sum of fractions may miss a whole micro-batch."""


class Commits(NamedTuple):
    """The commits of all joiners: [J, K]."""

    start_JK: FloatArray
    visible_JK: FloatArray
    rows_JK: FloatArray


class Training(NamedTuple):
    """What the trainer did: when each message (in the order read) was learned, and its snapshots."""

    learned_M: list[float]
    cut_V: list[float]
    """When the publish of a version began: it holds what was learned before."""
    built_V: list[float]
    live_V: list[float]
    is_full_V: list[bool]


def simulate(
    pipeline: Pipeline,
    *,
    from_ms: float,
    until_ms: float,
    num_actions: int,
    rng: np.random.Generator,
    outage: Outage | None = None,
) -> FloatArray:
    """Returns the ms that each action spends in each of `STAGES`, [actions, 5]; their sum is its freshness.

    Actions come evenly between `from_ms` and `until_ms`; the pipeline has run since 0 and runs until they are served.
    """
    horizon_ms = _horizon_ms(pipeline, until_ms, outage)
    commits = _commits(pipeline, horizon_ms, rng, outage)
    visible_M, rows_M, first_JK, count_JK = _messages(pipeline, commits)
    learned = train(pipeline, visible_M.tolist(), np.cumsum(rows_M).tolist(), rng, outage)
    applied_V = _applied(pipeline, learned)
    came_A = np.sort(rng.uniform(from_ms, until_ms, num_actions))
    joiner_A = rng.integers(pipeline.joiners, size=num_actions)
    arrived_A = came_A + pipeline.way_ms * rng.uniform(0.5, 1.5, num_actions)
    commit_A = np.empty(num_actions, np.int64)
    for joiner in range(pipeline.joiners):
        own = joiner_A == joiner
        commit_A[own] = np.searchsorted(commits.start_JK[joiner], arrived_A[own])
    joined_A = commits.start_JK[joiner_A, commit_A]
    first_A, count_A = first_JK[joiner_A, commit_A], count_JK[joiner_A, commit_A]
    message_A = first_A + (rng.random(num_actions) * count_A).astype(np.int64)
    trained_A = np.asarray(learned.learned_M)[message_A]
    version_A = np.searchsorted(learned.cut_V, trained_A)
    built_A = np.asarray(learned.built_V)[version_A]
    applied_A = applied_V[version_A]
    served_A = applied_A + rng.exponential(pipeline.request_ms, num_actions)
    stages_A5: FloatArray = np.diff(
        np.stack([came_A, joined_A, trained_A, built_A, applied_A, served_A], axis=1), axis=1
    )
    return stages_A5


def _horizon_ms(pipeline: Pipeline, until_ms: float, outage: Outage | None) -> float:
    """Returns when the last action surely is in a version: after the backlog of the outage, and two full ones."""
    behind_ms = 0.0
    if outage is not None:
        behind_ms = outage.until_ms + pipeline.checkpoint_interval_ms
    catching_up_ms = behind_ms * pipeline.utilisation / (1 - pipeline.utilisation)
    slack_ms = 20 * (pipeline.cycle_ms + pipeline.max_wait_ms) + 5 * pipeline.publish_interval_ms
    slack_ms += 5 * (pipeline.full_build_ms + pipeline.full_store_ms) + 1_000
    return max(until_ms, behind_ms + 1.5 * catching_up_ms) + slack_ms


def _spread(median_ms: float, spread: float, size: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    drawn: FloatArray = median_ms * np.exp(spread * rng.standard_normal(size))
    return drawn


def _commits(pipeline: Pipeline, horizon_ms: float, rng: np.random.Generator, outage: Outage | None) -> Commits:
    shape = (pipeline.joiners, int(1.2 * horizon_ms / pipeline.cycle_ms) + 20)
    took_JK = _spread(pipeline.commit_ms, pipeline.commit_spread, shape, rng)
    phase_J = rng.uniform(0, pipeline.cycle_ms, pipeline.joiners)
    cycle_JK = pipeline.commit_interval_ms + took_JK
    start_JK = phase_J[:, None] + np.cumsum(cycle_JK, axis=1) - cycle_JK
    if outage is not None and outage.broken in ("joiner", "kafka"):
        ones = slice(0, 1) if outage.broken == "joiner" else slice(None)
        away_JK = outage.holds(start_JK[ones])  # what would have been committed meanwhile goes out when it is over
        start_JK[ones] = np.where(away_JK, outage.until_ms, start_JK[ones])
    visible_JK = start_JK + took_JK + rng.uniform(0, pipeline.fetch_wait_ms, shape)
    if outage is not None and outage.broken == "kafka":
        visible_JK = np.where(outage.holds(visible_JK), outage.until_ms + pipeline.fetch_wait_ms, visible_JK)
    per_ms = pipeline.rows_per_s / 1e3 / pipeline.joiners
    return Commits(start_JK, visible_JK, per_ms * np.diff(start_JK, axis=1, prepend=0.0))


def _messages(pipeline: Pipeline, commits: Commits) -> tuple[FloatArray, FloatArray, IntArray, IntArray]:
    """Returns when each message can be read, and its rows, [M], in order; the first and the number of each commit's."""
    visible_C, rows_C = commits.visible_JK.ravel(), commits.rows_JK.ravel()
    most_rows = pipeline.batch_rows / _MESSAGES_PER_BATCH
    count_C = np.maximum(1, np.ceil(rows_C / most_rows)).astype(np.int64)
    order_C = np.argsort(visible_C, kind="stable")
    first_C = np.empty_like(count_C)
    first_C[order_C] = np.cumsum(count_C[order_C]) - count_C[order_C]
    counts = count_C[order_C]
    visible_M, rows_M = np.repeat(visible_C[order_C], counts), np.repeat((rows_C / count_C)[order_C], counts)
    return visible_M, rows_M, first_C.reshape(commits.start_JK.shape), count_C.reshape(commits.start_JK.shape)


def train(
    pipeline: Pipeline,
    visible_M: list[float],
    upto_M: list[float],
    rng: np.random.Generator,
    outage: Outage | None,
) -> Training:
    """Trains all messages; `upto_M` is the number of rows up to and with each."""
    done = Training([], [], [], [], [])
    free_ms, due_ms, is_new, since_full = 0.0, 0.0, False, pipeline.full_every
    crash = outage if outage is not None and outage.broken == "trainer" else None
    away = outage if outage is not None and outage.broken == "redis" else None
    first, num_messages = 0, len(visible_M)
    slower = _spread(1.0, pipeline.step_spread, (1_024,), rng).tolist()
    while first < num_messages:
        learned_rows = upto_M[first - 1] if first else 0.0
        full = bisect_left(upto_M, learned_rows + pipeline.batch_rows - _TINY, first)
        full_ms = visible_M[full] if full < num_messages else float("inf")
        start_ms = max(free_ms, min(full_ms, max(free_ms, visible_M[first]) + pipeline.max_wait_ms))
        publish_ms = max(free_ms, due_ms)
        if crash is not None and start_ms >= crash.from_ms:
            again_rows = pipeline.rows_per_s * pipeline.checkpoint_interval_ms / 2 / 1e3
            free_ms = crash.until_ms + 1e3 * again_rows / pipeline.capacity
            crash, since_full = None, pipeline.full_every
        elif is_new and publish_ms <= start_ms:
            if away is not None and away.from_ms <= publish_ms < away.until_ms:
                due_ms, since_full = away.until_ms, pipeline.full_every
                continue
            is_full = since_full >= pipeline.full_every
            since_full = 1 if is_full else since_full + 1
            build_ms, store_ms = _publish_ms(pipeline, is_full=is_full)
            free_ms = publish_ms + build_ms + store_ms
            done.cut_V.append(publish_ms)
            done.built_V.append(publish_ms + build_ms)
            done.live_V.append(free_ms)
            done.is_full_V.append(is_full)
            due_ms, is_new = publish_ms + pipeline.publish_interval_ms, False
        else:
            end = full + 1 if full_ms <= start_ms else max(first + 1, bisect_right(visible_M, start_ms, first))
            num_rows = upto_M[end - 1] - learned_rows
            took_ms = (pipeline.step_ms + num_rows * pipeline.row_ms) * slower[len(done.learned_M) % len(slower)]
            free_ms, is_new = start_ms + took_ms, True
            done.learned_M.extend([free_ms] * (end - first))
            first = end
    return done


def _publish_ms(pipeline: Pipeline, *, is_full: bool) -> tuple[float, float]:
    if is_full:
        return pipeline.full_build_ms, pipeline.full_store_ms
    return pipeline.build_ms, pipeline.store_ms


def _applied(pipeline: Pipeline, training: Training) -> FloatArray:
    """Returns when a ranker serves each version: one after the other."""
    applied_ms, found = 0.0, []
    for live_ms, is_full in zip(training.live_V, training.is_full_V, strict=True):
        applied_ms = max(live_ms, applied_ms) + (pipeline.full_apply_ms if is_full else pipeline.apply_ms)
        found.append(applied_ms)
    return np.array(found)
