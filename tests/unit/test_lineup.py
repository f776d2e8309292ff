"""`mmlw models compare`, `shadow` and `promote` on the command line, to a worker on the embedded broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from stream.cli import cli
from stream.gates import PromoteWhen
from stream.lineup import comparison_rows
from tests.aio import run
from tests.plant import Plant, ScaleShelf, readings, topology


class Connect:
    """Stands in for a connection: commands go to the plant's own loop."""

    user = "operator"

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        yield None


def plant(folder: Path) -> Plant:
    declared = topology(batch_model=True)
    spec = msgspec.structs.replace(
        declared.registry_models["scale"], promote_when=PromoteWhen(readings=100, agreement=">= 0.999")
    )
    detectors = {**declared.detectors, "scale": spec}
    return Plant(folder, msgspec.structs.replace(declared, detectors=detectors), shelf=ScaleShelf())


def test_a_shadow_is_started_compared_and_promoted_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, connect = plant(tmp_path), Connect()
    loops: list[asyncio.AbstractEventLoop] = []
    for place in ("stream.lineup.connector", "stream.steering.connector"):
        monkeypatch.setattr(place, lambda _: connect)

    async def request(link: None, topology: str, verb: str, **given: Any) -> Any:
        del given["user"], given["timeout"]
        asked = asyncio.run_coroutine_threadsafe(found.ask(verb, **given), loops[0])
        return await asyncio.wrap_future(asked)

    monkeypatch.setattr("stream.control.request", request)

    async def command(*words: str) -> Result:
        """On a thread: a command has an event loop of its own."""
        invoke: Callable[..., Result] = CliRunner().invoke
        return await asyncio.to_thread(invoke, cli, list(words))

    async def story() -> None:
        loops.append(asyncio.get_running_loop())
        await found.declare()
        async with found.running() as worker:
            assert "no shadow runs" in (await command("models", "compare", "plant")).output
            assert (await command("shadow", "plant", "models:/scale/9")).exit_code == 0
            await found.publish(readings(150))
            await found.reached(worker, 150)
            shown = (await command("models", "compare", "plant")).output
            assert "scale: champion v1, shadow v9" in shown
            assert "agreement is 0." in shown
            figures = json.loads((await command("models", "compare", "plant", "--json")).output)
            assert (figures["scale"]["readings"], figures["scale"]["window"]["readings"]) == (150, 100)
            assert (await command("promote", "plant")).exit_code == 1
            assert (await command("promote", "plant", "--force")).exit_code == 0
            assert (await command("shadow", "plant", "--stop")).exit_code == 1
            assert (await found.ask("status"))["models"]["scale"]["version"] == "9"

    run(story())


def test_figures_stand_beside_each_other() -> None:
    side = {"champion": 3, "shadow": 4.5}
    figures: dict[str, Any] = dict.fromkeys(("readings", "agreement", "kappa", "drift", "unscored"), 1.0)
    figures |= {"alerts": side, "us_per_reading": side, "window": None}
    rows = comparison_rows(figures)
    assert rows[0] == ("readings", "1", "-")
    assert ("alerts, champion / shadow", "3 / 4.5", "-") in rows
    assert comparison_rows({**figures, "window": figures})[4][2] == "3 / 4.5"
