"""MLflow's webhooks: who is believed to be MLflow, and what follows from what it says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from msgspec.structs import replace

from stream.clock import Clock
from stream.follow_rule import Follow
from stream.http import bind, serving
from stream.runtimes.local import Worker
from stream.webhooks import AliasMoved, WebhookRefused, Webhooks
from tests.aio import run
from tests.plant import Plant, ScaleShelf, topology

SECRET = "a sécret that both know"
NOW = 1_790_000_000.0


def event(name: str = "scale", alias: str = "champion", **changes: Any) -> bytes:
    told = {"entity": "model_version_alias", "action": "created", "timestamp": "2026-01-01T00:00:00+00:00"}
    return json.dumps({**told, "data": {"name": name, "alias": alias, "version": "2"}, **changes}).encode()


def signed(
    body: bytes, *, at: float | None = None, secret: str = SECRET, delivery: str | None = None
) -> dict[str, str]:
    """Headers as `mlflow/webhooks/delivery.py` makes them (a test holds this against it)."""
    delivery, sent = delivery or str(uuid.uuid4()), str(int(time.time() if at is None else at))
    mac = hmac.new(secret.encode(), f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    return {
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": sent,
        "X-MLflow-Signature": f"v1,{base64.b64encode(mac).decode()}",
    }


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_what_mlflow_signed_is_taken_within_five_minutes() -> None:
    clock = Clock(lambda: NOW, lambda: 0.0)
    for age in (-300, -1, 0, 299, 300):
        headers = lower(signed(event(), at=NOW - age))
        assert Webhooks(SECRET, clock).check(headers, event()) == AliasMoved("scale", "champion")
    other = event(entity="model_version", action="created")
    assert Webhooks(SECRET, clock).check(lower(signed(other, at=NOW)), other) is None
    gone = event(action="deleted")
    assert Webhooks(SECRET, clock).check(lower(signed(gone, at=NOW)), gone) is None


def test_deliveries_are_remembered_as_long_as_they_could_be_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.webhooks._REMEMBERED", 100)
    now = [NOW]
    webhooks = Webhooks(SECRET, Clock(lambda: now[0], lambda: 0.0))
    first = lower(signed(event(), at=NOW))
    webhooks.check(first, event())
    for moment in (0.0, 299.0, 300.0, 301.0):
        now[0] = NOW + moment
        with pytest.raises(WebhookRefused) as caught:
            webhooks.check(first, event())
        assert caught.value.outcome == ("repeated" if moment <= 300 else "stale")
    for _ in range(1000):
        webhooks.check(lower(signed(event(), at=now[0])), event())
    assert len(webhooks._taken) == 100


def test_after_a_restart_a_replay_is_a_hint_once_more_and_only_within_five_minutes() -> None:
    headers = lower(signed(event(), at=NOW))
    Webhooks(SECRET, Clock(lambda: NOW, lambda: 0.0)).check(headers, event())
    again = Webhooks(SECRET, Clock(lambda: NOW + 300, lambda: 0.0))
    assert again.check(headers, event()) == AliasMoved("scale", "champion")
    with pytest.raises(WebhookRefused, match="more than 300 s ago"):
        Webhooks(SECRET, Clock(lambda: NOW + 301, lambda: 0.0)).check(headers, event())


Build = Callable[[], tuple[dict[str, str], bytes]]


def forged(**changes: str | None) -> Build:
    """A right request with some headers changed, or left out."""

    def build() -> tuple[dict[str, str], bytes]:
        headers = signed(event())
        for name, value in changes.items():
            header = f"X-MLflow-{name.replace('_', '-')}"
            headers.pop(header)
            if value is not None:
                headers[header] = value
        return headers, event()

    return build


def later() -> tuple[dict[str, str], bytes]:
    """A right request, replayed under a newer time."""
    headers = signed(event(), at=time.time() - 100)
    return {**headers, "X-MLflow-Timestamp": str(int(time.time()))}, event()


def sent(body: bytes, *, ago: float = 0.0, **settings: Any) -> Build:
    return lambda: (signed(body, **({"at": time.time() - ago} | settings)), body)


def of(signature_of: bytes, body: bytes) -> Build:
    return lambda: (signed(signature_of), body)


BAD: dict[str, tuple[Build, int, str]] = {
    "no headers": (lambda: ({}, event()), 401, "forged"),
    "no signature": (forged(Signature=None), 401, "forged"),
    "an empty signature": (forged(Signature=""), 401, "forged"),
    "only a version": (forged(Signature="v1,"), 401, "forged"),
    "a signature that is no base64": (forged(Signature="v1,\xff\xfe"), 401, "forged"),
    "a huge signature": (forged(Signature="v1," + "A" * 10_000), 401, "forged"),
    "another secret": (sent(event(), secret="guess"), 401, "forged"),
    "an empty secret": (sent(event(), secret=""), 401, "forged"),
    "another body": (of(event(), event("scale", "challenger")), 401, "forged"),
    "a body with a blank more": (of(event(), event() + b" "), 401, "forged"),
    "another delivery": (forged(Delivery_Id="other"), 401, "forged"),
    "no delivery": (forged(Delivery_Id=None), 401, "forged"),
    "another time": (later, 401, "forged"),
    "no time": (forged(Timestamp=None), 401, "forged"),
    "a long delivery": (sent(event(), delivery="d" * 201), 401, "forged"),
    "an old time": (sent(event(), ago=400), 401, "stale"),
    "a time far ahead": (sent(event(), ago=-1000), 401, "stale"),
    "a time before 1970": (sent(event(), at=-5), 401, "stale"),
    "a time without end": (sent(event(), at=10**200), 401, "stale"),
    "a body too large": (sent(event(note="x" * 70_000)), 413, "too_large"),
    "no JSON": (sent(b"{"), 400, "malformed"),
    "JSON without end": (sent(b"[" * 60_000), 400, "malformed"),
    "no event": (sent(b"[]"), 400, "malformed"),
    "no data": (sent(event(data=None)), 400, "malformed"),
    "an alias that is no text": (sent(event(data={"name": "scale", "alias": 5})), 400, "malformed"),
    "an unknown model": (sent(event("example_model", "champion")), 404, "unknown"),
    "an unknown alias": (sent(event("scale", "challenger")), 404, "unknown"),
}


@dataclass
class Shelf(ScaleShelf):
    looks: int = 0

    def meaning(self, name: str, alias: str) -> Any:
        self.looks += 1
        return super().meaning(name, alias)


@dataclass
class Site:
    plant: Plant
    worker: Worker
    port: int

    async def post(self, headers: dict[str, str], body: bytes, method: str = "POST") -> tuple[int, str]:
        def ask() -> tuple[int, str]:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as line:
                line.request(method, "/webhooks/mlflow", body, headers)
                answer = line.getresponse()
                return answer.status, answer.read().decode()

        return await asyncio.to_thread(ask)

    def outcome(self, outcome: str) -> float:
        labels = {"outcome": outcome}
        return self.plant.metrics.registry.get_sample_value("mmlw_webhooks_total", labels) or 0.0

    async def looked(self, looks: int) -> None:
        while self.plant.shelf.looks < looks:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def site(folder: Path, secret: str | None = SECRET) -> AsyncIterator[Site]:
    plan = topology(batch_model=True)
    spec = replace(plan.registry_models["scale"], follow=Follow(poll=86_400.0))
    plan = replace(plan, detectors={**plan.detectors, "scale": spec})
    plant = Plant(folder, plan, shelf=Shelf())
    await plant.declare()
    async with plant.running() as worker:
        listener = bind("127.0.0.1:0")
        webhooks = None if secret is None else Webhooks(secret)
        settings: dict[str, Any] = {"control": worker.control, "hint": worker.hint, "webhooks": webhooks}
        async with serving(listener, worker.metrics, worker.problems, **settings):
            found = Site(plant, worker, listener.getsockname()[1])
            await found.looked(1)
            yield found


def test_every_forged_replayed_or_oversized_webhook_is_refused_and_counted(tmp_path: Path) -> None:
    async def story() -> int:
        async with site(tmp_path) as found:
            refused = 0
            with structlog.testing.capture_logs() as lines:
                for name, (build, status, outcome) in BAD.items():
                    before = found.outcome(outcome)
                    answer = await found.post(*build())
                    assert answer[0] == status, (name, answer)
                    refused += found.outcome(outcome) == before + 1
                headers = signed(event())
                assert (await found.post(headers, event()))[0] == 202
                await found.looked(2)
                for _ in range(3):
                    assert (await found.post(headers, event()))[0] == 409
            assert found.outcome("repeated") == 3
            assert (await found.post({}, b"", "GET"))[0] == 405
            assert found.plant.shelf.looks == 2, "one at the start, one for the one that was right"
            audit = (await found.plant.ask("audit"))["audit"]
            assert [line for line in audit if line["by"] != "operator"] == []
            assert SECRET not in str(lines)
            return refused

    refused = run(story())
    print(f"{refused} of {len(BAD)} refused, and 3 of 3 replays")
    assert refused == len(BAD)


def test_a_webhook_of_the_alias_brings_the_swap_and_another_event_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with site(tmp_path) as found:
            other = event(entity="registered_model")
            assert await found.post(signed(other), other) == (200, '{"woken":[]}')
            found.plant.shelf.alias = 2
            assert await found.post(signed(event()), event()) == (202, '{"woken":["plant"]}')
            while (await found.plant.ask("status"))["models"]["scale"]["version"] != "2":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert (found.outcome("woken"), found.outcome("ignored")) == (1, 1)
            assert found.plant.value("mmlw_registry_events_total", detector="scale", way="webhook") == 1

    run(story())


def test_without_a_secret_no_webhook_is_taken(tmp_path: Path) -> None:
    async def story() -> None:
        async with site(tmp_path, secret=None) as found:
            for secret in ("", "None", SECRET):
                status, said = await found.post(signed(event(), secret=secret), event())
                assert status == 403
                assert "--webhook-secret-file" in said
            assert (found.outcome("no_secret"), found.plant.shelf.looks) == (3, 1)

    run(story())
