"""Which scenarios a model has: the listed ones, then those that were added while it learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stream.schema import SchemaConfig


@dataclass(frozen=True, slots=True)
class ScenarioRegistry:
    """Names by index, and where the added ones come from. An index is never given to another scenario.

    >>> from stream.schema import TaskConfig
    >>> schema = SchemaConfig(scenarios=("home", "search"), tasks={"click": TaskConfig(action="click", window_ms=1)})
    >>> registry = ScenarioRegistry.of(schema).with_added("deals")
    >>> registry.names, registry.parents, registry.index("deals"), registry.scored_as("moon")
    (('home', 'search', 'deals'), {'deals': 'home'}, 2, 'home')
    """

    names: tuple[str, ...]
    parents: Mapping[str, str]
    """Scenario that was added -> the one that it started as."""
    default: str
    """What names that are not here are scored as."""

    @classmethod
    def of(cls, schema: SchemaConfig) -> "ScenarioRegistry":
        """Returns the listed scenarios alone."""
        return cls(schema.scenarios, {}, schema.default)

    @classmethod
    def restored(cls, schema: SchemaConfig, names: Sequence[str], parents: Mapping[str, str]) -> "ScenarioRegistry":
        """Returns the registry of a snapshot or checkpoint.

        Raises:
            ValueError: the first names are not the listed ones, or one is there twice or comes without its parent.
        """
        num_listed = len(schema.scenarios)
        if tuple(names[:num_listed]) != schema.scenarios or len(set(names)) != len(names):
            raise ValueError(
                f"scenarios: {list(names)} is not allowed; {list(schema.scenarios)}, then others, each once"
            )
        for index, name in enumerate(names[num_listed:], start=num_listed):
            if parents.get(name) not in names[:index]:
                raise ValueError(f"parents.{name}: {parents.get(name)!r} is not allowed; a scenario before it")
        return cls(tuple(names), {name: parents[name] for name in names[num_listed:]}, schema.default)

    @property
    def added(self) -> tuple[str, ...]:
        """The scenarios that are not listed, oldest first."""
        return tuple(self.parents)

    def scored_as(self, name: str) -> str:
        """Returns the scenario whose part of the model a name has: itself, or the default one."""
        return name if name in self.names else self.default

    def index(self, name: str) -> int:
        """Returns the index of that scenario."""
        return self.names.index(self.scored_as(name))

    def with_added(self, name: str) -> "ScenarioRegistry":
        """Returns the registry with one more scenario, whose parent is the default one."""
        assert name not in self.names
        return replace(self, names=(*self.names, name), parents={**self.parents, name: self.default})
