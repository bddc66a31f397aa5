"""A whole run's file: YAML, environment, overrides, hash, and sections that contradict each other."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from freshrank.config import ENVIRONMENT, SECRETS, RunConfig, load_config
from freshrank.contradictions import contradictions
from freshrank.places import RedisConfig, RedisTlsConfig
from freshrank.settings_file import parse_yaml
from freshrank.strict import ConfigError

REPO_ROOT = Path(__file__).parents[2]
CONFIGS = sorted((REPO_ROOT / "configs").glob("*.yaml"))
LIVE = ("compose.yaml", "demo.yaml", "production.yaml")
"""Configurations of whole runs; the others are for replays, which have no ranker and no simulator."""
SMALL = """
scenarios: [home]
tasks:
  click: {action: click, window_ms: 1000}
join: {grace_ms: 300}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configuration_is_right(path: Path) -> None:
    run = load_config(path)
    if path.name in LIVE:
        run.check()
    else:
        for name in ("schema", "join", "model", "trainer"):
            assert getattr(run, name) is not None


def test_production_does_not_explore_and_the_demo_does() -> None:
    assert load_config(REPO_ROOT / "configs" / "production.yaml").blender.explore.share == 0.0
    assert load_config(REPO_ROOT / "configs" / "demo.yaml").blender.explore.share > 0.0


def test_override_goes_over_environment_and_environment_over_file(small: Path) -> None:
    environ = {"FRESHRANK_KAFKA": "there:1", "FRESHRANK_REDIS": "redis://there:2/0"}
    run = load_config(small, ["join.grace_ms=70", "kafka.bootstrap_servers=here:3", "redis={}"], environ)
    assert run.join.grace_ms == 70
    assert run.kafka.bootstrap_servers == "here:3"
    assert run.redis.url == "redis://localhost:6379/0"
    assert load_config(small, (), environ).redis.url == "redis://there:2/0"


def test_every_environment_variable_fills_its_setting(small: Path) -> None:
    for setting in filter(lambda row: row.setting, ENVIRONMENT):
        value = "redis://secret" if setting.setting == ("redis", "url") else "secret"
        environ = {"FRESHRANK_REDIS_PASSWORD": "another", setting.variable: value}
        found: object = load_config(small, (), environ).section(setting.setting[0])
        for name in setting.setting[1:]:
            found = found[name] if isinstance(found, dict) else getattr(found, name)
        assert found == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("joins: {}", "joins is not a setting; did you mean join?"),
        ("banana: {}", "banana is not a setting; allowed: scenarios, tasks, features, unknown_scenario, default_scen"),
        ("[1, 2]", "[1, 2] is not a mapping of sections"),
        ("join: {grace_ms: 1", "line 1, column 19: not YAML: expected ',' or '}', but got '<stream end>'"),
        ("join: {}\njoin: {}", "line 2: join is given twice"),
        ("join:\n  grace_ms: 1\n  grace_ms: 2", "line 3: grace_ms is given twice"),
    ],
)
def test_mistake_in_the_file_is_one_line(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig(parse_yaml(text))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("join.grace_ms", "--set join.grace_ms: must be SECTION.KEY=VALUE"),
        ("=1", "--set =1: must be SECTION.KEY=VALUE"),
        ("join.grace_ms.x=1", "join.grace_ms.x: grace_ms has no settings of its own"),
    ],
)
def test_malformed_override_is_named(small: Path, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{sentence}$"):
        load_config(small, [override])


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory$"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.yaml: is not UTF-8 text$"):
        load_config(tmp_path / "bytes.yaml")


def test_numbers_in_scientific_notation_are_numbers() -> None:
    assert parse_yaml("a: 1e-3\nb: -2E4\nc: 1e\nd: 1.5e-3") == {"a": 0.001, "b": -20_000.0, "c": "1e", "d": 0.0015}


def test_hash_is_over_what_is_learned_and_not_over_where(small: Path) -> None:
    plain = load_config(small).config_hash()
    assert (
        load_config(small, ["kafka.bootstrap_servers=x:1", "redis.url=redis://x", "monitor.port=1"]).config_hash()
        == plain
    )
    assert load_config(small, ["join.grace_ms=301"]).config_hash() != plain


def test_resolved_form_masks_passwords_and_can_be_read_again(tmp_path: Path) -> None:
    import yaml

    secrets = {setting.variable: "hush" for setting in ENVIRONMENT if setting.setting in SECRETS}
    run = load_config(REPO_ROOT / "configs" / "demo.yaml", (), {"FRESHRANK_REDIS": "redis://me:x@there/0", **secrets})
    text = yaml.safe_dump(run.resolved())
    assert len(secrets) == 3 and text.count("***") == 3
    assert "hush" not in text and "hush" not in repr(run.redis)
    assert run.redis.address == "redis://me:hush@there/0"
    RunConfig(parse_yaml(text)).check()


@pytest.mark.parametrize(
    ("setting", "variable"),
    [
        ("redis.password", "FRESHRANK_REDIS_PASSWORD"),
        ("kafka.client={sasl.password: hush}", "FRESHRANK_KAFKA_PASSWORD"),
        ("kafka.client={ssl.key.password: hush}", "FRESHRANK_KAFKA_KEY_PASSWORD"),
    ],
)
def test_secrets_come_from_the_environment_and_from_nowhere_else(setting: str, variable: str, small: Path) -> None:
    override = setting if "=" in setting else f"{setting}=hush"
    told = rf"password: is not allowed in a file or an argument; set {variable}$"
    for attempt in (lambda: load_config(small, [override]), lambda: load_config(small).with_overrides([override])):
        with pytest.raises(ConfigError, match=told) as error:
            attempt()
        assert "hush" not in str(error.value)
    section, _, rest = override.partition("=")
    first, _, second = section.partition(".")
    text = small.read_text() + f"\n{first}: {{{second}: {rest}}}\n"
    small.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_config(small)


