"""Short forms for events and settings in the tests of the stream."""

from collections.abc import Iterable

from stream.schema import Candidates, Feedback, Impression, Items, SchemaConfig, Served, TaskConfig

CLICK = TaskConfig(action="click", window_ms=60_000)


def schema(**tasks: TaskConfig) -> SchemaConfig:
    """Returns a schema with these tasks; a click within a minute if none are given."""
    return SchemaConfig(scenarios=("home", "search"), tasks=tasks or {"click": CLICK})


def shown(request_id: str = "r", *items: str, at: int = 0, user: str = "u") -> Impression:
    """Returns a slate of these items; of one item, "a", if none are given."""
    return Impression(request_id, user, "home", at, Items(id=list(items) or ["a"]))


def explored(slate: Impression, tasks: Iterable[str], *others: str) -> Impression:
    """Returns a slate as it is logged when its weights were drawn; `others` were scored and not shown."""
    tasks = list(tasks)
    num_items = len(slate.items.id)
    slate.items.scores = {task: [0.5 / (1 + place) for place in range(num_items)] for task in tasks}
    slate.candidates = Candidates(list(others), {task: [0.125] * len(others) for task in tasks})
    slate.served = Served(
        snapshot=7,
        blender=2,
        weights={task: 1.5 for task in tasks},
        explore=True,
        log_density=-0.75,
        center={task: 1.0 for task in tasks},
        law="lognormal",
        tau=0.3,
        truncate=2.0,
        scale={task: 0.25 for task in tasks},
    )
    return slate


def to_compare_with(slate: Impression, tasks: Iterable[str]) -> Impression:
    """Returns a slate as it is logged when nothing was drawn, but others are compared with it."""
    explored(slate, tasks)
    assert slate.served is not None
    slate.candidates = None
    slate.served = Served(
        snapshot=7, blender=2, weights=slate.served.center, center=slate.served.center, law="none",
        scale=slate.served.scale,
    )  # fmt: skip
    return slate


def did(
    action: str = "click",
    item: str = "a",
    *,
    at: int,
    on: str = "r",
    value: float = 1.0,
    event_id: str = "",
    user: str = "u",
) -> Feedback:
    """Returns one action; its event_id is made of all the rest unless given."""
    return Feedback(on, user, item, action, at, value, event_id or f"{on}.{item}.{action}.{at}.{value}")
