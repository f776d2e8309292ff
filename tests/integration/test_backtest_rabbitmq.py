"""A backtest of what RabbitMQ's stream still holds, read beside the worker that runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner

from stream.alerts import rfc3339
from stream.backtest import backtest, fresh_scorer
from stream.brokers.rabbitmq import RabbitBroker
from stream.cli import cli
from stream.config import dump_yaml
from stream.spans import parse_span
from stream.stream_history import read_stream
from stream.topology import Topology
from tests.aio import run
from tests.plant import START, Plant, readings, topology


def test_stream_gives_the_alerts_of_live_while_the_worker_runs(rabbit_url: str, tmp_path: Path) -> None:
    settings = topology()
    plant = Plant(tmp_path, settings, connect=lambda: RabbitBroker(rabbit_url))
    alerts: list[Any] = []

    async def story() -> None:
        async with plant.running() as worker, RabbitBroker(rabbit_url, name="machine") as machine:
            await machine.publish(readings(1000))
            await plant.reached(worker, 1000)
            before = plant.value("mmlw_messages_received_total")
            async with RabbitBroker(rabbit_url, name="reader") as reader:
                for span, count in (("..", 1000), ("100..400", 300), (f"..{rfc3339(START + 50)}", 50)):
                    assert len(await read_stream(reader, settings, parse_span(span))) == count
                history = await read_stream(reader, settings, parse_span(".."))
            assert plant.value("mmlw_messages_received_total") == before
            await machine.publish(readings(10, seed=1))
            await plant.reached(worker, 1010)
        outcome = backtest(fresh_scorer(settings), history)
        alerts.extend(alert for scored in plant.scored for alert in scored.alerts)
        told = [alert for alert in alerts if alert.position.offset < 1000]
        assert outcome.alerts == told
        assert len(told) > 10

    run(story())
    recent(rabbit_url, tmp_path, settings, sum(alert.event == "opened" for alert in alerts))


def recent(url: str, folder: Path, settings: Topology, opened: int) -> None:
    """The command finds by time of arrival: readings of long ago came just now."""
    source = msgspec.structs.replace(settings.source, max_ahead=0.0)
    (folder / "plant.yaml").write_text(dump_yaml(msgspec.structs.replace(settings, source=source)))
    for span, said in (
        ("..", f"1 file, 1,010 readings, {opened} alerts opened"),
        (f"{datetime.now(UTC):%Y}-01-01T00:00:00Z..", "1 file, 0 readings, 0 alerts opened"),
    ):
        arguments = ["backtest", str(folder / "plant.yaml"), "--stream", span, "--broker", url]
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert said in done.output
