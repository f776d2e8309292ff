"""A checkpoint that was damaged, cut, swapped or lost: refused with a remedy, or exactly what was committed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.base import Rows
from stream import checkpoint_files
from stream.checkpoint import Checkpoint
from stream.checkpoint_files import install, snapshot
from stream.errors import CheckpointError, CheckpointUnproven
from stream.state import Changes, StreamPosition
from stream.witness import set_witness

RECIPES = {"model:a": "1", "recent": "x"}
PAGE = 4096
FRAME = 24 + PAGE
LOG_HEADER = 32
SEED = int(os.environ.get("MMLW_SEED", random.SystemRandom().randrange(2**32)))
FLIPS = 200
"""Random places in each file."""


@dataclass(frozen=True)
class Worker:
    """What a killed worker left in its folder, and everything that it had committed."""

    folder: Path
    truth: Any

    @property
    def file(self) -> Path:
        return self.folder / "t.checkpoint"

    @property
    def log(self) -> Path:
        return self.folder / "t.checkpoint-wal"

    def fork(self, folder: Path) -> Worker:
        """Its files once more, to be damaged."""
        shutil.copytree(self.folder, folder)
        return Worker(folder, self.truth)


def rows(n: int, seed: int) -> dict[str, Rows]:
    rng = np.random.default_rng(seed)
    blobs = np.empty(n, dtype=object)
    blobs[:] = [rng.bytes(int(size)) for size in rng.integers(0, 9000, n)]  # some need pages of their own
    return {
        "model:a": {"mean": rng.normal(size=(n, 3)), "object": blobs},
        "recent": {"grid": rng.normal(size=(n, 24, 2)), "open": rng.integers(0, 2, n).astype(bool)},
    }


def changes(machines: list[int], offset: int, seed: int, **more: Any) -> Changes:
    names = [f"machine-{number}" for number in machines]
    return Changes(StreamPosition(offset, f"print-{offset}"), names, rows(len(names), seed), **more)


def history(checkpoint: Checkpoint, start: int = 0) -> None:
    """Commits of every kind: machines anew and again, models, commands, audit, replays, a message that is tried."""
    for i in range(start, start + 12):
        machines = list(range(10 * i, 10 * i + 10)) + list(range(0, 10 * i, 7))
        more: dict[str, Any] = {
            "models": {"a": ({"name": "x", "version": i}, None)},
            "commands": {f"command-{i}": {"status": "applied", "number": i}},
            "audit": [{"verb": "swap", "number": i}, {"verb": "pause", "number": i}],
            "replays": [f"letter-{i}"],
            "paused": i % 2 == 0,
            "running": True,
        }
        checkpoint.commit(changes(machines, 100 * i, i, **more))
    checkpoint.commit(changes([3, 4], 5000, 99))


def told(checkpoint: Checkpoint) -> Any:
    """All that a worker would go on from, in one value that can be compared."""
    saved = checkpoint.load()
    machines: dict[str, Any] = {}
    for group in saved.groups:
        for i, machine in enumerate(group.machines):
            machines[machine] = {
                (table, name): column[i] if column.dtype == object else column[i].tobytes()
                for table, arrays in group.components.items()
                for name, column in arrays.items()
            }
    again = checkpoint.fetch(list(machines))
    assert sum(len(group.machines) for group in again) == len(machines)
    return (
        machines,
        saved.position,
        saved.stored,
        saved.models,
        saved.commands,
        list(saved.audit),
        checkpoint.audit(),
        saved.replays,
        saved.paused,
        saved.died,
        saved.forgotten,
        checkpoint.commits,
    )


@contextlib.contextmanager
def opened(path: Path, topology: str = "t") -> Iterator[Checkpoint]:
    checkpoint = Checkpoint(path, topology, RECIPES)
    try:
        yield checkpoint
    finally:
        checkpoint.close()


def killed(folder: Path, *, folded: bool, start: int = 0) -> Worker:
    """A worker killed with its last commits in the write-ahead log; `folded`: the ones before in the file."""
    living = folder.with_name(f"{folder.name}.living")
    with opened(living / "t.checkpoint") as checkpoint:
        checkpoint._db.execute("PRAGMA wal_autocheckpoint=0")
        history(checkpoint, start)
        if folded:
            checkpoint._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            checkpoint.commit(changes([5, 6, 500], 5100, 7))
            checkpoint.commit(changes([6, 501], 5200, 8))
        shutil.copytree(living, folder)
        return Worker(folder, told(checkpoint))


@pytest.fixture(scope="module")
def fresh_log(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """Killed with everything in the write-ahead log."""
    return killed(tmp_path_factory.mktemp("log") / "t", folded=False)


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """Killed with most in the file, and two commits in the write-ahead log."""
    return killed(tmp_path_factory.mktemp("folded") / "t", folded=True)


def outcome(worker: Worker, case: object = "") -> str:
    """Open what is left: "refused", with a remedy, or "same"; anything else fails."""
    refusal, found = "", None
    try:
        with opened(worker.file) as checkpoint:
            found = told(checkpoint)
    except CheckpointError as error:
        refusal = str(error)
    if refusal:
        assert "mmlw checkpoint" in refusal, f"{case}: no remedy in: {refusal}"
        return "refused"
    assert found == worker.truth, f"{case}: silently something else"
    return "same"


def edited(worker: Worker, *statements: str) -> str:
    """The outcome after somebody wrote in the database."""
    with contextlib.closing(sqlite3.connect(worker.file)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()
    return outcome(worker, statements)


def boundaries(size: int, header: int, step: int, within: tuple[int, ...]) -> list[int]:
    """Lengths to cut a file at: in its header, at every boundary class, and within a step."""
    starts = [0, 1, header // 2, header - 1, header, header + 1]
    steps = [header + step * n for n in {0, 1, 2, (size - header) // step // 2, (size - header) // step - 1}]
    found = {*starts, *(place + more for place in steps for more in (-1, 0, 1, *within)), size - 1}
    return sorted(length for length in found if 0 <= length < size)


def flip(path: Path, place: int, bits: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ bits]))


def test_what_a_killed_worker_leaves_is_all_there(fresh_log: Worker, folded: Worker, tmp_path: Path) -> None:
    for number, worker in enumerate((fresh_log, folded)):
        assert outcome(worker.fork(tmp_path / str(number))) == "same"


def test_log_cut_anywhere_is_refused(fresh_log: Worker, folded: Worker, tmp_path: Path) -> None:
    cases = [
        (worker, length)
        for worker in (fresh_log, folded)
        for length in boundaries(worker.log.stat().st_size, LOG_HEADER, FRAME, (12, 24, 25, 24 + PAGE // 2))
    ]
    for number, (worker, length) in enumerate(cases):
        fork = worker.fork(tmp_path / str(number))
        os.truncate(fork.log, length)
        assert outcome(fork, f"log cut to {length} bytes") == "refused"


def test_log_cut_at_every_frame_is_refused(folded: Worker, tmp_path: Path) -> None:
    size = folded.log.stat().st_size
    for length in range(LOG_HEADER, size, FRAME):
        fork = folded.fork(tmp_path / str(length))
        os.truncate(fork.log, length)
        assert outcome(fork, f"log cut to {length} bytes") == "refused"


def test_file_cut_anywhere_is_refused(folded: Worker, tmp_path: Path) -> None:
    size = folded.file.stat().st_size
    for length in boundaries(size, 100, PAGE, (8, PAGE // 2)) + list(range(PAGE, size, 5 * PAGE)):
        fork = folded.fork(tmp_path / f"kept{length}")
        os.truncate(fork.file, length)
        shutil.copytree(fork.folder, tmp_path / f"bare{length}")
        bare = Worker(tmp_path / f"bare{length}", folded.truth)
        bare.log.unlink()
        assert outcome(fork, f"file cut to {length} bytes") in (
            "refused",
            "same",
        )  # the log may hold the rest
        assert outcome(bare, f"file cut to {length} bytes, log gone") == "refused"
        shutil.rmtree(fork.folder)
        shutil.rmtree(bare.folder)


def test_flipped_bytes_are_noticed_or_do_not_matter(
    fresh_log: Worker, folded: Worker, tmp_path: Path
) -> None:
    print(f"MMLW_SEED={SEED}")
    rng = random.Random(SEED)
    cases: list[tuple[Worker, str, int]] = []
    for worker, name in ((fresh_log, "log"), (folded, "file"), (folded, "log")):
        size = getattr(worker, name).stat().st_size
        if name == "file":  # the header, a b-tree header, and the pointers to cells of each kind of page
            classes = [*range(112), *(PAGE * n + k for n in range(1, size // PAGE) for k in (0, 3, 5, 9))]
        else:  # the header, and in some frames its header, the page's header, and the page
            frames = rng.sample(range((size - LOG_HEADER) // FRAME), 6)
            classes = [
                *range(32),
                *(32 + FRAME * n + k for n in frames for k in (0, 4, 8, 16, 24, 40, 2000)),
            ]
        cases += [(worker, name, place) for place in [*rng.sample(classes, 60), *_places(rng, size)]]
    found = []
    for number, (worker, name, place) in enumerate(cases):
        fork = worker.fork(tmp_path / str(number))
        bits = 1 << rng.randrange(8)
        flip(getattr(fork, name), place, bits)
        found.append(outcome(fork, f"seed {SEED}: {name} byte {place} xor {bits}"))
        shutil.rmtree(fork.folder)
    assert found.count("refused") > len(found) // 4, f"seed {SEED}: damage must be seen to be refused"


def _places(rng: random.Random, size: int) -> list[int]:
    return [rng.randrange(size) for _ in range(FLIPS)]


def test_page_of_zeros_or_of_another_place_is_noticed(folded: Worker, tmp_path: Path) -> None:
    data = folded.file.read_bytes()
    pages = len(data) // PAGE
    found = []
    for page in range(0, pages, 3):
        other = (page * 7 + 3) % pages
        for name, content in (("zeros", bytes(PAGE)), ("moved", data[other * PAGE : (other + 1) * PAGE])):
            fork = folded.fork(tmp_path / f"{name}{page}")
            with fork.file.open("r+b") as file:
                file.seek(page * PAGE)
                file.write(content)
            found.append(outcome(fork, f"page {page} {name} ({other})"))
            shutil.rmtree(fork.folder)
    assert found.count("refused") > len(found) // 2


def test_file_log_or_both_that_are_gone_are_refused(
    fresh_log: Worker, folded: Worker, tmp_path: Path
) -> None:
    for number, worker in enumerate((fresh_log, folded)):
        for gone in (("file",), ("log",), ("file", "log")):
            fork = worker.fork(tmp_path / f"{number}{gone}")
            for name in gone:
                getattr(fork, name).unlink()
            assert outcome(fork, f"{gone} gone") == "refused"


def test_log_outlives_a_file_that_is_gone(folded: Worker, tmp_path: Path) -> None:
    fork = folded.fork(tmp_path / "t")
    fork.file.rename(tmp_path / "moved")
    assert outcome(fork) == "refused"
    (tmp_path / "moved").rename(fork.file)
    assert outcome(fork) == "same"


def test_parts_of_different_times_are_refused(fresh_log: Worker, tmp_path: Path) -> None:
    """The file of yesterday's backup under today's log: every page is sound, but they do not belong together."""
    living = tmp_path / "living"
    with opened(living / "t.checkpoint") as checkpoint:
        checkpoint._db.execute("PRAGMA wal_autocheckpoint=0")
        history(checkpoint)
        checkpoint._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        older = (living / "t.checkpoint").read_bytes()
        checkpoint.commit(changes([10, 11, 12], 6000, 20))
        checkpoint._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        checkpoint.commit(changes([50], 6100, 21))
        shutil.copytree(living, tmp_path / "t")
        mixed = Worker(tmp_path / "t", told(checkpoint))
    mixed.file.write_bytes(older)
    assert outcome(mixed) == "refused"
    crossed = fresh_log.fork(tmp_path / "crossed")
    crossed.file.write_bytes(older)
    assert outcome(crossed) == "same", "a log that holds every page needs no file below it"


def test_older_copy_is_refused(folded: Worker, tmp_path: Path) -> None:
    fork = folded.fork(tmp_path / "t")
    with opened(fork.file):
        pass
    older = fork.file.read_bytes()
    with opened(fork.file) as checkpoint:
        checkpoint.commit(changes([1], 7000, 30))
    fork.file.write_bytes(older)
    assert outcome(fork) == "refused"


def test_copy_of_another_life_is_refused_although_it_has_more_commits(folded: Worker, tmp_path: Path) -> None:
    living = tmp_path / "t"
    with opened(living / "t.checkpoint") as checkpoint:
        checkpoint.commit(changes([1], 1, 1))
    shutil.copy(folded.fork(tmp_path / "other").file, living / "t.checkpoint")
    with pytest.raises(CheckpointError, match=r"before a reset or an import.*mmlw checkpoint import"):
        Checkpoint(living / "t.checkpoint", "t", RECIPES)


def test_file_of_another_topology_is_refused_with_a_remedy(folded: Worker, tmp_path: Path) -> None:
    fork = folded.fork(tmp_path / "t")
    with pytest.raises(CheckpointError, match=r'belongs to the topology "t".*mmlw checkpoint'):
        Checkpoint(fork.file, "other", RECIPES)


TABLES = ("meta", "layouts", "models", "commands", "audit", "replays", "state")
EDITS = [
    *(f"DELETE FROM {table}" for table in TABLES),
    *(f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})" for table in TABLES),
    *(f"DROP TABLE {table}" for table in TABLES),
    *(f"UPDATE {table} SET crc = crc + 1" for table in TABLES),
    "DELETE FROM state WHERE machine = 'machine-7'",
    "UPDATE state SET machine = 'machine-x' WHERE machine = 'machine-7'",
    "UPDATE state SET seen = seen + 1 WHERE machine = 'machine-7'",
    "UPDATE state SET layout = 99 WHERE machine = 'machine-7'",
    "UPDATE state SET row = zeroblob(length(row)) WHERE machine = 'machine-7'",
    "UPDATE state SET row = 17 WHERE machine = 'machine-7'",
    "UPDATE state SET row = 'text' WHERE machine = 'machine-7'",
    "UPDATE state SET crc = 'text' WHERE machine = 'machine-7'",
    "UPDATE state SET crc = 9e300 WHERE machine = 'machine-7'",
    "UPDATE commands SET id = 'other' WHERE id = 'command-3'",
    "UPDATE commands SET at = at + 60",
    "INSERT INTO replays VALUES ('never', 0, 0)",
    "INSERT INTO state SELECT 'more', layout, seen, crc, row FROM state LIMIT 1",
    "UPDATE audit SET number = number + 1000",
    "ALTER TABLE commands RENAME COLUMN at TO moment",
    "CREATE TABLE more (x)",
    "CREATE TRIGGER eats AFTER INSERT ON state BEGIN DELETE FROM state; END",
]


@pytest.mark.parametrize("statement", EDITS)
def test_rows_that_went_came_or_changed_are_refused(folded: Worker, tmp_path: Path, statement: str) -> None:
    assert edited(folded.fork(tmp_path / "t"), statement) == "refused"


def test_row_of_an_earlier_commit_is_refused(folded: Worker, tmp_path: Path) -> None:
    """Its own checksum is right: only the sum of all tells."""
    fork = folded.fork(tmp_path / "t")
    with contextlib.closing(sqlite3.connect(fork.file)) as db:
        earlier = db.execute("SELECT * FROM state WHERE machine = 'machine-6'").fetchone()
    with opened(fork.file) as checkpoint:
        checkpoint.commit(changes([6], 7000, 30))
    with contextlib.closing(sqlite3.connect(fork.file)) as db:
        db.execute("DELETE FROM state WHERE machine = 'machine-6'")
        db.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?)", earlier)
        db.commit()
    assert outcome(fork) == "refused"


def test_index_that_does_not_find_a_machine_is_refused(folded: Worker, tmp_path: Path) -> None:
    """The machine would begin anew, its state still in the file."""
    fork = folded.fork(tmp_path / "t")
    with opened(fork.file):
        pass
    data = fork.file.read_bytes()
    with contextlib.closing(sqlite3.connect(fork.file)) as db:
        (root,) = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_state_1'"
        ).fetchone()
    place = data.index(b"machine-7", (root - 1) * PAGE)
    assert place < root * PAGE, "the index is one page"
    flip(fork.file, place + 8, 1)
    assert outcome(fork) == "refused"


HEADS = [
    "{}",
    "null",
    "[]",
    '{"life": "x", "commits": "many"}',
    '{"life": "x", "commits": 99, "position": [1]}',
    '{"life": "x", "commits": 99, "position": ["a", 2]}',
    '{"life": "x", "commits": 99, "sums": {"state": 7}}',
    '{"life": "x", "commits": 99}',
    "not JSON",
]


@pytest.mark.parametrize("head", HEADS)
def test_head_that_makes_no_sense_is_refused_although_its_checksum_fits(
    folded: Worker, tmp_path: Path, head: str
) -> None:
    fork = folded.fork(tmp_path / "t")
    crc = zlib.crc32(repr(("meta", "head", head)).encode())
    with contextlib.closing(sqlite3.connect(fork.file)) as db:
        db.execute("UPDATE meta SET value = ?, crc = ? WHERE name = 'head'", (head, crc))
        db.commit()
    assert outcome(fork, head) == "refused"


def test_witness_that_is_behind_refuses_nothing(folded: Worker, tmp_path: Path) -> None:
    """A power cut may take the witness's last words, but not the commits."""
    life = folded.file.with_suffix(".lock").read_text().split()[2]
    for commits in (0, 3):
        fork = folded.fork(tmp_path / str(commits))
        fork.file.with_suffix(".lock").write_text(f"{1:>10} {commits:>20} {life}\n")
        assert outcome(fork, commits) == "same"
    fork = folded.fork(tmp_path / "earlier")  # by an earlier version
    fork.file.with_suffix(".lock").write_text(f"{1:>10} {3:>20}\n")
    assert outcome(fork) == "same"


