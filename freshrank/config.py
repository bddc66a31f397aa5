"""One YAML per run: sections declared beside their owners, assembled here, built when first read.

Sections are built lazily on purpose: the owner of `model` imports torch, and a joiner that never reads the section
must not pay for it. Whole files are checked by `RunConfig.check`, which `freshrank up` and `freshrank config` call.
"""

import copy
import hashlib
import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import yaml

from freshrank.strict import ConfigError, build, show, unknown
from stream.log import KafkaConfig
from stream.schema import SchemaConfig

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.store import StoreConfig
    from model.trainer import TrainerConfig
    from ranker.config import RankerConfig
    from sim.config import SimConfig
    from stream.agents import AgentsConfig
    from stream.join import JoinConfig
    from utility_blender.blend import BlenderConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """Where Redis is. The environment variable FRESHRANK_REDIS overrides `url`."""

    url: str = "redis://localhost:6379/0"
    """Address as redis://[user:password@]host:port/database (or rediss:// with TLS)."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError(f"url: {show(self.url)} must start with redis://, rediss:// or unix://")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """Where the trainer keeps its own recovery state."""

    folder: Path = Path("checkpoints")
    """One folder per checkpoint is written in here; made if it is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorConfig:
    """The live page, and where every process shows its figures."""

    host: str = "127.0.0.1"
    """Address the page listens on, and all processes' `/metrics`; 0.0.0.0 for all."""
    port: int = 8600
    """Port of the live page; 1 to 65535."""
    joiner: str = "127.0.0.1:8611"
    """`host:port` of the joiner's `/metrics`; several separated by commas. A process listens on its own first port."""
    trainer: str = "127.0.0.1:8612"
    """The same for the trainer."""
    agents: str = "127.0.0.1:8613"
    """The same for the agents."""
    simulator: str = "127.0.0.1:8614"
    """The same for the simulator; empty where there is none."""
    ranker: str = "127.0.0.1:8620"
    """The same for the rankers, whose HTTP service answers `/metrics` too; the page's requests go to the first."""
    interval_ms: int = 1_000
    """How often everything is scraped; at least 200."""
    history_s: int = 600
    """How far back the page's curves go; at least 10."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65_535:
            raise ValueError(f"port: {self.port} is not allowed; 1 to 65535")
        if self.interval_ms < 200:
            raise ValueError(f"interval_ms: {self.interval_ms} is not allowed; at least 200")
        if self.history_s < 10:
            raise ValueError(f"history_s: {self.history_s} is not allowed; at least 10")
        for process in PROCESSES:
            for address in addresses(getattr(self, process)):
                if not re.fullmatch(r"[^:\s]+:\d{1,5}", address):
                    raise ValueError(f"{process}: {show(address)} is not host:port")

    def targets(self) -> dict[str, str]:
        """Returns the address of every process's `/metrics`: `joiner`, `ranker-1`, `ranker-2`, ..."""
        named: dict[str, str] = {}
        for process in PROCESSES:
            found = addresses(getattr(self, process))
            named |= {process if len(found) == 1 else f"{process}-{i}": at for i, at in enumerate(found, start=1)}
        return named


PROCESSES = ("joiner", "trainer", "ranker", "agents", "simulator")
"""What a run consists of, beside the monitor."""


def addresses(setting: str) -> list[str]:
    """Returns the parts of a comma-separated `host:port` setting."""
    return [part.strip() for part in setting.split(",") if part.strip()]


class Section(NamedTuple):
    """One section of the file and the dataclass that declares it, as `module:name`."""

    name: str
    owner: str


SECTIONS = (
    Section("kafka", "stream.log:KafkaConfig"),
    Section("redis", "freshrank.config:RedisConfig"),
    Section("join", "stream.join:JoinConfig"),
    Section("model", "model.config:ModelConfig"),
    Section("trainer", "model.trainer:TrainerConfig"),
    Section("checkpoint", "freshrank.config:CheckpointConfig"),
    Section("store", "model.store:StoreConfig"),
    Section("blender", "utility_blender.blend:BlenderConfig"),
    Section("ranker", "ranker.config:RankerConfig"),
    Section("agents", "stream.agents:AgentsConfig"),
    Section("sim", "sim.config:SimConfig"),
    Section("monitor", "freshrank.config:MonitorConfig"),
)
SCHEMA_KEYS = ("scenarios", "tasks", "features", "unknown_scenario")
"""Settings at the top of the file; together they are the schema."""
PLACES = ("kafka", "redis", "checkpoint", "monitor")
"""Sections that say where things are, not what they do: not part of the configuration's hash."""


