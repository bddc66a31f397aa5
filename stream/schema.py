"""The words everybody shares: events, tasks, features, label kinds, column names.

A leaf: standard library and msgspec only, so that `model` and `sim` may import it where neither Kafka nor Redis is
installed. Times are integer milliseconds since the Unix epoch, UTC; ids are strings (integers accepted on the wire).
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Literal, NewType, get_args

import msgspec

SCHEMA_VERSION = 1

UserId = NewType("UserId", str)
ItemId = NewType("ItemId", str)
RequestId = NewType("RequestId", str)
FeatureValue = str | int | float | list[str | int] | None


# Events hold no cycles: unknown to the collector they are smaller, and it has less to walk through.
class Items(msgspec.Struct, omit_defaults=True, gc=False):
    """The shown items as columns of equal length; the order of `id` is the position shown."""

    id: list[str]
    """Ids of the items in the order shown, each once."""
    features: dict[str, list[Any]] = {}
    """Columns of item features by name; missing values are null."""
    scores: dict[str, list[float]] = {}
    """Task scores (probabilities) by task, as the ranker served them."""
    utility: list[float] | None = None
    """What the items were ordered by."""
    propensity: list[float] | None = None
    """Probability with which the logging policy showed each item where it stood."""


class Served(msgspec.Struct, omit_defaults=True, gc=False):
    """What answered the request: snapshot and blender version, the weights used, and whether they were a draw."""

    snapshot: int = 0
    """Version of the model snapshot; 0 if there was none."""
    blender: int = 0
    """Version of the blender; 0 is the one of the configuration."""
    weights: dict[str, float] = {}
    """Weights of the utility by task."""
    explore: bool = False
    """The weights are a draw, not the production ones."""
    log_density: float | None = None
    """Natural logarithm of the density of the draw; null where nothing was drawn."""
    model_age_ms: int | None = None
    """Time of the request minus the watermark of the snapshot."""
    center: dict[str, float] = {}
    """On explored requests, the weights that would have served: what the draw was made around."""
    law: str = ""
    """On explored requests, the law of the draw: `lognormal` or `grid`. `none`: nothing was drawn, but what comes of it
    is what others are compared with."""
    tau: float | None = None
    """Relative size of the jitter of a `lognormal` draw."""
    truncate: float | None = None
    """Standard deviations beyond which a `lognormal` draw was not made."""
    scale: dict[str, float] = {}
    """What one unit of each task's score was; on explored requests."""
    fallback: str = ""
    """Why the static weights served where a learned blender should have; empty where all was well."""
    lane: str = ""
    """`canary` where a ranker of that lane served, with a model that may be on trial; empty on the stable lane."""


CONTROL_LAW = "none"
"""`Served.law` of a request that nothing was drawn for, and that others are compared with."""


class Sequence(msgspec.Struct, omit_defaults=True, gc=False):
    """The user's last actions as serving saw them, newest first, as columns of equal length."""

    item_id: list[str] = []
    """What was acted on."""
    action: list[str] = []
    """What was done."""
    ts: list[int] = []
    """Event times of the actions."""


class Candidates(msgspec.Struct, omit_defaults=True, gc=False):
    """Scored items that were not shown; logged on explored requests only."""

    id: list[str] = []
    """Ids of the items."""
    scores: dict[str, list[float]] = {}
    """Task scores by task."""


class Impression(msgspec.Struct, omit_defaults=True, gc=False):
    """One slate as shown. `ts` is its event time in ms."""

    request_id: str
    """Names the slate: feedback refers to it. Unique over all time."""
    user_id: str
    """Who saw it; the key of the message."""
    scenario: str
    """Where it was shown: one of the configured scenarios, or another one under `unknown_scenario: add`."""
    ts: int
    """Event time: when it was shown."""
    items: Items
    """What was shown."""
    context: dict[str, Any] = {}
    """Features of the request by name."""
    user: dict[str, Any] = {}
    """Features of the user by name."""
    served: Served | None = None
    """What answered the request; a log from elsewhere may lack it."""
    sequence: Sequence | None = None
    """The user's last actions as serving used them, so that training sees the same."""
    candidates: Candidates | None = None
    """Scored items that were not shown; on explored requests only."""
    v: int = SCHEMA_VERSION
    """Version of this schema."""


