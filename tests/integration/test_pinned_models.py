"""Models that are code: pinned by digest they run confined; not pinned, nothing of them runs."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.ensemble import IsolationForest

from detectors.base import Floats, ModelUnavailable
from stream.alerts import ModelInfo
from stream.cli import cli
from stream.errors import ModelRejected
from stream.models import Registry
from stream.outside import OutsideModel, folder_digest
from stream.readings import Batch
from stream.references import Pin
from stream.scorer import Scorer
from stream.shelf import Shelf
from stream.topology import RegistryModel, Source, Topology

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow about its own type hints
    import mlflow.pyfunc
    import mlflow.sklearn

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # MLflow warns of pickles and of types: that is what is tested
cloudpickle.register_pickle_by_value(sys.modules[__name__])
SENSORS = ("a", "b")
FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 2)), columns=list(SENSORS))
NONE = np.zeros(0, np.int64)


class Distance(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """High far from zero."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        return model_input.abs().max(axis=1)


class Bomb(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        return model_input["a"]


class Thief(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Tells by its scores what it could get at."""

    def __init__(self, secret: Path, target: Path, parent: int, port: int) -> None:
        self.secret, self.target, self.parent, self.port = secret, target, parent, port

    def load_context(self, context: Any) -> None:
        import socket
        import subprocess

        tries = (
            lambda: next(name for name in os.environ if "MMLW_" in name or "TOKEN" in name),
            lambda: self.secret.read_text(),
            lambda: Path(f"/proc/{self.parent}/environ").read_bytes(),
            lambda: self.target.write_text("x"),
            lambda: (Path.cwd() / "new").write_text("x"),
            lambda: socket.create_connection(("127.0.0.1", self.port), 1.0),
            lambda: subprocess.run(["/bin/true"], check=True),
            lambda: os.kill(self.parent, 0),
            lambda: bytearray(5 * 2**30),
        )
        self.got = []
        for attempt in tries:
            try:
                attempt()
                self.got.append(1.0)
            except (Exception, StopIteration):
                self.got.append(0.0)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        return [(self.got * len(model_input))[i] for i in range(len(model_input))]


class Moody(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Dies, hangs, raises or gives nonsense, as the first value asks."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        first = float(model_input.iloc[0, 0])
        if first == 100.0:
            os._exit(1)
        if first == 200.0:
            time.sleep(60.0)
        if first == 300.0:
            raise ValueError("no such reading")
        if first == 400.0:
            return [float("nan")] * len(model_input)
        if first == 500.0:
            return [1.0] * (len(model_input) + 1)
        return model_input["a"].abs()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, models = _filled(tmp_path_factory)
    yield models
    assert not (folder / "bang").exists(), "the bomb was unpickled"


def _filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Registry]:
    folder = tmp_path_factory.mktemp("registry")
    models = Registry(f"sqlite:///{folder / 'registry.db'}")
    models.names()
    mlflow.set_tracking_uri(models.uri)
    mlflow.set_registry_uri(models.uri)
    mlflow.create_experiment("theirs", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("theirs")
    forest = IsolationForest(n_estimators=20, random_state=0).fit(FRAME)
    signature = mlflow.models.infer_signature(FRAME, forest.predict(FRAME))
    mlflow.sklearn.log_model(
        forest,
        name="forest",
        signature=signature,
        registered_model_name="forest",
        serialization_format="cloudpickle",
    )
    bomb = Bomb(folder / "bang")
    for name, model in (("distance", Distance()), ("bomb", bomb)):
        mlflow.pyfunc.log_model(
            name=name, python_model=model, registered_model_name=name, pip_requirements=["mlflow"]
        )
    return folder, models


def saved(folder: Path, model: Any) -> Path:
    mlflow.pyfunc.save_model(str(folder / "model"), python_model=model, pip_requirements=["mlflow"])
    return folder / "model"


def score(model: Any, values: Floats) -> Floats:
    found: Floats = model.score_learn(np.zeros(len(values), np.int64), values, np.zeros(len(values)))
    return found


def digest_told(refusal: pytest.ExceptionInfo[ModelRejected]) -> str:
    text = str(refusal.value)
    return text[text.index("trust: ") + 7 :][:71]


def test_a_scikit_learn_model_is_refused_with_its_digest_and_scores_once_that_is_pinned(
    registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(ModelRejected, match=r"no data-only weights.*process of its own") as refusal:
        Shelf(registry, tmp_path).resolve("models:/forest/1")
    pin = Pin((digest_told(refusal),), "score_samples", "low", 0.6)
    shelf = Shelf(registry, tmp_path, {"forest": pin})
    ref = shelf.resolve("models:/forest/1")
    model = shelf.model(ref, SENSORS)
    theirs = IsolationForest(n_estimators=20, random_state=0).fit(FRAME)
    values = FRAME.to_numpy()[:50].copy()
    np.testing.assert_allclose(score(model, values), -theirs.score_samples(FRAME[:50]))
    values[3, 1] = np.nan
    assert score(model, values)[3] == 0.0
    with pytest.raises(ModelRejected, match="signature names a, b; the topology shows it a, c"):
        shelf.model(ref, ("a", "c"))
    for name in ("forest", "other"):
        wrong = Shelf(registry, tmp_path, {name: Pin((f"sha256:{1:064x}",), "predict", "high", 1.0)})
        with pytest.raises(ModelRejected, match="does not pin it"):
            wrong.model(ref, SENSORS)
    copy = next((tmp_path / f"pinned-{ref.digest.replace(':', '-')}").glob("*.pkl"))
    copy.write_bytes(copy.read_bytes() + b"x")
    with pytest.raises(ModelRejected, match="was changed"):
        shelf.model(ref, SENSORS)


def test_a_pyfunc_model_scores(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected) as refusal:
        Shelf(registry, tmp_path).resolve("models:/distance/1")
    pin = Pin((digest_told(refusal),), "predict", "high", 3.0)
    shelf = Shelf(registry, tmp_path, {"distance": pin})
    model = shelf.model(shelf.resolve("models:/distance/1"), SENSORS)
    assert score(model, np.array([[1.0, -4.0], [0.5, 0.0]])).tolist() == [4.0, 0.5]


def test_of_a_model_that_is_not_pinned_nothing_runs(registry: Registry, tmp_path: Path) -> None:
    for pins in ({}, {"bomb": Pin((f"sha256:{0:064x}",), "predict", "high", 1.0)}):
        with pytest.raises(ModelRejected, match="trust: sha256:"):
            Shelf(registry, tmp_path, pins).resolve("models:/bomb/1")


def test_a_thief_that_was_pinned_by_mistake_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setenv("MMLW_BROKER", "amqp://worker:secret@host/")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    secret = tmp_path / "password"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        thief = Thief(secret, tmp_path / "written", os.getpid(), server.getsockname()[1])
        folder = saved(tmp_path, thief)
        model = OutsideModel(folder, Pin((), "predict", "high", 1.0), SENSORS)
        got = score(model, np.zeros((9, 2)))
    if os.getuid() == 0:  # no limit of processes holds for root; what it starts is as confined as itself
        got[6] = 0.0
    assert got.tolist() == [0.0] * 9
    assert not (tmp_path / "written").exists()


def test_whatever_a_pinned_model_does_costs_the_scores_of_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.outside._BATCH", 5.0)
    pin = Pin((), "predict", "high", 1.0)
    model = OutsideModel(saved(tmp_path, Moody()), pin, SENSORS)
    good = np.array([[2.0, 0.0]])
    for asked, told in ((300.0, "no such reading"), (400.0, "not finite")):
        with pytest.raises(ModelUnavailable, match=told):
            score(model, np.array([[asked, 0.0]]))
        assert score(model, good).tolist() == [2.0], "it lives on"
    for asked, told in ((100.0, "has ended"), (200.0, "took too long"), (500.0, "cannot reshape")):
        with pytest.raises(ModelUnavailable, match=told):
            score(model, np.array([[asked, 0.0]]))
        _until_it_scores(model, good)


def _until_it_scores(model: OutsideModel, values: Floats) -> None:
    """Asked again and again meanwhile, as by a stream that never rests: that is no further failure."""
    for _ in range(1200):
        try:
            assert score(model, values).tolist() == [2.0]
            return
        except ModelUnavailable:  # "is being started"
            time.sleep(0.05)
    raise AssertionError("it was not started again")


def test_a_detector_without_scores_is_unhealthy_and_the_stream_goes_on(tmp_path: Path) -> None:
    pin = Pin((), "predict", "high", 1.0)
    model = OutsideModel(saved(tmp_path, Moody()), pin, SENSORS)
    topology = Topology(
        name="t",
        source=Source(sensors=SENSORS),  # type: ignore[arg-type]
        detectors={"d": RegistryModel(model="models:/m/1", threshold=1.0)},
    )
    found = Scorer(topology, {"d": (model, ModelInfo("m", "1", "sha256:0", "pinned"))})
    found.admit(["m0", "m1"], {})
    count = np.zeros(2, np.int64)
    batch = Batch(["m0", "m1"], np.ones(2), np.full((2, 2), 300.0), np.arange(2), count, count - 1)
    scored = found.process(batch, np.arange(2))
    assert np.isnan(scored.scores["d"]).all()
    assert scored.unhealthy == [("d", "m0"), ("d", "m1")]
    assert not scored.alerts


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, Distance())
    with pytest.raises(ModelRejected, match="`get_raw_model` is not implemented"):
        OutsideModel(folder, Pin((), "score_samples", "low", 1.0), SENSORS)
    before = folder_digest(folder)
    (folder / "link").symlink_to(folder / "MLmodel")
    with pytest.raises(ModelRejected, match="not a plain file"):
        folder_digest(folder)
    (folder / "link").unlink()
    assert folder_digest(folder) == before
    (folder / "MLmodel").unlink()
    with pytest.raises(ModelRejected, match="MLmodel cannot be read"):
        OutsideModel(folder, Pin((), "predict", "high", 1.0), SENSORS)


def test_versions_are_listed_whoever_registered_them(registry: Registry) -> None:
    registry.set_alias("forest", "champion", 1)
    whole = CliRunner().invoke(cli, ["models", "list", "--registry", registry.uri])
    assert [line.split()[:2] for line in whole.output.splitlines()[1:]] == [
        ["bomb", "1"],
        ["distance", "1"],
        ["forest", "1"],
    ]
    one = CliRunner().invoke(cli, ["models", "list", "forest", "--json", "--registry", registry.uri])
    listed = json.loads(one.output)
    assert (listed["name"], listed["version"], listed["aliases"]) == ("forest", 1, ["champion"])
