"""What happens to a slate when: the looks and closes of all tasks in order, and what goes out at each.

    slate      + observe_ms + grace         + window_ms + grace
      |--------------^ look ---------------------^ close          one task under an observing policy; others only close

Tasks that share an edge share a stage, and so an emission. An explored slate has one stage more, the last: its reward
window closes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stream.emission import LabelColumn
from stream.policy import POLICIES, Policy
from stream.schema import SETTLED_KINDS, KindName, SchemaConfig

NEVER = -1
"""Stage of the look of a task that takes none; and its `observe_ms`, which no delay is within."""

Positives = Mapping[str, Mapping[int, int]]
"""Task -> row -> delay_ms of its first qualifying feedback."""


class Task(NamedTuple):
    """One task as the join core needs it."""

    name: str
    window_ms: int
    observe_ms: int
    at_least: float
    policy: Policy
    look_stage: int
    close_stage: int


class Stage(NamedTuple):
    """The tasks that are looked at, and those that close, when the watermark passes slate + `after_ms`."""

    after_ms: int
    looks: list[Task]
    closes: list[Task]


class Output(NamedTuple):
    """What goes out of one slate at one trigger, and what it counts."""

    rows: Sequence[int]
    columns: Mapping[str, LabelColumn]
    num_labels: int
    num_positives: int
    num_settled: int


class Timeline:
    """Stages of all slates of a schema; `tasks_of_action` says which tasks a feedback may concern.

    Raises:
        ValueError: a policy that no joiner can follow, or a reward window shorter than a label window.
    """

    def __init__(self, schema: SchemaConfig, grace_ms: int, outcome_window_ms: int | None = None) -> None:
        if outcome_window_ms is not None and outcome_window_ms < schema.max_window_ms:
            raise ValueError(
                f"join.outcome_window_ms: {outcome_window_ms} is not allowed; at least the longest window_ms of the "
                f"tasks, {schema.max_window_ms}"
            )
        looks_ms = {name: task.observe_ms for name, task in schema.tasks.items() if task.observe_ms is not None}
        edges_ms = sorted({task.window_ms for task in schema.tasks.values()} | set(looks_ms.values()))
        self.tasks: list[Task] = []
        self.tasks_of_action: dict[str, list[Task]] = {}
        self.stages = [Stage(edge_ms + grace_ms, [], []) for edge_ms in edges_ms]
        for name, config in schema.tasks.items():
            if config.policy == "oracle":
                raise ValueError(
                    f"tasks.{name}.policy: oracle knows the future, which only a simulation can; "
                    f"choose one of {', '.join(policy for policy in POLICIES if policy != 'oracle')}"
                )
            look_ms = looks_ms.get(name, NEVER)
            task = Task(
                name,
                config.window_ms,
                look_ms,
                float("-inf") if config.at_least is None else config.at_least,
                POLICIES[config.policy],
                NEVER if look_ms == NEVER else edges_ms.index(look_ms),
                edges_ms.index(config.window_ms),
            )
            self.tasks.append(task)
            self.tasks_of_action.setdefault(config.action, []).append(task)
            self.stages[task.close_stage].closes.append(task)
            if task.look_stage != NEVER:
                self.stages[task.look_stage].looks.append(task)
        self.edges_ms = [stage.after_ms for stage in self.stages]
        """When each stage of a slate that is not explored is over, in ms after it; the last is its last close."""
        self.explored_edges_ms = [*self.edges_ms]
        """The same of an explored slate."""
        if outcome_window_ms is not None:
            self.explored_edges_ms.append(outcome_window_ms + grace_ms)
        self._shown = [task for task in self.tasks if task.policy.shown is not None]
        self._negatives: dict[tuple[int, int], Output] = {}

    @property
    def has_at_once(self) -> bool:
        """Whether a slate sends labels when it is read, before anything is known."""
        return bool(self._shown)

    def at_once(self, num_items: int) -> Output:
        """Returns what goes out when a slate is read."""
        output = self._negatives.get((NEVER, num_items))
        if output is None:
            columns = {task.name: _column(task.policy.shown, {}, {}, num_items) for task in self._shown}
            output = self._negatives[NEVER, num_items] = _output(range(num_items), columns, [])
        return output

    def at_stage(self, number: int, positives: Positives | None, num_items: int) -> Output:
        """Returns what goes out at a stage, given what was positive by then."""
        if positives is not None:
            return _output_at(self.stages[number], positives, num_items)
        # Nothing was positive: the usual case, and always the same.
        output = self._negatives.get((number, num_items))
        if output is None:
            output = self._negatives[number, num_items] = _output_at(self.stages[number], {}, num_items)
        return output


def at_feedback(row: int, columns: Mapping[str, LabelColumn]) -> Output:
    """Returns the positives of one item, one per task in `columns`."""
    num_settled = sum(column.kind[0] in SETTLED_KINDS for column in columns.values())
    return Output([row], columns, len(columns), len(columns), num_settled)


def _output_at(stage: Stage, positives: Positives, num_items: int) -> Output:
    columns = {task.name: _look(task, positives.get(task.name, {}), num_items) for task in stage.looks}
    columns |= {task.name: _close(task, positives.get(task.name, {}), num_items) for task in stage.closes}
    silent = [
        {row for row, kind in enumerate(column.kind) if kind == "none"} if "none" in column.kind else set()
        for column in columns.values()
    ]
    missing = set.intersection(*silent)
    rows: Sequence[int] = range(num_items)
    if missing:
        rows = [row for row in rows if row not in missing]
        columns = {name: column.take(rows) for name, column in columns.items()}
    return _output(rows, columns, [task.name for task in stage.closes])


def _output(rows: Sequence[int], columns: Mapping[str, LabelColumn], closing: Sequence[str]) -> Output:
    """Returns rows and columns with what they count; whatever goes out at a task's close is settled."""
    num_labels = {name: len(rows) - column.kind.count("none") for name, column in columns.items()}
    num_positives = sum(sum(column.label) for column in columns.values())
    num_settled = sum(num_labels[name] for name in closing)
    return Output(rows, columns, sum(num_labels.values()), num_positives, num_settled)


def _look(task: Task, positives: Mapping[int, int], num_items: int) -> LabelColumn:
    kinds = {row: task.policy.early_positive for row, delay_ms in positives.items() if delay_ms <= task.observe_ms}
    return _column(task.policy.early_negative, kinds, positives, num_items)


def _close(task: Task, positives: Mapping[int, int], num_items: int) -> LabelColumn:
    early, late = task.policy.close_early_positive, task.policy.close_positive
    kinds = {row: early if delay_ms <= task.observe_ms else late for row, delay_ms in positives.items()}
    return _column(task.policy.close_negative, kinds, positives, num_items)


def _column(
    negative: KindName | None, positive: Mapping[int, KindName | None], delays_ms: Mapping[int, int], num_items: int
) -> LabelColumn:
    """Returns negatives of one kind, but for the rows in `positive`."""
    kind: list[KindName] = [negative or "none"] * num_items
    label, delay_ms = [0] * num_items, [-1] * num_items
    for row, row_kind in positive.items():
        kind[row] = row_kind or "none"
        if row_kind is not None:
            label[row], delay_ms[row] = 1, delays_ms[row]
    return LabelColumn(kind, label, delay_ms)