class Feedback(msgspec.Struct, omit_defaults=True, gc=False):
    """One action of a user on one item of a slate. `ts` is its event time in ms."""

    request_id: str
    """The slate the action belongs to."""
    user_id: str
    """Who acted; the key of the message, so it must be the slate's user."""
    item_id: str
    """The item acted on, one of the slate's."""
    action: str
    """What was done, any name; tasks say which action makes which label."""
    ts: int
    """Event time: when it was done."""
    value: float = 1.0
    """How much: seconds viewed, price paid, stars."""
    event_id: str = ""
    """Names the action: the same one twice counts once. Left out: a hash of the other fields."""
    v: int = SCHEMA_VERSION
    """Version of this schema."""


PolicyName = Literal[
    "wait",
    "eager",
    "oracle",
    "vanilla",
    "vanilla_dup",
    "fnw",
    "fnc",
    "fnw_rn",
    "fsiw",
    "es_dfm",
    "defer",
    "defer_neg",
    "dfm",
    "defuse",
]
"""Which labels of a task go out when: see `stream.policy`."""
OBSERVING_POLICIES: tuple[PolicyName, ...] = (
    "vanilla",
    "vanilla_dup",
    "fsiw",
    "es_dfm",
    "defer",
    "defer_neg",
    "dfm",
    "defuse",
)
"""Policies that look at each label once early, at slate + `observe_ms`."""

KindName = Literal[
    "none",
    "final",
    "fake_negative",
    "early_positive",
    "early_negative",
    "late_positive",
    "early_positive_repeat",
    "real_negative_repeat",
    "matured",
]
KINDS: tuple[KindName, ...] = get_args(KindName)
"""Sorts of label a row can carry; the int8 code on the wire is the index in this tuple."""
KIND_CODE: dict[str, int] = {name: code for code, name in enumerate(KINDS)}
UNTRAINED_KINDS: tuple[KindName, ...] = ("none", "matured")
"""Kinds outside the main loss: mask = kind not in these."""
SETTLED_KINDS: tuple[KindName, ...] = ("final", "matured", "early_positive_repeat", "real_negative_repeat")
"""Kinds whose label is the truth of a closed window. Under every policy an item and task gets exactly one of them."""

