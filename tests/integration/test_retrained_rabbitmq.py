"""Retraining on RabbitMQ: a drift, a training from the stream's past, a shadow, the gate, and no reading lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from stream.brokers.base import Message
from stream.brokers.rabbitmq import RabbitBroker
from stream.control import request
from stream.gates import PromoteWhen
from stream.models import Registry
from stream.retrain_rule import Drift
from stream.runtimes.local import Worker
from stream.shelf import Shelf
from stream.trainer import Trainer
from stream.training import train_detector
from stream.training_data import frame_table
from tests.aio import run
from tests.integration.test_retrained import Timed, retrained, values
from tests.integration.test_training import frame

pytestmark = pytest.mark.timeout(240)


@dataclass
class OnRabbit(Timed):
    """A plant on a node; whoever it sends as may command, too."""

    url: str = ""

    def broker(self) -> RabbitBroker:
        return RabbitBroker(self.url)

    def worker(self) -> Worker:
        self.trainer = Trainer(self.registry, (self.data,), self.broker)
        return Worker(
            (self.topology,),
            connect=self.broker,
            data=self.data,
            shelf=self.shelf,
            metrics=self.metrics,
            observer=lambda _, scored: self.scored.append(scored),
            trainer=self.trainer,
        )

    async def publish(self, messages: Any) -> None:
        async with self.broker() as machine:
            await machine.publish(messages)

    async def ask(self, verb: str, *, user: str = "guest", **arguments: Any) -> dict[str, Any]:
        async with self.broker() as broker:
            return await request(broker, "plant", verb, user=user, timeout=30, **arguments)


def test_drift_on_a_real_node_ends_in_a_promotion_and_every_reading_is_scored_once(
    rabbit_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.retrainer._LOOK", 0.05)
    gate = PromoteWhen(readings=100, alerts="<= 2")
    wanted = msgspec.structs.replace(
        retrained(drift=Drift(of="inputs", every=1), over=7200.0, promote_when=gate), operators=("guest",)
    )
    models, shelf_folder = Registry(f"sqlite:///{tmp_path}/registry.db"), tmp_path / "models"
    train_detector(wanted, "scale", frame_table("may", frame(400), wanted), models, alias="champion")
    plant = OnRabbit(
        tmp_path / "data",
        wanted,
        shelf=Shelf(models, shelf_folder),
        registry=models.uri,
        url=rabbit_url,
    )
    sent: list[Message] = []

    async def send(worker: Worker, n: int, level: float) -> None:
        more = values(n, len(sent), level)
        sent.extend(more)
        await plant.publish(more)
        await plant.reached(worker, len(sent))

    async def story() -> dict[str, Any]:
        async with plant.running() as worker:
            await send(worker, 400, 0.0)
            await send(worker, 200, 3.0)
            await plant.until(trigger="drift", outcome="started")
            assert plant.trainer is not None
            while plant.trainer.running is not None:  # readings come while it trains
                await send(worker, 10, 3.0)
                await asyncio.sleep(0.05)
            await plant.until(outcome="shadowed")
            beside = await plant.ask("status")
            assert beside["models"]["scale"]["version"] == "1", "nothing goes straight to production"
            assert beside["shadows"]["scale"]["model"]["version"] == "2"
            assert models.resolve("models:/pump@challenger").version == 2
            while not plant.value("mmlw_retrain_results_total", detector="scale", outcome="promoted"):
                await send(worker, 10, 3.0)
            await send(worker, 50, 3.0)
            return await plant.ask("status")

    status = run(story())
    assert status["models"]["scale"]["version"] == "2"
    assert models.resolve("models:/pump@champion").version == 2
    by_rule = [
        (line["verb"], line["status"])
        for verb in ("train", "shadow", "promote")
        for line in plant.audited(verb)
    ]
    assert by_rule == [
        ("train", "running"),
        ("train", "applied"),
        ("shadow", "applied"),
        ("promote", "applied"),
    ]

    offsets = np.concatenate([part.offsets for part in plant.scored])
    assert offsets.tolist() == list(range(len(sent))), "each reading once, in order"
    inputs = np.vstack([part.batch.values for part in plant.scored])
    scores = np.concatenate([part.scores["scale"] for part in plant.scored])
    by_version = [
        Shelf(models, shelf_folder)
        .model(models.resolve(f"models:/pump/{version}"), ("a", "b"))
        .score_learn(np.zeros(len(inputs), np.int64), inputs, np.zeros(len(inputs)))
        for version in (1, 2)
    ]
    first = int(np.flatnonzero(scores != by_version[0])[0])
    assert 600 < first < len(sent), "the gate saw a whole window first"
    np.testing.assert_array_equal(scores[:first], by_version[0][:first])
    np.testing.assert_array_equal(scores[first:], by_version[1][first:])
    assert plant.value("mmlw_messages_processed_total") == len(sent)
    assert plant.value("mmlw_restarts_total", cause="broker") == 0