class EnvironmentSetting(NamedTuple):
    """An environment variable, the setting it fills, and what for. There are no others."""

    variable: str
    setting: tuple[str, ...]
    help: str


ENVIRONMENT = (
    EnvironmentSetting("FRESHRANK_KAFKA", ("kafka", "bootstrap_servers"), "Kafka's `host:port`, comma-separated"),
    EnvironmentSetting("FRESHRANK_REDIS", ("redis", "url"), "Redis's address, with its password if it has one"),
    EnvironmentSetting("FRESHRANK_KAFKA_PASSWORD", ("kafka", "client", "sasl.password"), "Kafka's SASL password"),
)


class RunConfig:
    """All settings of a run. Read a section as an attribute: `run.join.grace_ms`."""

    def __init__(self, settings: Mapping[str, Any], arguments: Sequence[str] = ()) -> None:
        """Takes the plain data of a file. Raises ConfigError at a key that is no section."""
        self.arguments = tuple(arguments)
        """The options that give another command of ours the same run, but for the environment."""
        allowed = [*SCHEMA_KEYS, *(section.name for section in SECTIONS)]
        for key in settings:
            if key not in allowed:
                raise ConfigError(unknown(str(key), str(key), allowed))
        self._settings = settings

    def with_overrides(self, overrides: Sequence[str]) -> "RunConfig":
        """Returns the same run with some settings (`a.b=value`) overridden once more."""
        settings = copy.deepcopy(dict(self._settings))
        for override in overrides:
            put_override(settings, override)
        return RunConfig(settings, [*self.arguments, *(part for name in overrides for part in ("--set", name))])

    def section(self, name: str) -> Any:
        """Returns a section by its name, built by its owner's dataclass."""
        return getattr(self, name)

    def _build(self, name: str) -> Any:
        module, _, cls = dict(SECTIONS)[name].partition(":")
        given = self._settings.get(name)
        return build(getattr(importlib.import_module(module), cls), {} if given is None else given, name)

    @cached_property
    def schema(self) -> SchemaConfig:
        """Scenarios, tasks and features: the settings at the top of the file."""
        return build(SchemaConfig, {key: self._settings[key] for key in SCHEMA_KEYS if key in self._settings})

    @cached_property
    def kafka(self) -> KafkaConfig:
        """Where the log is."""
        return cast(KafkaConfig, self._build("kafka"))

    @cached_property
    def redis(self) -> RedisConfig:
        """Where Redis is."""
        return cast(RedisConfig, self._build("redis"))

    @cached_property
    def join(self) -> "JoinConfig":
        """How labels are made."""
        return cast("JoinConfig", self._build("join"))

    @cached_property
    def model(self) -> "ModelConfig":
        """The network and its optimisers. Imports torch."""
        return cast("ModelConfig", self._build("model"))

    @cached_property
    def trainer(self) -> "TrainerConfig":
        """Micro-batches, checkpoints, publishing. Imports torch."""
        return cast("TrainerConfig", self._build("trainer"))

    @cached_property
    def checkpoint(self) -> CheckpointConfig:
        """Where checkpoints are."""
        return cast(CheckpointConfig, self._build("checkpoint"))

    @cached_property
    def store(self) -> "StoreConfig":
        """What the snapshot store keeps. Imports torch."""
        return cast("StoreConfig", self._build("store"))

    @cached_property
    def blender(self) -> "BlenderConfig":
        """Weights of the utility, and exploration."""
        return cast("BlenderConfig", self._build("blender"))

    @cached_property
    def ranker(self) -> "RankerConfig":
        """The HTTP service."""
        return cast("RankerConfig", self._build("ranker"))

    @cached_property
    def agents(self) -> "AgentsConfig":
        """The users' last actions."""
        return cast("AgentsConfig", self._build("agents"))

    @cached_property
    def sim(self) -> "SimConfig":
        """The simulated world and its users."""
        return cast("SimConfig", self._build("sim"))

    @cached_property
    def monitor(self) -> MonitorConfig:
        """The live page."""
        return cast(MonitorConfig, self._build("monitor"))

    def config_hash(self) -> str:
        """Returns 16 hex digits over the settings as given (file, environment, --set), without those of `PLACES`.

        Over what was given, not over the resolved form: every process logs it, and a joiner does not know the
        defaults of the model.
        """
        given = {name: value for name, value in self._settings.items() if name not in PLACES}
        return hashlib.sha256(json.dumps(given, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def resolved(self) -> dict[str, Any]:
        """Returns every setting with its default filled in, as plain data; passwords are masked."""
        plain = cast(dict[str, Any], _plain(self.schema))
        plain |= {section.name: _plain(self.section(section.name)) for section in SECTIONS}
        plain["redis"]["url"] = re.sub(r"(://[^:@/]*:)[^@/]*@", r"\1***@", plain["redis"]["url"])
        client = plain["kafka"]["client"]
        plain["kafka"]["client"] = {key: "***" if "password" in key else value for key, value in client.items()}
        return plain

    def check(self) -> None:
        """Builds every section and checks them against each other.

        Raises:
            ConfigError: the first mistake, with its full path.
        """
        _ = self.schema
        for section in SECTIONS:
            _ = self.section(section.name)
        for problem in contradictions(self):
            raise ConfigError(problem)


def contradictions(run: RunConfig) -> Iterator[str]:
    """Yields a sentence for each pair of sections that cannot be right together."""
    from utility_blender.blend import Blender

    scenarios = run.schema.scenarios
    try:
        Blender(list(run.schema.tasks), scenarios, run.blender)
    except ValueError as error:
        yield f"blender.{error}"
    if run.join.idle_ms < run.join.commit_interval_ms:
        yield (
            f"join.idle_ms: {run.join.idle_ms} is not allowed; at least join.commit_interval_ms "
            f"({run.join.commit_interval_ms}), or topics are called idle between two commits"
        )
    if run.monitor.simulator and set(run.sim.scenarios) != set(scenarios):
        yield f"sim.scenarios: {', '.join(run.sim.scenarios)} is not what the run lists: {', '.join(scenarios)}"
    ports = [int(address.rpartition(":")[2]) for address in addresses(run.monitor.ranker)]
    if run.ranker.server.port not in ports:
        yield f"ranker.server.port: {run.ranker.server.port} is not among those the page asks: {run.monitor.ranker}"
    owner: dict[str, str] = {f"{run.monitor.host}:{run.monitor.port}": "monitor.port"}
    for process, address in run.monitor.targets().items():
        if address in owner:
            yield f"monitor.{process}: {address} is taken by {owner[address]}"
        owner[address] = f"monitor.{process}"


def load_config(path: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> RunConfig:
    """Returns the run of a YAML file; the environment goes over the file, `overrides` (`a.b=value`) over both.

    Raises:
        ConfigError: unreadable file, YAML that is none, unknown section, malformed override.
    """
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    for setting in ENVIRONMENT:
        if environ is not None and environ.get(setting.variable):
            put(settings, setting.setting, environ[setting.variable])
    for override in overrides:
        put_override(settings, override)
    return RunConfig(settings, ["--config", str(path), *(part for name in overrides for part in ("--set", name))])


def parse_yaml(text: str) -> dict[str, Any]:
    """Returns the mapping a YAML text holds; a key given twice is a mistake, not a choice of the last."""
    data = _yaml(text)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{show(data)} is not a mapping of sections")
    return data


def put_override(settings: dict[str, Any], override: str) -> None:
    """Sets what `a.b=value` says, in place; the value is YAML."""
    name, equals, value = override.partition("=")
    if not equals or not all(name.split(".")):
        raise ConfigError(f"--set {override}: must be SECTION.KEY=VALUE")
    put(settings, name.split("."), _yaml(value))


def put(settings: dict[str, Any], path: Sequence[str], value: object) -> None:
    """Sets one setting by its path, in place; sections that are not there yet are made."""
    for i, key in enumerate(path[:-1]):
        if settings.get(key) is None:
            settings[key] = {}
        settings = settings[key]
        if not isinstance(settings, dict):
            raise ConfigError(f"{'.'.join(path[: i + 2])}: {path[i]} has no settings of its own")
    settings[path[-1]] = value


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but refuses double keys and reads `1e-3` as the number it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: {show(key)} cannot be a key")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: {key} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - derives from SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ConfigError(f"{where}not YAML: {getattr(error, 'problem', None) or error}") from error


def _plain(value: object) -> object:
    """Returns dataclasses, tuples and paths as what YAML can write."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
