"""Trained weights as plain files, `weights.npz` and `model.json`: numbers and JSON, nothing that runs.

The same weights always give the same bytes, and so the same digest: members are sorted, stored without
compression (compressors differ between builds) and dated 1980. Reading trusts nothing: sizes are bounded
before anything is allocated, and only arrays of booleans, integers and floats are taken.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Weights
from stream.errors import ModelRejected

__all__ = ["ARRAYS_FILE", "FORMAT", "HEADER_FILE", "MAX_BYTES", "digest", "read_weights", "write_weights"]

FORMAT = 1
"""Version of the layout; a reader refuses any other."""
ARRAYS_FILE = "weights.npz"
HEADER_FILE = "model.json"
MAX_BYTES = 256 * 2**20
"""Cap on the arrays together, unpacked; an isolation forest of 100 trees needs 2 MB."""

_MAX_HEADER_BYTES = 2**20
_MAX_ARRAYS = 1024
_MAX_PACKED = MAX_BYTES + _MAX_ARRAYS * 1024
"""Cap on the archive's own size: the arrays, and a zip and a numpy header for each."""
_MAX_SENSORS = 4096
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAX_DIMENSIONS = 8
_ARRAY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<|](?:b1|[iu][1248]|f[248]))', 'fortran_order': False, "
    rb"'shape': \((?P<shape>(?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\), \} *\n",
    re.DOTALL,
)
"""What numpy writes before an array's bytes, in format 1.0."""
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    struct.error,
)
"""What zipfile raises on damaged, encrypted or exotic archives."""


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    kind: str
    sensors: tuple[str, ...]
    threshold: float
    settings: dict[str, Any]


class _Format(msgspec.Struct):
    format: int


