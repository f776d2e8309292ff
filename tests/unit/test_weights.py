"""The data-only weights format: the same weights give the same digest, and nothing hostile is accepted."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.base import Weights
from stream import weights as format_
from stream.errors import ModelRejected
from stream.weights import ARRAYS_FILE, HEADER_FILE, digest, read_weights, write_weights

HEADER = {"format": 1, "kind": "toy", "sensors": ["a", "b"], "threshold": 2.5, "settings": {"n": 3}}


def toy(**changes: Any) -> Weights:
    parts: dict[str, Any] = {
        "kind": "toy",
        "sensors": ("pressure_bar", "drehzahl_µm"),
        "threshold": 2.5,
        "settings": {"n": 3, "names": ["x"], "deep": {"q": 0.1}},
        "arrays": {
            "mean": np.array([1.5, -0.0]),
            "axes": np.arange(6.0).reshape(2, 3),
            "scalar": np.array(7, dtype=np.int16),
            "empty": np.zeros((0, 3), dtype=np.float32),
            "flags": np.array([True, False]),
        },
    }
    return Weights(**(parts | changes))


def archive(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return packed.getvalue()


def npy(array: np.ndarray[Any, Any], *, allow_pickle: bool = False) -> bytes:
    packed = io.BytesIO()
    np.lib.format.write_array(packed, array, version=(1, 0), allow_pickle=allow_pickle)
    return packed.getvalue()


def plant(folder: Path, header: Mapping[str, Any] | bytes = HEADER, arrays: bytes | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / HEADER_FILE).write_bytes(text)
    (folder / ARRAYS_FILE).write_bytes(archive({"w.npy": npy(np.ones(2))}) if arrays is None else arrays)
    return folder


def rejection(folder: Path) -> str:
    with pytest.raises(ModelRejected) as caught:
        read_weights(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = toy()
    write_weights(tmp_path / "new" / "folder", written)
    read = read_weights(tmp_path / "new" / "folder")
    assert (read.kind, read.sensors, read.threshold) == (written.kind, written.sensors, written.threshold)
    assert read.settings == written.settings
    assert list(read.arrays) == sorted(written.arrays)
    for name, array in written.arrays.items():
        assert read.arrays[name].dtype == array.dtype
        assert read.arrays[name].shape == array.shape
        assert read.arrays[name].tobytes() == array.tobytes()
        assert read.arrays[name].flags.writeable
        assert read.arrays[name].flags.c_contiguous


def test_numpy_reads_the_arrays_too(tmp_path: Path) -> None:
    write_weights(tmp_path, toy())
    with np.load(tmp_path / ARRAYS_FILE, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["axes"], toy().arrays["axes"])


def test_same_weights_have_the_same_digest_whatever_their_order_and_layout(tmp_path: Path) -> None:
    original = toy()
    shuffled = toy(
        settings=dict(reversed(list(original.settings.items()))),
        arrays={
            name: np.asfortranarray(array).astype(array.dtype.newbyteorder(">")) if array.ndim else array
            for name, array in reversed(list(original.arrays.items()))
        },
    )
    write_weights(tmp_path / "one", original)
    write_weights(tmp_path / "two", shuffled)
    write_weights(tmp_path / "three", read_weights(tmp_path / "one"))
    assert digest(tmp_path / "one") == digest(tmp_path / "two") == digest(tmp_path / "three")


def test_the_digest_of_known_weights_never_changes(tmp_path: Path) -> None:
    write_weights(tmp_path, Weights("toy", ("a",), 1.0, {}, {"w": np.array([1.0, 2.0])}))
    assert digest(tmp_path) == "sha256:e9631f5050b2a7f0344a73353e758e9a47fd6a16fe0e2f62c56392416f7352b8"


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "other"},
        {"sensors": ("drehzahl_µm", "pressure_bar")},
        {"threshold": 2.5000000000000004},
        {"settings": {}},
        {"arrays": {**toy().arrays, "mean": np.array([1.5, 0.0])}},
        {"arrays": {**toy().arrays, "mean": np.array([1.5, -0.0], dtype=np.float32)}},
    ],
    ids=["kind", "sensors", "threshold", "settings", "sign of zero", "dtype"],
)
def test_any_change_changes_the_digest(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_weights(tmp_path / "one", toy())
    write_weights(tmp_path / "two", toy(**changes))
    assert digest(tmp_path / "one") != digest(tmp_path / "two")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": ""}, "kind is empty"),
        ({"threshold": float("nan")}, "threshold nan is not finite"),
        ({"sensors": ()}, "0 sensors"),
        ({"sensors": ("a", "a")}, "different"),
        ({"settings": {"q": float("inf")}}, "not JSON compliant"),
        ({"settings": {"q": "x" * 2**20}}, "at most 1048576"),
        ({"arrays": {"w": np.array([object()])}}, "array w: object is not"),
        ({"arrays": {"w": np.array(["text"])}}, "array w: <U4 is not"),
        ({"arrays": {"w": np.array([1j])}}, "complex"),
        ({"arrays": {"../w": np.ones(1)}}, "identifier"),
        ({"arrays": {f"w{i}": np.ones(1) for i in range(1025)}}, "1025 arrays"),
    ],
)
def test_unusable_weights_are_not_written(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        write_weights(tmp_path / "new", toy(**changes))
    assert not (tmp_path / "new").exists()


def test_too_many_bytes_are_neither_written_nor_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path, toy(arrays={"w": np.ones(1000)}))
    monkeypatch.setattr(format_, "MAX_BYTES", 7999)
    monkeypatch.setattr(format_, "_MAX_PACKED", 7999)
    with pytest.raises(ValueError, match="at most 7999"):
        write_weights(tmp_path / "new", toy(arrays={"w": np.ones(1000)}))
    assert "at most 7999" in rejection(tmp_path)
    with pytest.raises(ModelRejected, match="at most 7999"):
        digest(tmp_path)


@pytest.mark.parametrize("missing", [HEADER_FILE, ARRAYS_FILE])
def test_missing_file_is_rejected_by_name(tmp_path: Path, missing: str) -> None:
    (plant(tmp_path) / missing).unlink()
    assert rejection(tmp_path) == f"{missing}: No such file or directory"
    with pytest.raises(ModelRejected, match=missing):
        digest(tmp_path)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"", "model.json: "),
        (b"\xff\xfe", "model.json: "),
        (b"[" * 100_000, "model.json: "),
        (b'{"format": 1}', "missing required field"),
        (HEADER | {"format": 2}, "format 2 is unknown; this version of mmlw reads 1"),
        (HEADER | {"format": "1"}, "`$.format`"),
        (HEADER | {"extra": 1}, "`extra`"),
        (HEADER | {"threshold": None}, "`$.threshold`"),
        (HEADER | {"threshold": "3"}, "`$.threshold`"),
        (json.dumps(HEADER | {"threshold": float("nan")}).encode(), "model.json: "),
        (json.dumps(HEADER).replace("2.5", "1e999").encode(), "model.json: "),
        (HEADER | {"sensors": "ab"}, "`$.sensors`"),
        (HEADER | {"sensors": []}, "0 sensors"),
        (HEADER | {"sensors": ["a", ""]}, "non-empty"),
        (HEADER | {"kind": 3}, "`$.kind`"),
        (HEADER | {"settings": []}, "`$.settings`"),
        (b" " * (2**20 + 1), "at most 1048576"),
    ],
)
def test_bad_header_is_rejected(tmp_path: Path, header: Mapping[str, Any] | bytes, text: str) -> None:
    assert text in rejection(plant(tmp_path, header))


class Boom:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_object_array_is_rejected_without_being_unpickled(tmp_path: Path) -> None:
    objects = np.array([Boom(tmp_path / "boom")], dtype=object)
    text = rejection(plant(tmp_path, arrays=archive({"w.npy": npy(objects, allow_pickle=True)})))
    assert text == "weights.npz: w.npy: not a plain array (booleans, integers or floats in C order)"
    raw = pickle.dumps(Boom(tmp_path / "boom"))
    assert "not a plain array" in rejection(plant(tmp_path, arrays=archive({"w.npy": raw})))
    assert "not a readable archive" in rejection(plant(tmp_path, arrays=raw))
    assert not (tmp_path / "boom").exists()


def test_compressed_arrays_are_rejected_before_they_are_unpacked(tmp_path: Path) -> None:
    bomb = archive({"w.npy": npy(np.zeros(10_000_000))}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    assert "w.npy is compressed" in rejection(plant(tmp_path, arrays=bomb))


def test_sizes_are_taken_from_the_archive_before_reading(tmp_path: Path) -> None:
    content = archive({"w.npy": npy(np.ones(2))})
    entry = content.index(b"PK\x01\x02")
    huge = content[: entry + 24] + (2**32 - 2).to_bytes(4, "little") + content[entry + 28 :]
    assert "4294967294 bytes unpacked; at most" in rejection(plant(tmp_path, arrays=huge))


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"../w.npy": npy(np.ones(1))}, "is not an array's name"),
        ({"w.pkl": b""}, "is not an array's name"),
        ({"w.npy": npy(np.array(["text"]))}, "not a plain array"),
        ({"w.npy": npy(np.array([1j]))}, "not a plain array"),
        ({"w.npy": npy(np.zeros(2, dtype=[("a", "<f8")]))}, "not a plain array"),
        ({"w.npy": npy(np.asfortranarray(np.ones((2, 2))))}, "not a plain array"),
        ({"w.npy": npy(np.ones(2))[:-1]}, "shape (2,) does not fit its 15 bytes"),
        ({"w.npy": npy(np.ones(2)).replace(b"(2,)", b"(9,)")}, "shape (9,) does not fit its 16 bytes"),
        ({"w.npy": npy(np.ones((1,) * 9))}, "does not fit"),
        ({"w.npy": b""}, "not a plain array"),
        ({f"w{i}.npy": b"" for i in range(1025)}, "1025 arrays"),
    ],
)
def test_bad_arrays_are_rejected(tmp_path: Path, members: Mapping[str, bytes], text: str) -> None:
    assert text in rejection(plant(tmp_path, arrays=archive(members)))


def test_array_named_twice_is_rejected(tmp_path: Path) -> None:
    packed = archive({"v.npy": npy(np.ones(2)), "w.npy": npy(np.ones(2))}).replace(b"v.npy", b"w.npy")
    assert "appears twice" in rejection(plant(tmp_path, arrays=packed))


@pytest.mark.parametrize("seed", range(5))
def test_damaged_files_are_read_or_rejected_and_nothing_else(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    write_weights(tmp_path, toy())
    for name in (HEADER_FILE, ARRAYS_FILE):
        good = (tmp_path / name).read_bytes()
        for _ in range(200):
            bad = bytearray(good)
            for _ in range(chance.randint(1, 4)):
                bad[chance.randrange(len(bad))] = chance.randrange(256)
            (tmp_path / name).write_bytes(bad[: chance.choice([len(bad), chance.randrange(len(bad))])])
            try:
                read_weights(tmp_path)
            except ModelRejected as error:
                assert str(error).startswith((HEADER_FILE, ARRAYS_FILE))  # noqa: PT017
        (tmp_path / name).write_bytes(good)
