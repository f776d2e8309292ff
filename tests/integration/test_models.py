"""The model registry on a real MLflow: embedded in a file, and behind a server."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import mlflow
import mlflow.artifacts
import msgspec
import numpy as np
import pandas as pd
import pytest

from detectors import registry as kinds
from detectors.base import Floats, Mask, Slots, Weights
from stream.config import load
from stream.errors import ConfigError, ModelError, ModelNotFound, ModelRejected, RegistryUnreachable
from stream.models import ModelRef, ModelUri, Registry, build, parse_uri
from stream.tables import Table
from stream.training import train_detector
from stream.weights import ARRAYS_FILE, HEADER_FILE, write_weights
from tests.mlflow_server import end, mlflow_server
from tests.onnx_files import rebuilds

SENSORS = ("pressure_bar", "temperature_c")
EXAMPLE = pd.DataFrame({"pressure_bar": [3.1, 2.9, 9.0, np.nan], "temperature_c": [40.0, 41.0, 80.0, 39.0]})
NAME = "pump-toy"


class Toy:
    """Distance from a mean, plus the number of rows seen before: it shows whether a probe left traces."""

    def __init__(self, weights: Weights) -> None:
        if weights.arrays["mean"].shape != (len(weights.sensors),):
            raise ValueError(f"mean has shape {weights.arrays['mean'].shape}")
        self.sensors = weights.sensors
        self.threshold = weights.threshold
        self._mean = weights.arrays["mean"]
        self.seen = 0

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        before = np.arange(self.seen, self.seen + len(values))
        self.seen += len(values)
        scores: Floats = np.nansum(np.abs(values - self._mean), axis=1) + 1e-3 * before
        return scores


def toy(mean: tuple[float, ...] = (3.0, 40.0), **changes: Any) -> Weights:
    parts: dict[str, Any] = {
        "kind": "toy",
        "sensors": SENSORS,
        "threshold": 5.0,
        "settings": {"quantile": 0.999},
        "arrays": {"mean": np.array(mean)},
    }
    return Weights(**(parts | changes))


@pytest.fixture(autouse=True)
def toy_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = kinds.load
    monkeypatch.setattr(
        kinds, "load", lambda weights: Toy(weights) if weights.kind == "toy" else genuine(weights)
    )


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated registry file: MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("template") / "registry.db"
    assert Registry(f"sqlite:///{path}").names() == ()
    return path


@pytest.fixture
def models(tmp_path: Path, empty_database: Path) -> Registry:
    shutil.copy(empty_database, tmp_path / "registry.db")
    return Registry(f"sqlite:///{tmp_path}/registry.db")


def register(models: Registry, weights: Weights | None = None, **settings: Any) -> ModelRef:
    return models.register(NAME, weights or toy(), example=EXAMPLE, **settings)


def client(models: Registry) -> Any:
    return mlflow.MlflowClient(tracking_uri=models.uri, registry_uri=models.uri)


def assert_same(read: Weights, written: Weights) -> None:
    assert (read.kind, read.sensors, read.threshold) == (written.kind, written.sensors, written.threshold)
    assert read.settings == written.settings
    assert read.arrays.keys() == written.arrays.keys()
    for name, array in written.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array)


def test_registered_weights_come_back_through_their_alias(models: Registry) -> None:
    weights = toy()
    ref = register(
        models, weights, alias="champion", params={"trees": 100}, metrics={"auc": 0.97}, tags={"line": "3"}
    )
    assert ref == ModelRef(NAME, 1, ref.digest, "toy", "models:/pump-toy/1")
    assert models.resolve("models:/pump-toy@champion") == ref
    assert models.resolve(ref.uri) == ref
    assert_same(models.load(ref), weights)
    (version,) = models.versions(NAME)
    assert (version.version, version.aliases, version.ref) == (1, ("champion",), ref)
    assert version.tags == {
        "line": "3",
        "mmlw.alias.champion": "meant",
        "mmlw.digest": ref.digest,
        "mmlw.kind": "toy",
        "mmlw.sensors": '["pressure_bar", "temperature_c"]',
    }
    run = client(models).get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params, run.data.metrics) == ({"trees": "100"}, {"auc": 0.97})


def test_versions_count_up_and_the_alias_moves_only_when_told(models: Registry) -> None:
    first = register(models, alias="champion")
    second = register(models, toy(mean=(1.0, 2.0)))
    assert first.digest != second.digest
    assert models.resolve("models:/pump-toy@champion") == first
    models.set_alias(NAME, "champion", second.version)
    models.set_alias(NAME, "previous", first.version)
    assert models.resolve("models:/pump-toy@champion") == second
    assert [(item.version, item.aliases) for item in models.versions(NAME)] == [
        (2, ("champion",)),
        (1, ("previous",)),
    ]
    assert models.names() == (NAME,)


def test_same_weights_have_the_same_digest_in_every_version(models: Registry) -> None:
    assert register(models).digest == register(models).digest


def test_alias_stays_when_the_loaded_version_scores_differently(
    models: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register(models, alias="champion")
    monkeypatch.setattr(Registry, "load", lambda self, ref: toy(mean=(0.0, 0.0)))
    with pytest.raises(ModelRejected, match="version 2 scores its example differently"):
        register(models, alias="champion")
    assert models.resolve("models:/pump-toy@champion") == first
    failed = models.versions(NAME)[0]
    assert client(models).get_run(failed.run_id).info.status == "FAILED"


def test_weights_that_do_not_score_never_reach_the_registry(models: Registry) -> None:
    with pytest.raises(ModelRejected, match="finite"):
        register(models, toy(mean=(np.inf, 0.0)))
    assert models.names() == ()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "a/b"}, "model name"),
        ({"name": "a'b"}, "model name"),
        ({"alias": "latest"}, "alias"),
        ({"alias": "v3"}, "alias"),
        ({"example": EXAMPLE[["pressure_bar"]]}, "the example lacks temperature_c"),
        ({"example": EXAMPLE.head(0)}, "no rows"),
    ],
)
def test_unusable_arguments_are_refused_before_anything_is_stored(
    models: Registry, settings: dict[str, Any], text: str
) -> None:
    arguments: dict[str, Any] = {"name": NAME, "weights": toy(), "example": EXAMPLE} | settings
    with pytest.raises(ValueError, match=text):
        models.register(**arguments)
    assert models.names() == ()


def test_names_of_every_accepted_form_can_be_registered(models: Registry) -> None:
    ref = models.register("halle-3.pumpe_µ", toy(), example=EXAMPLE, alias="champion")
    assert models.resolve("models:/halle-3.pumpe_µ@champion") == ref


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("models:/pump-toi@champion", 'no model "pump-toi". Did you mean "pump-toy"? Its models: pump-toy'),
        (
            "models:/pump-toy@campion",
            'model pump-toy has no alias "campion". Did you mean "champion"? Its aliases: champion',
        ),
        ("models:/pump-toy/7", "model pump-toy has no version 7. Its versions: 1, 2"),
        ("models:/zzz/1", 'no model "zzz". Its models: pump-toy'),
    ],
)
def test_what_is_not_found_names_what_there_is(models: Registry, uri: str, text: str) -> None:
    register(models, alias="champion")
    register(models)
    with pytest.raises(ModelNotFound) as caught:
        models.resolve(uri)
    assert str(caught.value) == f"{models.uri}: {text}"


def test_alias_is_not_set_on_a_version_that_is_not_there(models: Registry) -> None:
    with pytest.raises(ModelNotFound, match='no model "pump-toy"'):
        models.set_alias(NAME, "champion", 1)
    register(models)
    with pytest.raises(ModelNotFound, match=r"no version 2\. Its versions: 1"):
        models.set_alias(NAME, "champion", 2)
    with pytest.raises(ValueError, match="latest"):
        models.set_alias(NAME, "latest", 1)
    with pytest.raises(ModelNotFound, match="no version 9"):
        models.load(ModelRef(NAME, 9, "sha256:" + "0" * 64, "toy", "models:/pump-toy/9"))


def test_addresses_are_taken_apart() -> None:
    assert parse_uri("models:/pump@champion") == ModelUri("pump", alias="champion")
    assert parse_uri("models:/pump.v2/12") == ModelUri("pump.v2", version=12)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "pump",
        "pump@champion",
        "models:/pump",
        "models:/pump/",
        "models:/pump/latest",
        "models:/pump/0",
        "models:/pump/-1",
        "models:/pump/1/data",
        "models:/pump@",
        "models:/pump@latest",
        "models:/pump@a/b",
        "models:/@champion",
        "models:/pu'mp/1",
        "models:/m-1a13dd80763045e0afac60b8ef8eb109",
        "models://pump/1",
        "runs:/1/model",
    ],
)
def test_other_addresses_are_refused_with_the_two_forms(uri: str) -> None:
    with pytest.raises(ValueError, match="write models:/NAME@ALIAS or models:/NAME/VERSION"):
        parse_uri(uri)


# -- content ------------------------------------------------------------------------------------------------


def artifact_folder(models: Registry, ref: ModelRef) -> Path:
    location = client(models).get_model_version_download_uri(ref.name, str(ref.version))
    return Path(location.removeprefix("file://"))


def test_changed_content_is_rejected_by_its_digest(models: Registry) -> None:
    ref = register(models)
    write_weights(artifact_folder(models, ref) / "data", toy(mean=(3.0, 40.5)))
    with pytest.raises(
        ModelRejected, match=f"version 1: its content has digest .* not the expected {ref.digest}"
    ):
        models.load(ref)


def test_another_pinned_digest_or_kind_is_rejected(models: Registry) -> None:
    ref = register(models)
    with pytest.raises(ModelRejected, match="not the expected sha256:0000"):
        models.load(msgspec.structs.replace(ref, digest="sha256:" + "0" * 64))
    with pytest.raises(ModelRejected, match="its kind is toy, not the expected pca"):
        models.load(msgspec.structs.replace(ref, kind="pca"))


@pytest.mark.parametrize("missing", [HEADER_FILE, ARRAYS_FILE])
def test_missing_file_is_rejected(models: Registry, missing: str) -> None:
    ref = register(models)
    (artifact_folder(models, ref) / "data" / missing).unlink()
    with pytest.raises(ModelRejected, match="holds no data-only weights"):
        models.load(ref)


def test_too_large_artifact_is_rejected_before_it_is_downloaded(
    models: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = register(models)
    monkeypatch.setattr("stream.models._MAX_DOWNLOAD", 100)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda **_: pytest.fail("downloaded"))
    with pytest.raises(ModelRejected, match=r"version 1: \d+ bytes; at most 100"):
        models.load(ref)


class Boom:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "tags", [{}, {"mmlw.digest": "sha256:" + "0" * 64, "mmlw.kind": "toy"}], ids=["", "forged"]
)
def test_pickled_model_is_rejected_and_never_unpickled(
    models: Registry, tmp_path: Path, tags: dict[str, str]
) -> None:
    raw = pickle.dumps(Boom(tmp_path / "boom"))
    folder = tmp_path / "sklearn"
    for name in ("model.pkl", "python_model.pkl", "data/model.pkl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    flavor = {"loader_module": "mlflow.sklearn", "model_path": "model.pkl", "python_version": "3.11.0"}
    (folder / "MLmodel").write_text(json.dumps({"flavors": {"python_function": flavor}}))
    client(models).create_registered_model(NAME)
    client(models).create_model_version(NAME, folder.as_uri(), tags=tags)
    ref = ModelRef(NAME, 1, "sha256:" + "0" * 64, "toy", "models:/pump-toy/1")
    if tags:
        assert models.resolve(ref.uri) == ref
    else:
        with pytest.raises(ModelRejected, match=r"version 1 holds no data-only weights.*not loaded"):
            models.resolve(ref.uri)
        assert models.versions(NAME)[0].ref is None
    with pytest.raises(ModelRejected, match="holds no data-only weights"):
        models.load(ref)
    assert not (tmp_path / "boom").exists()
    pickle.loads(raw)
    assert (tmp_path / "boom").exists(), "the bait must be live for this test to mean anything"


def test_artifacts_hold_no_pickle_and_lie_where_they_were_told(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "registry.db")
    models = Registry(f"sqlite:///{tmp_path}/registry.db", tmp_path / "elsewhere")
    register(models)
    files = [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == [
        "MLmodel",
        "input_example.json",
        "model.json",
        "weights.npz",
    ]
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "registry.db"]


ANY_TYPE = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
"""MLflow says this when its own `mlflow.pyfunc` is imported."""

# -- a data scientist's view --------------------------------------------------------------------------------


@pytest.fixture
def mlflow_uri(models: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(models.uri)
    yield
    mlflow.set_tracking_uri(before)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@ANY_TYPE
@pytest.mark.usefixtures("mlflow_uri")
def test_pyfunc_gives_the_same_scores_without_pickle(models: Registry) -> None:
    register(models, alias="champion")
    loaded = mlflow.pyfunc.load_model("models:/pump-toy@champion")
    expected = Toy(toy()).score_learn(np.zeros(4, np.int64), EXAMPLE.to_numpy(), np.zeros(4))
    np.testing.assert_array_equal(loaded.predict(EXAMPLE), expected)
    np.testing.assert_array_equal(loaded.predict(EXAMPLE), expected)
    reordered = EXAMPLE[["temperature_c", "pressure_bar"]].assign(other=1.0)
    np.testing.assert_array_equal(loaded.predict(reordered), expected)
    pd.testing.assert_frame_equal(loaded.input_example, EXAMPLE)
    assert loaded.metadata.signature.inputs.input_names() == list(SENSORS)
    assert loaded.metadata.flavors["mmlw"]["kind"] == "toy"


def trained_kinds() -> list[str]:
    return sorted(kinds.TRAINABLE)


@ANY_TYPE
@pytest.mark.usefixtures("mlflow_uri")
@pytest.mark.parametrize("kind", trained_kinds())
def test_every_trainable_kind_survives_the_registry(models: Registry, kind: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(np.random.default_rng(7).normal(size=(300, 3)), columns=["a", "b", "c"])
    file = tmp_path / "net.onnx"
    file.write_bytes(rebuilds().SerializeToString())
    settings: dict[str, Any] = {"file": str(file)} if kind == "onnx" else {}
    weights = kinds.TRAINABLE[kind](**settings).fit(frame)
    ref = models.register(kind, weights, example=frame.head(20), alias="champion")
    loaded = models.load(ref)
    assert_same(loaded, weights)
    slots, times = np.zeros(20, np.int64), np.zeros(20)
    expected = kinds.load(weights).score_learn(slots, frame.head(20).to_numpy(), times)
    np.testing.assert_array_equal(
        build(loaded, "abc").score_learn(slots, frame.head(20).to_numpy(), times), expected
    )
    np.testing.assert_array_equal(
        mlflow.pyfunc.load_model(f"models:/{kind}@champion").predict(frame.head(20)), expected
    )


@ANY_TYPE
def test_onnx_file_of_ones_own_is_trained_and_loaded_like_any_other_kind(
    models: Registry, tmp_path: Path
) -> None:
    (tmp_path / "net.onnx").write_bytes(rebuilds().SerializeToString())
    (tmp_path / "t.yaml").write_text(f"""
