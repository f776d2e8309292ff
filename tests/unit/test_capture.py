"""Readings and scores in Parquet: each processed reading once, wherever the worker is cut; bounded."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from stream import capture as capture_module
from stream.capture import CapturingStore
from stream.capture_files import journals, parts, prune
from stream.capture_rule import CaptureRule, Retention, Rotation
from stream.captured import capture as capture_command
from stream.checkpoint import Checkpoint
from stream.config import dump_yaml, load
from stream.errors import CheckpointError, ConfigError
from stream.instants import nanoseconds, seconds
from stream.journal import Journal, records
from stream.state import Changes, StreamPosition
from stream.topology import Topology
from tests.aio import run
from tests.plant import Plant, ScaleShelf, readings, topology


def capturing(rows: int = 100_000, *, kept: int = 5_000_000_000, **settings: Any) -> Topology:
    rule = CaptureRule(rotate=Rotation(rows=rows), keep=Retention(bytes=kept))
    return msgspec.structs.replace(topology(**settings), capture=rule)


def captured(plant: Plant) -> pd.DataFrame:
    """What pandas finds in the folder, in order."""
    frame = pd.read_parquet(plant.data / "capture" / "plant")
    return frame.sort_values(["offset", "row"], kind="stable").reset_index(drop=True)


async def lived(plant: Plant, n: int = 600, **settings: Any) -> Plant:
    await plant.declare()
    await plant.publish(readings(n, **settings))
    await plant.process(n)
    return plant


def test_capture_is_what_was_seen_and_decided(tmp_path: Path) -> None:
    plant = Plant(tmp_path, capturing())
    run(lived(plant, bad_every=50))
    found = captured(plant)
    assert list(found.columns) == [
        *("machine", "time", "offset", "row", "a", "b"),
        *("score.spike", "threshold.spike", "alert.spike", "version.spike"),
    ]
    wanted = pd.concat(
        pd.DataFrame(
            {
                "machine": scored.batch.machines,
                "seconds": scored.batch.times,
                "offset": scored.offsets,
                "a": scored.batch.values[:, 0],
                "score.spike": scored.scores["spike"],
                "threshold.spike": scored.thresholds["spike"],
            }
        )
        for scored in plant.scored
    ).reset_index(drop=True)
    assert len(found) == 588
    assert seconds(found["time"]).tolist() == wanted["seconds"].tolist()
    for name in wanted.columns.drop("seconds"):
        assert found[name].tolist() == wanted[name].tolist()
    assert found["version.spike"].unique().tolist() == ["online"]
    assert plant.value("mmlw_capture_rows_total") == 588
    assert plant.value("mmlw_capture_dropped_total") == 0
    size = sum(path.stat().st_size for path in (tmp_path / "capture" / "plant").glob("*.parquet"))
    assert plant.value("mmlw_capture_bytes_total") == size


def test_alert_column_is_true_from_opening_until_closing(tmp_path: Path) -> None:
    async def story() -> None:
        plant = await lived(Plant(tmp_path, capturing()))
        found = captured(plant)
        open_: set[str] = set()
        events = {(a.position.offset, a.event): a for a in await plant.alerts()}
        assert any(event == "closed" for _, event in events)
        for offset, machine, flag in found[["offset", "machine", "alert.spike"]].itertuples(index=False):
            if (offset, "opened") in events:
                open_.add(machine)
            if (offset, "closed") in events:
                open_.discard(machine)
            assert flag == (machine in open_), offset

    run(story())


def snapshot(data: Path, copy: Path) -> None:
    """The disk at one moment, though files are being made: a journal is removed after its file is there."""
    for pattern in (".journal-*", "*"):
        for path in data.rglob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    place = copy / path.relative_to(data)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, place)


def killed_at(plant: Plant, nth: int, *, after: bool, copy: Path, patch: pytest.MonkeyPatch) -> None:
    """Keep what is on the disk at the n-th commit with readings, as a kill would leave it."""
    commit = Checkpoint.commit
    left = nth

    def copying(self: Checkpoint, changes: Changes) -> int:
        nonlocal left
        left -= bool(changes.machines)
        if left == 0 and not after:
            left -= 1
            snapshot(plant.data, copy)
        size = commit(self, changes)
        if left == 0 and after:
            left -= 1
            snapshot(plant.data, copy)
        return size

    patch.setattr(Checkpoint, "commit", copying)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", [1, 2, 4, 7])
def test_killed_and_started_again_captures_every_reading_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int, *, after: bool
) -> None:
    async def story() -> None:
        settings = capturing(130, every=0.0)
        one = Plant(tmp_path / "one", settings)
        killed_at(one, nth, after=after, copy=tmp_path / "two", patch=monkeypatch)
        await lived(one)
        monkeypatch.undo()
        other = Plant(tmp_path / "two", settings, server=one.server)
        (waiting,) = journals(other.data / "capture" / "plant")[-1:]
        held = sum(record.rows for record in records(waiting[1]))
        await other.process(600)
        found = captured(other)
        assert found["offset"].tolist() == list(range(600))
        pd.testing.assert_frame_equal(found, captured(one))
        assert held > 0  # the record of that commit was on the disk before it

    run(story())


@pytest.mark.parametrize("torn", [1, 20, 200])
def test_a_torn_record_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: int) -> None:
    async def story() -> None:
        one = Plant(tmp_path / "one", capturing(every=0.0))
        killed_at(one, 3, after=False, copy=tmp_path / "two", patch=monkeypatch)
        await lived(one)
        monkeypatch.undo()
        ((_, path),) = journals(tmp_path / "two" / "capture" / "plant")
        os.truncate(path, path.stat().st_size - torn)
        other = Plant(tmp_path / "two", one.topology, server=one.server)
        await other.process(600)
        assert captured(other)["offset"].tolist() == list(range(600))

    run(story())


def test_killed_between_a_file_and_its_journal_shows_it_once(tmp_path: Path) -> None:
    async def story() -> None:
        plant = await lived(Plant(tmp_path, capturing()), 300)
        folder = tmp_path / "capture" / "plant"
        (part,) = parts(folder)
        await plant.publish(readings(300, seed=1))
        async with plant.running() as worker:
            await plant.reached(worker, 600)
            await made(lambda: plant.value("mmlw_capture_rows_total") == 600)
            ((number, path),) = journals(folder)
            kept = path.read_bytes()
        assert [found.number for found in parts(folder)] == [part.number, number]
        path.write_bytes(kept)
        (folder / f".part-{number:08}.tmp").write_bytes(kept[:50])
        async with plant.running():
            pass
        assert captured(plant)["offset"].tolist() == list(range(600))
        assert journals(folder) == []

    run(story())


@pytest.mark.parametrize("after", [False, True])
def test_failed_commit_captures_no_reading_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    commit, left = Checkpoint.commit, 4

    def failing(self: Checkpoint, changes: Changes) -> int:
        nonlocal left
        left -= 1
        if left == 0 and not after:
            raise CheckpointError("sabotage")
        size = commit(self, changes)
        if left == 0:
            raise CheckpointError("sabotage")
        return size

    monkeypatch.setattr(Checkpoint, "commit", failing)
    plant = Plant(tmp_path, capturing(every=0.0))
    run(lived(plant))
    assert plant.value("mmlw_restarts_total", cause="checkpoint") == 1
    assert captured(plant)["offset"].tolist() == list(range(600))


def test_full_files_are_closed_and_the_next_begun(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, capturing(100, every=0.0))
        folder = tmp_path / "capture" / "plant"
        await plant.declare()
        async with plant.running() as worker:
            for count in (1, 2, 3):
                await plant.publish(readings(120, seed=count))
                await plant.reached(worker, 120 * count)
                await made(lambda count=count: len(parts(folder)) == count)  # type: ignore[misc]
        found = parts(folder)  # closed between batches, and how large these are depends on the machine
        assert [part.first for part in found] == [0, *(part.last + 1 for part in found[:-1])]
        rows = [part.last + 1 - part.first for part in found]
        assert all(100 <= count <= 120 for count in rows), rows
        assert [part.span()[0] for part in found] == rows
        assert captured(plant)["offset"].tolist() == list(range(360))

    run(story())


async def made(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_old_rows_become_a_file_without_any_more_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        monkeypatch.setattr(capture_module, "_LOOK", 0.02)
        rule = CaptureRule(rotate=Rotation(age=0.05))
        plant = Plant(tmp_path, msgspec.structs.replace(topology(), capture=rule))
        await plant.declare()
        await plant.publish(readings(50))
        async with plant.running() as worker:
            await plant.reached(worker, 50)
            await made(lambda: sum(p.last + 1 - p.first for p in parts(tmp_path / "capture" / "plant")) == 50)

    run(story())


def test_oldest_files_go_when_there_are_too_many_or_they_are_too_old(tmp_path: Path) -> None:
    def fill(numbers: range) -> None:
        for number in numbers:
            (tmp_path / f"part-{number:08}-{number}-{number}.parquet").write_bytes(bytes(100))
            os.utime(tmp_path / f"part-{number:08}-{number}-{number}.parquet", (number, number))

    fill(range(1, 8))
    (tmp_path / "other.parquet").write_bytes(bytes(1000))
    gone = prune(tmp_path, Retention(age=1e9, bytes=350), now=10)
    assert [part.number for part in gone] == [1, 2, 3, 4]
    assert [part.number for part in parts(tmp_path)] == [5, 6, 7]
    assert [part.number for part in prune(tmp_path, Retention(age=3.5, bytes=350), now=10)] == [5, 6]
    assert (tmp_path / "other.parquet").exists()


def test_running_capture_stays_within_its_bytes(tmp_path: Path) -> None:
    plant = Plant(tmp_path, capturing(50, kept=30_000, every=0.0))

    async def story() -> None:
        await plant.declare()
        async with plant.running() as worker:
            for count in range(1, 16):
                await plant.publish(readings(60, seed=count))
                await plant.reached(worker, 60 * count)

    run(story())
    folder = tmp_path / "capture" / "plant"
    assert sum(part.bytes for part in parts(folder)) <= 30_000
    rest = captured(plant)["offset"].tolist()
    assert rest == list(range(rest[0], 900))
    assert rest[0] > 0


def test_a_file_that_is_far_from_full_does_not_take_more_than_is_kept(tmp_path: Path) -> None:
    """By its rows no file is ever full here, and its age does not matter."""
    folder = tmp_path / "capture" / "plant"

    async def story() -> None:
        plant = Plant(tmp_path, capturing(kept=100_000, every=0.0))
        await plant.declare()
        async with plant.running() as worker:
            for count in range(1, 31):
                await plant.publish(readings(64, seed=count))
                await plant.reached(worker, 64 * count)
            await made(lambda: len(parts(folder)) > 1)
            await made(lambda: sum(path.stat().st_size for path in folder.iterdir()) <= 100_000)

    run(story())


def test_full_disk_drops_and_counts_and_the_stream_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Journal.append
    failing = [False]

    def full(self: Journal, *arguments: Any) -> None:
        if failing[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, *arguments)

    monkeypatch.setattr(Journal, "append", full)

    async def story() -> None:
        plant = Plant(tmp_path, capturing(every=0.0))
        await plant.declare()
        async with plant.running() as worker:
            for count, fails in enumerate((False, True, False), start=1):
                failing[0] = fails
                await plant.publish(readings(100, seed=count))
                await plant.reached(worker, 100 * count)
                await made(
                    lambda count=count: plant.value("mmlw_messages_processed_total") == 100 * count  # type: ignore[misc]
                )
        assert plant.value("mmlw_capture_dropped_total") == 100
        assert plant.value("mmlw_capture_rows_total") == 200
        assert plant.value("mmlw_restarts_total", cause="checkpoint") == 0
        assert captured(plant)["offset"].tolist() == [*range(100), *range(200, 300)]

    run(story())


def test_file_that_cannot_be_made_waits_as_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(capture_module, "seal", failing)
        plant = Plant(tmp_path, capturing(50, every=0.0))
        run(lived(plant, 200))
        assert parts(tmp_path / "capture" / "plant") == []
        assert plant.value("mmlw_capture_dropped_total") == 0

    async def again() -> None:
        async with plant.running():
            pass

    run(again())
    assert captured(plant)["offset"].tolist() == list(range(200))


def test_swapped_model_is_told_by_its_version(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, capturing(batch_model=True), shelf=ScaleShelf())
        await plant.declare()
        async with plant.running() as worker:
            for count in range(1, 4):
                await plant.publish(readings(40, seed=count))
                await plant.reached(worker, 40 * count)
                if count == 1:
                    receipt = await plant.ask("swap", detector="scale", model="models:/scale/3")
            first = receipt["partitions"]["0"]["first_offset"]
        async with plant.running() as worker:
            await plant.publish(readings(40, seed=9))
            await plant.reached(worker, 160)
        found = captured(plant)
        assert found["version.scale"].tolist() == ["1"] * first + ["3"] * (160 - first)
        np.testing.assert_allclose(
            found["score.scale"], np.abs(found["a"]) * found["version.scale"].astype(float)
        )

    run(story())


def test_version_is_empty_where_the_model_does_not_score_the_machine(tmp_path: Path) -> None:
    async def story() -> None:
        whole = topology(batch_model=True)
        bound = msgspec.structs.replace(whole.registry_models["scale"], machines="m[12]")
        spike = msgspec.structs.replace(whole.detectors["spike"], machines=("m0",))
        wanted = msgspec.structs.replace(
            whole, detectors={"scale": bound, "spike": spike}, capture=CaptureRule()
        )
        plant = await lived(Plant(tmp_path, wanted, shelf=ScaleShelf()), 200)
        found = captured(plant)
        scored = found["machine"] != "m0"
        assert 20 < scored.sum() < 180
        for name, version, rows in (("scale", "1", scored), ("spike", "online", ~scored)):
            column = found[f"version.{name}"]
            assert set(column[rows]) == {version}
            assert column[~rows].isna().all()
            assert found[f"score.{name}"].notna().equals(rows)

    run(story())


def test_machines_of_different_detectors_that_come_by_turns_share_a_file(tmp_path: Path) -> None:
    """Batches without any machine of a bound detector had its columns in another place, and no file came of them."""

    async def story() -> None:
        spike = topology().detectors["spike"]
        bound = msgspec.structs.replace(spike, machines=("pump-*",))
        wanted = msgspec.structs.replace(capturing(), detectors={"pumps": bound, "all": spike})
        plant = Plant(tmp_path, wanted)
        await plant.declare()
        async with plant.running() as worker:
            for turn, machine in enumerate(("fan-1", "pump-1", "fan-1")):
                await plant.publish(
                    [
                        msgspec.structs.replace(
                            message,
                            routing_key=f"sensor.{machine}.readings",
                            body=message.body.replace(b"m0", machine.encode()),
                        )
                        for message in readings(50, machines=1, seed=turn)
                    ]
                )
                await plant.reached(worker, 50 * (turn + 1))
        assert [(part.first, part.last) for part in parts(tmp_path / "capture" / "plant")] == [(0, 149)]
        found = captured(plant)
        assert found["score.pumps"].notna().equals(found["machine"] == "pump-1")
        assert found["score.all"].notna().all()

    run(story())


def test_a_journal_of_which_no_file_comes_holds_up_no_other(tmp_path: Path) -> None:
    async def story() -> None:
        plant = await lived(Plant(tmp_path, capturing()), 50)
        folder = tmp_path / "capture" / "plant"
        broken = Journal(folder / ".journal-00000002")
        broken.append(b"no columns", 1, StreamPosition(50), StreamPosition(51))
        broken.close()
        async with plant.running() as worker:
            await plant.publish(readings(50, seed=3))
            await plant.reached(worker, 100)
        assert [(part.first, part.last) for part in parts(folder)] == [(0, 49), (50, 99)]
        assert plant.value("mmlw_capture_file_failures_total") > 0

    run(story())


def test_reading_begun_anew_goes_to_a_file_of_its_own(tmp_path: Path) -> None:
    async def story() -> None:
        plant = await lived(Plant(tmp_path, capturing()), 100)
        async with plant.running() as worker:
            await plant.publish(readings(50, seed=3))
            await plant.reached(worker, 150)
        plant.server.delete("mmlw.readings.plant")
        await plant.declare()
        plant.server.delete("mmlw.readings.plant")
        async with plant.running() as worker:
            await plant.publish(readings(30, seed=4))
            await plant.reached(worker, 30)
        found = [(part.first, part.last) for part in parts(tmp_path / "capture" / "plant")]
        assert found == [(0, 99), (100, 149), (0, 29)]

    run(story())


def test_two_workers_do_not_share_a_folder(tmp_path: Path) -> None:
    settings = capturing()
    first = _store(tmp_path, settings)
    with pytest.raises(ConfigError, match="another worker captures here"):
        _store(tmp_path, settings)
    first.close()
    _store(tmp_path, settings).close()


def _store(folder: Path, settings: Topology) -> CapturingStore:
    plant = Plant(folder, settings)

    class Nothing:
        def close(self) -> None:
            pass

    return CapturingStore(
        Nothing(),  # type: ignore[arg-type]
        folder / "capture",
        settings,
        plant.metrics.of("plant", ["spike"]),
    )


def test_folder_that_cannot_be_used_is_told_before_start(tmp_path: Path) -> None:
    (tmp_path / "capture").write_text("a file")
    with pytest.raises(ConfigError, match=r"plant: capture: .*capture.*: cannot be used"):
        run(Plant(tmp_path, capturing()).worker().run(asyncio.Event()))


def test_file_says_capture_and_a_sensor_of_a_column_s_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    text = "name: t\nsource: {sensors: [a, %s]}\ndetectors: {z: {kind: adaptive_z}}\n%s"
    path.write_text(text % ("b", "capture: {rotate: {rows: 500, age: 10m}, keep: {age: 30d, bytes: 5GB}}"))
    wanted = CaptureRule(rotate=Rotation(rows=500, age=600.0), keep=Retention(bytes=5_000_000_000))
    assert load(path).capture == wanted
    path.write_text(dump_yaml(load(path)))
    assert load(path).capture == wanted
    path.write_text(text % ("b", "capture: {}"))
    assert load(path).capture == CaptureRule()
    path.write_text(text % ("score.z", "capture: {}"))
    with pytest.raises(ConfigError, match=r'capture: a sensor is named "score\.z"'):
        load(path)
    path.write_text(text % ("score.z", ""))
    assert load(path).capture is None


def test_command_lists_and_exports(tmp_path: Path) -> None:
    plant = Plant(tmp_path, capturing())
    run(lived(plant, 80))

    def told(*arguments: str) -> str:
        done = CliRunner().invoke(
            capture_command, [*arguments, "--data", str(tmp_path)], catch_exceptions=False
        )
        return done.output

    listed = told("list", "plant")
    assert "part-00000001-0-79.parquet         80 rows  2024-08-07 00:00:00 to 2024-08-07 00:01:19" in listed
    for name, read in (("all.csv", pd.read_csv), ("all.parquet", pd.read_parquet)):
        assert f"{len(captured(plant))} rows" in told("export", "plant", str(tmp_path / name))
        assert read(tmp_path / name)["offset"].tolist() == captured(plant)["offset"].tolist()
    with pytest.raises(ConfigError, match="is there already"):
        told("export", "plant", str(tmp_path / "all.csv"))
    with pytest.raises(ConfigError, match="nothing was captured here"):
        told("list", "pump")


@settings(max_examples=5, deadline=None)
@given(
    st.integers(1, 90), st.lists(st.integers(1, 119), max_size=2, unique=True), st.sampled_from([0.0, 0.2])
)
def test_wherever_batches_and_lives_are_cut_the_capture_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, max_batch: int, stops: list[int], every: float
) -> None:
    async def cut(plant: Plant, stops: list[int]) -> pd.DataFrame:
        await plant.declare()
        for first, last in itertools.pairwise([0, *sorted(stops), 120]):
            await plant.publish(readings(120, bad_every=17)[first:last])
            await plant.process(last)
        return captured(plant)

    folder = tmp_path_factory.mktemp("cut")
    whole = run(cut(Plant(folder / "whole", capturing()), []))
    parted = run(cut(Plant(folder / "parted", capturing(40, max_batch=max_batch, every=every)), stops))
    pd.testing.assert_frame_equal(whole, parted)
    assert len(whole) == 113


@given(st.floats(6e8, 4e9))
def test_times_come_back_as_they_were(time: float) -> None:
    assert seconds(nanoseconds(np.array([time]))).tolist() == [time]


@given(st.lists(st.tuples(st.binary(max_size=50), st.integers(1, 9)), max_size=6), st.integers(0, 400))
def test_a_journal_cut_anywhere_gives_whole_records(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[bytes, int]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    journal, ends, at = Journal(path), [0], StreamPosition()
    for payload, rows in items:
        after = StreamPosition(at.last_offset + rows, "f")
        journal.append(payload, rows, at, after)
        at = after
        ends.append(journal.size)
    journal.close()
    os.truncate(path, min(cut, ends[-1]))
    found = list(records(path))
    assert len(found) == sum(end <= cut for end in ends[1:])
    assert [(record.payload, record.rows) for record in found] == items[: len(found)]
