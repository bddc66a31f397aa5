"""One YAML per run: sections declared beside their owners, assembled here, built when first read.

Sections are built lazily on purpose: the owner of `model` imports torch, and a joiner that never reads the section
must not pay for it. Whole files are checked by `RunConfig.check`, which `freshrank up` and `freshrank config` call.
"""

import copy
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from freshrank.contradictions import contradictions
from freshrank.places import CheckpointConfig, MonitorConfig, RedisConfig, without_login
from freshrank.settings_file import parse_yaml, put, put_override
from freshrank.strict import ConfigError, build, unknown
from stream.log import KafkaConfig
from stream.schema import SchemaConfig

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.store import StoreConfig
    from model.trainer_config import TrainerConfig
    from ranker.config import RankerConfig
    from sim.config import SimConfig
    from stream.agents_config import AgentsConfig
    from stream.join import JoinConfig
    from stream.spill import SpillConfig
    from utility_blender.blend import BlenderConfig


class Section(NamedTuple):
    """One section of the file and the dataclass that declares it, as `module:name`."""

    name: str
    owner: str


SECTIONS = (
    Section("kafka", "stream.log:KafkaConfig"),
    Section("redis", "freshrank.places:RedisConfig"),
    Section("join", "stream.join:JoinConfig"),
    Section("spill", "stream.spill:SpillConfig"),
    Section("model", "model.config:ModelConfig"),
    Section("trainer", "model.trainer_config:TrainerConfig"),
    Section("checkpoint", "freshrank.places:CheckpointConfig"),
    Section("store", "model.store:StoreConfig"),
    Section("blender", "utility_blender.blend:BlenderConfig"),
    Section("ranker", "ranker.config:RankerConfig"),
    Section("agents", "stream.agents_config:AgentsConfig"),
    Section("sim", "sim.config:SimConfig"),
    Section("monitor", "freshrank.places:MonitorConfig"),
)
SCHEMA_KEYS = ("scenarios", "tasks", "features", "unknown_scenario", "default_scenario")
"""Settings at the top of the file; together they are the schema."""
PLACES = ("kafka", "redis", "spill", "checkpoint", "monitor")
"""Sections that say where things are, not what they do: not part of the configuration's hash."""


class EnvironmentSetting(NamedTuple):
    """An environment variable, the setting it fills if any, and what for. There are no others."""

    variable: str
    setting: tuple[str, ...]
    help: str


ENVIRONMENT = (
    EnvironmentSetting("FRESHRANK_KAFKA", ("kafka", "bootstrap_servers"), "Kafka's `host:port`, comma-separated"),
    EnvironmentSetting("FRESHRANK_REDIS", ("redis", "url"), "Redis's address; may hold a user and a password"),
    EnvironmentSetting("FRESHRANK_REDIS_USERNAME", ("redis", "username"), "Redis's user"),
    EnvironmentSetting("FRESHRANK_REDIS_PASSWORD", ("redis", "password"), "Redis's password"),
    EnvironmentSetting("FRESHRANK_KAFKA_USERNAME", ("kafka", "client", "sasl.username"), "Kafka's SASL user name"),
    EnvironmentSetting("FRESHRANK_KAFKA_PASSWORD", ("kafka", "client", "sasl.password"), "Kafka's SASL password"),
    EnvironmentSetting(
        "FRESHRANK_KAFKA_KEY_PASSWORD", ("kafka", "client", "ssl.key.password"), "Password of the client's TLS key"
    ),
    EnvironmentSetting("FRESHRANK_API_TOKENS", (), "Tokens that open our doors, comma-separated; ours send the first"),
)
SECRETS = {setting.setting: setting.variable for setting in ENVIRONMENT if "password" in "".join(setting.setting[-1:])}
"""Settings that only the environment may hold, and its variables."""


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
        refuse_secrets({}, overrides)
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
    def spill(self) -> "SpillConfig":
        """Where open slates beyond a memory budget go."""
        return cast("SpillConfig", self._build("spill"))

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
        """The users' last actions, and online metrics."""
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
        plain["redis"]["password"] = "***" if plain["redis"]["password"] else ""
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
    refuse_secrets(settings, overrides)
    for setting in ENVIRONMENT:
        if environ is not None and setting.setting and (value := environ.get(setting.variable)):
            if setting.setting == ("redis", "url"):
                value, *login = without_login(value)
                for name, part in zip(("username", "password"), login, strict=True):
                    if part:
                        put(settings, ("redis", name), part)
            put(settings, setting.setting, value)
    for override in overrides:
        put_override(settings, override)
    return RunConfig(settings, ["--config", str(path), *(part for name in overrides for part in ("--set", name))])


def refuse_secrets(settings: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Refuses passwords where others can read them: in files, and in arguments, which every process list shows.

    Raises:
        ConfigError: naming the setting and the variable of the environment to be used instead.
    """
    stated = copy.deepcopy(dict(settings))
    for override in overrides:
        put_override(stated, override)
    for path, variable in SECRETS.items():
        found: Any = stated
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            raise ConfigError(f"{'.'.join(path)}: is not allowed in a file or an argument; set {variable}")


def _plain(value: object) -> object:
    """Returns dataclasses, tuples and paths as what YAML can write."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
