"""The process of one training: `python -m stream.training_process FOLDER`, started by `stream.trainer`.

The folder holds the job and its topology. Readings of a message or a stream come by standard input, undecoded (see
`stream.feeding`). What happens goes to standard output, one JSON object a line. It has no way to a broker, gives way
to everybody else on the machine, and ends when who started it does: standard input is then at its end. SIGTERM ends
it at once until it begins to register; from then on it comes to its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

if TYPE_CHECKING:
    from stream.feeding import Fed
    from stream.tables import Table
    from stream.topology import Topology

__all__ = ["Event", "Job", "main"]

_NICE = 15


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
    """A file or folder of readings."""
    dataset: str | None = None
    """One that comes with the product, in place of a file."""
    span: tuple[int | None, int | None, float | None, float | None] | None = None
    """As `Span`: a part of the stream, whose messages come by standard input. None of the three: a message's columns
    come there."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of what happens: a phase that began, the result, or why there is none."""

    phase: str | None = None
    failed: str | None = None
    trained: dict[str, Any] | None = None


def main(folder: Path) -> None:
    """Do the job in this folder, and say on standard output what became of it."""
    _step_back()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not taken for an event
    from stream.errors import MmlwError
    from stream.feeding import Fed

    fed = Fed(0, left=lambda: os._exit(1))
    try:
        _say(out, Event(trained=_train(folder, out, fed)))
    except MmlwError as error:
        _say(out, Event(failed=str(error)))


def _train(folder: Path, out: BinaryIO, fed: Fed) -> dict[str, Any]:
    from stream.cancelling import REGISTERING
    from stream.config import load
    from stream.models import Registry
    from stream.training import Choice, train_detector
    from stream.training_data import Marked

    def told(phase: str) -> None:
        if phase == REGISTERING:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _say(out, Event(phase=phase))

    topology = load(folder / "topology.yaml")
    job = msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)
    trained = train_detector(
        topology,
        job.detector,
        _table(topology, job, fed),
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


def _table(topology: Topology, job: Job, fed: Fed) -> Table:
    """What is trained on."""
    from stream.gathering import Gathered
    from stream.spans import Span
    from stream.tables import from_dataset
    from stream.training_data import columns_table, history_table, read_file

    if job.dataset is not None:
        return from_dataset(job.dataset)
    if job.file is not None:
        return read_file(Path(job.file), topology)
    if job.span is None:
        return columns_table("message", fed.columns(), topology)
    gathered = Gathered(topology.source, job.rows if job.newest else None)
    for messages in fed.messages():
        gathered.add(messages)
    return history_table(topology, gathered.history(topology.name, Span(*job.span)))


def _say(out: BinaryIO, event: Event) -> None:
    out.write(msgspec.json.encode(event) + b"\n")
    out.flush()


def _step_back() -> None:
    """Behind the streams: for the processor, and first in line where memory runs out."""
    os.nice(_NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
