"""What the join core makes of worlds of delayed feedback: policies mixed and alone, and `eager` while traffic jumps."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from freshrank.study_stream import ACTION, Rows, as_oracle, in_time, join_rows
from freshrank.study_variants import PLAIN, task_of, variant_rows
from sim.study_world import HOUR_MS, DelayWorld, DelayWorldConfig, draw_world
from stream.join import JoinConfig, JoinCore, Resume
from stream.schema import KIND_CODE, SETTLED_KINDS, Feedback, Impression, Items, SchemaConfig, TaskConfig

WINDOW_MS = 12 * HOUR_MS
STEP_HOUR = 18
SMALL = DelayWorldConfig(hours=30, window_ms=WINDOW_MS, observe_ms=HOUR_MS // 4, items_per_hour=60, slate_size=5)
EAGER = TaskConfig(action=ACTION, window_ms=WINDOW_MS, policy="eager", traffic_ratio=False)
RATIO = dataclasses.replace(EAGER, traffic_ratio=True)
JOIN = JoinConfig()


def same(one: Rows, other: Rows) -> bool:
    """Whether both hold the same rows; those of one trigger time may come in any order."""
    columns = (np.stack([np.asarray(column, np.float64) for column in rows]) for rows in (one, other))
    ordered = [column[:, np.lexsort(column)] for column in columns]
    return ordered[0].shape == ordered[1].shape and bool((ordered[0] == ordered[1]).all())


@pytest.fixture(scope="module")
def small() -> DelayWorld:
    return draw_world(SMALL, np.random.default_rng(3))


@pytest.fixture(scope="module")
def step() -> tuple[DelayWorld, dict[str, Rows]]:
    """Traffic x 4 at `STEP_HOUR`, joined with and without the ratio."""
    config = dataclasses.replace(
        SMALL, hours=STEP_HOUR + 36, items_per_hour=1_000, slate_size=20, traffic_step_hour=STEP_HOUR, drift=0.0
    )
    world = draw_world(config, np.random.default_rng(0))
    return world, join_rows(world, {"plain": EAGER, "ratio": RATIO}, JOIN)


def odds(rows: Rows, low_windows: float, high_windows: float) -> float:
    """Weighted odds of the labels that went out between two ages of the step, in windows."""
    age = (rows.trigger_ms_R - STEP_HOUR * HOUR_MS) / WINDOW_MS
    chosen = (age >= low_windows) & (age < high_windows)
    return float((rows.ratio_R * rows.label_R)[chosen].sum() / (1 - rows.label_R[chosen]).sum())


def test_mixed_policies_equal_each_policy_alone(small: DelayWorld) -> None:
    tasks = {name: task_of(variant, small) for name, variant in PLAIN.items() if name != "oracle"}
    tasks["click"] = TaskConfig(action=ACTION, window_ms=60_000, policy="eager")
    mixed = join_rows(small, tasks, JOIN)
    for name, task in tasks.items():
        assert same(mixed[name], join_rows(small, {name: task}, JOIN)[name]), name


def test_every_item_has_one_settled_row_under_every_policy(small: DelayWorld) -> None:
    settled = [KIND_CODE[kind] for kind in SETTLED_KINDS]
    for name, rows in variant_rows(small, PLAIN, JOIN).items():
        truth = rows.take(np.isin(rows.kind_R, settled))
        assert np.array_equal(np.sort(truth.item_R), np.arange(len(small.label_N))), name
        assert np.array_equal(truth.label_R, small.label_N[truth.item_R]), name


def test_shared_tables_stand_for_their_policies(small: DelayWorld) -> None:
    shared = variant_rows(small, PLAIN, JOIN)
    for name in ("dfm", "vanilla_dup", "fnc"):
        assert same(shared[name], join_rows(small, {name: task_of(PLAIN[name], small)}, JOIN)[name])


def test_oracle_is_wait_put_back_to_the_slates(small: DelayWorld) -> None:
    wait = variant_rows(small, {}, JOIN)["wait"]
    oracle = as_oracle(wait, small)
    assert np.array_equal(oracle.trigger_ms_R, np.sort(small.shown_ms_N))
    assert (wait.trigger_ms_R - small.shown_ms_N[wait.item_R] == WINDOW_MS + JOIN.grace_ms).all()
    assert np.array_equal(oracle.label_R, small.label_N[oracle.item_R])


def test_odds_of_eager_follow_the_step_of_traffic(step: tuple[DelayWorld, dict[str, Rows]]) -> None:
    world, rows = step
    delays = np.sort(world.delay_ms_N[world.delay_ms_N >= 0]) / WINDOW_MS
    base = world.label_N.mean() / (1 - world.label_N.mean())
    for bucket in range(8):
        ages = (bucket + (np.arange(100) + 0.5) / 100) / 8
        expected = 1 + 3 * (np.searchsorted(delays, ages) / len(delays)).mean()
        assert odds(rows["plain"], bucket / 8, (bucket + 1) / 8) / base == pytest.approx(expected, rel=0.1)
    assert odds(rows["plain"], 1.0, 2.0) / base == pytest.approx(1.0, abs=0.02)


def test_traffic_ratio_undoes_the_step_once_its_counts_have_caught_up(
    step: tuple[DelayWorld, dict[str, Rows]],
) -> None:
    """Slates are counted in the last buckets complete when they are shown, so their ratio is out of date for a while.

    Their positives carry that on for as long as delays are: the second eighth of the window alone is a little off.
    """
    world, rows = step
    base = world.label_N.mean() / (1 - world.label_N.mean())
    plain, ratio = ([odds(rows[name], k / 8, (k + 1) / 8) / base for k in range(8)] for name in ("plain", "ratio"))
    assert all(0.97 < after < before for before, after in zip(plain, ratio, strict=True))
    assert ratio[1] < 1.45 < 3.3 < plain[1]
    assert ratio[2] < 1.15
    assert odds(rows["ratio"], 1 / 8, 1.0) / base == pytest.approx(1.0, abs=0.03)


def test_with_the_ratio_no_positive_counts_before_a_window_has_passed(small: DelayWorld) -> None:
    rows = join_rows(small, {"ratio": RATIO}, JOIN)["ratio"]
    early = rows.take(rows.trigger_ms_R < WINDOW_MS)
    assert len(early.item_R) > 100
    assert (early.label_R == 1).all()
    assert not early.ratio_R.any()
    later = rows.take((rows.trigger_ms_R > 1.25 * WINDOW_MS) & (rows.label_R == 1))
    assert later.ratio_R.min() > 0


def test_a_lagging_watermark_changes_no_row(small: DelayWorld) -> None:
    tasks = {"plain": EAGER, "ratio": RATIO}
    prompt, lagging = (join_rows(small, tasks, JOIN, lag_ms=lag_ms) for lag_ms in (0, WINDOW_MS // 3))
    assert all(same(prompt[task], lagging[task]) for task in tasks)


@pytest.mark.parametrize("share", [0.35, 0.9])
def test_a_replay_after_a_crash_gives_the_rows_of_the_run_that_went_on(small: DelayWorld, share: float) -> None:
    schema = SchemaConfig(scenarios=("home",), tasks={"ratio": RATIO})
    events = messages(small)
    cut = int(share * len(events))
    before = JoinCore(schema, JOIN)
    first = labels_of(before, events[:cut])
    num_read = [sum(isinstance(event, kind) for event, _ in events[:cut]) for kind in (Impression, Feedback)]
    from_impression, from_feedback = before.oldest_needed(*num_read)
    after = JoinCore(schema, JOIN, Resume(num_read[0], num_read[1], before.watermark_ms))
    replayed = [
        (event, offset)
        for event, offset in events[:cut]
        if offset >= (from_impression if isinstance(event, Impression) else from_feedback)
    ]
    assert replayed
    assert labels_of(after, replayed, advance=False) == []
    assert sorted(first + labels_of(after, events[cut:])) == sorted(labels_of(JoinCore(schema, JOIN), events))


def messages(world: DelayWorld) -> list[tuple[Impression | Feedback, int]]:
    """Both topics in order of event time, with offsets."""
    size, shown_ms = world.config.slate_size, world.shown_ms_S
    ids = [str(row) for row in range(size)]
    found: list[tuple[Impression | Feedback, int]] = []
    num = [0, 0]
    for slate, item in in_time(world):
        event: Impression | Feedback
        if item < 0:
            event = Impression(str(slate), "u", "home", int(shown_ms[slate]), Items(id=ids))
        else:
            at_ms = int(shown_ms[slate] + world.delay_ms_N[item])
            event = Feedback(str(slate), "u", ids[item % size], ACTION, at_ms, event_id=ids[item % size])
        found.append((event, num[item >= 0]))
        num[item >= 0] += 1
    return found


Label = tuple[str, int, int, float]


def labels_of(core: JoinCore, events: list[tuple[Impression | Feedback, int]], *, advance: bool = True) -> list[Label]:
    """Returns (item, label, trigger, ratio) of everything the core sends."""
    labels: list[Label] = []
    for event, offset in events:
        emissions = core.advance(event.ts - JOIN.out_of_orderness_ms) if advance else []
        if isinstance(event, Impression):
            emissions += core.observe_impression(event, offset)
        else:
            emissions += core.observe_feedback(event, offset)
        for emission in emissions:
            column = emission.columns["ratio"]
            ratios: npt.ArrayLike = [1.0] * len(emission.rows) if column.ratio is None else column.ratio
            for row, label, ratio in zip(emission.rows, column.label, np.asarray(ratios).tolist(), strict=True):
                labels.append((f"{emission.impression.request_id}/{row}", label, emission.trigger_ms, ratio))
    return labels
