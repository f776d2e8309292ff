"""The checkpoint: all or nothing, only what changed, and never silently something else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.base import Rows
from stream.checkpoint import Checkpoint
from stream.errors import CheckpointError
from stream.state import Changes, Saved, StreamPosition

RECIPES = {"model:a": "1", "recent": "x"}


@contextmanager
def opened(path: Path, recipes: dict[str, str] | None = None, topology: str = "t") -> Iterator[Checkpoint]:
    checkpoint = Checkpoint(path, topology, RECIPES if recipes is None else recipes)
    try:
        yield checkpoint
    finally:
        checkpoint.close()


def state(n: int, seed: int = 0) -> dict[str, Rows]:
    rng = np.random.default_rng(seed)
    blobs = np.empty(n, dtype=object)
    blobs[:] = [bytes(rng.integers(0, 256, size=i, dtype=np.uint8)) for i in range(n)]
    return {
        "model:a": {
            "mean": rng.normal(size=(n, 3)),
            "count": rng.integers(0, 9, n).astype(np.int32),
            "object": blobs,
        },
        "recent": {
            "open": rng.integers(0, 2, n).astype(bool),
            "grid": rng.normal(size=(n, 2, 2)).astype(np.float32),
        },
    }


def changes(numbers: list[int], rows: dict[str, Rows], offset: int = 7, **more: Any) -> Changes:
    names = [f"m{number}" for number in numbers]
    return Changes(StreamPosition(offset, "print"), names, rows, **more)


def components(saved: Saved) -> dict[str, Rows]:
    (group,) = saved.groups
    return dict(group.components)


def reload(path: Path, recipes: dict[str, str] | None = None) -> Saved:
    with opened(path, recipes) as checkpoint:
        return checkpoint.load()


def assert_equal(found: dict[str, Rows], expected: dict[str, Rows]) -> None:
    assert {c: sorted(rows) for c, rows in found.items()} == {c: sorted(rows) for c, rows in expected.items()}
    for component, rows in expected.items():
        for name, array in rows.items():
            np.testing.assert_array_equal(found[component][name], array)
            assert found[component][name].dtype == array.dtype


def test_what_is_committed_is_loaded(tmp_path: Path) -> None:
    path, rows = tmp_path / "t.checkpoint", state(5)
    with opened(path) as checkpoint:
        more: dict[str, Any] = {
            "models": {"a": ({"name": "x"}, None)},
            "commands": {"id": {"status": "applied"}},
            "paused": True,
        }
        checkpoint.commit(changes([0, 1, 2, 3, 4], rows, **more))
    saved = reload(path)
    assert (saved.position, saved.machines) == (StreamPosition(7, "print"), [f"m{i}" for i in range(5)])
    assert_equal(components(saved), rows)
    assert (saved.models, saved.commands, saved.paused) == (
        {"a": ({"name": "x"}, None)},
        {"id": {"status": "applied"}},
        True,
    )
    assert not saved.forgotten


def test_only_changed_keys_are_written(tmp_path: Path) -> None:
    path, first, second = tmp_path / "t.checkpoint", state(3), state(1, seed=1)
    with opened(path) as checkpoint:
        checkpoint.commit(changes([0, 1, 2], first))
        checkpoint.commit(changes([1], second, offset=9))
    saved = reload(path)
    assert saved.position.last_offset == 9
    np.testing.assert_array_equal(
        components(saved)["model:a"]["mean"][[0, 2]], first["model:a"]["mean"][[0, 2]]
    )
    np.testing.assert_array_equal(components(saved)["model:a"]["mean"][1], second["model:a"]["mean"][0])


def test_failed_commit_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.checkpoint"
    with opened(path) as checkpoint:
        checkpoint.commit(changes([0], state(1)))
        clash = Changes(StreamPosition(99, "other"), ["m0", None], state(2))  # type: ignore[list-item]
        with pytest.raises(CheckpointError, match="could not be written"):
            checkpoint.commit(clash)
    assert reload(path).position == StreamPosition(7, "print")


def test_state_of_a_changed_recipe_is_forgotten_and_all_keys_are_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.checkpoint"
    with opened(path) as checkpoint:
        checkpoint.commit(changes([0, 1], state(2)))
    changed = {**RECIPES, "model:a": "2"}
    saved = reload(path, changed)
    assert (set(components(saved)), saved.forgotten) == ({"recent"}, ("model:a",))
    with opened(path, changed) as checkpoint:
        checkpoint.load()
        checkpoint.commit(changes([0, 1], state(2, seed=2)))
    assert set(components(reload(path, changed))) == {"model:a", "recent"}


def test_state_of_a_sort_of_tables_goes_by_the_recipe_of_the_sort(tmp_path: Path) -> None:
    """Shadows come and go, by names of their own."""
    path = tmp_path / "t.checkpoint"
    table = {"shadow:m:x:model:a": state(2)["model:a"]}
    for past, now, kept in ((None, None, True), (None, "2", False), ("2", "2", True), ("2", "3", False)):
        path.unlink(missing_ok=True)
        before, after = ({**RECIPES, **({} if it is None else {"shadow:": it})} for it in (past, now))
        with opened(path, before) as checkpoint:
            checkpoint.commit(changes([0, 1], table))
        assert (set(components(reload(path, after))) == set(table)) == kept
        for left in tmp_path.iterdir():
            left.unlink()


def test_second_worker_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "t.checkpoint"), pytest.raises(CheckpointError, match="another worker"):
        Checkpoint(tmp_path / "t.checkpoint", "t", RECIPES)


def test_checkpoint_of_another_topology_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "t.checkpoint") as checkpoint:
        checkpoint.commit(changes([0], state(1)))
    with pytest.raises(CheckpointError, match='belongs to the topology "t"'):
        Checkpoint(tmp_path / "t.checkpoint", "other", RECIPES)


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.checkpoint"
    with opened(path) as checkpoint:
        checkpoint.commit(changes([0], state(1)))
    database = sqlite3.connect(path)
    database.execute("UPDATE state SET row = CAST(X'FF' || substr(row, 2) AS BLOB)")
    database.commit()
    database.close()
    with pytest.raises(CheckpointError, match="state 'm0' does not match its checksum"):
        reload(path)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.checkpoint"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(CheckpointError, match="is damaged"):
        Checkpoint(path, "t", RECIPES)


def test_commit_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    """Which a lost page cache would show, and no kill does: so it is asked for."""
    with opened(tmp_path / "t.checkpoint") as checkpoint:
        checkpoint.commit(changes([1], state(1)))
        [[synchronous]], [[journal]] = (
            checkpoint._db.execute(f"PRAGMA {name}").fetchall() for name in ("synchronous", "journal_mode")
        )
    assert (synchronous, journal) == (2, "wal"), "2 is FULL"
