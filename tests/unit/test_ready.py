"""When a worker says that it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from stream.brokers.base import Message
from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.errors import BrokerBlocked
from tests.aio import run
from tests.plant import Plant, readings, topology


class _Blocked(MemoryBroker):
    """A broker that takes no messages until it is told to."""

    refuses = True
    asked = 0

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, user="worker")

    async def publish(self, messages: Sequence[Message]) -> None:
        """See `Broker`."""
        type(self).asked += 1
        if self.refuses:
            raise BrokerBlocked("no answer")
        await super().publish(messages)


def test_a_worker_that_has_not_begun_is_not_ready(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        worker = plant.worker()
        assert worker.problems() == {"plant": "not consuming"}
        async with plant.running() as running:
            assert running.problems() == {}

    run(story())


def test_a_worker_whose_broker_takes_no_messages_says_so_and_reads_nothing_until_it_does(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        plant.connect = lambda: _Blocked(plant.server)
        async with plant.running() as worker:
            await plant.publish(readings(10, bad_every=5))
            while _Blocked.asked < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert not worker.ready
            assert worker.problems()["plant"].startswith("blocked: the broker takes no messages")
            assert plant.value("mmlw_restarts_total", cause="broker") == 1
            assert plant.value("mmlw_broker_blocked") == 1
            _Blocked.refuses = False
            await plant.reached(worker, 10)
            assert worker.problems() == {}
            assert plant.value("mmlw_broker_blocked") == 0
        assert len(await plant.kept("mmlw.deadletters")) == 2

    run(story())
