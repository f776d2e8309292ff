"""A topology over files of the past: the same engine, a fresh state for every file, scores beside the input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from detectors import registry
from stream.backtest import backtest, fresh_scorer
from stream.backtesting import backtest_
from stream.cli import cli
from stream.config import load
from stream.errors import ConfigError
from stream.histories import files_below, read_history
from stream.instants import seconds
from stream.tables import read_csv
from tests.unit.test_ensemble import scorer

TOPOLOGY = """
name: pumps
source: {sensors: [pressure, flow]}
detectors:
  z: {kind: adaptive_z, warmup: 20}
alert: {close_after: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)
    rng = np.random.default_rng(0)
    for name, start in (("a/one.csv", 80), ("two.csv", 150)):
        values = rng.normal([3.0, 40.0], 0.1, (200, 2))
        values[start : start + 5] += 4.0
        times = pd.date_range("2024-05-01", periods=200, freq="min").strftime("%Y-%m-%d %H:%M:%S")
        frame = pd.DataFrame({"datetime": times, "flow": values[:, 1], "pressure": values[:, 0]})
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(path, index=False)
    return tmp_path


def command(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        backtest_, [str(folder / "topology.yaml"), "--input", str(folder / "data"), *arguments]
    )


def test_scores_are_written_beside_each_input(folder: Path) -> None:
    told = command(folder, "--scores", str(folder / "out"))
    assert told.exit_code == 0, told.output
    assert "2 files, 400 readings, 2 alerts opened" in told.output
    for name, start in (("a/one.csv", 80), ("two.csv", 150)):
        given = pd.read_csv(folder / "data" / name, dtype=str)
        found = pd.read_csv(folder / "out" / name, dtype={"timestamp": str})
        assert list(found.columns) == ["timestamp", "anomaly_score", "alert", "changepoint"]
        assert found["timestamp"].tolist() == given["datetime"].tolist()
        assert np.flatnonzero(found["alert"]).tolist() == list(range(start, start + 6))
        assert np.flatnonzero(found["changepoint"]).tolist() == [start, start + 6]
        assert found["anomaly_score"].idxmax() == start


def test_every_file_begins_with_a_fresh_state(folder: Path) -> None:
    assert command(folder, "--scores", str(folder / "both")).exit_code == 0
    (folder / "data" / "a" / "one.csv").unlink()
    assert command(folder, "--scores", str(folder / "alone")).exit_code == 0
    assert (folder / "both" / "two.csv").read_text() == (folder / "alone" / "two.csv").read_text()


def test_prefix_has_the_scores_and_alerts_of_the_whole(folder: Path) -> None:
    topology = load(folder / "topology.yaml")
    path = folder / "data" / "two.csv"
    whole = read_history(path, topology)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:156]))
    part = read_history(path, topology)

    def outcome(history: object) -> tuple[list[float], list[bool]]:
        fresh = scorer(
            sensors=topology.source.sensors, detectors=dict(topology.detectors), alert=topology.alert
        )
        found = backtest(fresh, history)  # type: ignore[arg-type]
        return found.scores[:155].tolist(), found.open[:155].tolist()

    assert outcome(part) == outcome(whole)
    assert any(outcome(part)[1])


def test_missing_values_and_other_columns_do_not_matter(folder: Path) -> None:
    path = folder / "data" / "two.csv"
    frame = pd.read_csv(path, dtype=str)
    frame.loc[3, "flow"], frame.loc[4, "pressure"] = "", "broken"
    frame.assign(operator="Jim").to_csv(path, index=False)
    history = read_history(path, load(folder / "topology.yaml"))
    assert history.values.shape == (200, 2)
    assert np.argwhere(np.isnan(history.values)).tolist() == [[3, 1], [4, 0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("time,pressure\n2024-05-01,1\n", r"two\.csv: has no column flow \(columns: pressure\)"),
        ("time,pressure,flow\n2024-05-01,1,2\nsoon,1,2\n", r'two\.csv:3: "soon" is not a time'),
        ("", "cannot be read"),
    ],
)
def test_odd_files_get_a_clear_error(folder: Path, text: str, said: str) -> None:
    path = folder / "data" / "two.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_history(path, load(folder / "topology.yaml"))


def test_dates_are_read_as_by_try_and_the_order_is_told(folder: Path) -> None:
    path = folder / "data" / "two.csv"
    frame = pd.read_csv(path)
    times = pd.date_range("2025-01-25", periods=200, freq="6h")
    frame["datetime"] = times.strftime("%m/%d/%Y %H:%M")
    frame.to_csv(path, index=False)
    history = read_history(path, load(folder / "topology.yaml"))
    assert history.times.tolist() == read_csv(path).times.tolist() == seconds(times).tolist()
    assert "dates: month first" in command(folder).output
    frame.drop(columns="datetime").assign(
        Date=times.strftime("%d.%m.%Y"), Time=times.strftime("%H:%M")
    ).to_csv(path, index=False)
    history = read_history(path, load(folder / "topology.yaml"))
    assert history.times.tolist() == seconds(times).tolist()


@pytest.mark.parametrize("cell", ["n/a", "", "broken"])
def test_sensor_without_any_number_is_named(folder: Path, cell: str) -> None:
    path = folder / "data" / "two.csv"
    pd.read_csv(path).assign(flow=cell).to_csv(path, index=False)
    told = command(folder)
    assert told.exit_code == 0, told.output
    assert 'warning: sensor "flow" has no number in 200 rows' in told.output
    assert (f'the first: "{cell}"' in told.output) == bool(cell)


