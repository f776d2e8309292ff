"""`mmlw checkpoint show | export | import | reset`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stream.checkpoint import Checkpoint
from stream.cli import cli
from stream.errors import CheckpointError
from stream.scorer import Scorer
from tests.aio import run
from tests.plant import Plant, ScaleShelf, readings, topology


def mmlw(plant: Plant, *arguments: str, text: str | None = None) -> Result:
    found = CliRunner().invoke(cli, ["checkpoint", *arguments, "--data", str(plant.data)], input=text)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """A plant that has processed 300 messages and stopped."""
    plant = Plant(tmp_path / "data", topology(batch_model=True), shelf=ScaleShelf())

    async def story() -> None:
        await plant.declare()
        await plant.publish(readings(300, bad_every=50))
        async with plant.running() as worker:
            await plant.reached(worker, 300)
            await plant.ask("swap", model="models:/scale/2")

    run(story())
    return plant


async def more(plant: Plant, n: int, seed: int, until: int) -> None:
    await plant.publish(readings(n, seed=seed))
    await plant.process(until)


def test_show_tells_what_a_topology_knows(plant: Plant) -> None:
    told = json.loads(mmlw(plant, "show", "plant", "--json").stdout)
    assert (told["next_message"], told["machines"], told["worker"]) == (300, 3, "stopped in order")
    assert told["models"]["scale"]["current"].startswith("scale version 2, sha256:")
    assert told["models"]["scale"]["previous"].startswith("scale version 1, sha256:")
    assert told["commands_carried_out"] == 1
    text = mmlw(plant, "show", "plant").stdout
    assert "next message" in text
    assert "scale version 2" in text


def test_show_tells_the_state_of_a_machine_and_the_audit(plant: Plant) -> None:
    state = json.loads(mmlw(plant, "show", "plant", "--machine", "m1", "--json").stdout)["state"]
    assert {"model:spike", "alert:spike", "recent"} <= set(state)
    [line] = json.loads(mmlw(plant, "show", "plant", "--audit", "--json").stdout)["audit"]
    assert (line["verb"], line["status"], line["by"]) == ("swap", "applied", "operator")
    with pytest.raises(CheckpointError, match='knows no machine "m9"'):
        mmlw(plant, "show", "plant", "--machine", "m9")


def test_show_and_export_work_while_the_worker_runs(plant: Plant, tmp_path: Path) -> None:
    async def story() -> None:
        async with plant.running():
            told = json.loads(mmlw(plant, "show", "plant", "--json").stdout)
            assert told["worker"] == "runs"
            assert "verified" in mmlw(plant, "export", "plant", str(tmp_path / "copy")).stdout
            with pytest.raises(CheckpointError, match="stop it first"):
                mmlw(plant, "import", "plant", str(tmp_path / "copy"))
            with pytest.raises(CheckpointError, match="stop it first"):
                mmlw(plant, "reset", "plant", "--yes")

    run(story())


def test_copy_that_is_put_back_goes_on_where_it_stood_with_the_same_alerts(
    plant: Plant, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    mmlw(plant, "export", "plant", str(copy))
    run(more(plant, 200, 1, 500))
    alerts = run(plant.alerts())
    said = mmlw(plant, "import", "plant", str(copy)).stdout
    assert "reading goes on at 300" in said
    assert "is kept as" in said
    plant.scored.clear()
    run(plant.process(500))
    assert sum(len(scored.batch) for scored in plant.scored) >= 200
    assert run(plant.alerts()) == alerts


def test_older_copy_put_there_by_hand_is_refused(plant: Plant, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    mmlw(plant, "export", "plant", str(copy))
    run(more(plant, 200, 1, 500))
    (plant.data / "plant.checkpoint").write_bytes(copy.read_bytes())
    with pytest.raises(CheckpointError, match="older copy"):
        Checkpoint(plant.data / "plant.checkpoint", "plant", Scorer.recipes(plant.topology))


def test_damaged_or_foreign_copy_is_not_put_in_place(plant: Plant, tmp_path: Path) -> None:
    before = (plant.data / "plant.checkpoint").read_bytes()
    copy = tmp_path / "copy"
    mmlw(plant, "export", "plant", str(copy))
    data = bytearray(copy.read_bytes())
    place = data.index(b"sha256:")
    data[place + 20] ^= 1
    copy.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="copy: is damaged"):
        mmlw(plant, "import", "plant", str(copy))
    copy.write_bytes(b"no database at all" * 300)
    with pytest.raises(CheckpointError, match="not a database"):
        mmlw(plant, "import", "plant", str(copy))
    assert (plant.data / "plant.checkpoint").read_bytes() == before
    mmlw(plant, "export", "plant", str(copy), "--force")
    with pytest.raises(CheckpointError, match='belongs to the topology "plant"'):
        mmlw(plant, "import", "other", str(copy))


def test_reset_starts_over_and_keeps_the_old_one(plant: Plant) -> None:
    alerts = run(plant.alerts())
    told = mmlw(plant, "reset", "plant", "--yes").stdout
    assert "is kept as" in told
    assert "a stream is read from its oldest message, a queue from what it still holds" in told
    assert not (plant.data / "plant.checkpoint").exists()
    assert len(list(plant.data.glob("plant.checkpoint.*"))) == 1
    run(plant.process(300))
    again = [alert for alert in run(plant.alerts()) if alert.detector == "spike"]
    assert again == [alert for alert in alerts if alert.detector == "spike"]


def test_reset_can_keep_the_state(plant: Plant) -> None:
    mmlw(plant, "reset", "plant", "--keep-state", "--yes")
    told = json.loads(mmlw(plant, "show", "plant", "--json").stdout)
    assert (told["next_message"], told["machines"]) == (0, 3)
    mmlw(plant, "reset", "plant", "--keep-state", "--yes")
    first, _ = sorted(plant.data.glob("plant.checkpoint.*"), key=lambda kept: kept.name)
    mmlw(plant, "import", "plant", str(first))
    told = json.loads(mmlw(plant, "show", "plant", "--json").stdout)
    assert told["next_message"] == 300, "the second reset left the copy of the first alone"


def test_reset_asks_first(plant: Plant) -> None:
    with pytest.raises(CheckpointError, match="say --yes"):
        mmlw(plant, "reset", "plant")


def test_checkpoint_that_is_not_there_is_one_clear_line(plant: Plant) -> None:
    with pytest.raises(CheckpointError, match=r"no such checkpoint \(in .*: plant\)"):
        mmlw(plant, "show", "shuttle")


def test_export_leaves_the_last_good_copy_where_the_checkpoint_is_damaged(
    plant: Plant, tmp_path: Path
) -> None:
    copy, checkpoint = tmp_path / "copy", plant.data / "plant.checkpoint"
    mmlw(plant, "export", "plant", str(copy))
    good = copy.read_bytes()
    whole = checkpoint.read_bytes()
    middle = len(whole) // 2
    flipped = bytes(byte ^ 0xFF for byte in whole[middle : middle + 4096])
    for damaged in (whole[:100], whole[:middle] + flipped + whole[middle + 4096 :]):
        checkpoint.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(checkpoint))):
            mmlw(plant, "export", "plant", str(copy), "--force")
        assert copy.read_bytes() == good
        with pytest.raises(CheckpointError):
            mmlw(plant, "export", "plant", str(tmp_path / "other"))
        assert not (tmp_path / "other").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_export_does_not_overwrite_the_checkpoint_itself(plant: Plant) -> None:
    checkpoint = plant.data / "plant.checkpoint"
    whole = checkpoint.read_bytes()
    for end in ("", "-wal"):
        with pytest.raises(CheckpointError, match="is the checkpoint itself"):
            mmlw(plant, "export", "plant", f"{checkpoint}{end}", "--force")
    assert checkpoint.read_bytes() == whole


def older(plant: Plant, tmp_path: Path) -> Path:
    """The plant's checkpoint, in place of which an older one was put by hand."""
    copy, checkpoint = tmp_path / "older", plant.data / "plant.checkpoint"
    mmlw(plant, "export", "plant", str(copy))
    run(more(plant, 200, 1, 500))
    checkpoint.write_bytes(copy.read_bytes())
    return checkpoint


