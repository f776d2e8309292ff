"""Predictions by message: what the stream would score next, told beforehand, and nothing is changed by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from detectors.calibration import Calibration
from stream.brokers.base import Message
from stream.brokers.memory import MemoryBroker
from stream.cli import cli
from stream.config import dump_yaml
from stream.control import request
from stream.errors import BrokerUnreachable, CommandRefused
from stream.plan import broker_plan
from stream.predicting import MOST_ROWS, Row, rows_of
from stream.rules import AlertRule, Combination
from stream.topology import Topology
from tests.aio import run
from tests.plant import Plant, ScaleShelf, readings, topology


def rows(messages: list[Message]) -> list[dict[str, Any]]:
    return [json.loads(message.body) for message in messages]


def calibrated() -> Topology:
    plain = topology(batch_model=True)
    return msgspec.structs.replace(
        plain,
        calibration=Calibration(warmup=50),
        combine=Combination(),
        alert=AlertRule(close_after=2, probability=1e-3),
    )


def test_command_waits_for_a_worker_as_long_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, waited = Plant(tmp_path, topology()), list[float]()

    async def declared() -> None:
        async with MemoryBroker(plant.server) as broker:
            await broker.declare(broker_plan(plant.topology), mode="declare")

    async def answered(broker: Any, name: str, verb: str, *, timeout: float, **settings: Any) -> Any:
        waited.append(timeout)
        return await request(broker, name, verb, timeout=0.01, **settings)

    def connector(options: Any) -> Any:
        def connect() -> MemoryBroker:
            return MemoryBroker(plant.server, user="operator")

        connect.user = "operator"  # type: ignore[attr-defined]
        return connect

    run(declared())
    monkeypatch.setattr("stream.predicting_command.connector", connector)
    monkeypatch.setattr("stream.control.request", answered)
    (tmp_path / "t.yaml").write_text(dump_yaml(plant.topology))
    (tmp_path / "may.csv").write_text("time,machine,a,b\n2024-05-01T00:00:00Z,m0,1,2\n")
    asked = ["predict", str(tmp_path / "t.yaml"), "--input", str(tmp_path / "may.csv"), "--running"]
    with pytest.raises(BrokerUnreachable, match=r"wait longer \(--timeout\)"):
        CliRunner().invoke(cli, [*asked, "--timeout", "300"], catch_exceptions=False)
    with pytest.raises(BrokerUnreachable):
        CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert waited == [300.0, 60.0]
    refused = CliRunner().invoke(cli, [*asked, "--timeout", "0"])
    assert refused.exit_code == 2
    assert "0.0 is not in the range x>0" in refused.output


@pytest.mark.parametrize("wanted", [topology(batch_model=True), calibrated()], ids=["plain", "combined"])
@pytest.mark.parametrize("resident", [1000, 2])
def test_prediction_is_what_the_stream_then_scores_and_changes_nothing(
    tmp_path: Path, wanted: Topology, resident: int
) -> None:
    source = msgspec.structs.replace(wanted.source, resident_machines=resident)
    plant = Plant(tmp_path, msgspec.structs.replace(wanted, source=source), shelf=ScaleShelf())
    past, next_ = readings(400, machines=6), readings(500, machines=6)[400:460]

    async def story() -> list[dict[str, Any]]:
        await plant.declare()
        await plant.publish(past)
        async with plant.running() as worker:
            await plant.reached(worker, 400)
            assert (await plant.ask("pause"))["status"] == "applied"
            before = await plant.ask("status")
            told = [await plant.ask("predict", rows=rows(next_)) for _ in range(2)]
            assert told[0]["predictions"] == told[1]["predictions"]
            assert told[0]["models"]["scale"]["version"] == 1
            after = await plant.ask("status")
            assert {**before, "command": 0} == {**after, "command": 0}
            assert (await plant.ask("resume"))["status"] == "applied"
            await plant.publish(next_)
            await plant.reached(worker, 460)
        found: list[dict[str, Any]] = told[0]["predictions"]
        return found

    predictions = run(story())
    live = {
        (int(offset), name): (scored.scores[name][i], scored.thresholds[name][i])
        for scored in plant.scored
        for name in scored.scores
        for i, offset in enumerate(scored.offsets)
    }
    names = {name for _, name in live}
    assert any(score > 0 for found in predictions for score in found["scores"].values())
    assert any(found["anomalous"] for found in predictions) or wanted.combine is not None
    for i, found in enumerate(predictions):
        assert (found["machine"], found["known"]) == (json.loads(next_[i].body)["machine"], True)
        assert found["scores"].keys() == names
        for name in names:
            assert (found["scores"][name], found["thresholds"][name]) == live[400 + i, name]
    shares = [found["contributions"]["spike"] for found in predictions if "spike" in found["anomalous"]]
    assert all(set(share) <= {"a", "b"} for share in shares)


def test_named_model_scores_in_place_of_the_one_that_serves(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(batch_model=True), shelf=ScaleShelf())
        await plant.declare()
        async with plant.running():
            one = {"values": {"a": 4.0, "b": None}}
            now = await plant.ask("predict", rows=[one])
            [found] = now["predictions"]
            assert (found["known"], found["scores"]["scale"]) == (False, 4.0)
            other = await plant.ask("predict", rows=[one], model="models:/scale/3")
            [found] = other["predictions"]
            assert found["scores"] == {"scale": 12.0}
            assert found["anomalous"] == ["scale"]
            assert other["models"]["scale"]["version"] == 3
            status = await plant.ask("status")
            assert (status["models"]["scale"]["version"], status["machines"]) == ("1", 0)
            cases: list[tuple[dict[str, Any], str]] = [
                ({}, 'needs "rows"'),
                ({"rows": [one] * (MOST_ROWS + 1)}, "from 1 to 1000"),
                ({"rows": [{"values": {"c": 1.0}}]}, 'row 1: "c" is not a sensor'),
                ({"rows": [{"values": {"a": 1.0}, "time": "soon"}]}, "row 1: soon is not an RFC 3339 time"),
                ({"rows": [one], "model": "models:/scale/99"}, "no such version"),
                ({"rows": [one], "model": "scale"}, "is not a model address"),
                ({"rows": [one], "model": "models:/scale/80"}, 'takes versions of "other"'),
            ]
            for body, reason in cases:
                receipt = await plant.ask("predict", **body)
                assert receipt["status"] == "refused"
                assert reason in receipt["reason"], receipt
            stranger = await plant.ask("predict", user="mallory", rows=[one])
            assert "list of operators" in stranger["reason"]

    run(story())


def test_rows_are_columns_in_the_topologys_order() -> None:
    plain = topology()
    batch = rows_of(
        [Row({"b": 2.0, "a": 1.0}, "m", 60), Row({"b": None}, time="1970-01-01T00:02:00Z")], plain, 7.0
    )
    np.testing.assert_array_equal(batch.values, [[1.0, 2.0], [np.nan, np.nan]])
    assert batch.machines == ["m", "machine-1"]
    assert batch.times.tolist() == [60.0, 120.0]
    with pytest.raises(CommandRefused, match="from 1 to"):
        rows_of([], plain, 0.0)
