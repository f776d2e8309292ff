"""A model that is code (pickled, or any that MLflow loads), pinned by digest: it runs in a process of its own.

That process has none of our environment, no credentials, an empty folder, limits (see `stream.confinement`), and is
asked with numbers and answers with numbers. It may raise, hang, lie or die: what is lost are its scores of a batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from detectors.base import Contributions, Floats, Mask, ModelUnavailable, Rows, Slots
from stream import log
from stream.errors import ModelRejected
from stream.references import Pin

__all__ = ["PINNED", "OutsideModel", "folder_digest"]

PINNED = "pinned"
"""The kind of such a model."""
_LOADING = 90.0
"""Seconds to load a model, and at the most between two attempts to start it again."""
_BATCH = 2.0
"""Seconds for a batch: the stream waits for it."""
_MAX_TEXT = 4096
_PIPE = 4096
"""Bytes for which a pipe that says it has room has room."""
_MAX_FILES, _MAX_FILE_BYTES = 2000, 2**30


def folder_digest(folder: Path) -> str:
    """`sha256:` and 64 hex digits over all files below, names and lengths included. Raises ModelRejected."""
    total, size = hashlib.sha256(), 0
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    if len(files) > _MAX_FILES:
        raise ModelRejected(f"{len(files)} files; at most {_MAX_FILES}")
    for path in files:
        if path.is_symlink() or not path.is_file():
            raise ModelRejected(f"{path.name} is not a plain file")
        if (size := size + path.stat().st_size) > _MAX_FILE_BYTES:
            raise ModelRejected(f"more than {_MAX_FILE_BYTES} bytes")
        content = path.read_bytes()
        total.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        total.update(content)
    return f"sha256:{total.hexdigest()}"


class OutsideModel:
    """A model without state of each machine, scored in another process. Readings with a missing sensor score 0.

    A batch that it does not answer raises ModelUnavailable; it is then started anew, beside the stream, after a pause
    that doubles with every failure.
    """

    def __init__(self, folder: Path, pin: Pin, sensors: Sequence[str]) -> None:
        """Start it and try it. Raises ModelRejected."""
        self.sensors = tuple(sensors)
        self.threshold = np.inf if pin.threshold is None else pin.threshold
        self._folder, self._pin = folder, pin
        self._failures, self._next_start = 0, 0.0
        if problem := _signature_problem(folder, self.sensors):
            raise ModelRejected(problem)
        self._child = _Child(folder, pin.method, self.sensors)
        try:
            confined = self._child.wait_ready(_LOADING)
            self._ask(np.vstack([np.zeros(len(sensors)), np.ones(len(sensors))]))
        except ModelUnavailable as error:
            self._child.end()
            raise ModelRejected(f"the pinned model cannot be used: {error}") from None
        log.get().info("pinned_model_started", confined=confined)

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """See `Model`. Raises ModelUnavailable."""
        scores = np.zeros(len(values))
        whole = ~np.isnan(values).any(axis=1)
        if not whole.any():
            return scores
        if self._child.dead:
            self._restart()
        try:
            if not self._child.ready():
                raise ModelUnavailable("is being started")
            scores[whole] = self._ask(values[whole])
        except ModelUnavailable:
            if self._child.dead:
                self._failed()
            raise
        self._failures = 0
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """None: nobody knows how it scores."""
        size = (len(rows), len(self.sensors))
        return Contributions(np.zeros(size), np.full(size, np.nan))

    def snapshot(self, slots: Slots) -> Rows:
        """Nothing."""
        return {}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Nothing."""

    def _ask(self, values: Floats) -> Floats:
        """Scores (n,) of rows without a gap, turned so that high is anomalous; what is then below 0 is 0."""
        found = self._child.score(values, _BATCH)
        if not np.isfinite(found).all():
            raise ModelUnavailable("gave scores that are not finite")
        return np.maximum(-found if self._pin.anomalous == "low" else found, 0.0)

    def _failed(self) -> None:
        self._failures += 1
        self._next_start = time.monotonic() + min(2.0**self._failures, _LOADING)
        log.limited("pinned_model_failed", self._folder.name, failures=self._failures)

    def _restart(self) -> None:
        """Have it started once its pause is over, and say that it is not there yet: no further failure."""
        if time.monotonic() >= self._next_start:
            self._child = _Child(self._folder, self._pin.method, self.sensors)
        raise ModelUnavailable("is being started")