def test_checkpoint_that_lost_commits_is_not_exported(plant: Plant, tmp_path: Path) -> None:
    checkpoint = older(plant, tmp_path)
    with pytest.raises(CheckpointError) as running:
        Checkpoint(checkpoint, "plant", Scorer.recipes(plant.topology))
    with pytest.raises(CheckpointError, match="older copy") as exporting:
        mmlw(plant, "export", "plant", str(tmp_path / "copy"))
    assert str(exporting.value) == str(running.value)
    assert not (tmp_path / "copy").exists()


def test_checkpoint_without_its_witness_is_not_exported(plant: Plant, tmp_path: Path) -> None:
    checkpoint = plant.data / "plant.checkpoint"
    checkpoint.with_suffix(".lock").unlink()
    with pytest.raises(CheckpointError, match=r"plant\.lock, .* is missing .* mmlw checkpoint import plant"):
        mmlw(plant, "export", "plant", str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def test_checkpoint_that_lost_commits_is_shown_and_that_is_said_first(plant: Plant, tmp_path: Path) -> None:
    checkpoint = older(plant, tmp_path)
    arguments = ["checkpoint", "show", "plant", "--data", str(plant.data)]
    found = CliRunner().invoke(cli, arguments)
    assert found.exit_code == 2
    assert found.stdout.startswith(f"a worker refuses it: {checkpoint}: holds commit ")
    assert "next message" in found.stdout
    assert "stopped in order" not in found.stdout
    found = CliRunner().invoke(cli, [*arguments, "--json"])
    assert found.exit_code == 2
    told = json.loads(found.stdout)
    assert "older copy" in told["refused"]
    assert (told["next_message"], told["worker"]) == (300, "unknown")
    found = CliRunner().invoke(cli, [*arguments, "--audit"])
    assert found.stdout.startswith("a worker refuses it: ")