_TRAFFIC_RATIO_FROM_MS = 300_000
MAX_WINDOW_MS = 2**31 - 1
"""Delays travel as int32: a little less than 25 days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """What makes a label: an action within a window after the slate."""

    action: str
    """Name of the feedback action that makes the label positive."""
    window_ms: int
    """Label window: the action counts if its event time is in [slate, slate + window_ms], both ends included."""
    policy: PolicyName = "eager"
    """Which labels go out when: `wait` all at the close of the window, `eager` positives at once; the others send
    labels before they are certain and correct them by weights (`docs/policies.md`). `oracle`: simulation only."""
    observe_ms: int | None = None
    """When the first look is taken, in ms after the slate; needed by `vanilla`, `vanilla_dup`, `fsiw`, `es_dfm`,
    `defer`, `defer_neg`, `dfm`, `defuse`, and by no other; less than `window_ms`."""
    traffic_ratio: bool | None = None
    """`eager` only: stamp positives with how much traffic there was a window ago per traffic of their slate, so that
    positives, which run ahead of the negatives, weigh right while traffic changes. Left out: on above 5 minutes."""
    reduce: Literal["max"] = "max"
    """How several values of the action are reduced before `at_least` is applied."""
    at_least: float | None = None
    """Only feedback with `value >= at_least` qualifies; none: every value does."""

    def __post_init__(self) -> None:
        if not 1 <= self.window_ms <= MAX_WINDOW_MS:
            raise ValueError(f"window_ms: {self.window_ms} is not allowed; 1 to {MAX_WINDOW_MS}")
        if not self.action:
            raise ValueError("action: must not be empty")
        if self.policy not in OBSERVING_POLICIES:
            if self.observe_ms is not None:
                raise ValueError(f"observe_ms: policy {self.policy} takes no early look; leave it out")
        elif self.observe_ms is None or not 1 <= self.observe_ms < self.window_ms:
            raise ValueError(
                f"observe_ms: {self.observe_ms} is not allowed; policy {self.policy} needs 1 to {self.window_ms - 1}, "
                "less than window_ms"
            )
        if self.traffic_ratio is not None and self.policy != "eager":
            raise ValueError(f"traffic_ratio: policy {self.policy} has none, only eager does; leave it out")

    @property
    def has_traffic_ratio(self) -> bool:
        """Whether positives are stamped with the traffic ratio."""
        if self.traffic_ratio is None:
            return self.policy == "eager" and self.window_ms > _TRAFFIC_RATIO_FROM_MS
        return self.traffic_ratio


UnknownScenario = Literal["add", "default", "reject"]
_SCENARIO_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}")
_TAKEN_NAMES = ("all", "default")
"""Names with a meaning of their own: all scenarios of a report, and weights of scenarios without any of their own."""

FeatureKind = Literal["categorical", "numeric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConfig:
    """One named feature. In YAML the short form `city: categorical` means `city: {kind: categorical}`."""

    kind: FeatureKind
    """`categorical`: strings or integers, hashed; `numeric`: finite floats."""
    many: bool = False
    """A list of categorical values per row instead of one."""

    def __post_init__(self) -> None:
        if self.many and self.kind != "categorical":
            raise ValueError(f"many: only categorical features may be lists, this one is {self.kind}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesConfig:
    """Features by the side of the request they belong to."""

    user: dict[str, FeatureConfig] = field(default_factory=dict)
    """Features of the user, one value per request."""
    item: dict[str, FeatureConfig] = field(default_factory=dict)
    """Features of an item, one value per candidate."""
    context: dict[str, FeatureConfig] = field(default_factory=dict)
    """Features of the request itself (device, hour, query), one value per request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaConfig:
    """Scenarios, tasks and features of a run: what the joiner, the trainer and the ranker must agree on."""

    scenarios: tuple[str, ...]
    """Names of the places where rankings are shown; the order is the model's scenario index."""
    tasks: dict[str, TaskConfig]
    """Goals by name; the order is the model's task index."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    """Features by side."""
    unknown_scenario: UnknownScenario = "reject"
    """A scenario not listed: `reject` it (dead letter, HTTP 400), take it as the `default` one, or let the model grow
    (`add`): it is taken as the default one until it has examples enough for a part of its own (`docs/scenarios.md`)."""
    default_scenario: str | None = None
    """The listed scenario that those not listed are taken as; left out: the first one."""

    def __post_init__(self) -> None:
        if not self.scenarios or len(set(self.scenarios)) != len(self.scenarios):
            raise ValueError(f"scenarios: {list(self.scenarios)} must be at least one name, each once")
        if not self.tasks:
            raise ValueError("tasks: at least one task is needed")
        if self.default_scenario is not None and self.default_scenario not in self.scenarios:
            raise ValueError(
                f"default_scenario: {self.default_scenario!r} is not allowed; one of {', '.join(self.scenarios)}"
            )

    @property
    def default(self) -> str:
        """The listed scenario that those not listed are taken as."""
        return self.scenarios[0] if self.default_scenario is None else self.default_scenario

    def listed(self, name: str) -> str:
        """Returns the listed scenario that a name stands for: itself, or the default one."""
        return name if name in self.scenarios else self.default

    def admitted(self, name: str) -> str:
        """Returns the name under which an event or request of a scenario goes on; see `unknown_scenario`.

        Raises:
            ValueError: it is to be refused; says what is allowed.
        """
        if name in self.scenarios or self.unknown_scenario == "default":
            return self.listed(name)
        if self.unknown_scenario == "reject":
            raise ValueError(f"scenario: {name!r} is not one of {', '.join(self.scenarios)}")
        if not _SCENARIO_NAME.fullmatch(name) or name in _TAKEN_NAMES:
            raise ValueError(
                f"scenario: {name[:80]!r} is not allowed; 1 to 64 letters, digits, _ . : -, and neither of"
                f" {', '.join(_TAKEN_NAMES)}"
            )
        return name

    @property
    def max_window_ms(self) -> int:
        """The longest label window of all tasks."""
        return max(task.window_ms for task in self.tasks.values())

    def schema_hash(self) -> str:
        """Returns 16 hex digits over what examples and weights depend on: scenarios, tasks' names, features.

        Windows and policies are not part of it: they may change while a model goes on learning.
        """
        shape = {
            "v": SCHEMA_VERSION,
            "scenarios": list(self.scenarios),
            "tasks": list(self.tasks),
            "features": {
                side: {name: [f.kind, f.many] for name, f in sorted(getattr(self.features, side).items())}
                for side in ("user", "item", "context")
            },
        }
        return hashlib.sha256(msgspec.json.encode(shape)).hexdigest()[:16]
