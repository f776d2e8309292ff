"""Runs trainings in processes of their own: one at a time, with progress, and without harm to whoever waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from stream.binding import Binding, patterns_of
from stream.brokers.base import Broker
from stream.cancelling import Cancelling
from stream.config import dump_yaml
from stream.errors import CommandRefused, ConfigError, ModelError, RegistryUnreachable, first_error
from stream.feeding import Feed, ReaderGone
from stream.models import MARK, Registry
from stream.rules import AlertRule
from stream.stream_history import receive_stream
from stream.threads import in_thread
from stream.topology import Topology
from stream.training import CHALLENGER, batch_detector
from stream.training_data import Frame, Marked, TrainingOptions, TrainingSource, within
from stream.training_process import Event, Job

__all__ = ["Progress", "Told", "Trainer", "Training"]

_AT_A_TIME = 32
"""Messages of the past that are received before the present ones have their turn."""
_PULSE = 5.0
"""Seconds after which progress is told again."""
_LONGEST: Final = 86_400.0
_LAST_WORDS = 2000
"""Characters of a process' standard error that tell why it ended."""

Progress = dict[str, Any]
"""`phase`, `elapsed_s` and, where it is known, the `share` of the phase that is done."""
Told = Callable[[Progress], Awaitable[None]]


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """A training that was asked for and can be run."""

    topology: Topology
    detector: str
    source: TrainingSource
    command: str = ""
    """The id of the command that asks for it."""
    alias: str = CHALLENGER
    options: TrainingOptions = TrainingOptions()
    marked: Sequence[Marked] = ()
    mark: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    """What its run and its version are tagged with."""


class Trainer:
    """Trains for the topologies of a worker. `folders` are where captures and files that a message names may be;
    `connect` makes the connection over which a stream's past is read."""

    def __init__(self, registry: str, folders: Sequence[Path], connect: Callable[[], Broker]) -> None:
        self._registry = registry
        self._folders = folders
        self._connect = connect
        self.running: Training | None = None
        self._one = asyncio.Lock()
        self._cancelling = Cancelling()

    def check(self, training: Training) -> None:
        """Raises CommandRefused where it cannot be begun now, or at all."""
        if self.running is not None:
            busy = f'"{self.running.detector}" of {self.running.topology.name}'
            raise CommandRefused(f"this worker trains {busy} already; send it again when that is done")
        options, source = training.options, training.source
        if sum(it is not None for it in (source.stream, source.capture, source.frame)) != 1:
            raise CommandRefused('train needs "source" with exactly one of "stream", "capture" and "frame"')
        if not 0 < options.timeout <= _LONGEST or (options.rows is not None and options.rows < 1):
            raise CommandRefused(
                f'"options": rows from 1, and a timeout above 0 and at most {_LONGEST:.0f} s'
            )
        try:
            name = batch_detector(training.topology, training.detector)
            machines = training.topology.registry_models[name].machines
            if source.frame is not None and machines:
                _look_at_names(source.frame, name, machines)
            if source.capture is not None:
                within(source.capture, self._folders)
            if source.stream is not None:
                source.stream.span()
        except ConfigError as error:
            raise CommandRefused(str(error)) from None

    async def train(self, training: Training, told: Told) -> dict[str, Any]:
        """Train and register: `model`, `aliases`, `metrics`, `trained_s`. Whoever cancels it ends the process.

        Where two were found to be possible at once, the second waits for the first. Raises CommandRefused,
        ConfigError, BrokerError, TrainingCancelled; ModelError where the process ends by itself or lasts too long.
        """
        if self._one.locked():
            await told({"phase": "waiting", "elapsed_s": 0.0})
        async with self._one:
            self.running = training
            try:
                return await self._train(training, told)
            finally:
                self.running = None

    async def _train(self, training: Training, told: Told) -> dict[str, Any]:
        began = time.monotonic()
        cancelling = self._cancelling = Cancelling()
        try:
            async with asyncio.timeout(training.options.timeout):
                with tempfile.TemporaryDirectory(prefix="mmlw-training-") as name:
                    pulse = _Pulse(told, began)
                    await pulse.beat()
                    await in_thread(_write, Path(name), training.topology, self._job(training))
                    result = await _run(Path(name), partial(self._feed, training, pulse), pulse, cancelling)
        except TimeoutError:
            limit = f"took longer than {training.options.timeout:g} s"
            left = await self._take_back(training)
            raise ModelError(f"the training {limit}{left}; give it fewer rows, or a longer timeout") from None
        except ModelError as error:
            if left := await self._take_back(training):
                raise ModelError(f"{error}{left}") from error
            raise
        except asyncio.CancelledError:
            await self._take_back(training)
            raise
        finally:
            cancelling.over()
        return {**result, "trained_s": round(time.monotonic() - began, 3)}

    async def cancel(self, topology: str, command: str, by: str) -> str:
        """End the training that a command of a topology began, and wait until it has ended; its detector. `by` is the
        id of the command that asks. Raises CommandRefused where it does not run, or is being registered."""
        training = self.running
        if training is None or (training.topology.name, training.command) != (topology, command):
            raise CommandRefused(f'no training "{command[:64]}" runs')
        await self._cancelling.cancel(by)
        return training.detector

    async def clear(self, mark: str) -> str:
        """End what a training left in the registry whose worker was killed; what its receipt says of that. Raises
        RegistryUnreachable."""
        try:
            whole = await in_thread(Registry(self._registry).clear, mark)
        except RegistryUnreachable:
            raise
        except ModelError as error:
            return f", and what it left was not looked for ({error})"
        return "" if whole is None else f", when version {whole} was registered, which stays"

    async def _take_back(self, training: Training) -> str:
        """Take what a training that was cut off had registered out of the registry; what the receipt says of that."""
        if not self._cancelling.registering:
            return ""
        name = training.topology.registry_models[training.detector].name
        try:
            whole = await in_thread(Registry(self._registry).withdraw, name, training.mark, training.alias)
        except ModelError as error:
            return (
                f" while it was registered, and what it left could not be taken back ({error}): delete the run, and "
                f"the version of {name}, that have the tag {MARK}={training.mark}"
            )
        if whole is not None:
            return f" when version {whole} of {name} was registered, which stays"
        return " while it was registered; nothing of it is left but a run that MLflow shows as KILLED"

    def _job(self, training: Training) -> Job:
        source = training.source
        return Job(
            detector=training.detector,
            registry=self._registry,
            alias=training.alias,
            mark=training.mark,
            rows=training.options.rows,
            newest=training.options.newest,
            since=training.options.since,
            marked=tuple(msgspec.structs.astuple(mark) for mark in training.marked),
            file=None if source.capture is None else str(within(source.capture, self._folders)),
            span=None if source.stream is None else astuple(source.stream.span()),
        )

    async def _feed(self, training: Training, pulse: _Pulse, feed: Feed) -> None:
        """Give the process the readings that it cannot read itself."""
        source, options = training.source, training.options
        if source.stream is not None:
            async with self._connect() as broker:
                await receive_stream(
                    broker,
                    training.topology,
                    source.stream.span(),
                    feed.messages,
                    pulse.share,
                    newest=options.rows if options.newest else None,
                    at_a_time=_AT_A_TIME,
                )
        elif source.frame is not None:
            await feed.columns(source.frame)
        await feed.end()


