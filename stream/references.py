"""Names and addresses: `models:/pump-iforest@champion`, the version it stands for, the registry it is in."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from stream.errors import ConfigError, Problem, RegistryUnreachable

__all__ = [
    "ModelRef",
    "ModelUri",
    "ModelVersion",
    "Pin",
    "check_names",
    "database_of",
    "hint",
    "is_digest",
    "opening",
    "parse_uri",
]

_NAME = re.compile(r"[^\s/:@'\"\\]{1,200}")
_ALIAS = re.compile(r"(?!latest$|v[0-9]+$)[A-Za-z0-9_-]{1,200}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LISTED = 20


class ModelUri(msgspec.Struct, frozen=True):
    """A model address taken apart: exactly one of `alias` and `version` is set."""

    name: str
    alias: str | None = None
    version: int | None = None


class ModelRef(msgspec.Struct, frozen=True):
    """One version of a model, pinned: `uri` names the version and `digest` its content."""

    name: str
    version: int
    digest: str
    kind: str
    uri: str


class ModelVersion(msgspec.Struct, frozen=True):
    """A line in the list of versions. `ref` is None where the version holds no data-only weights."""

    version: int
    aliases: tuple[str, ...]
    created: float
    """Epoch seconds."""
    run_id: str
    tags: Mapping[str, str]
    ref: ModelRef | None


class Pin(msgspec.Struct, frozen=True):
    """What a topology says of a model that is code: which contents may run, and how its scores are read."""

    digests: tuple[str, ...]
    method: str
    anomalous: str
    """`high` or `low` scores."""
    threshold: float | None


def parse_uri(uri: str) -> ModelUri:
    """Take a model address apart. Raises ValueError with the two accepted forms.

    >>> parse_uri("models:/pump-iforest@champion")
    ModelUri(name='pump-iforest', alias='champion', version=None)
    >>> parse_uri("models:/pump-iforest/3")
    ModelUri(name='pump-iforest', alias=None, version=3)
    """
    path = uri.removeprefix("models:/")
    name, at, alias = path.partition("@")
    if path != uri and at and _NAME.fullmatch(name) and _ALIAS.fullmatch(alias):
        return ModelUri(name, alias=alias)
    name, _, version = path.partition("/")
    if path != uri and _NAME.fullmatch(name) and _VERSION.fullmatch(version):
        return ModelUri(name, version=int(version))
    raise ValueError(f'"{uri}" is not a model address; write models:/NAME@ALIAS or models:/NAME/VERSION')


def is_digest(text: str) -> bool:
    """Whether this is how the content of a model is named: `sha256:` and 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def check_names(name: str, alias: str | None = None) -> None:
    """Raises ValueError on a model name or an alias that no address could hold."""
    if not _NAME.fullmatch(name):
        raise ValueError(f'model name "{name}": no blanks, quotes, slashes, : or @, at most 200 characters')
    if alias is not None and not _ALIAS.fullmatch(alias):
        raise ValueError(f'alias "{alias}": letters, digits, - and _; not "latest", not like "v3"')


def hint(wanted: str, what: str, known: Iterable[str]) -> str:
    """The end of a sentence that says what there is instead.

    >>> hint("champ", "aliases", ["champion", "shadow"])
    '. Did you mean "champion"? Its aliases: champion, shadow'
    """
    names = list(known)
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    guess = f'. Did you mean "{close[0]}"?' if close else "."
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{guess} Its {what}: {', '.join(names[-_LISTED:]) or 'none'}{more}"


def database_of(uri: str) -> Path | None:
    """The file of an embedded registry, None for a server. Raises ConfigError on anything else."""
    parts = urlsplit(uri)
    problem = f'"{uri}" is not a registry; write sqlite:///PATH, http://HOST:PORT or https://HOST'
    if uri.startswith("sqlite:///") and not parts.query and parts.path.strip("/"):
        if ":memory:" not in uri:
            return Path(uri.removeprefix("sqlite:///")).absolute()
        problem = "a registry in memory is lost at the end; write sqlite:///PATH"
    elif parts.scheme in ("http", "https") and parts.hostname:
        if parts.username is None and parts.password is None:
            return None
        problem = (
            f"the address of {parts.hostname} holds a user or password; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    raise ConfigError([Problem("registry", problem)])


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """Nobody else opens a registry in this folder meanwhile: MLflow makes a new one's tables without looking whether
    another process is doing so. Fails at once on a file that cannot be one: MLflow would keep trying for 100 s."""
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(path.parent, os.O_RDONLY)
            held.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX)
            with path.open("ab+") as file:
                file.seek(0)
                start = file.read(16)
        except OSError as error:
            raise RegistryUnreachable(f"model registry {path} cannot be opened: {error.strerror}") from error
        _check_start(path, start)
        yield


def _check_start(path: Path, start: bytes) -> None:
    if start and start != b"SQLite format 3\0":
        raise RegistryUnreachable(f"model registry {path} is not an SQLite database; name another file")
