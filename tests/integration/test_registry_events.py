"""Aliases that are followed in a real MLflow: by poll in a file, by webhook and by poll on a server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities.webhook import WebhookAction, WebhookEntity
from mlflow.webhooks.constants import (
    WEBHOOK_DELIVERY_ID_HEADER,
    WEBHOOK_SIGNATURE_HEADER,
    WEBHOOK_TIMESTAMP_HEADER,
)
from mlflow.webhooks.delivery import _generate_hmac_signature
from msgspec.structs import replace

from detectors import registry as kinds
from detectors.base import Weights
from stream import webhooks as ours
from stream.follow_rule import Follow
from stream.http import bind, serving
from stream.models import Registry
from stream.runtimes.local import Worker
from stream.shelf import Shelf
from stream.topology import RegistryModel, Topology
from stream.webhooks import Webhooks
from tests import aio
from tests.mlflow_server import mlflow_server
from tests.plant import Plant, Scale, readings, topology
from tests.unit.test_webhooks import SECRET, event, signed

run = partial(aio.run, seconds=120.0)
EXAMPLE = pd.DataFrame({"a": [1.0, 2.0], "b": [0.0, 1.0]})


@pytest.fixture(autouse=True)
def scale_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = kinds.load

    def load(weights: Weights) -> Any:
        if weights.kind != "scale":
            return genuine(weights)
        return Scale(float(weights.arrays["factor"][0]), weights.sensors)

    monkeypatch.setattr(kinds, "load", load)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated registry file: MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("template") / "registry.db"
    assert Registry(f"sqlite:///{path}").names() == ()
    return path


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, database: Path
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """It may deliver to this very host; its list of webhooks is read anew for each event."""
    settings = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "0",
        "MLFLOW_WEBHOOK_REQUEST_MAX_RETRIES": "0",
    }
    with mlflow_server(tmp_path_factory.mktemp("server"), database, settings) as found:
        yield found


def register(registry: Registry, factor: float, sensors: tuple[str, ...] = ("a", "b"), **more: Any) -> int:
    weights = Weights(
        kind="scale", sensors=sensors, threshold=10.0, settings={}, arrays={"factor": np.array([factor])}
    )
    example = EXAMPLE.set_axis(list(sensors), axis=1)
    return registry.register("scale", weights, example=example, **more).version


def plan(poll: float) -> Topology:
    declared = topology(batch_model=True)
    spec = RegistryModel(model="models:/scale@champion", follow=Follow(poll=poll))
    return replace(declared, detectors={**declared.detectors, "scale": spec})


def plant(folder: Path, registry: Registry, poll: float) -> Plant:
    return Plant(folder / "data", plan(poll), shelf=Shelf(registry, folder / "models"))


async def until(found: Plant, version: int) -> None:
    """Returns when this version serves."""
    while (await found.ask("status"))["models"]["scale"]["version"] != str(version):  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def events(found: Plant) -> list[tuple[str, str]]:
    lines = (await found.ask("audit"))["audit"]
    return [(line["id"], line["status"]) for line in lines if line["by"] == "registry"]


async def polled(registry: Shelf, times: int = 3) -> None:
    """Returns after so many looks."""
    looks, genuine = [0], registry.meaning

    def meaning(name: str, alias: str) -> Any:
        looks[0] += 1
        return genuine(name, alias)

    registry.meaning = meaning  # type: ignore[method-assign]
    while looks[0] <= times:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    registry.meaning = genuine  # type: ignore[method-assign]


def test_an_embedded_registry_is_polled(tmp_path: Path, database: Path) -> None:
    shutil.copy(database, tmp_path / "registry.db")
    registry = Registry(f"sqlite:///{tmp_path}/registry.db")
    first = register(registry, 1.0, alias="champion")
    second = register(registry, 2.0)
    odd = register(registry, 3.0, ("a", "elsewhere"))

    async def story() -> None:
        found = plant(tmp_path, registry, 0.1)
        await found.declare()
        async with found.running() as worker:
            await found.publish(readings(10))
            await found.reached(worker, 10)
            registry.set_alias("scale", "champion", second)
            await until(found, second)
            assert (await found.ask("rollback"))["status"] == "applied"
            await polled(found.shelf)
            await until(found, first)
            registry.set_alias("scale", "champion", odd)
            while len(await events(found)) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        registry.set_alias("scale", "champion", second)
        async with found.running() as worker:
            await until(found, second)
            await found.publish(readings(10, seed=1))
            await found.reached(worker, 20)
            assert await events(found) == [
                (f"registry-scale-v{second}-1", "applied"),
                (f"registry-scale-v{odd}-2", "refused"),
                (f"registry-scale-v{second}-3", "applied"),
            ]
            (reason,) = {x["reason"] for x in (await found.ask("audit"))["audit"] if x["status"] == "refused"}
            assert "elsewhere" in reason
        np.testing.assert_allclose(
            found.scored[-1].scores["scale"], 2 * np.abs(found.scored[-1].batch.values[:, 0])
        )

    run(story())


@contextlib.asynccontextmanager
async def listening(worker: Worker, secret: str = SECRET) -> AsyncIterator[str]:
    """The address of the worker's webhooks."""
    listener = bind("127.0.0.1:0")
    settings: dict[str, Any] = {"hint": worker.hint, "webhooks": Webhooks(secret)}
    async with serving(listener, worker.metrics, worker.problems, control=worker.control, **settings):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/webhooks/mlflow"


