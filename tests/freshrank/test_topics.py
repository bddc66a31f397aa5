"""`freshrank topics` on a broker: what it prints, as lines and as JSON, and how it ends."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from freshrank.cli import main
from freshrank.exits import ExitCode
from stream.log import TOPICS

DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")


class Topics:
    """The command with the settings of one run."""

    def __init__(self, broker: str) -> None:
        self.prefix = f"t{uuid.uuid4().hex[:8]}-"
        self.broker = broker

    def run(self, *arguments: str, **settings: Any) -> Result:
        given = {"kafka.bootstrap_servers": self.broker, "kafka.topic_prefix": self.prefix, **settings}
        options = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
        return CliRunner().invoke(main, ["topics", *arguments, "--config", DEMO, *options])

    def json(self, command: str) -> Any:
        result = self.run(command, "--json")
        assert result.stdout, result.output
        return json.loads(result.stdout)


@pytest.fixture(params=["noida", pytest.param("apache", marks=pytest.mark.integration)])
def topics(request: pytest.FixtureRequest) -> Topics:
    return Topics(request.getfixturevalue(f"{request.param}_broker"))


@pytest.fixture
def apache_topics(apache_broker: str) -> Topics:
    return Topics(apache_broker)


def test_topics_are_created_described_and_verified(topics: Topics) -> None:
    names = [topics.prefix + topic for topic in TOPICS]
    missing = topics.run("verify")
    assert missing.exit_code == ExitCode.USAGE, missing.output
    assert topics.json("verify")["problems"] == [
        f"topic {name} does not exist: create it with `freshrank topics create`" for name in names
    ]
    assert topics.json("create")["created"] == names
    assert topics.json("create")["created"] == []
    described = topics.json("describe")
    assert [info["name"] for info in described["topics"]] == names
    assert described["lag"] == []
    assert topics.json("lag") == {"lag": [], "num_messages": 0}
    assert "nothing yet" in topics.run("lag").stdout
    fits = topics.run("verify")
    assert fits.exit_code == ExitCode.OK, fits.output
    assert fits.stdout.splitlines()[-1] == "5 topics fit"
    assert topics.json("verify")["ok"] is True
    assert f"{names[0]}: " in topics.run("describe").stdout


@pytest.mark.integration
def test_a_setting_that_does_not_fit_is_named(apache_topics: Topics) -> None:
    topics = apache_topics
    assert topics.json("create")["created"]
    impressions, examples = topics.prefix + "impressions", topics.prefix + "examples"
    admin = KafkaAdminClient(bootstrap_servers=topics.broker)
    try:
        wanted = {
            impressions: {"cleanup.policy": "compact", "retention.ms": "1000"},
            examples: {"max.message.bytes": "1000"},
        }
        admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name, settings) for name, settings in wanted.items()]
        )
    finally:
        admin.close()
    verified = topics.json("verify")
    assert verified["ok"] is False
    assert verified["not_checked"] == []
    assert [problem.split(" ")[1] for problem in verified["problems"]] == [impressions, impressions, examples]
    told = "\n".join(verified["problems"])
    assert all(setting in told for setting in ("retention.ms", "cleanup.policy", "max.message.bytes"))
    ended = topics.run("verify")
    assert ended.exit_code == ExitCode.USAGE
    assert "freshrank: 3 settings of topics must change; the first: topic " in ended.stderr