def write_weights(folder: Path, weights: Weights) -> None:
    """Write both files into `folder`, which is made if need be.

    Raises ValueError on weights that `read_weights` would refuse, before anything is written.
    """
    header = _Header(
        FORMAT, weights.kind, tuple(weights.sensors), float(weights.threshold), dict(weights.settings)
    )
    if problem := _header_problem(header):
        raise ValueError(problem)
    text = json.dumps(
        msgspec.structs.asdict(header), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    head = (text + "\n").encode()
    packed = _pack({name: _plain(name, array) for name, array in sorted(weights.arrays.items())})
    if len(head) > _MAX_HEADER_BYTES:
        raise ValueError(f"settings and sensors take {len(head)} bytes as JSON; at most {_MAX_HEADER_BYTES}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HEADER_FILE).write_bytes(head)
    (folder / ARRAYS_FILE).write_bytes(packed)


def read_weights(folder: Path) -> Weights:
    """The weights in `folder`; arrays are fresh, writable and C-ordered.

    Raises ModelRejected, in one line, on anything that is missing, malformed, too large or not plain numbers.
    """
    header = _read_header(folder / HEADER_FILE)
    return Weights(
        kind=header.kind,
        sensors=header.sensors,
        threshold=header.threshold,
        settings=header.settings,
        arrays=_read_arrays(folder / ARRAYS_FILE),
    )


def digest(folder: Path) -> str:
    """`sha256:` and 64 hex digits over both files, names and lengths included.

    Raises ModelRejected if a file is missing or too large.
    """
    total = hashlib.sha256()
    for name, limit in ((HEADER_FILE, _MAX_HEADER_BYTES), (ARRAYS_FILE, _MAX_PACKED)):
        content = _read_bytes(folder / name, limit)
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return f"sha256:{total.hexdigest()}"


def _pack(arrays: dict[str, NDArray[Any]]) -> bytes:
    if len(arrays) > _MAX_ARRAYS:
        raise ValueError(f"{len(arrays)} arrays; at most {_MAX_ARRAYS}")
    if (size := sum(array.nbytes for array in arrays.values())) > MAX_BYTES:
        raise ValueError(f"the arrays take {size} bytes; at most {MAX_BYTES}")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.getvalue())
    return packed.getvalue()


def _plain(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if not name.isidentifier():
        raise ValueError(f'array name "{name}" is not an identifier')
    if problem := _dtype_problem(array.dtype):
        raise ValueError(f"array {name}: {problem}")
    return np.array(array, dtype=array.dtype.newbyteorder("<"), order="C", subok=False)


def _dtype_problem(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "biuf" and dtype.itemsize <= 8:
        return ""
    return f"{dtype} is not a boolean, integer or float of at most 64 bits"


def _header_problem(header: _Header) -> str:
    if not header.kind:
        return "kind is empty"
    if not 1 <= len(header.sensors) <= _MAX_SENSORS:
        return f"{len(header.sensors)} sensors; there must be 1 to {_MAX_SENSORS}"
    if not all(header.sensors) or len(set(header.sensors)) != len(header.sensors):
        return "sensors must be different, non-empty names"
    if not math.isfinite(header.threshold):
        return f"threshold {header.threshold} is not finite"
    return ""


def _read_header(path: Path) -> _Header:
    content = _read_bytes(path, _MAX_HEADER_BYTES)
    try:
        if (found := msgspec.json.decode(content, type=_Format).format) != FORMAT:
            raise ModelRejected(
                f"{path.name}: format {found} is unknown; this version of mmlw reads {FORMAT}"
            )
        header = msgspec.json.decode(content, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelRejected(f"{path.name}: {error}") from error
    if problem := _header_problem(header):
        raise ModelRejected(f"{path.name}: {problem}")
    return header


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    content = _read_bytes(path, _MAX_PACKED)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            _check_members(path.name, members)
            return {member.filename.removesuffix(".npy"): _read_array(archive, member) for member in members}
    except _BROKEN_ZIP as error:
        raise ModelRejected(f"{path.name}: not a readable archive of arrays: {error}") from error


def _check_members(file: str, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if len(names) > _MAX_ARRAYS:
        raise ModelRejected(f"{file}: {len(names)} arrays; at most {_MAX_ARRAYS}")
    if len(set(names)) != len(names):
        raise ModelRejected(f"{file}: an array appears twice")
    if odd := [name for name in names if not (name.endswith(".npy") and name[:-4].isidentifier())]:
        raise ModelRejected(f"{file}: {odd[0]!r} is not an array's name")
    if packed := [name for name, member in zip(names, members, strict=True) if member.compress_type]:
        raise ModelRejected(f"{file}: {packed[0]} is compressed; arrays are stored as they are")
    if (size := sum(member.file_size for member in members)) > _MAX_PACKED:
        raise ModelRejected(f"{file}: {size} bytes unpacked; at most {MAX_BYTES}")


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array. Its header is matched, not evaluated, and must agree with the bytes that follow."""
    content = archive.read(member)
    found = _ARRAY_HEADER.match(content)
    if found is None:
        raise ModelRejected(
            f"{ARRAYS_FILE}: {member.filename}: not a plain array (booleans, integers or floats in C order)"
        )
    dtype = np.dtype(found["dtype"].decode())
    shape = tuple(int(length) for length in re.findall(rb"[0-9]+", found["shape"]))
    body = memoryview(content)[found.end() :]
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) * dtype.itemsize != len(body):
        raise ModelRejected(
            f"{ARRAYS_FILE}: {member.filename}: shape {shape} does not fit its {len(body)} bytes"
        )
    array: NDArray[Any] = np.frombuffer(body, np.uint8 if dtype.kind == "b" else dtype).reshape(shape)
    return array != 0 if dtype.kind == "b" else np.array(array, dtype=dtype.newbyteorder("="))


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        if (size := path.stat().st_size) > limit:
            raise ModelRejected(f"{path.name}: {size} bytes; at most {limit}")
        return path.read_bytes()
    except OSError as error:
        raise ModelRejected(f"{path.name}: {error.strerror or error}") from error
