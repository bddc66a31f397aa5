"""The implementations that the contract suites run on."""

import pytest

from tests.contracts.log_factory import LogFactory, MemoryLogFactory


@pytest.fixture(params=["memory"])
def log(request: pytest.FixtureRequest) -> LogFactory:
    """Each log in turn: the in-memory one, and real brokers where there are any."""
    assert request.param == "memory"
    return MemoryLogFactory()
