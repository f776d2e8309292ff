"""Servers that many tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import structlog

from tests.rabbitmq_node import RabbitNode, rabbit_node


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: two processes that share the files end together."""
    items.sort(key=lambda item: "simulation" not in item.path.parts)


def pytest_collection_finish() -> None:
    """What is imported by now is never garbage: no collection need look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def logs_as_they_come() -> None:
    """A command that a test before ran in this process may have silenced the log."""
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitNode]:
    """One private RabbitMQ node for the whole run, with its Prometheus plugin; tests take a vhost each."""
    with rabbit_node(plugins=["rabbitmq_prometheus"]) as node:
        yield node


@pytest.fixture
def rabbit_url(rabbitmq: RabbitNode) -> str:
    """The address of a fresh virtual host."""
    return rabbitmq.url(vhost=rabbitmq.vhost())
