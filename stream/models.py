"""The model registry: trained weights in MLflow, found by name and alias, pinned by digest, never unpickled.

The one file that knows MLflow. Importing MLflow takes seconds, so it waits until a Registry is first used.
Everything here is synchronous; the runtime calls it from a thread. MLflow also names this module in what it
stores, so that `mlflow.pyfunc.load_model("models:/pump-iforest@champion")` scores in a notebook as we do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from detectors.base import Weights
from stream.errors import (
    ForeignModel,
    ModelError,
    ModelNotFound,
    ModelRejected,
    RegistryUnreachable,
)
from stream.references import (
    ModelRef,
    ModelUri,
    ModelVersion,
    check_names,
    database_of,
    hint,
    is_digest,
    opening,
    parse_uri,
)
from stream.trial import Scorer, build, example_rows, score
from stream.weights import ARRAYS_FILE, FORMAT, HEADER_FILE, MAX_BYTES, digest, read_weights, write_weights

__all__ = ["DEFAULT_URI", "MARK", "ModelRef", "ModelUri", "ModelVersion", "Registry", "build", "parse_uri"]

DEFAULT_URI = "sqlite:///mmlw-data/mlflow/registry.db"
"""The embedded registry; its artifacts lie beside the file."""

MARK = "mmlw.training"
"""The tag that names a training, of its run and its version."""
_MEANT = "mmlw.alias."
"""The tag of a version that was registered for an alias; its name follows."""
_LOOKS = 100
"""At an alias that others move at the same time: each time is another registration."""
_EXPERIMENT = "mmlw"
_FLAVOR = "mmlw"
_DATA = "data"
_EXAMPLE_FILE = "input_example.json"
_EXAMPLE_ROWS = 100
_MAX_DOWNLOAD = MAX_BYTES + 4 * 2**20
_MAX_FOREIGN = 2**30
_NO_WEIGHTS = "holds no data-only weights; train and register it with mmlw, pickled models are not loaded"
_MISSING = "RESOURCE_DOES_NOT_EXIST"
_EXISTS = "RESOURCE_ALREADY_EXISTS"
_REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
}
"""MLflow's codes where trying again will not help."""
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""MLflow takes its settings from here; those an operator has set stay."""
_LOG_LEVELS = {
    "mlflow": logging.ERROR,
    "mlflow.store.db.utils": logging.CRITICAL,
    "alembic": logging.ERROR,
    "urllib3.connectionpool": logging.ERROR,
}
"""What these report below their level reaches people once, as an error of ours."""


class Registry:
    """Models in MLflow: embedded (`sqlite:///PATH`, artifacts beside it) or a server (`http(s)://HOST`).

    Nothing is opened before the first call; calls come from any thread. Each may raise RegistryUnreachable,
    after some 20 s where a server is silent, and ModelError where MLflow refuses. A server's user and
    password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, never from the address.
    """

    def __init__(self, uri: str = DEFAULT_URI, artifacts: Path | None = None) -> None:
        """Raises ConfigError on an address of another form."""
        self._database = database_of(uri)
        if artifacts is None and self._database is not None:
            artifacts = self._database.parent / "artifacts"
        self._artifacts = artifacts.absolute() if artifacts else None
        self.uri = f"sqlite:///{self._database}" if self._database else uri.rstrip("/")
        self._opening = threading.Lock()
        self._opened: Any = None

    def register(
        self,
        name: str,
        weights: Weights,
        *,
        example: pd.DataFrame,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        figures: Mapping[str, bytes] | None = None,
        alias: str | None = None,
    ) -> ModelRef:
        """Store weights as a new version of `name`, then `advance` the alias to it; the alias moves last.

        `figures` are files by name, shown with the run.

        `example` holds some rows with the model's sensors, of which up to 100 are stored. The version is
        loaded back and must score them as the weights did before, else ModelRejected is raised and the alias
        stays. Raises ValueError on a name, alias or example that cannot be used.
        """
        check_names(name, alias)
        frame = example_rows(example, weights.sensors)
        build(weights, weights.sensors)
        client = self._client()
        with self._answers(), _run(client, self._experiment(client), name, tags or {}) as run:
            stored = client.create_logged_model(run.experiment_id, re.sub(r"[^\w-]", "-", name), run.run_id)
            checksum = _upload(client, stored, weights, frame)
            _describe(client, stored, params or {}, metrics or {})
            _show(client, run.run_id, figures or {})
            _unless(_EXISTS, client.create_registered_model, name)
            version = client.create_model_version(
                name,
                stored.artifact_location,
                run.run_id,
                tags=_texts(tags or {}) | _tags(weights, checksum),
                model_id=stored.model_id,
            )
            ref = self._ref(version)
            if not np.allclose(score(self.load(ref), frame), score(weights, frame)):
                raise ModelRejected(f"{self._label(ref)} scores its example differently when loaded")
        if alias is not None:
            self.advance(name, alias, ref.version)
        return ref

    def withdraw(self, name: str, mark: str, alias: str | None) -> int | None:
        """Take back what a registration of `name` left that was cut off: its version goes, its run ends as KILLED.

        `mark` is the value of its tag `MARK`. Where `alias` means its version it is whole and stays: that version,
        else None."""
        client = self._client()
        with self._answers():
            for run, found in _marked(client, mark):
                meant = self._aliases(client, name).get(alias or "") if found else None
                for version in found:
                    if int(version.version) == meant:
                        return meant
                    client.delete_model_version(name, version.version)
                client.set_terminated(run.info.run_id, "KILLED")
        return None

    def clear(self, mark: str) -> int | None:
        """End what a registration left whose process was killed, however long ago: its run, where that never ended,
        as KILLED, and its version goes where no alias means it. The version of a run that had ended, which stays;
        else None. `mark` is the value of its tag `MARK`."""
        client, whole = self._client(), None
        with self._answers():
            for run, found in _marked(client, mark):
                if run.info.status != "RUNNING":
                    whole = next((int(version.version) for version in found), whole)
                    continue
                for version in found:
                    if int(version.version) not in self._aliases(client, version.name).values():
                        client.delete_model_version(version.name, version.version)
                client.set_terminated(run.info.run_id, "KILLED")
        return whole

    def resolve(self, uri: str) -> ModelRef:
        """The version that `models:/name@alias` or `models:/name/3` stands for now, pinned.

        Raises ValueError on another form, ModelNotFound with what there is instead, and ModelRejected if
        mmlw did not register that version.
        """
        wanted = parse_uri(uri)
        client = self._client()
        with self._answers():
            version = wanted.version
            if wanted.alias is not None:
                aliases = self._aliases(client, wanted.name)
                if (version := aliases.get(wanted.alias)) is None:
                    known = hint(wanted.alias, "aliases", aliases)
                    raise ModelNotFound(
                        f'{self.uri}: model {wanted.name} has no alias "{wanted.alias}"{known}'
                    )
            return self._ref(self._version(client, wanted.name, version))

    def meaning(self, name: str, alias: str) -> ModelVersion:
        """The version that an alias stands for now, by one request. Raises ModelError where it stands for none."""
        client = self._client()
        with self._answers():
            return _listed(client.get_model_version_by_alias(name, alias), {})

    def load(self, ref: ModelRef) -> Weights:
        """Download the weights of one version and verify them; only our two files are fetched.

        Raises ModelNotFound, or ModelRejected if there are none, if they are too large, if their digest is
        not the reference's, or if they are malformed.
        """
        client = self._client()
        with self._answers(), tempfile.TemporaryDirectory(prefix="mmlw-model-") as folder:
            self._version(client, ref.name, ref.version)
            source = client.get_model_version_download_uri(ref.name, str(ref.version))
            try:
                self._download(f"{source.rstrip('/')}/{_DATA}", folder)
                if (found := digest(Path(folder))) != ref.digest:
                    raise ModelRejected(f"its content has digest {found}, not the expected {ref.digest}")
                weights = read_weights(Path(folder))
                if weights.kind != ref.kind:
                    raise ModelRejected(f"its kind is {weights.kind}, not the expected {ref.kind}")
            except ModelRejected as error:
                raise ModelRejected(f"{self._label(ref)}: {error}") from error
        return weights

    def fetch(self, uri: str, folder: Path) -> tuple[str, int, Path]:
        """Download all files of what an address means now, whatever they are; nothing is opened or run.

        Its name and version, and its place in `folder`. Raises ModelNotFound; ModelRejected where it is too large.
        """
        wanted = parse_uri(uri)
        client = self._client()
        with self._answers():
            import mlflow.artifacts

            version = wanted.version
            if wanted.alias is not None:
                version = self._aliases(client, wanted.name).get(wanted.alias)
            found = self._version(client, wanted.name, version)
            source = client.get_model_version_download_uri(found.name, str(found.version))
            sizes = [item.file_size or 0 for item in _files(mlflow.artifacts, source, self.uri)]
            if sum(sizes) > _MAX_FOREIGN:
                raise ModelRejected(f"{source}: {sum(sizes)} bytes; at most {_MAX_FOREIGN}")
            place = mlflow.artifacts.download_artifacts(
                artifact_uri=source, dst_path=str(folder), tracking_uri=self.uri, registry_uri=self.uri
            )
        return found.name, int(found.version), Path(place)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version, for everybody who resolves it from now on.

        Raises ModelNotFound, and ValueError on an alias that cannot be used.
        """
        check_names(name, alias)
        client = self._client()
        with self._answers():
            self._version(client, name, version)
            client.set_registered_model_alias(name, alias, str(version))

    def advance(self, name: str, alias: str, version: int) -> int:
        """Point an alias at a version that was just registered for it, or at a newer one that was, too: so it ends on
        the newest of all that are registered at the same moment, by anybody. The version that it means now.

        MLflow cannot compare and set, so each says first what it is about to do, and looks again after what it did:
        whoever set the alias last has seen all others. Raises ModelNotFound, ValueError as `set_alias`.
        """
        check_names(name, alias)
        client, tag = self._client(), f"{_MEANT}{alias}"
        with self._answers():
            self._version(client, name, version)
            client.set_model_version_tag(name, str(version), tag, "meant")
            for _ in range(_LOOKS):
                newest = max(int(item.version) for item in self._versions(client, name) if tag in item.tags)
                if (meant := self._aliases(client, name).get(alias, 0)) >= newest:
                    return meant
                client.set_registered_model_alias(name, alias, str(newest))
        raise ModelError(
            f"{self.uri}: alias {alias} of {name} was moved {_LOOKS} times at once; set it by hand"
        )

    def names(self) -> tuple[str, ...]:
        """The registered models, sorted."""
        client = self._client()
        with self._answers():
            return tuple(sorted(model.name for model in _pages(client.search_registered_models)))

    def versions(self, name: str) -> tuple[ModelVersion, ...]:
        """Every version of a model, newest first. Raises ModelNotFound."""
        client = self._client()
        with self._answers():
            aliases = self._aliases(client, name)
            found = [_listed(version, aliases) for version in self._versions(client, name)]
        return tuple(sorted(found, key=lambda listed: listed.version, reverse=True))

    def _client(self) -> Any:
        with self._opening:
            if self._opened is None:
                mlflow = _mlflow()
                alone = contextlib.nullcontext() if self._database is None else opening(self._database)
                with alone, self._answers():
                    client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                    if self._database is not None:  # what makes the tables of a new one
                        client.search_registered_models(max_results=1)
                    self._opened = client
            return self._opened

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Map what MLflow and its transports raise to errors of ours."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            code = getattr(error, "error_code", "")
            if code == _MISSING:
                raise ModelNotFound(f"model registry {self.uri}: {_first_line(error)}") from error
            if code in _REFUSALS or isinstance(error, ImportError):
                raise ModelError(f"model registry {self.uri} refused: {_first_line(error)}") from error
            raise RegistryUnreachable(
                f"model registry {self.uri} does not answer: {_reason(error)}"
            ) from error

    def _experiment(self, client: Any) -> str:
        if client.get_experiment_by_name(_EXPERIMENT) is None:
            location = self._artifacts.as_uri() if self._artifacts else None
            _unless(_EXISTS, client.create_experiment, _EXPERIMENT, artifact_location=location)
        return str(client.get_experiment_by_name(_EXPERIMENT).experiment_id)

    def _aliases(self, client: Any, name: str) -> dict[str, int]:
        if (found := _unless(_MISSING, client.get_registered_model, name)) is None:
            known = hint(name, "models", (model.name for model in _pages(client.search_registered_models)))
            raise ModelNotFound(f'{self.uri}: no model "{name}"{known}')
        return {alias: int(version) for alias, version in found.aliases.items()}

    def _version(self, client: Any, name: str, version: int | None) -> Any:
        if (found := _unless(_MISSING, client.get_model_version, name, str(version))) is None:
            self._aliases(client, name)
            numbers = sorted(int(item.version) for item in self._versions(client, name))
            known = hint(str(version), "versions", map(str, numbers))
            raise ModelNotFound(f"{self.uri}: model {name} has no version {version}{known}")
        return found

    def _versions(self, client: Any, name: str) -> Iterator[Any]:
        check_names(name)
        return _pages(client.search_model_versions, filter_string=f"name='{name}'")

    def _ref(self, version: Any) -> ModelRef:
        if (ref := _listed(version, {}).ref) is None:
            raise ForeignModel(f"{self.uri}: model {version.name} version {version.version} {_NO_WEIGHTS}")
        return ref

    def _label(self, ref: ModelRef) -> str:
        return f"{self.uri}: model {ref.name} version {ref.version}"

    def _download(self, source: str, folder: str) -> None:
        import mlflow.artifacts

        listed = mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=self.uri)
        sizes = {PurePosixPath(item.path).name: item.file_size or 0 for item in listed if not item.is_dir}
        if not {HEADER_FILE, ARRAYS_FILE} <= sizes.keys():
            raise ModelRejected(f"{_NO_WEIGHTS} (looked at {source})")
        if (size := sizes[HEADER_FILE] + sizes[ARRAYS_FILE]) > _MAX_DOWNLOAD:
            raise ModelRejected(f"{size} bytes; at most {_MAX_DOWNLOAD}")
        for name in (HEADER_FILE, ARRAYS_FILE):
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"{source}/{name}",
                dst_path=folder,
                tracking_uri=self.uri,
                registry_uri=self.uri,
            )


