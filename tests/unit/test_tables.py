"""CSV files as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stream.brokers.base import Delivery
from stream.errors import ConfigError
from stream.instants import seconds
from stream.publisher import messages
from stream.readings import Decoder
from stream.tables import Table, from_dataset, read_csv
from stream.topology import Sensor, Source


def table(tmp_path: Path, text: str) -> Table:
    (tmp_path / "plant.csv").write_text(text, encoding="utf-8")
    return read_csv(tmp_path / "plant.csv")


def test_european_file_is_read(tmp_path: Path) -> None:
    rows = "".join(f"31.12.2025 10:0{i};3,1{i};P1\n" for i in range(10))
    found = table(tmp_path, "Zeit;Druck;Maschine\n" + rows)
    assert found.sensors == ("Druck",)
    assert set(found.machines) == {"P1"}
    assert found.values[4, 0] == 3.14
    assert found.times[0] == 1767175200.0


@pytest.mark.parametrize(
    ("column", "first"),
    [("1767175200", 1767175200.0), ("1767175200000", 1767175200.0), ("2025-12-31T10:00:00Z", 1767175200.0)],
)
def test_times_in_every_common_form(tmp_path: Path, column: str, first: float) -> None:
    assert table(tmp_path, f"ts,a\n{column},1\n{column},2\n").times[0] == first


def test_file_without_time_is_numbered_by_seconds(tmp_path: Path) -> None:
    found = table(tmp_path, "a\n1\n2\n")
    assert np.diff(found.times).tolist() == [1.0]
    assert any("none found" in note for note in found.notes)


def test_missing_values_stay_missing_and_labels_are_kept_apart(tmp_path: Path) -> None:
    found = table(tmp_path, "time,a,b,anomaly\n2026-01-01,1,,0\n2026-01-02,,2,1\n2026-01-03,3,4,0\n")
    assert found.sensors == ("a", "b")
    np.testing.assert_array_equal(found.values, [[1, np.nan], [np.nan, 2], [3, 4]])
    assert found.labels is not None
    assert found.labels.tolist() == [False, True, False]


def test_unknown_data_set_is_one_clear_problem() -> None:
    with pytest.raises(ConfigError, match='Did you mean "shuttle"'):
        from_dataset("shutle")


@pytest.mark.parametrize("machine", ["pump/1", "pump 2", "hall.3.pump", "Pümpe #4"])
@pytest.mark.parametrize("rows", [1, 2])
def test_what_we_publish_we_can_read_whatever_the_machine_is_called(machine: str, rows: int) -> None:
    values = np.array([[1.0, np.nan], [2.0, 3.0]])
    readings = Table("t", ("a", "line/2 b"), [machine] * 2, np.array([1.7e9, 1.7e9 + 1]), values, None)
    decoder = Decoder(Source(sensors=(Sensor("a"), Sensor("line/2 b"))), lambda: 1.8e9)
    deliveries = [
        Delivery(body=m.body, exchange="", routing_key=m.routing_key, offset=i, tag=i, received=0.0)
        for i, m in enumerate(messages(readings, "mmlw.sensors", rows=rows))
    ]
    batch, rejected = decoder.decode(deliveries)
    assert not rejected
    assert batch.machines == [machine] * 2
    np.testing.assert_array_equal(batch.values, values)


def test_long_table_becomes_one_column_a_sensor(tmp_path: Path) -> None:
    rows = "".join(f"2026-01-01T00:00:0{i},{s},{i}\n" for i in range(5) for s in ("p", "q"))
    found = table(tmp_path, "time,tag,value\n" + rows)
    assert found.sensors == ("p", "q")
    assert found.values.tolist() == [[float(i), float(i)] for i in range(5)]


def test_file_without_a_header_keeps_its_first_row(tmp_path: Path) -> None:
    found = table(tmp_path, "1,2\n3,4\n5,6\n")
    assert found.values.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_text_that_is_always_the_same_names_no_machine(tmp_path: Path) -> None:
    found = table(tmp_path, "time,state,a\n" + "".join(f"2026-01-0{i},on,{i}\n" for i in range(1, 9)))
    assert set(found.machines) == {"plant"}


def test_windows_text_is_read_and_bad_cells_are_counted(tmp_path: Path) -> None:
    (tmp_path / "plant.csv").write_bytes(
        "time;Öl\n2026-01-01;1,5\n2026-01-02;ERR\n2026-01-03;2\n".encode("cp1252")
    )
    found = read_csv(tmp_path / "plant.csv")
    assert found.sensors == ("Öl",)
    assert any("taken as missing: 1" in note for note in found.notes)


@pytest.mark.parametrize("separator", ["/", ".", "-"])
@pytest.mark.parametrize(("order", "said"), [("%d/%m/%Y", "day first"), ("%m/%d/%Y", "month first")])
@pytest.mark.parametrize("rows", [8, 20, 200])
def test_dates_of_a_column_have_one_order(
    tmp_path: Path, separator: str, order: str, said: str, rows: int
) -> None:
    start = "2025-01-31" if rows == 8 else "2025-01-05"
    times = pd.date_range(start, periods=rows, freq="6h")
    stamps = times.strftime(order.replace("/", separator) + " %H:%M")
    found = table(tmp_path, "time,a\n" + "".join(f"{stamp},{i}\n" for i, stamp in enumerate(stamps)))
    if rows == 20:  # 5 to 9 January: either order fits
        said = "day first"
    assert any(note.startswith(f"dates: {said}") for note in found.notes), found.notes
    if rows != 20:
        assert found.times.tolist() == seconds(times).tolist()
        assert found.values[:, 0].tolist() == list(range(rows))


@pytest.mark.parametrize("reverse", [False, True])
def test_order_of_dates_without_a_number_above_12_is_the_smoother_one(tmp_path: Path, reverse: bool) -> None:
    whole = pd.date_range("2025-01-01", periods=100, freq="D")
    stamps = [t.strftime("%m/%d/%Y") for t in whole if t.day <= 12]
    rows = [f"{stamp},1\n" for stamp in (stamps[::-1] if reverse else stamps)]
    found = table(tmp_path, "time,a\n" + "".join(rows))
    assert any(note.startswith("dates: month first") for note in found.notes)
    assert found.times[-1] == pd.Timestamp("2025-04-10", tz="UTC").timestamp()


def test_dates_that_contradict_each_other_name_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'plant\.csv:4: "05/13/2025" has the month first.*line 2 the day'):
        table(tmp_path, "time,a\n13/05/2025,1\n01/02/2025,2\n05/13/2025,3\n")


def test_year_first_needs_no_note(tmp_path: Path) -> None:
    found = table(tmp_path, "time,a\n2025/02/03 10:00,1\n2025/02/04 10:00,2\n")
    assert found.times[0] == pd.Timestamp("2025-02-03T10:00Z").timestamp()
    assert not any(note.startswith("dates") for note in found.notes)


@pytest.mark.parametrize(("date", "clock"), [("2025-01-31", "10:0{}:00"), ("31/01/2025", "10.0{}.00")])
def test_date_and_time_of_day_in_two_columns_are_one_time(tmp_path: Path, date: str, clock: str) -> None:
    rows = "".join(f"{date},{clock.format(i)},{i}.5\n" for i in range(10))
    found = table(tmp_path, "Date,Time,Temp\n" + rows)
    assert found.sensors == ("Temp",)
    assert set(found.machines) == {"plant"}
    assert found.times[3] == pd.Timestamp("2025-01-31T10:03Z").timestamp()
    assert 'time: columns "Date" and "Time" together' in found.notes


def of_two(tmp_path: Path, name: str, cells: tuple[str, str], rows: int = 40) -> Table:
    body = "".join(f"2026-01-01T00:00:{i:02},{cells[i % 2]},{i}\n" for i in range(rows))
    return table(tmp_path, f"time,{name},a\n{body}")


@pytest.mark.parametrize("name", ["machine", "Asset ID", "equipment", "pump-id", "site", "pump", "line"])
def test_texts_that_name_machines_are_taken(tmp_path: Path, name: str) -> None:
    assert set(of_two(tmp_path, name, ("P1", "P2")).machines) == {"P1", "P2"}


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("state", ("P1", "P2")),
        ("Pump Status", ("filling", "draining")),
        ("operating_mode", ("a", "b")),
        ("comment", ("x", "y")),
        ("valve", ("ON", "OFF")),
        ("shift", ("06:00", "14:00")),
        ("installed", ("13/05/2025", "05/13/2025")),
    ],
)
def test_texts_that_name_no_machine_are_left_out_with_a_note(
    tmp_path: Path, name: str, cells: tuple[str, str]
) -> None:
    found = of_two(tmp_path, name, cells)
    assert set(found.machines) == {"plant"}
    assert f"left out (not numbers): {name}" in found.notes
    assert any(f'if one of {name} names machines, call it "machine"' in note for note in found.notes)


def test_texts_of_too_many_values_name_no_machine(tmp_path: Path) -> None:
    assert set(of_two(tmp_path, "site", ("P1", "P2"), rows=19).machines) == {"plant"}
    assert set(of_two(tmp_path, "site", ("P1", "P2"), rows=20).machines) == {"P1", "P2"}
