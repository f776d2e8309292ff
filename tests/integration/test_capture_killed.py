"""A worker that captures, killed by SIGKILL in mid-stream again and again: every reading is in the files once."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pandas as pd

from stream.brokers.rabbitmq import RabbitBroker
from stream.capture_rule import CaptureRule, Rotation
from stream.config import dump_yaml
from stream.plan import broker_plan
from stream.topology import CheckpointRule
from tests.aio import run
from tests.integration.test_worker_rabbitmq import Service, wait_for
from tests.plant import START, readings, topology

N = 3000
KILLS = 3


def test_killed_again_and_again_every_reading_is_captured_once(rabbit_url: str, tmp_path: Path) -> None:
    rule = CaptureRule(rotate=Rotation(rows=700))
    often = CheckpointRule(every=0.0, after=50)
    settings = msgspec.structs.replace(topology(max_batch=16), capture=rule, checkpoint=often)
    path = tmp_path / "plant.yaml"
    path.write_text(dump_yaml(settings))

    async def publish(first: int, last: int) -> None:
        async with RabbitBroker(rabbit_url) as broker:
            await broker.declare(broker_plan(settings), mode="declare")
            await broker.publish(readings(N)[first:last])

    run(publish(0, N // 2))
    worker = Service(rabbit_url, tmp_path, path, f"sqlite:///{tmp_path / 'registry.db'}")
    pause = threading.Event()
    for kill in range(KILLS):
        worker.start()
        pause.wait(0.05 * kill)  # in the midst of it: somewhere in its batches, commits and files
        if kill == 2:  # a message over which it died three times would be put aside
            wait_for(lambda: worker.metric("mmlw_messages_processed_total") > 100)
        worker.kill()
        if kill == 1:
            run(publish(N // 2, N))
    worker.start()
    wait_for(lambda: worker.metric("mmlw_last_reading_timestamp_seconds") == START + N - 1)
    assert worker.stop() == 0
    found = pd.read_parquet(tmp_path / "capture" / "plant")
    assert sorted(found["offset"]) == list(range(N))
    assert not list((tmp_path / "capture" / "plant").glob(".journal-*"))