def _load_pyfunc(data_path: str) -> Scorer:
    """Called by `mlflow.pyfunc.load_model` on the models we registered."""
    return Scorer(read_weights(Path(data_path)))


def _mlflow() -> Any:
    """MLflow, imported at the first call: quiet, impatient, and with its telemetry off."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
    import mlflow

    for name, level in _LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    return mlflow


def _marked(client: Any, mark: str) -> Iterator[tuple[Any, list[Any]]]:
    """The runs that have this mark, with their versions."""
    if (experiment := client.get_experiment_by_name(_EXPERIMENT)) is None:
        return
    for run in client.search_runs([experiment.experiment_id], filter_string=f"tags.`{MARK}` = '{mark}'"):
        of_run = f"run_id='{run.info.run_id}'"
        yield run, list(_pages(client.search_model_versions, filter_string=of_run))


@contextlib.contextmanager
def _run(client: Any, experiment: str, name: str, tags: Mapping[str, str]) -> Iterator[Any]:
    """A run that ends as FINISHED, or as FAILED where anything is raised within."""
    run = client.create_run(experiment, run_name=name, tags=_texts(tags)).info
    try:
        yield run
    except BaseException:
        with contextlib.suppress(Exception):
            client.set_terminated(run.run_id, "FAILED")
        raise
    client.set_terminated(run.run_id, "FINISHED")


def _upload(client: Any, stored: Any, weights: Weights, frame: pd.DataFrame) -> str:
    """Lay the model out as MLflow does, with our data-only flavor, and upload it. Returns the digest."""
    import mlflow.models

    head = frame.head(_EXAMPLE_ROWS)
    rows = head.astype(object).where(head.notna(), None).to_numpy().tolist()
    with tempfile.TemporaryDirectory(prefix="mmlw-model-") as temporary:
        folder = Path(temporary)
        write_weights(folder / _DATA, weights)
        checksum = digest(folder / _DATA)
        (folder / _EXAMPLE_FILE).write_text(json.dumps({"columns": list(head.columns), "data": rows}))
        model = mlflow.models.Model(
            model_id=stored.model_id,
            run_id=stored.source_run_id,
            artifact_path=stored.artifact_location,
            signature=mlflow.models.infer_signature(frame, score(weights, frame)),
            saved_input_example_info={
                "artifact_path": _EXAMPLE_FILE,
                "type": "dataframe",
                "pandas_orient": "split",
            },
        )
        model.add_flavor(_FLAVOR, data=_DATA, format=FORMAT, kind=weights.kind, digest=checksum)
        model.add_flavor(
            "python_function", loader_module=__name__, data=_DATA, python_version=platform.python_version()
        )
        model.save(str(folder / "MLmodel"))
        client.log_model_artifacts(stored.model_id, str(folder))
    return checksum


def _describe(client: Any, stored: Any, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    from mlflow.entities import LoggedModelOutput

    client.finalize_logged_model(stored.model_id, "READY")
    client.log_outputs(stored.source_run_id, [LoggedModelOutput(stored.model_id, step=0)])
    for key, value in params.items():
        client.log_param(stored.source_run_id, key, str(value))
    for key, value in metrics.items():
        client.log_metric(stored.source_run_id, key, float(value), model_id=stored.model_id)


def _show(client: Any, run: str, figures: Mapping[str, bytes]) -> None:
    """Upload files to a run."""
    with tempfile.TemporaryDirectory(prefix="mmlw-figures-") as folder:
        for name, content in figures.items():
            (Path(folder) / name).write_bytes(content)
        if figures:
            client.log_artifacts(run, folder, "figures")


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def _tags(weights: Weights, checksum: str) -> dict[str, str]:
    sensors = json.dumps(weights.sensors, ensure_ascii=False)
    return {"mmlw.digest": checksum, "mmlw.kind": weights.kind, "mmlw.sensors": sensors}


def _listed(found: Any, aliases: Mapping[str, int]) -> ModelVersion:
    """MLflow's record of a version in our words; without our tags it has no reference."""
    name, version, tags = found.name, int(found.version), dict(found.tags)
    checksum, kind = tags.get("mmlw.digest", ""), tags.get("mmlw.kind", "")
    ours = kind and is_digest(checksum)
    return ModelVersion(
        version=version,
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == version)),
        created=found.creation_timestamp / 1000,
        run_id=found.run_id or "",
        tags=tags,
        ref=ModelRef(name, version, checksum, kind, f"models:/{name}/{version}") if ours else None,
    )


def _pages(search: Callable[..., Any], **wanted: Any) -> Iterator[Any]:
    page = search(**wanted)
    yield from page
    while page.token:
        page = search(page_token=page.token, **wanted)
        yield from page


def _files(artifacts: Any, source: str, uri: str) -> Iterator[Any]:
    """What MLflow lists below an artifact, all the way down."""
    for item in artifacts.list_artifacts(artifact_uri=source, tracking_uri=uri):
        if item.is_dir:
            yield from _files(artifacts, f"{source.rstrip('/')}/{PurePosixPath(item.path).name}", uri)
        else:
            yield item


def _unless(code: str, call: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """What the call returns, None where MLflow answers with this error code."""
    from mlflow.exceptions import MlflowException

    try:
        return call(*args, **settings)
    except MlflowException as error:
        if error.error_code != code:
            raise
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _reason(error: BaseException) -> str:
    """The innermost cause: what a person can act on, without the wrapping."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (isinstance(error, OSError) and error.strerror) or _first_line(error)