class _Pulse:
    """Tells progress: when a phase begins, and every few seconds while it lasts."""

    def __init__(self, told: Told, began: float) -> None:
        self._told = told
        self._began = began
        self._phase = "reading"
        self._share: float | None = None

    async def phase(self, name: str) -> None:
        self._phase, self._share = name, None
        await self.beat()

    def share(self, done: int, of: int) -> None:
        self._share = round(done / max(of, 1), 4)

    async def beat(self) -> None:
        progress: Progress = {"phase": self._phase, "elapsed_s": round(time.monotonic() - self._began, 1)}
        if self._share is not None:
            progress["share"] = self._share
        await self._told(progress)


def _look_at_names(frame: Frame, detector: str, machines: str | Sequence[str]) -> None:
    """Raises CommandRefused where a frame has no machine that a detector of these scores."""
    only = ", ".join(patterns_of(machines))
    if "machine" not in frame:
        raise CommandRefused(f'"frame" needs "machine": {detector} is trained on {only} alone')
    names = sorted({str(name) for name in frame["machine"]})
    if names and not any(map(Binding(machines).matches, names)):
        told = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise CommandRefused(f'"frame" names only {told[:300]}: {detector} is trained on {only} alone')


def _write(folder: Path, topology: Topology, job: Job) -> None:
    spec = topology.registry_models[job.detector]
    alone = msgspec.structs.replace(
        topology, detectors={job.detector: spec}, calibration=None, combine=None, alert=AlertRule()
    )
    (folder / "topology.yaml").write_text(dump_yaml(alone), encoding="utf-8")
    (folder / "job.json").write_bytes(msgspec.json.encode(job))


async def _run(
    folder: Path, feed: Callable[[Feed], Awaitable[None]], pulse: _Pulse, cancelling: Cancelling
) -> dict[str, Any]:
    """Start the process, feed it, pass on what it tells, and see to it that it is gone afterwards."""
    complaints = folder / "stderr"
    with complaints.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "stream.training_process",
            str(folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            start_new_session=True,
        )
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    assert process.stdout is not None  # noqa: S101
    cancelling.process(process)
    try:
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(_fed(feed, Feed(process.stdin)))
            trained = await _told(process.stdout, pulse, cancelling)
            feeding.cancel()
        code = await process.wait() if trained is None else 0
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    finally:
        await _end(process)
    if trained is not None:
        return trained
    cancelling.check()
    raise ModelError(f"the training's process {_death(code)}{_last_words(complaints)}")


async def _fed(feed: Callable[[Feed], Awaitable[None]], pipe: Feed) -> None:
    with contextlib.suppress(ReaderGone):
        await feed(pipe)


async def _told(lines: asyncio.StreamReader, pulse: _Pulse, cancelling: Cancelling) -> dict[str, Any] | None:
    """What came of it; None where the process ended without a word. Raises ModelError where it failed."""
    async for event in _events(lines, pulse):
        if event.phase is not None:
            cancelling.phase(event.phase)
            await pulse.phase(event.phase)
        if event.failed is not None:
            raise ModelError(f"the training failed: {event.failed}")
        if event.trained is not None:
            return event.trained
    return None


async def _events(lines: asyncio.StreamReader, pulse: _Pulse) -> AsyncIterator[Event]:
    while True:
        try:
            async with asyncio.timeout(_PULSE):
                line = await lines.readline()
        except TimeoutError:
            await pulse.beat()
            continue
        if not line:
            return
        yield msgspec.json.decode(line, type=Event)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left, and wait until it is gone, however often the caller is cancelled."""
    cancelled: asyncio.CancelledError | None = None
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    while process.returncode is None:
        try:
            await process.wait()
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _environment() -> dict[str, str]:
    """What the process is given: not our own settings, among which is the way to the broker; one thread at a time."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MMLW_")}
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return kept | dict.fromkeys(threads, "1")


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _last_words(complaints: Path) -> str:
    text = complaints.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:].strip()
    return f": {text.splitlines()[-1]}" if text else ""