def test_a_server_delivers_its_webhook_and_the_model_is_swapped(
    tmp_path: Path, server: tuple[str, subprocess.Popen[str]]
) -> None:
    registry = Registry(server[0])
    client = mlflow.MlflowClient(tracking_uri=server[0], registry_uri=server[0])
    register(registry, 1.0, alias="champion")
    second = register(registry, 2.0)

    async def story() -> None:
        found = plant(tmp_path, registry, 86_400.0)
        await found.declare()
        async with found.running() as worker, listening(worker) as url:

            def outcome(name: str) -> float:
                labels = {"outcome": name}
                return worker.metrics.registry.get_sample_value("mmlw_webhooks_total", labels) or 0.0

            def create(secret: str) -> Any:
                settings: dict[str, Any] = {"events": ["model_version_alias.created"], "secret": secret}
                return client.create_webhook("mmlw", url, **settings)

            hook = await asyncio.to_thread(create, "not the worker's")
            await asyncio.to_thread(registry.set_alias, "scale", "champion", second)
            while not outcome("forged"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            assert await events(found) == []
            await asyncio.to_thread(client.delete_webhook, hook.webhook_id)
            hook = await asyncio.to_thread(create, SECRET)
            tried = await asyncio.to_thread(client.test_webhook, hook.webhook_id)
            assert (tried.success, tried.response_status, outcome("unknown")) == (False, 404, 1)
            assert "the signature is right" in tried.response_body
            await asyncio.to_thread(registry.set_alias, "scale", "champion", second)
            await until(found, second)
            assert outcome("woken") == 1
            assert await events(found) == [(f"registry-scale-v{second}-1", "applied")]
            assert found.value("mmlw_registry_events_total", detector="scale", way="webhook") == 1

    run(story())


def test_a_webhook_that_never_came_and_a_server_that_stands_still_are_healed_by_the_poll(
    tmp_path: Path, server: tuple[str, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, process = server
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = Registry(uri)
    versions = [register(registry, factor) for factor in (1.0, 2.0, 3.0)]
    registry.set_alias("scale", "champion", versions[0])

    async def story() -> None:
        found = plant(tmp_path, registry, 0.1)
        await found.declare()
        async with found.running() as worker:
            await asyncio.to_thread(registry.set_alias, "scale", "champion", versions[1])
            await until(found, versions[1])
            os.killpg(process.pid, signal.SIGSTOP)
            try:
                while not found.value("mmlw_registry_polls_failed_total", detector="scale"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                await found.publish(readings(10))
                await found.reached(worker, 10)
            finally:
                os.killpg(process.pid, signal.SIGCONT)
            await asyncio.to_thread(registry.set_alias, "scale", "champion", versions[2])
            await until(found, versions[2])
            assert found.value("mmlw_registry_events_total", detector="scale", way="poll") == 2
            assert [status for _, status in await events(found)] == ["applied", "applied"]

    run(story())


def test_requests_of_these_tests_are_signed_as_mlflow_does_it() -> None:
    headers = signed(event(), at=1_790_000_000, delivery="an id")
    assert list(headers) == [WEBHOOK_DELIVERY_ID_HEADER, WEBHOOK_TIMESTAMP_HEADER, WEBHOOK_SIGNATURE_HEADER]
    theirs = _generate_hmac_signature(SECRET, "an id", "1790000000", event().decode())
    assert headers[WEBHOOK_SIGNATURE_HEADER] == theirs
    moved = (WebhookEntity.MODEL_VERSION_ALIAS.value, WebhookAction.CREATED.value)
    assert moved == ours._MOVED
