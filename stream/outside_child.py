"""The process in which a pinned model runs: it confines itself, loads the model, then answers frames of numbers.

    python -I -B -m stream.outside_child FOLDER METHOD SENSORS

In: rows and columns (two 32-bit numbers), then float64, little-endian. Out: a letter, a length, that many bytes:
`R` ready (what confines it), `S` scores, `E` what went wrong.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["main"]

_LOADING, _BATCH = 120, 30
"""Seconds of processor time."""


def main() -> None:
    """Serve until the input ends."""
    from stream.confinement import allow_seconds, confine

    folder, method, sensors = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever the model prints is no answer
    taken = confine([folder])
    allow_seconds(_LOADING)
    warnings.simplefilter("ignore")
    try:
        score = _load(folder, method, sensors)
    except BaseException as error:
        _answer(answers, b"E", _text(error))
        raise SystemExit(1) from None
    _answer(answers, b"R", json.dumps(taken).encode())
    questions = sys.stdin.buffer
    while len(head := questions.read(8)) == 8:
        allow_seconds(_BATCH)
        rows, columns = struct.unpack("<II", head)
        try:
            _answer(answers, b"S", score(questions.read(rows * columns * 8), rows, columns))
        except (
            Exception
        ) as error:  # a model may be anybody's: what it raises is told, and the next batch tried
            _answer(answers, b"E", _text(error))


def _load(folder: Path, method: str, sensors: list[str]) -> Callable[[bytes, int, int], bytes]:
    import mlflow.pyfunc
    import numpy as np
    import pandas as pd

    loaded: Any = mlflow.pyfunc.load_model(str(folder))
    call = loaded.predict if method == "predict" else getattr(loaded.get_raw_model(), method)

    def score(content: bytes, rows: int, columns: int) -> bytes:
        values = np.frombuffer(content, "<f8").reshape(rows, columns)
        scores = np.asarray(call(pd.DataFrame(values, columns=sensors)), dtype="<f8")
        return scores.reshape(rows).tobytes()

    return score


def _answer(answers: BinaryIO, letter: bytes, content: bytes) -> None:
    answers.write(letter + struct.pack("<I", len(content)) + content)


def _text(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {error}".encode(errors="replace")[:500]


if __name__ == "__main__":
    main()
