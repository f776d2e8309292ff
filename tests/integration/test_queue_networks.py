"""A reader of somebody else's queue goes on by itself, without loss: behind broken networks, without its queue."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest

from tests.aio import run
from tests.queueing import Queueing, some_readings
from tests.tcp_proxy import PASS, RESET, STALL, Fault, Way, tcp_proxy
from tests.torture.audit import audit, reference
from tests.torture.hall import QUEUE, Mode, Sent, topology
from tests.torture.sitting import await_true

QUEUES: tuple[Mode, ...] = ("classic", "quorum")
FAULTS = {
    "reset": RESET,
    "FIN to the worker": Fault(ended=Way.TO_WORKER),
    "stall": STALL,
    "silence to the worker": Fault(held=frozenset({Way.TO_WORKER})),
    "silence to the broker": Fault(held=frozenset({Way.TO_BROKER})),
}


def usable(sent: list[Sent]) -> int:
    return sum(item.kind == "fresh" for item in sent)


async def restarted(queueing: Queueing) -> None:
    async def there() -> bool:
        return queueing.total("mmlw_restarts_total") >= 1

    await await_true(there, 40.0)


async def nothing_lost(queueing: Queueing, sent: list[Sent]) -> None:
    await queueing.left(0)
    wanted = await reference(queueing.topology, queueing.data / "calm", sent, [])
    found = audit(sent, [], await queueing.evidence(), wanted)
    assert found.faults == {}
    assert found.alerts > 20


@pytest.mark.parametrize(("mode", "name"), [*(("classic", name) for name in FAULTS), ("quorum", "stall")])
def test_worker_goes_on_by_itself_after(rabbit_url: str, tmp_path: Path, mode: Mode, name: str) -> None:
    async def scenario() -> None:
        queueing = Queueing(rabbit_url, tmp_path, topology(mode))
        sent = some_readings(900)
        await queueing.prepare(mode)
        port = urlsplit(rabbit_url).port
        assert port is not None
        async with tcp_proxy(port) as proxy:
            queueing.through = rabbit_url.replace(f":{port}", f":{proxy.port}")
            async with queueing.running():
                await queueing.send(sent[:300])
                await queueing.counted("mmlw_messages_processed_total", usable(sent[:300]))
                proxy.switch(FAULTS[name])
                await queueing.send(sent[300:600])
                await restarted(queueing)
                proxy.switch(PASS)
                began = time.monotonic()
                await queueing.send(sent[600:])
                await queueing.counted("mmlw_messages_processed_total", usable(sent))
                print(f"@@ {mode}, {name}: well in {time.monotonic() - began:.2f} s")
        await nothing_lost(queueing, sent)

    run(scenario())


@pytest.mark.parametrize("mode", QUEUES)
def test_worker_waits_for_a_queue_that_was_deleted_under_it(
    rabbit_url: str, tmp_path: Path, mode: Mode
) -> None:
    """It is not the worker's to make: it waits until somebody does, and keeps what it has learned."""

    async def scenario() -> None:
        queueing = Queueing(rabbit_url, tmp_path, topology(mode))
        sent = some_readings(900)
        await queueing.prepare(mode)
        async with queueing.running():
            await queueing.send(sent[:450])
            await queueing.counted("mmlw_messages_processed_total", usable(sent[:450]))
            await queueing.left(0)
            async with await aio_pika.connect(rabbit_url) as connection:
                await (await connection.channel()).queue_delete(QUEUE)
            await restarted(queueing)
            await queueing.prepare(mode)
            began = time.monotonic()
            await queueing.send(sent[450:])
            await queueing.counted("mmlw_messages_processed_total", usable(sent))
            print(f"@@ {mode}, queue deleted: well in {time.monotonic() - began:.2f} s")
        await nothing_lost(queueing, sent)

    run(scenario())
