"""Embedding rows as a dictionary: one value and one row at a time, in float64, written apart from `model.embedding`.

Three fields: `user_id` and `item_id` (one value per row of the batch) and `item.tags` (a list per row).
"""

from dataclasses import dataclass, field

from model.hashing import value_key

FIELDS = ("user_id", "item_id", "item.tags")
WIDTH = 2

Value = tuple[str, str | None]
"""A field and one of its values; None is missing."""
BatchRow = tuple[str, str, list[str]]
"""User, item, tags."""


@dataclass
class Row:
    """One row: weights, accumulator, when it was last seen."""

    number: int
    weight: list[float]
    accumulator: float = 0.0
    seen_at: int = 0
    seen_ms: int = 0


@dataclass
class Rules:
    """The settings, per field where they are per field; None: no limit."""

    admission: dict[str, int]
    ttl_ms: dict[str, int | None]
    max_rows: dict[str, int | None]
    max_total: int | None = None
    per_step: int = 1_000
    half_life_ms: int | None = None
    lr: float = 0.1
    eps: float = 1e-3


@dataclass
class Rows:
    """All rows by value, the free row numbers, and exact counts."""

    rules: Rules
    own: dict[Value, Row] = field(default_factory=dict)
    default: dict[str, Row] = field(default_factory=dict)
    missing: dict[str, Row] = field(default_factory=dict)
    counts: dict[Value, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    next_row: int = 2 * len(FIELDS)
    clock: int = 0
    now_ms: int = 0
    evicted: dict[str, int] = field(default_factory=lambda: {"expired": 0, "full": 0, "asked": 0})

    def occurrences(self, batch: list[BatchRow]) -> list[tuple[int, Value]]:
        """Returns (row of the batch, value) of all values in the table's flat order."""
        users = [(b, ("user_id", user)) for b, (user, _, _) in enumerate(batch)]
        items = [(b, ("item_id", item)) for b, (_, item, _) in enumerate(batch)]
        tags = [(b, ("item.tags", tag)) for b, (_, _, tags) in enumerate(batch) for tag in tags or [None]]
        return users + items + tags

    def row(self, value: Value) -> Row:
        """Returns the row that stands for a value."""
        name, text = value
        return self.missing[name] if text is None else self.own.get(value, self.default[name])

    def learn(self, batch: list[BatchRow], counts: list[bool], gradients: list[list[float]], watermark_ms: int) -> None:
        """Learns one micro-batch; `gradients` are those of the occurrences."""
        self.clock += 1
        if self.now_ms == 0 and watermark_ms:
            for row in [*self.own.values(), *self.default.values(), *self.missing.values()]:
                row.seen_ms = watermark_ms
        self.now_ms = max(self.now_ms, watermark_ms)
        occurrences = self.occurrences(batch)
        num_admitted = self.admit([value for b, value in occurrences if counts[b]])
        sums: dict[int, tuple[Row, list[float]]] = {}
        for (_, value), gradient in zip(occurrences, gradients, strict=True):
            row = self.row(value)
            _, total = sums.setdefault(row.number, (row, [0.0] * WIDTH))
            for column, part in enumerate(gradient):
                total[column] += part
        for row, total in sums.values():
            if self.rules.half_life_ms:
                row.accumulator *= 2.0 ** (-(self.now_ms - row.seen_ms) / self.rules.half_life_ms)
            row.accumulator += sum(part * part for part in total) / WIDTH
            for column, part in enumerate(total):
                row.weight[column] -= self.rules.lr * part / (row.accumulator**0.5 + self.rules.eps)
            row.seen_at, row.seen_ms = self.clock, self.now_ms
        self.evict_due(num_admitted)

    def admit(self, counted: list[Value]) -> int:
        """Counts the examples of values without a row and gives rows; in the order of the keys."""
        unknown = [value for value in counted if value[1] is not None and value not in self.own]
        admitted = []
        for value in sorted(set(unknown), key=lambda value: value_key(value[0], str(value[1]))):
            self.counts[value] = self.counts.get(value, 0) + unknown.count(value)
            if self.counts[value] >= self.rules.admission[value[0]]:
                admitted.append(value)
        for value in admitted:
            number = self.free.pop() if self.free else self.next_row
            self.next_row = max(self.next_row, number + 1)
            self.own[value] = Row(number, list(self.default[value[0]].weight))
        return len(admitted)

    def evict_due(self, num_admitted: int) -> None:
        """Evicts what is expired, then what is too many, least recently seen first, ties by key."""
        for name in FIELDS:
            ttl_ms = self.rules.ttl_ms[name]
            if ttl_ms is not None:
                old = [value for value in self.oldest(name) if self.now_ms - self.own[value].seen_ms > ttl_ms]
                self.evict(old[: self.rules.per_step], "expired")
        for name in (*FIELDS, None):
            limit = self.rules.max_total if name is None else self.rules.max_rows[name]
            if limit is not None:
                num_rows = sum(name in (None, value[0]) for value in self.own)
                count = min(num_rows - limit, self.rules.per_step + num_admitted)
                self.evict(self.oldest(name)[: max(count, 0)], "full")

    def oldest(self, name: str | None) -> list[Value]:
        """Returns the values of a field (None: of all) that are not in the batch just learned, the oldest first."""
        values = [value for value, row in self.own.items() if name in (None, value[0]) and row.seen_at < self.clock]
        return sorted(values, key=lambda value: (self.own[value].seen_at, value_key(value[0], str(value[1]))))

    def evict(self, values: list[Value], cause: str) -> None:
        """Takes the rows of values away."""
        for value in values:
            self.free.append(self.own.pop(value).number)
            self.evicted[cause] += 1