def test_cells_that_are_no_numbers_are_counted(folder: Path) -> None:
    path = folder / "data" / "two.csv"
    path.write_text("time,pressure,flow\n2024-05-01,1,2\n2024-05-02,ERR,n/a\n2024-05-03,1,\n")
    history = read_history(path, load(folder / "topology.yaml"))
    assert history.notes == (
        'sensor "pressure": cells that are no numbers, taken as missing: 1 (the first: "ERR")',
        "1 rows are passed over, as live they are dead letters no_values (the first: row 2, no declared sensor has a "
        "value)",
    )


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["3,14", "2,5", "7"], [3.14, 2.5, 7.0]),
        (["1,200.5", "900.5", "1,300"], [1200.5, 900.5, 1300.0]),
        (["950", "1,200", "990"], [950.0, 1200.0, 990.0]),
        (["1.200,5", "900,5", "1.300"], [1200.5, 900.5, 1300.0]),
        (["0,125", "1,250", "-2,5"], [0.125, 1.25, -2.5]),
        (["1.5", "2.5", "2,5"], [1.5, 2.5, np.nan]),
    ],
)
def test_commas_in_numbers_are_read_as_by_try(folder: Path, cells: list[str], values: list[float]) -> None:
    path = folder / "data" / "two.csv"
    rows = "".join(f"2024-05-0{i};{cell};1\n" for i, cell in enumerate(cells, 1))
    path.write_text("time;pressure;flow\n" + rows)
    history = read_history(path, load(folder / "topology.yaml"))
    np.testing.assert_array_equal(history.values[:, 0], values)
    np.testing.assert_array_equal(read_csv(path).values[:, 0], values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; name a file"),
        (
            "time,pressure,flow\n2024-05-01,1,2\n2024-05-02,1,2,3\n",
            "line 3 has 4 cells where .* have 3; put a",
        ),
        (
            "time,pressure,flow\n2024-05-01,1,2,5\n2024-05-02,1,2,3\n",
            "rows have 4 cells where the header has 3",
        ),
        (
            'time,pressure,flow\n2024-05-01,1,2\n2024-05-02,"1,2\n',
            "quote that opens in line 3 is never closed",
        ),
    ],
)
def test_files_of_another_shape_get_a_sentence_from_try_and_backtest(
    folder: Path, text: str, said: str
) -> None:
    path = folder / "data" / "two.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_history(path, load(folder / "topology.yaml"))
    with pytest.raises(ConfigError, match=said):
        read_csv(path)


def test_nothing_to_read_gets_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no \.csv or \.parquet file"):
        files_below(tmp_path)
    with pytest.raises(ConfigError, match="no such file or folder"):
        files_below(tmp_path / "nowhere")


def test_settings_that_do_not_suit_the_sensors_are_told_together_before_the_start(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("""
name: t
source: {sensors: [a, b, c, d, e, f]}
detectors:
  plane: {kind: online_pca, half_life: 5}
  target: {river: GaussianScorer, target: nope}
  fine: {kind: adaptive_z}
""")
    told = CliRunner().invoke(cli, ["check", str(file)])
    with pytest.raises(ConfigError) as raised:
        fresh_scorer(load(file))
    problems = [f"{problem.place}: {problem.message}" for problem in raised.value.problems]
    assert problems[0] == "t: detectors.plane: half_life: 5.0 readings are too few for 6 sensors"
    assert problems[1].startswith('t: detectors.target: GaussianScorer: "nope" is not a sensor')
    assert len(problems) == 2
    assert isinstance(told.exception, ConfigError)
    assert [problem.message for problem in told.exception.problems] == [
        problem.message for problem in raised.value.problems
    ]


def test_kinds_are_listed_and_explained() -> None:
    listed = CliRunner().invoke(cli, ["detectors"]).output
    assert all(f"  {kind} " in listed for kind in [*registry.ONLINE, *registry.TRAINABLE])
    told = CliRunner().invoke(cli, ["detectors", "left_matrix_profile"]).output
    assert "Fails on noise" in told
    assert "history: 1000\n      Readings that are remembered." in told
    assert "threshold: none\n      Score from which a reading is anomalous" in told
    as_json = json.loads(CliRunner().invoke(cli, ["detectors", "mewma", "--json"]).output)
    assert as_json["settings"]["rate"][0] == "0.1"
    with pytest.raises(ConfigError, match='no detector is called "mewna"'):
        CliRunner().invoke(cli, ["detectors", "mewna"], catch_exceptions=False)


def test_command_is_part_of_mmlw() -> None:
    assert (
        "Run a topology over readings of the past" in CliRunner().invoke(cli, ["backtest", "--help"]).output
    )


def test_what_auto_chose_is_told(tmp_path: Path) -> None:
    rows = np.random.default_rng(3).normal(size=(450, 2))
    text = "\n".join(f"{pd.Timestamp(60 * i, unit='s')},{a},{b}" for i, (a, b) in enumerate(rows))
    (tmp_path / "m.csv").write_text(f"time,a,b\n{text}\n")
    (tmp_path / "t.yaml").write_text("name: t\nsource: {sensors: [a, b]}\ndetectors: auto\n")
    told = CliRunner().invoke(cli, ["backtest", str(tmp_path / "t.yaml"), "--input", str(tmp_path / "m.csv")])
    assert told.exit_code == 0, told.output
    assert "auto: knn, mewma: no reading follows from the one before (largest correlation 0." in told.output
    assert "a reading each 1 min)" in told.output