class _Child:
    """One life of the process."""

    def __init__(self, folder: Path, method: str, sensors: Sequence[str]) -> None:
        home = tempfile.mkdtemp(prefix="mmlw-pinned-")
        code = [sys.executable, "-I", "-B", "-m", "stream.outside_child"]
        self._process = subprocess.Popen(  # noqa: S603 - our own module; what the model may do is confined there
            [*code, str(folder.resolve()), method, json.dumps(list(sensors))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(home),
            cwd=home,
            start_new_session=True,
        )
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        assert self._process.stdout is not None  # noqa: S101
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._ready, self._got = False, b""
        self._until = time.monotonic() + _LOADING
        self.dead = False
        self.end = weakref.finalize(self, _end, self._process, home)

    def ready(self) -> bool:
        """Whether it has loaded the model, without waiting. Raises ModelUnavailable where it never will."""
        if not self._ready and not self.dead:
            if (answer := self._frame(_MAX_TEXT)) is None:
                if time.monotonic() > self._until:
                    self._give_up(f"was not loaded within {_LOADING:g} s")
                return False
            self._expect(b"R", answer)
            self._ready = True
        return self._ready and not self.dead

    def wait_ready(self, seconds: float) -> list[str]:
        """Wait for it; what confines it. Raises ModelUnavailable."""
        confined: list[str] = json.loads(
            self._expect(b"R", self._answer(time.monotonic() + seconds, _MAX_TEXT))
        )
        self._ready = True
        return confined

    def score(self, values: Floats, seconds: float) -> Floats:
        """What the model says of rows (n, n_sensors): (n,). Raises ModelUnavailable."""
        until = time.monotonic() + seconds
        content = struct.pack("<II", *values.shape) + np.ascontiguousarray(values, "<f8").tobytes()
        view = memoryview(content)
        try:
            while view:
                if not _waited(self._in, select.POLLOUT, until):
                    self._give_up(f"took longer than {seconds:g} s")
                view = view[os.write(self._in, view[:_PIPE]) :]
        except OSError:
            self._give_up("has ended")
        answer = self._expect(b"S", self._answer(until, max(8 * len(values), _MAX_TEXT)))
        if len(answer) != 8 * len(values):
            self._give_up(f"gave {len(answer) / 8:g} scores for {len(values)} readings")
        return np.frombuffer(answer, "<f8").astype(np.float64)

    def _answer(self, until: float, most: int) -> tuple[bytes, bytes]:
        while (found := self._frame(most)) is None:
            if not _waited(self._out, select.POLLIN, until):
                self._give_up("took too long")
        return found

    def _frame(self, most: int) -> tuple[bytes, bytes] | None:
        """A whole answer, None where it has not come yet."""
        while True:
            if len(self._got) >= 5:
                length = struct.unpack("<I", self._got[1:5])[0]
                if length > most:
                    self._give_up(f"gave an answer of {length} bytes")
                if len(self._got) >= 5 + length:
                    letter, content = self._got[:1], self._got[5 : 5 + length]
                    self._got = self._got[5 + length :]
                    return letter, content
            try:
                if not (more := os.read(self._out, 65_536)):
                    self._give_up("has ended")
            except BlockingIOError:
                return None
            self._got += more

    def _expect(self, letter: bytes, answer: tuple[bytes, bytes]) -> bytes:
        if answer[0] != letter:
            if letter == b"R" or answer[0] != b"E":
                self._give_up(answer[1].decode(errors="replace"))
            raise ModelUnavailable(answer[1].decode(errors="replace"))
        return answer[1]

    def _give_up(self, why: str) -> None:
        self.dead = True
        self.end()
        raise ModelUnavailable(why if why.isprintable() else ascii(why))


def _waited(pipe: int, event: int, until: float) -> bool:
    """Wait for a pipe, until this time of the monotonic clock: whether it is there."""
    watch = select.poll()
    watch.register(pipe, event)
    return bool(watch.poll(1000.0 * max(until - time.monotonic(), 0.0)))


def _environment(home: str) -> dict[str, str]:
    """All that the process is told: nothing of ours."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    places = dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"), home)
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_CONFIGURE_LOGGING": "false", "LC_ALL": "C.UTF-8"}
    return {"PATH": "/usr/bin:/bin", **threads, **places, **settings}


def _end(process: subprocess.Popen[bytes], home: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    shutil.rmtree(home, ignore_errors=True)


def _signature_problem(folder: Path, sensors: tuple[str, ...]) -> str:
    """What its signature says against these sensors; nothing where it has none."""
    try:
        described = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        inputs = json.loads((described.get("signature") or {}).get("inputs") or "[]")
        names = tuple(str(column["name"]) for column in inputs if "name" in column)
    except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError) as error:
        return f"its MLmodel cannot be read: {error}"
    if not names or names == sensors:
        return ""
    return f"its signature names {', '.join(names)}; the topology shows it {', '.join(sensors)}"