@pytest.mark.parametrize("url", ["redis://me:hush@there:1/0", "redis://:hush@there", "unix:///a?password=hush",
                                 "http://me:hush@there"])  # fmt: skip
def test_an_address_with_a_password_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url: ") as error:
        RedisConfig(url=url)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({"url": "redis://there:1/2"}, "redis://there:1/2"),
        ({"url": "redis://there", "password": "a b@c/d"}, "redis://:a%20b%40c%2Fd@there"),
        ({"url": "unix:///run/redis?db=3", "username": "me", "password": "x"}, "unix://me:x@/run/redis?db=3"),
        (
            {"url": "rediss://there/0", "tls": RedisTlsConfig(ca_file="/a/ca.pem")},
            "rediss://there/0?ssl_ca_certs=%2Fa%2Fca.pem",
        ),
    ],
)
def test_the_address_has_all_that_a_client_needs(settings: dict[str, Any], address: str) -> None:
    from redis.asyncio.connection import parse_url

    config = RedisConfig(**settings)
    assert config.address == address
    options = parse_url(address)
    assert options.get("password", "") == config.password and options.get("username", "") == config.username
    assert options.get("ssl_ca_certs", "") == config.tls.ca_file


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tls": RedisTlsConfig(ca_file="a")}, 'tls: is not allowed with "redis://localhost:6379/0"; the url must'),
        ({"username": "me"}, 'username: "me" is not allowed without FRESHRANK_REDIS_PASSWORD'),
    ],
)
def test_redis_settings_that_are_wrong_together(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        RedisConfig(**settings)
    with pytest.raises(ValueError, match="^key_file: is missing"):
        RedisTlsConfig(certificate_file="a")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("blender.weights.shop={click: 1}", "blender.weights: shop is not known; one of default, home, search, deals"),
        ("blender.weights.home.buy=1", "blender.weights.home: buy is not known; one of click, order, hide"),
        ("blender.scale.buy=1", "blender.scale: buy is not known; one of click, order, hide"),
        ("ranker.server.port=9", "ranker.server.port: 9 is not among those the page asks: 127.0.0.1:8620"),
        ("join.idle_ms=1", "join.idle_ms: 1 is not allowed; at least join.commit_interval_ms"),
        ("monitor.trainer=127.0.0.1:8611", "monitor.trainer: 127.0.0.1:8611 is taken by monitor.joiner"),
        ("join.outcome_window_ms=1", "join.outcome_window_ms: 1 is not allowed; at least the longest window_ms of the"),
        ("tasks.hide.policy=oracle", "tasks.hide.policy: oracle knows the future"),
        ("model.priors.like=0.1", "model.priors: ['like'] are not tasks; click, order"),
        ("sim.scenarios={home: {}}", "sim.scenarios: home is not what the run lists: home, search, deals"),
    ],
)
def test_sections_that_contradict_each_other_are_told(override: str, sentence: str) -> None:
    problems = list(contradictions(load_config(REPO_ROOT / "configs" / "demo.yaml", [override])))
    assert len(problems) == 1
    assert problems[0].startswith(sentence)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("blender.reward.values={}", "blender.reward.values: learning needs to know what actions are worth"),
        ("blender.reward.aggregate=binary", "blender.reward.aggregate: binary is not allowed where weights"),
        ("blender.explore.law=grid", "blender.explore.law: grid is not allowed where weights are learned"),
        ("blender.explore.share=0", "blender.explore.share: 0 is not allowed where weights are learned"),
        ("join.outcome_window_ms=null", "join.outcome_window_ms: must be given where weights are learned"),
        ("monitor.blender=''", "monitor.blender: must be given where weights are learned"),
        ("blender.gate.guarded={hides: 0.005}", "blender.gate.guarded: hides is not known; one of click, hide, order"),
        ("blender.learn.context=[context.tone]", "blender.learn.context: context.tone is not allowed; one of "),
    ],
)
def test_what_learning_the_weights_lacks_is_told_before_it_begins(override: str, sentence: str) -> None:
    problems = list(contradictions(load_config(REPO_ROOT / "configs" / "blender.yaml", [override])))
    assert [problem[: len(sentence)] for problem in problems] == [sentence]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.architecture=aesm2", "model.preset=small", "model.hinet=null"], "model.architecture: aesm2 is not"),
        (
            ["model.growth={max_scenarios: 3}"],
            "model.growth.max_scenarios: 3 is not allowed with unknown_scenario: add",
        ),
        ([], None),
        (["scenarios=[home, search]"], None),
        (["scenarios=[home, search, deals, shop]"], "sim.scenarios: home, search, deals, events is not what"),
    ],
)
def test_a_model_that_is_to_grow_must_be_able_to(overrides: list[str], sentence: str | None) -> None:
    given = ["unknown_scenario=add", *overrides]
    problems = list(contradictions(load_config(REPO_ROOT / "configs" / "demo.yaml", given)))
    assert [problem.startswith(sentence or "") for problem in problems] == ([True] if sentence else [])


def test_joiner_and_help_do_not_import_torch() -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from freshrank.cli import main\n"
        "from freshrank.config import load_config\n"
        "import freshrank.join\n"
        "run = load_config(Path('configs/demo.yaml'))\n"
        "run.schema, run.join, run.kafka, run.monitor\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout.split()
