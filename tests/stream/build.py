"""Short forms for events and settings in the tests of the stream."""

from stream.schema import Feedback, Impression, Items, SchemaConfig, TaskConfig

CLICK = TaskConfig(action="click", window_ms=60_000)


def schema(**tasks: TaskConfig) -> SchemaConfig:
    """Returns a schema with these tasks; a click within a minute if none are given."""
    return SchemaConfig(scenarios=("home", "search"), tasks=tasks or {"click": CLICK})


def shown(request_id: str = "r", *items: str, at: int = 0, user: str = "u") -> Impression:
    """Returns a slate of these items; of one item, "a", if none are given."""
    return Impression(request_id, user, "home", at, Items(id=list(items) or ["a"]))


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