LOSE: dict[str, Callable[[Path], object]] = {
    "gone": lambda lock: lock.unlink(),
    "empty": lambda lock: lock.write_bytes(b""),
    "zeros": lambda lock: lock.write_bytes(bytes(50)),
    "noise": lambda lock: lock.write_bytes(b"\xff" * 50),
    "after a reset": lambda lock: set_witness(lock.with_suffix(".checkpoint"), 0),
}


@pytest.mark.parametrize("how", LOSE)
def test_file_without_its_witness_is_refused_cut_or_whole(
    fresh_log: Worker, folded: Worker, tmp_path: Path, how: str
) -> None:
    for number, worker in enumerate((fresh_log, folded)):
        size = worker.log.stat().st_size
        for cut in (0, 1, size // 2, size):
            fork = worker.fork(tmp_path / f"{number}-{cut}")
            LOSE[how](fork.file.with_suffix(".lock"))
            if cut:
                os.truncate(fork.log, size - cut)
            if number == 0 and size - cut < 2 * PAGE:
                continue  # not even the first commit is left: there is no checkpoint
            assert outcome(fork, (how, cut)) == "refused"


def test_file_that_lost_its_witness_is_taken_when_it_is_imported(folded: Worker, tmp_path: Path) -> None:
    fork = folded.fork(tmp_path / "t")
    fork.file.with_suffix(".lock").unlink()
    with pytest.raises(CheckpointError, match=r"mmlw checkpoint import t .*t\.checkpoint"), opened(fork.file):
        pass
    told_before, aside = folded.truth, install(fork.file, fork.file, "t")
    assert aside is not None
    with opened(fork.file) as checkpoint:
        assert told(checkpoint) == told_before


def test_worker_killed_around_its_first_commit_starts_again(tmp_path: Path) -> None:
    """The witness is there before the first commit: without it that commit would be refused."""
    living, path = tmp_path / "living", tmp_path / "after" / "t.checkpoint"
    with opened(living / "t.checkpoint") as checkpoint:
        note = checkpoint._witness.note
        checkpoint._witness.note = lambda commits, life: None  # type: ignore[method-assign]
        checkpoint.commit(changes([1], 1, 1))
        shutil.copytree(living, path.parent)
        checkpoint._witness.note = note  # type: ignore[method-assign]
    with opened(path) as again:
        assert again.load().position.last_offset == 1
    path.unlink()
    with opened(path) as anew:
        anew.commit(changes([1], 1, 1))
    with opened(path) as again:
        assert again.commits == 1


def test_witness_is_written_only_after_the_commit(tmp_path: Path) -> None:
    with opened(tmp_path / "t.checkpoint") as checkpoint:
        checkpoint.commit(changes([1], 1, 1))
        before = (tmp_path / "t.lock").read_bytes()
        broken = Changes(StreamPosition(2, ""), ["m0", None], rows(2, 2))  # type: ignore[list-item]
        with pytest.raises(CheckpointError, match="could not be written"):
            checkpoint.commit(broken)
        assert (tmp_path / "t.lock").read_bytes() == before
        assert int(before.split()[1]) == checkpoint.commits == 1


def test_first_start_that_was_cut_off_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """The file appears with the first commit, whole."""
    path = tmp_path / "t.checkpoint"
    with opened(path):
        begun = path.read_bytes()
    for content in (b"", begun):
        path.write_bytes(content)
        with opened(path) as checkpoint:
            assert checkpoint.load().stored == 0
            checkpoint.commit(changes([1], 1, 1))
        path.unlink()
        path.with_suffix(".lock").unlink()


def test_copy_to_look_at_is_refused_as_a_worker_would_refuse_the_file(folded: Worker, tmp_path: Path) -> None:
    """Its log is cut or gone; `adopt` shows what is left."""
    size = folded.log.stat().st_size
    for cut in (1, size // 2, size):
        fork = folded.fork(tmp_path / f"{cut}")
        os.truncate(fork.log, size - cut)
        kept = tmp_path / f"kept-{cut}"
        with (
            pytest.raises(CheckpointUnproven, match="but commit 15 was made"),
            snapshot(fork.file, "t", kept=kept),
        ):
            pass
        with snapshot(fork.file, "t", adopt=True) as left:
            assert left.commits < 15


def test_copy_to_look_at_is_taken_while_commits_are_made(tmp_path: Path) -> None:
    """At every commit: made and not yet noted by the witness, and noted."""
    path = tmp_path / "t.checkpoint"
    seen = []

    def look() -> None:
        with snapshot(path, "t", kept=tmp_path / "kept") as copied:
            seen.append(copied.commits)

    with opened(path) as checkpoint:
        note = checkpoint._witness.note

        def late(commits: int, life: str) -> None:
            look()
            note(commits, life)
            look()

        checkpoint._witness.note = late  # type: ignore[method-assign]
        for i in range(4):
            checkpoint.commit(changes([i], i, i))
    assert seen == [1, 1, 2, 2, 3, 3, 4, 4]


def test_witness_is_read_before_the_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that comes between the two makes the copy newer than the witness says, never older."""
    path = tmp_path / "t.checkpoint"
    with opened(path) as checkpoint:
        checkpoint.commit(changes([1], 1, 1))
        whole = checkpoint_files.copy

        def busy(source: Path, target: Path) -> None:
            checkpoint.commit(changes([2], 2, 2))
            whole(source, target)
            checkpoint.commit(changes([3], 3, 3))

        monkeypatch.setattr(checkpoint_files, "copy", busy)
        with snapshot(path, "t") as copied:
            assert copied.commits == 2


def test_worker_that_ends_before_its_first_commit_leaves_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "t.checkpoint"
    with opened(path) as checkpoint:
        assert checkpoint.load().stored == 0
    assert not path.exists()
    with opened(path) as checkpoint:
        checkpoint.commit(changes([1], 1, 1))
    assert path.exists()


def test_file_that_lost_everything_stays_where_commits_were_made(folded: Worker, tmp_path: Path) -> None:
    fork = folded.fork(tmp_path / "t")
    os.truncate(fork.file, 0)
    assert outcome(fork) == "refused"
    assert fork.file.exists()
