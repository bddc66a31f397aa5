"""The curves of the delay study: every label policy, and some of them used in another way."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from freshrank.study_stream import ACTION, Rows, as_oracle, join_rows
from sim.study_world import DelayWorld
from stream.join import JoinConfig
from stream.policy import POLICIES, Policy
from stream.schema import OBSERVING_POLICIES, PolicyName, TaskConfig

HeadsName = Literal["fresh", "frozen", "exact"]


class Variant(NamedTuple):
    """A policy, and how it is used."""

    policy: PolicyName
    traffic_ratio: bool | None = None
    """As in `TaskConfig`."""
    heads: HeadsName = "fresh"
    """Auxiliary heads that go on learning, stay as they were at the start, or know the truth."""


PLAIN: dict[str, Variant] = {name: Variant(name) for name in POLICIES}
"""Every policy as a run has it if nothing else is said."""
VARIANTS: dict[str, Variant] = PLAIN | {
    # Without the ratio, which is on by default above 5 minutes.
    "eager_plain": Variant("eager", traffic_ratio=False),
    "es_dfm_frozen": Variant("es_dfm", heads="frozen"),
    "es_dfm_exact": Variant("es_dfm", heads="exact"),
    "defer_frozen": Variant("defer", heads="frozen"),
    "defer_exact": Variant("defer", heads="exact"),
    "dfm_exact": Variant("dfm", heads="exact"),
}


def task_of(variant: Variant, world: DelayWorld) -> TaskConfig:
    """Returns the task of a variant in a world."""
    is_observing = variant.policy in OBSERVING_POLICIES
    return TaskConfig(
        action=ACTION,
        window_ms=world.config.window_ms,
        policy=variant.policy,
        observe_ms=world.config.observe_ms if is_observing else None,
        traffic_ratio=variant.traffic_ratio,
    )


def variant_rows(world: DelayWorld, variants: Mapping[str, Variant], config: JoinConfig) -> dict[str, Rows]:
    """Returns the rows of each variant, and of `wait` in any case, from one join core.

    Variants whose labels go out by the same table share one task of the core: they are the same rows.
    """
    tasks: dict[str, TaskConfig] = {}
    task_by_table: dict[tuple[Policy, bool], str] = {}
    task_names: dict[str, str] = {}
    for name, variant in {"wait": PLAIN["wait"], **variants}.items():
        task = task_of(variant, world)
        task_names[name] = task_by_table.setdefault((POLICIES[variant.policy], task.has_traffic_ratio), name)
        if task_names[name] == name:
            tasks[name] = task
    joined = join_rows(world, tasks, config)
    rows = {name: joined[task_name] for name, task_name in task_names.items()}
    oracles = {name for name, variant in variants.items() if variant.policy == "oracle"}
    return rows | {name: as_oracle(rows["wait"], world) for name in oracles}