name: t
source: {{sensors: [a, b, c]}}
detectors:
  net:
    model: models:/net@champion
    fit: {{kind: onnx, file: {tmp_path / "net.onnx"}, quantile: 0.99}}
""")
    values = np.random.default_rng(7).normal(size=(300, 3))
    table = Table("healthy.csv", ("a", "b", "c"), ["m"] * 300, np.zeros(300), values, None)
    trained = train_detector(load(tmp_path / "t.yaml"), "net", table, models, alias="champion")
    ref, weights = trained.ref, trained.weights
    assert ref.kind == "onnx"
    (tmp_path / "net.onnx").write_bytes(b"garbage")
    model = build(models.load(models.resolve("models:/net@champion")), "abc")
    scores = model.score_learn(np.zeros(300, np.int64), values, np.zeros(300))
    assert (scores >= model.threshold).mean() == pytest.approx(0.01, abs=0.004)
    with pytest.raises(ConfigError, match=r"net\.onnx: not an ONNX file|net\.onnx: the graph has 0"):
        train_detector(load(tmp_path / "t.yaml"), "net", table, models, alias="champion")
    assert weights.sensors == ("a", "b", "c")


# -- building -----------------------------------------------------------------------------------------------


def test_build_leaves_no_trace_of_its_probe() -> None:
    model = build(toy(), list(SENSORS))
    assert isinstance(model, Toy)
    assert model.seen == 0
    assert (model.sensors, model.threshold) == (SENSORS, 5.0)


@pytest.mark.parametrize(
    ("sensors", "text"),
    [
        (("temperature_c", "pressure_bar"), "in another order: pressure_bar, temperature_c"),
        (("pressure_bar",), "other sensors: the topology lacks temperature_c"),
        ((*SENSORS, "rms_mm_s"), "other sensors: the model does not know rms_mm_s"),
        (("a", "b"), "the topology lacks pressure_bar, temperature_c; the model does not know a, b"),
    ],
)
def test_model_of_other_sensors_is_rejected(sensors: tuple[str, ...], text: str) -> None:
    with pytest.raises(ModelRejected, match=text):
        build(toy(), sensors)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (toy(mean=(np.nan, np.inf)), "scored a probe"),
        (toy(mean=(1.0, 2.0, 3.0)), "toy weights that do not make a model: mean has shape"),
        (toy(arrays={}), "toy weights that do not make a model: 'mean'"),
        (toy(kind="no-such-kind"), "no-such-kind weights that do not make a model"),
    ],
)
def test_weights_that_make_no_sound_model_are_rejected(weights: Weights, text: str) -> None:
    with pytest.raises(ModelRejected, match=text):
        build(weights, SENSORS)


# -- opening ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("", "is not a registry; write sqlite:///PATH"),
        ("mlruns", "is not a registry"),
        ("sqlite://", "is not a registry"),
        ("sqlite:///", "is not a registry"),
        ("sqlite:///x.db?timeout=1", "is not a registry"),
        ("sqlite:///:memory:", "in memory is lost"),
        ("postgresql://host/db", "is not a registry"),
        ("http://", "is not a registry"),
        ("http://user:secret@mlflow:5000", "holds a user or password; set MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_other_registry_addresses_are_refused_without_repeating_a_secret(uri: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        Registry(uri)
    assert "secret" not in str(caught.value)


def test_file_that_is_no_database_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_text("something else entirely")
    with pytest.raises(RegistryUnreachable, match="is not an SQLite database"):
        Registry(f"sqlite:///{tmp_path}/registry.db").names()
    with pytest.raises(RegistryUnreachable, match="cannot be opened: Is a directory"):
        Registry(f"sqlite:///{tmp_path}").names()
    with pytest.raises(RegistryUnreachable, match="cannot be opened: File exists"):
        Registry(f"sqlite:///{tmp_path}/registry.db/inside.db").names()


def test_damaged_database_is_said_at_once_and_a_mended_one_opens(
    tmp_path: Path, empty_database: Path
) -> None:
    whole = empty_database.read_bytes()
    (tmp_path / "registry.db").write_bytes(whole[: len(whole) // 2])
    models = Registry(f"sqlite:///{tmp_path}/registry.db")
    with pytest.raises(RegistryUnreachable, match="does not answer: database disk image is malformed"):
        models.names()
    (tmp_path / "registry.db").write_bytes(whole)
    assert models.names() == ()


def test_threads_may_register_at_once(models: Registry) -> None:
    with ThreadPoolExecutor(4) as pool:
        refs = list(pool.map(lambda shift: register(models, toy(mean=(shift, 40.0))), [1.0, 2.0, 3.0, 4.0]))
    assert sorted(ref.version for ref in refs) == [1, 2, 3, 4]
    assert [float(models.load(ref).arrays["mean"][0]) for ref in refs] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("step", ["set_model_version_tag", "set_registered_model_alias"])
def test_an_alias_ends_on_the_newer_of_two_that_are_registered_at_the_same_moment(
    models: Registry, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Another process registers the next version right before a step of ours."""
    slow, other = models._client(), Registry(models.uri)
    genuine = getattr(slow, step)
    others: list[int] = []

    def interrupted(*args: Any) -> None:
        if not others:
            others.append(register(other, alias="challenger").version)
        genuine(*args)

    monkeypatch.setattr(slow, step, interrupted)
    assert register(models, alias="challenger").version == 1
    assert others == [2]
    assert models.resolve(f"models:/{NAME}@challenger").version == 2


