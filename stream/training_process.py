"""The process of one training: `python -m stream.training_process FOLDER`, started by `stream.trainer`.

The folder holds the job, its topology and, where the readings come from a message or a stream, their table. What
happens goes to standard output, one JSON object a line. It has no way to a broker, gives way to everybody else on
the machine, and ends when who started it does: standard input is then at its end. SIGTERM ends it at once until it
begins to register; from then on it comes to its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

__all__ = ["Event", "Job", "main", "read_table", "write_table"]

_NICE = 15
_TABLE = "table.npz"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is trained on what, and where the result goes."""

    detector: str
    registry: str
    alias: str | None
    mark: str = ""
    """What the run and the version are tagged with: by it is found what a training that was cut off left."""
    rows: int | None = None
    newest: bool = False
    since: float | None = None
    marked: tuple[tuple[str, float, float | None, bool], ...] = ()
    """As `Marked` in `stream.training_data`."""
    file: str | None = None
    """A file or folder of readings; None: the table in the job's folder."""
    dataset: str | None = None
    """One that comes with the product, in place of a file."""
    table: str = ""
    """How the table in the folder is called."""
    sensors: tuple[str, ...] = ()


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of what happens: a phase that began, the result, or why there is none."""

    phase: str | None = None
    failed: str | None = None
    trained: dict[str, Any] | None = None


def write_table(folder: Path, table: Any) -> None:
    """Put the columns of a table into the folder (a `Table`; its name and sensors go into the job)."""
    import numpy as np

    columns = {
        "machines": np.array(table.machines, dtype=np.str_),
        "times": table.times,
        "values": table.values,
    }
    np.savez(folder / _TABLE, **columns)


def read_table(folder: Path, job: Job) -> Any:
    """The table that `write_table` put there."""
    import numpy as np

    from stream.tables import Table

    with np.load(folder / _TABLE, allow_pickle=False) as found:
        columns = (found["machines"].tolist(), found["times"], found["values"])
    return Table(job.table, job.sensors, *columns, None)


def main(folder: Path) -> None:
    """Do the job in this folder, and say on standard output what became of it."""
    _step_back()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not taken for an event
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    from stream.errors import MmlwError

    try:
        _say(out, Event(trained=_train(folder, out)))
    except MmlwError as error:
        _say(out, Event(failed=str(error)))


def _train(folder: Path, out: BinaryIO) -> dict[str, Any]:
    from stream.cancelling import REGISTERING
    from stream.config import load
    from stream.models import Registry
    from stream.tables import from_dataset
    from stream.training import Choice, train_detector
    from stream.training_data import Marked, read_file

    def told(phase: str) -> None:
        if phase == REGISTERING:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _say(out, Event(phase=phase))

    told("reading")
    topology = load(folder / "topology.yaml")
    job = msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)
    if job.dataset is not None:
        table = from_dataset(job.dataset)
    else:
        table = read_table(folder, job) if job.file is None else read_file(Path(job.file), topology)
    trained = train_detector(
        topology,
        job.detector,
        table,
        Registry(job.registry),
        alias=job.alias,
        choice=Choice(job.rows, job.newest, job.since, [Marked(*mark) for mark in job.marked]),
        told=told,
        mark=job.mark,
    )
    ref = trained.ref
    return {
        "model": {"name": ref.name, "version": ref.version, "digest": ref.digest, "kind": ref.kind},
        "aliases": trained.aliases,
        "metrics": trained.metrics,
    }


def _say(out: BinaryIO, event: Event) -> None:
    out.write(msgspec.json.encode(event) + b"\n")
    out.flush()


def _step_back() -> None:
    """Behind the streams: for the processor, and first in line where memory runs out."""
    os.nice(_NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _leave_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
