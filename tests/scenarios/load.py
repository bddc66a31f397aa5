"""A scenario: settings, events in the order in which they arrive, and what must come out. Read strictly from YAML.

    shows: one sentence
    partitions: 1
    tasks: {order: {action: order, window_ms: 2000, policy: wait}}
    join: {grace_ms: 200, idle_ms: 3600000}
    events:
      - {at: 0, show: r, items: [a, b]}              # a slate; `ts`, its event time, is `at` unless given
      - {at: 900, do: order, request: r, item: a, ts: 700}
      - {at: 900, raw: "no JSON", topic: feedback}
      - {until_labels: 2}                            # nothing more is sent before so many labels are committed
    labels: {r a order: [final 700], r b order: [final]}   # kind, and the delay of a positive

What comes out is told by `tests.stream.oracle`; `labels` are the same for the reader's eyes, or instead of it where
`beyond_oracle` says why the oracle cannot know them.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from freshrank.settings_file import parse_yaml
from freshrank.strict import ConfigError, build
from stream.emission import JoinCounters
from stream.join import JoinConfig
from stream.schema import KINDS, Feedback, Impression, Items, SchemaConfig, TaskConfig
from tests.stream.oracle import Label, labels_of

FOLDER = Path(__file__).parent
Ratios = dict[tuple[str, str, str], float]
"""(request_id, item_id, task) -> traffic ratio of its positive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """A slate; `items: 3` is short for i0, i1, i2."""

    at: int
    show: str
    items: tuple[str, ...] | int = ("a",)
    user: str = "u"
    scenario: str = "home"
    ts: int | None = None

    def event(self, shift_ms: int) -> Impression:
        """Returns the impression, its time moved by `shift_ms`."""
        ids = [f"i{n}" for n in range(self.items)] if isinstance(self.items, int) else list(self.items)
        return Impression(self.show, self.user, self.scenario, _ts(self) + shift_ms, Items(id=ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Do:
    """One action on an item of a slate."""

    at: int
    do: str
    request: str
    item: str = "a"
    value: float = 1.0
    event_id: str = ""
    user: str = "u"
    ts: int | None = None

    def event(self, shift_ms: int) -> Feedback:
        """Returns the feedback, its time moved by `shift_ms`."""
        return Feedback(self.request, self.user, self.item, self.do, _ts(self) + shift_ms, self.value, self.event_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A message as it stands: malformed, all of them."""

    at: int
    raw: str
    topic: Literal["impressions", "feedback"]
    user: str = "u"


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """Nothing more is sent before so many labels are committed: what comes then is late on every log."""

    until_labels: int


Step = Show | Do | Raw | Until
_STEPS: Mapping[str, type[Step]] = {"show": Show, "do": Do, "raw": Raw, "until_labels": Until}


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    shows: str
    tasks: Mapping[str, TaskConfig]
    events: tuple[Any, ...]
    partitions: int = 1
    join: JoinConfig = field(default_factory=JoinConfig)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    beyond_oracle: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One file, checked."""

    name: str
    shows: str
    schema: SchemaConfig
    join: JoinConfig
    join_settings: Mapping[str, Any]
    """The settings of `join` that the file gives."""
    num_partitions: int
    steps: tuple[Step, ...]
    expected: Counter[Label]
    ratios: Ratios
    counters: Mapping[str, int]

    @property
    def after_ms(self) -> int:
        """A time that everything that is not refused lies well before, so that events of then close every window."""
        times = [_ts(step) for step in self.steps if isinstance(step, Show | Do) and not self.is_refused(step)]
        wait_ms = self.join.grace_ms + self.join.out_of_orderness_ms + self.join.duplicate_ms
        return max(times) + self.schema.max_window_ms + wait_ms + 1_000

    @property
    def is_ahead(self) -> bool:
        """Whether a clock in it is so wrong that it must be told by the clock on the wall."""
        return any(isinstance(s, Show | Do) and _ts(s) > s.at + self.join.max_ahead_ms for s in self.steps)

    def is_refused(self, step: Show | Do) -> bool:
        """Returns whether the event is dated too far ahead to be taken."""
        return _ts(step) > step.at + self.join.refuse_ahead_ms


def scenarios() -> list[Scenario]:
    """Returns all scenarios of the folder, by name."""
    return [load(path) for path in sorted(FOLDER.glob("*.yaml"))]


def load(path: Path) -> Scenario:
    """Returns the scenario of one file.

    Raises:
        ConfigError: file and path of the first mistake, in one line.
    """
    try:
        return parse(path.stem, path.read_text(encoding="utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error


def parse(name: str, text: str) -> Scenario:
    """Returns the scenario of a YAML text; see `load`."""
    settings = parse_yaml(text)
    file = build(_File, settings)
    schema = SchemaConfig(scenarios=("home", "search"), tasks=dict(file.tasks))
    steps = tuple(_step(value, f"events[{number}]") for number, value in enumerate(file.events))
    _check_order(steps)
    for counter in file.counters:
        if counter not in (names := [setting.name for setting in fields(JoinCounters)]):
            raise ConfigError(f"counters.{counter} is not a counter; allowed: {', '.join(names)}")
    written = _labels(file.labels, schema)
    if file.beyond_oracle and not file.labels:
        raise ConfigError("labels: must be written out where the oracle does not know them")
    expected = written if file.beyond_oracle else _oracle(schema, steps)
    if file.labels and written != expected:
        both = f"only in labels: {sorted(written - expected)}, only in the oracle's: {sorted(expected - written)}"
        raise ConfigError(f"labels: not the oracle's; {both}; correct them or say why in beyond_oracle")
    if bool(file.ratios) != any(task.has_traffic_ratio for task in schema.tasks.values()):
        raise ConfigError("ratios: needed where a task has traffic_ratio, and nowhere else")
    return Scenario(
        name=name,
        shows=file.shows,
        schema=schema,
        join=file.join,
        join_settings=settings.get("join", {}),
        num_partitions=file.partitions,
        steps=steps,
        expected=expected,
        ratios={_place(key, schema, f"ratios.{key}"): ratio for key, ratio in file.ratios.items()},
        counters=file.counters,
    )


def ratios_in(value: bytes, schema: SchemaConfig) -> Ratios:
    """Returns the traffic ratios of the positives in one examples message, of the tasks that have them."""
    ratios: Ratios = {}
    for row in pa.ipc.open_stream(value).read_all().to_pylist():
        for task in [name for name, settings in schema.tasks.items() if settings.has_traffic_ratio]:
            for item, label, ratio in zip(row["item_id"], row[f"label.{task}"], row[f"ratio.{task}"], strict=True):
                if label == 1:
                    ratios[(row["request_id"], item, task)] = ratio
    return ratios


def _ts(step: Show | Do) -> int:
    return step.at if step.ts is None else step.ts


def _step(value: object, path: str) -> Step:
    sorts = [key for key in _STEPS if isinstance(value, Mapping) and key in value]
    if len(sorts) != 1:
        raise ConfigError(f"{path}: {value!r} must have exactly one of {', '.join(_STEPS)}")
    return build(_STEPS[sorts[0]], value, path)


def _check_order(steps: tuple[Step, ...]) -> None:
    arrivals = [step for step in steps if not isinstance(step, Until)]
    if not arrivals:
        raise ConfigError("events: must not be empty")
    for before, step in pairwise(arrivals):
        if step.at < before.at:
            raise ConfigError(f"events: {step.at} comes after {before.at}; they stand in the order of arrival, `at`")


def _oracle(schema: SchemaConfig, steps: tuple[Step, ...]) -> Counter[Label]:
    shown = [step.event(0) for step in steps if isinstance(step, Show)]
    return labels_of(schema, shown, [step.event(0) for step in steps if isinstance(step, Do)])


def _labels(written: Mapping[str, tuple[str, ...]], schema: SchemaConfig) -> Counter[Label]:
    labels: Counter[Label] = Counter()
    for key, rows in written.items():
        place = _place(key, schema, f"labels.{key}")
        for row in rows:
            kind, _, delay = row.partition(" ")
            if kind not in KINDS or not (delay == "" or delay.isdecimal()):
                raise ConfigError(f"labels.{key}: {row!r} must be a kind, and for a positive its delay in ms")
            labels[(*place, kind, int(delay != ""), int(delay or -1))] += 1
    return labels


def _place(key: str, schema: SchemaConfig, path: str) -> tuple[str, str, str]:
    parts = key.split(" ")
    if len(parts) != 3 or parts[2] not in schema.tasks:
        raise ConfigError(f"{path}: must be `request item task`, with a task of {', '.join(schema.tasks)}")
    return parts[0], parts[1], parts[2]