def test_an_alias_that_was_taken_back_by_hand_moves_with_the_next_registration(models: Registry) -> None:
    for _ in range(2):
        register(models, alias="champion")
    models.set_alias(NAME, "champion", 1)
    register(models)
    assert models.resolve(f"models:/{NAME}@champion").version == 1
    assert register(models, alias="champion").version == 4
    assert models.resolve(f"models:/{NAME}@champion").version == 4
    assert models.advance(NAME, "champion", 2) == 4


SCRIPT = """
import sys
import numpy as np, pandas as pd
import stream.models, stream.trial
from detectors.base import Weights
assert not {name for name in sys.modules if name.split(".")[0] == "mlflow"}, "imported too early"

class Toy:
    def __init__(self, weights):
        self.sensors, self.threshold = weights.sensors, weights.threshold
    def score_learn(self, slots, values, times, learn=None):
        return np.abs(np.nan_to_num(values)).sum(axis=1)

stream.trial.registry.load = Toy
models = stream.models.Registry()
weights = Weights("toy", ("a",), 1.0, {}, {"w": np.ones(1)})
for _ in range(2):
    ref = models.register("toy", weights, example=pd.DataFrame({"a": [1.0, 2.0]}), metrics={"m": 1}, alias="champion")
assert models.load(models.resolve("models:/toy@champion")).threshold == 1.0
try:
    models.resolve("models:/toy@challenger")
except stream.models.ModelNotFound:
    pass

import mlflow.telemetry.client
assert mlflow.telemetry.client.get_telemetry_client() is None, "telemetry is on"
"""


