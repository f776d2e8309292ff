"""Backtests over captures, tables of many machines and streams, against labels, and beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from detectors.quality import vus_pr
from stream import backtesting
from stream.alerts import Alert
from stream.backtest import backtest, fresh_scorer, whole_rows
from stream.backtesting import backtest_
from stream.brokers.base import Message
from stream.brokers.memory import MemoryBroker
from stream.candidates import candidates
from stream.capture_rule import CaptureRule, Rotation
from stream.config import dump_yaml
from stream.errors import ConfigError, Stalled
from stream.histories import History, pasts_below, read_history, read_past
from stream.labels import read_labels
from stream.rules import AlertRule
from stream.spans import Span, parse_span
from stream.stream_history import read_stream
from stream.topology import Source, Topology
from tests.aio import run
from tests.plant import START, Plant, ScaleShelf, readings, topology


async def live(plant: Plant, messages: Sequence[Message], *, parts: int = 3) -> list[Alert]:
    """The alerts of a worker that is stopped and started now and then."""
    await plant.declare()
    for part in np.array_split(np.arange(len(messages)), parts):
        await plant.publish([messages[i] for i in part])
        await plant.process(int(part[-1]) + 1)
    return await plant.alerts()


async def streamed(plant: Plant, span: Span = Span()) -> History:  # noqa: B008 - frozen
    async with MemoryBroker(plant.server, user="reader") as broker:
        return await read_stream(broker, plant.topology, span)


def several_rows(n: int) -> list[Message]:
    """Messages of three rows each of two machines; some cannot be used, some come twice."""
    rng = np.random.default_rng(5)
    found = []
    for i in range(n):
        values = rng.normal(size=(3, 2)) + 25.0 * (rng.random((3, 1)) < 0.03)
        body = {
            "machine": [f"m{i % 2}"] * 3,
            "time": [START + 3 * i + k + 0.123457 for k in range(3)],
            "seq": [3 * i + k for k in range(3)],
            "values": {"a": values[:, 0].tolist(), "b": values[:, 1].tolist()},
        }
        message = Message(
            exchange="mmlw.sensors", routing_key=f"sensor.m{i % 2}.x", body=json.dumps(body).encode()
        )
        found += [message, message] if i % 9 == 4 else [message]
        if i % 11 == 3:
            found.append(msgspec.structs.replace(message, body=b"{broken"))
    return found


@pytest.mark.parametrize("duplicate", ["drop", "deadletter"])
def test_stream_gives_the_alerts_of_live_with_their_ids(tmp_path: Path, duplicate: Any) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(duplicate=duplicate))
        alerts = await live(plant, several_rows(200))
        past = await streamed(plant)
        outcome = backtest(fresh_scorer(plant.topology), past)
        assert outcome.alerts == alerts
        assert len({alert.id for alert in alerts}) > 5
        assert outcome.scored.sum() == plant.value("mmlw_readings_scored_total", detector="spike") == 600
        assert len(past) > 600

    run(story())


def test_stream_of_single_sensors_is_aligned_as_live(tmp_path: Path) -> None:
    async def story() -> None:
        narrow: dict[str, Any] = {"layout": "narrow", "routing_key": "sensor.{machine}.{sensor}"}
        plant = Plant(tmp_path, topology(**narrow))
        rng = np.random.default_rng(2)
        messages = []
        for i in range(400):
            spike = 30.0 * (rng.random() < 0.03)
            for sensor in "ab":
                body = {"time": START + 2.0 * i, "value": rng.normal() + spike}
                key = f"sensor.m{i % 3}.{sensor}"
                messages.append(
                    Message(exchange="mmlw.sensors", routing_key=key, body=json.dumps(body).encode())
                )
        alerts = await live(plant, messages)
        outcome = backtest(fresh_scorer(plant.topology), await streamed(plant))
        assert outcome.alerts == alerts
        assert len(alerts) > 5

    run(story())


def test_reading_a_stream_leaves_the_worker_alone(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await plant.declare()
        sent = readings(300)
        async with plant.running() as worker:
            await plant.publish(sent[:150])
            await plant.reached(worker, 150)
            assert len(await streamed(plant)) == 150
            await plant.publish(sent[150:])
            await plant.reached(worker, 300)
        assert [n for scored in plant.scored for n in scored.offsets.tolist()] == list(range(300))
        assert plant.value("mmlw_messages_received_total") == 300

    run(story())


def test_part_of_a_stream_by_offset_and_by_time(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await plant.declare()
        await plant.publish(readings(100))
        for span, first, last in (
            ("..", 0, 99),
            ("10..20", 10, 19),
            ("90..", 90, 99),
            ("95..1000", 95, 99),
            ("2024-08-07T00:00:30Z..2024-08-07T00:00:40Z", 30, 39),
            ("..2024-08-07T00:00:05Z", 0, 4),
            ("50..2024-08-07T00:01:00", 50, 59),
        ):
            found = await streamed(plant, parse_span(span))
            assert found.order is not None
            assert found.order.offsets.tolist() == list(range(first, last + 1)), span
            assert found.times.tolist() == [START + i for i in range(first, last + 1)]
        assert len(await streamed(plant, parse_span("2030-01-01T00:00:00Z.."))) == 0

    run(story())


@pytest.mark.parametrize("text", ["10", "a..b", "2024-13-01T00:00:00Z.."])
def test_a_range_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match=r"stream: .* is no range; write FROM\.\.TO"):
        parse_span(text)


def test_an_existing_queue_has_no_history(tmp_path: Path) -> None:
    plant = Plant(tmp_path, topology(queue="theirs"))
    with pytest.raises(ConfigError, match=r'reads the queue "theirs".* keeps nothing'):
        run(streamed(plant))


class Falling(MemoryBroker):
    """Its stream shows the first of what it holds, and then nothing."""

    async def consume(self, *arguments: Any, **named: Any) -> Any:
        intake: Any = await super().consume(*arguments, **named)
        receive, left = intake.receive, [2]

        async def falling(most: int, linger: float, timeout: float) -> Any:
            left[0] -= 1
            return await receive(10, linger, timeout) if left[0] > 0 else []

        intake.receive = falling
        return intake


def test_a_stream_that_falls_silent_is_no_short_history(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await plant.declare()
        await plant.publish(readings(100))
        async with Falling(plant.server, user="reader") as broker:
            with pytest.raises(Stalled, match="nothing came after offset 9, of 100"):
                await read_stream(broker, plant.topology, Span())

    run(story())


def captured(rows: int = 70) -> Topology:
    rule = CaptureRule(rotate=Rotation(rows=rows))
    return msgspec.structs.replace(topology(every=0.0), capture=rule)


def test_capture_gives_the_alerts_of_live_with_their_ids(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, captured())
        alerts = await live(plant, several_rows(200))
        (past,) = pasts_below(tmp_path / "capture")
        assert past.place == Path("plant/plant.csv")
        assert len(past.files) > 2
        history = read_past(past, plant.topology)
        assert [note.split(":")[0] for note in history.notes] == [
            "a capture leaves out what sick sensors said"
        ]
        assert not read_past(past, msgspec.structs.replace(plant.topology, health=None)).notes
        outcome = backtest(fresh_scorer(whole_rows(plant.topology)), history)
        assert outcome.alerts == alerts
        assert len(alerts) > 5
        kept = pd.concat(pd.read_parquet(path) for path in past.files)
        assert kept["alert.spike"].tolist() == outcome.open.tolist()
        assert kept["score.spike"].tolist() == outcome.scores.tolist()

    run(story())


def table(n: int = 400, machines: int = 3) -> pd.DataFrame:
    """Rows of several machines in turn; each is wrong once, for ten rows."""
    rng = np.random.default_rng(8)
    frame = pd.DataFrame(rng.normal(size=(n * machines, 2)), columns=["a", "b"])
    frame.insert(0, "machine", [f"m{i % machines}" for i in range(len(frame))])
    frame.insert(1, "time", pd.to_datetime(START + 60.0 * (np.arange(len(frame)) // machines), unit="s"))
    number = np.arange(len(frame)) // machines
    frame["wrong"] = 0
    for m in range(machines):
        rows = (frame["machine"] == f"m{m}") & (number >= 100 + 50 * m) & (number < 110 + 50 * m)
        frame.loc[rows, ["a", "b"]] += 9.0
        frame.loc[rows, "wrong"] = 1
    return frame


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_table_of_many_machines_is_each_machine_by_itself(tmp_path: Path, ending: str) -> None:
    frame, wanted = table(), topology()
    path = tmp_path / f"all.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    history = read_history(path, wanted, label_column="wrong")
    together = backtest(fresh_scorer(wanted), history)
    assert history.labels is not None
    assert history.labels.sum() == 30
    for machine, rows in frame.groupby("machine").indices.items():
        alone = tmp_path / f"{machine}.csv"
        frame.iloc[rows].drop(columns="machine").to_csv(alone, index=False)
        found = backtest(fresh_scorer(wanted), read_history(alone, wanted))
        assert found.scores.tolist() == together.scores[rows].tolist()
        assert found.open.tolist() == together.open[rows].tolist()
        assert found.open.any()


def test_long_table_of_sensors_is_widened(tmp_path: Path) -> None:
    frame = table(50).drop(columns="wrong")
    long = frame.melt(["machine", "time"], var_name="sensor", value_name="value").sort_values(
        ["time", "machine", "sensor"], kind="stable"
    )
    frame.to_csv(tmp_path / "wide.csv", index=False)
    long.to_csv(tmp_path / "long.csv", index=False)
    wide, found = (read_history(tmp_path / f"{name}.csv", topology()) for name in ("wide", "long"))
    assert found.names == wide.names
    np.testing.assert_array_equal(found.values, wide.values)


def test_a_number_of_each_row_is_no_machine(tmp_path: Path) -> None:
    frame = table(50).drop(columns=["machine", "wrong"])
    frame.insert(0, "id", range(len(frame)))
    frame.to_csv(tmp_path / "x.csv", index=False)
    assert set(read_history(tmp_path / "x.csv", topology()).names) == {"x"}


def test_labels_in_windows_by_machine_and_in_json_by_file(tmp_path: Path) -> None:
    frame = table()
    frame.to_csv(tmp_path / "all.csv", index=False)
    history = read_history(tmp_path / "all.csv", topology(), label_column="wrong")
    wrong = frame[frame["wrong"] == 1].groupby("machine")["time"].agg(["min", "max"]).reset_index()
    wrong.columns = pd.Index(["machine", "start", "end"])
    wrong.to_csv(tmp_path / "labels.csv", index=False)
    truth, warmup = read_labels(tmp_path / "labels.csv").of(Path("all.csv"), history)
    assert truth is not None
    assert history.labels is not None
    assert truth.tolist() == history.labels.tolist()
    assert warmup == 0
    files = {
        "all.csv": {"windows": [[str(frame["time"][6]), str(frame["time"][9])]], "warmup_rows": 4},
        "other.csv": {"windows": []},
    }
    (tmp_path / "labels.json").write_text(json.dumps({"corpus": "x", "files": files}))
    known = read_labels(tmp_path / "labels.json")
    truth, warmup = known.of(Path("all.csv"), history)
    assert truth is not None
    assert np.flatnonzero(truth).tolist() == [6, 7, 8, 9]
    assert warmup == 4
    assert known.of(Path("other.csv"), history)[1] == 180
    assert known.of(Path("nobody.csv"), replace(history, labels=None))[0] is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "begin,end\n1,2\n", "cannot be read as labels"),
        ("x.csv", "start,end\n2024-05-02,2024-05-01\n", "row 2 ends before it starts"),
        ("x.json", '{"windows": []}', "cannot be read as labels"),
        ("x.json", '{"files": {"a.csv": {"windows": [["soon", "later"]]}}}', "cannot be read as labels"),
    ],
)
def test_odd_labels_get_a_clear_error(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_labels(tmp_path / name)


def command(folder: Path, *arguments: str) -> Result:
    done = CliRunner().invoke(backtest_, [str(folder / "plant.yaml"), *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table().to_csv(tmp_path / "all.csv", index=False)
    (tmp_path / "plant.yaml").write_text(dump_yaml(topology()))
    return tmp_path


def test_quality_is_told_where_labels_are_known(folder: Path) -> None:
    out = folder / "out"
    told = command(
        folder, "--input", str(folder / "all.csv"), "--label-column", "wrong", "--scores", str(out)
    ).output
    scores = pd.read_csv(out / "all.csv")
    assert list(scores.columns) == ["timestamp", "machine", "anomaly_score", "alert", "changepoint"]
    line = dict(text.rsplit(None, 1) for text in map(str.strip, told.splitlines()) if text.startswith("VUS"))
    frame = table()
    each = [
        vus_pr(rows["wrong"], scores["anomaly_score"][rows.index]) for _, rows in frame.groupby("machine")
    ]
    assert float(line["VUS-PR"]) == pytest.approx(np.mean(each), abs=6e-4)
    assert "events found  3 of 3" in " ".join(told.split()).replace("found ", "found  ")
    assert "readings/s" in told


def batch_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ScaleShelf:
    shelf = ScaleShelf()
    (folder / "plant.yaml").write_text(dump_yaml(topology(batch_model=True)))
    monkeypatch.setattr(backtesting, "shelf_of", lambda *_: shelf)
    return shelf


def test_versions_are_compared_side_by_side(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = batch_folder(folder, monkeypatch)
    out, report = folder / "out", folder / "report.html"
    told = command(
        folder,
        *("--input", str(folder / "all.csv"), "--label-column", "wrong", "--scores", str(out)),
        *("--report", str(report), "--compare", "v1", "v9"),
    ).output
    assert shelf.loaded == [1, 9]
    assert "[v1] 1 file, 1,200 readings" in told
    assert "[v9] 1 file, 1,200 readings" in told
    one, nine = (pd.read_csv(out / name / "all.csv") for name in ("v1", "v9"))
    assert one["alert"].sum() < nine["alert"].sum()
    alike = f"{(one['alert'] == nine['alert']).mean():.2%}"
    agreement = told.split("agreement:")[1]
    assert [line.split()[-1] for line in agreement.splitlines() if "rows alike" in line] == [alike]
    page = report.read_text()
    assert all(text in page for text in ("plant: v1", "plant: v9", "Against the labels", "rows alike"))


def test_one_other_runs_beside_the_topology_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = batch_folder(folder, monkeypatch)
    other = msgspec.structs.replace(topology(batch_model=True), alert=AlertRule(hold=3, close_after=2))
    (folder / "other.yaml").write_text(dump_yaml(other))
    arguments = ("--input", str(folder / "all.csv"), "--compare")
    told = command(folder, *arguments, str(folder / "other.yaml")).output
    assert "[as it is] 1 file," in told
    assert f"[{folder / 'other.yaml'}] 1 file" in told
    assert shelf.loaded == [1, 1]
    command(folder, *arguments, "scale=models:/scale/5")
    assert shelf.loaded[2:] == [1, 5]
    command(folder, *arguments, "@champion")
    assert shelf.loaded[4:] == [1, 1]


def test_a_topology_beside_itself_agrees_in_everything(folder: Path) -> None:
    told = command(folder, "--input", str(folder / "all.csv"), "--compare", str(folder / "plant.yaml")).output
    lines = dict(line.strip().split("  ", 1) for line in told.split("agreement:")[1].strip().splitlines())
    assert lines["rows alike"].strip() == "100.00%"
    shared, of = lines["alerts shared"].strip().split(" of ")
    assert shared == of != "0"
    assert lines["rank correlation of scores"].strip() == "1.000"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to read"),
        (["--input", "x", "--stream", ".."], "say what to read"),
        (["v1", "--input", "x"], 'say --compare before "v1"'),
        (["--input", "x", "--compare"], "name what to compare with"),
        (["--input", "x", "--compare", "v1"], "name one of the topology's trained detectors"),
        (["--input", "nowhere"], "no such file or folder"),
    ],
)
def test_what_cannot_be_done_is_told(folder: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        command(folder, *arguments)


def test_other_sensors_cannot_be_compared(folder: Path) -> None:
    other = msgspec.structs.replace(topology(), source=Source(sensors=("a", "c")))  # type: ignore[arg-type]
    (folder / "other.yaml").write_text(dump_yaml(other))
    with pytest.raises(ConfigError, match="has other sensors"):
        candidates(topology(), [str(folder / "other.yaml")])
