"""A model that would run code if it were unpickled, swapped in by a command: refused, and nothing is run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from detectors import registry as kinds
from detectors.base import Weights
from stream.models import Registry
from stream.shelf import Shelf
from stream.weights import ARRAYS_FILE, HEADER_FILE, digest
from tests.aio import run
from tests.plant import Plant, Scale, readings, topology

HEADER = {"format": 1, "kind": "scale", "sensors": ["a", "b"], "threshold": 10.0, "settings": {}}


class Boom:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def beside(folder: Path, boom: Boom) -> None:
    """As MLflow lays out a scikit-learn model: a pickle, and no weights of ours."""
    for name in ("model.pkl", "python_model.pkl", "data/model.pkl"):
        (folder / name).write_bytes(pickle.dumps(boom))
    flavor = {"loader_module": "mlflow.sklearn", "model_path": "model.pkl", "python_version": "3.11.0"}
    (folder / "MLmodel").write_text(json.dumps({"flavors": {"python_function": flavor}}))


def within(folder: Path, boom: Boom) -> None:
    """Our own layout, its array an array of pickled objects."""
    objects = np.empty(1, dtype=object)
    objects[0] = boom
    (folder / "data" / HEADER_FILE).write_text(json.dumps(HEADER))
    np.savez(folder / "data" / ARRAYS_FILE, factor=objects)


def instead(folder: Path, boom: Boom) -> None:
    """Our own layout, a pickle in place of the archive of arrays."""
    (folder / "data" / HEADER_FILE).write_text(json.dumps(HEADER))
    (folder / "data" / ARRAYS_FILE).write_bytes(pickle.dumps(boom))


def as_header(folder: Path, boom: Boom) -> None:
    """Our own layout, a pickle in place of the header."""
    (folder / "data" / HEADER_FILE).write_bytes(pickle.dumps(boom))
    np.savez(folder / "data" / ARRAYS_FILE, factor=np.ones(1))


def is_live(folder: Path) -> bool:
    """Whether the bait works for who does unpickle."""
    for path in (folder / "model.pkl", folder / "data" / HEADER_FILE, folder / "data" / ARRAYS_FILE):
        if not path.exists() or path.read_bytes()[:1] == b"{":
            continue
        loaded: Any = np.load(path, allow_pickle=True)
        if hasattr(loaded, "files"):
            with loaded:
                for name in loaded.files:
                    loaded[name]
    return (folder.parent / "boom").exists()


Layout = Callable[[Path, Boom], None]


@pytest.mark.parametrize("layout", [beside, within, instead, as_header])
@pytest.mark.parametrize("forged", [False, True], ids=["untagged", "forged"])
def test_a_pickled_model_swapped_in_by_command_runs_nothing_and_the_old_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout, *, forged: bool
) -> None:
    """`forged`: whoever put it there could write the registry, and gave it the tags of a version of ours."""
    monkeypatch.setattr(kinds, "load", lambda weights: Scale(float(weights.arrays["factor"][0])))
    registry = Registry(f"sqlite:///{tmp_path}/registry.db")
    weights = Weights("scale", ("a", "b"), 10.0, {}, {"factor": np.ones(1)})
    example = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0]})
    registry.register("scale", weights, example=example, alias="champion")
    folder = tmp_path / "hostile"
    (folder / "data").mkdir(parents=True)
    layout(folder, Boom(tmp_path / "boom"))
    tags = {}
    if forged:
        ours = (folder / "data" / HEADER_FILE).exists()
        content = digest(folder / "data") if ours else "sha256:" + "0" * 64
        tags = {"mmlw.digest": content, "mmlw.kind": "scale", "mmlw.sensors": '["a", "b"]'}
    client = mlflow.MlflowClient(tracking_uri=registry.uri, registry_uri=registry.uri)
    client.create_model_version("scale", folder.as_uri(), tags=tags)

    async def story() -> dict[str, Any]:
        plant = Plant(
            tmp_path / "data", topology(batch_model=True), shelf=Shelf(registry, tmp_path / "shelf")
        )
        await plant.declare()
        await plant.publish(readings(50))
        async with plant.running() as worker:
            await plant.reached(worker, 50)
            receipt = await plant.ask("swap", model="models:/scale/2")
            status = await plant.ask("status")
            assert status["models"]["scale"]["version"] == "1"
            await plant.publish(readings(50, seed=1))
            await plant.reached(worker, 100)
        scores = np.concatenate([part.scores["scale"] for part in plant.scored])
        values = np.vstack([part.batch.values for part in plant.scored])
        np.testing.assert_allclose(scores, np.abs(values[:, 0]))
        return receipt

    receipt = run(story())
    assert receipt["status"] == "refused", receipt
    assert "scale version 2" in receipt["reason"]
    assert receipt["serving"]["scale"]["version"] == 1
    assert not (tmp_path / "boom").exists()
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == [
        receipt["serving"]["scale"]["digest"].replace(":", "-")
    ]
    assert is_live(folder), "the bait must be live for this test to mean anything"