def test_fresh_registry_is_made_without_a_word_and_only_where_it_belongs(tmp_path: Path) -> None:
    noisy = {"MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "PYTEST_CURRENT_TEST", "PYTHONPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in noisy}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stderr == ""
    assert (done.returncode, done.stdout) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["mmlw-data"]
    assert sorted(path.name for path in (tmp_path / "mmlw-data/mlflow").iterdir()) == [
        "artifacts",
        "registry.db",
    ]


# -- a server -----------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with mlflow_server(tmp_path, empty_database) as found:
        yield found


def test_server_registers_resolves_loads_and_is_missed(
    server: tuple[str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    uri, process = server
    models = Registry(uri)
    ref = register(models, alias="champion", params={"trees": 100}, metrics={"auc": 0.97})
    assert models.resolve("models:/pump-toy@champion") == ref
    assert_same(models.load(ref), toy())
    assert [(item.version, item.aliases, item.ref) for item in models.versions(NAME)] == [
        (1, ("champion",), ref)
    ]
    with pytest.raises(ModelNotFound, match=r'no model "pump-toi"\. Did you mean "pump-toy"'):
        models.resolve("models:/pump-toi@champion")
    with pytest.raises(ModelNotFound, match=r"no version 2\. Its versions: 1"):
        models.resolve("models:/pump-toy/2")
    name, version, place = models.fetch("models:/pump-toy@champion", tmp_path)
    assert (name, version) == (NAME, 1)
    assert {"MLmodel", "data"} <= {path.name for path in place.iterdir()}, "all of it, as it lies there"
    client(models).create_registered_model("pickled")
    client(models).create_model_version("pickled", "s3://nowhere/model")
    with pytest.raises(ModelRejected, match="holds no data-only weights"):
        models.resolve("models:/pickled/1")
    stored = next((tmp_path / "store").rglob("data"))
    shutil.rmtree(stored)
    with pytest.raises(ModelRejected, match="holds no data-only weights"):
        models.load(ref)
    end(process)
    with pytest.raises(RegistryUnreachable) as caught:
        models.resolve("models:/pump-toy@champion")
    assert str(caught.value) == f"model registry {uri} does not answer: Connection refused"


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        ("401 Unauthorized", ModelError, "refused: .*error code 401"),
        ("403 Forbidden", ModelError, "refused: .*error code 403"),
        ("404 Not Found", RegistryUnreachable, "does not answer: .*error code 404"),
        ("503 Service Unavailable", RegistryUnreachable, "does not answer: too many 503 error responses"),
        ("200 OK", RegistryUnreachable, "does not answer: .*not in a valid JSON format"),
    ],
)
def test_server_that_is_no_registry_or_refuses_is_told_apart(
    status: str, error: type[Exception], text: str
) -> None:
    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        start(status, [("Content-Type", "text/html"), ("Content-Length", "2")])
        return [b"no"]

    with make_server("127.0.0.1", 0, answer, handler_class=SilentHandler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            with pytest.raises(error, match=text) as caught:
                Registry(f"http://127.0.0.1:{other.server_port}").resolve("models:/pump-toy@champion")
            assert type(caught.value) is error
        finally:
            other.shutdown()
            thread.join()


class SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def test_silent_server_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RegistryUnreachable, match=f"{uri} does not answer: .*timed out"):
            Registry(uri).names()


def test_two_processes_make_a_new_registry_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    code = f"from stream.models import Registry; print(len(Registry({uri!r}).names()))"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert [out.strip() for out, _ in told] == [b"0", b"0"]
