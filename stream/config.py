"""Topology files: YAML or Python, read into equal objects, with every problem reported at once."""

from __future__ import annotations

import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from detectors.base import Detector, TrainableDetector
from detectors.registry import ADAPTERS
from stream.errors import ConfigError, Problem
from stream.topology import Sensor, Topology
from stream.validation import Reader, default_of, suggest

__all__ = ["dump_yaml", "load", "load_all"]

_REPEATED = 100_000
"""Values that aliases may repeat in a file: a few lines of nested ones stand for more than any memory holds."""


def load(path: str | Path) -> Topology:
    """The one topology in a file. Raises ConfigError with every problem found."""
    found = load_all(path)
    if len(found) != 1:
        names = ", ".join(topology.name for topology in found) or "none"
        raise ConfigError([Problem(str(path), f"expected one topology, found {len(found)} ({names})")])
    return found[0]


def load_all(path: str | Path) -> tuple[Topology, ...]:
    """All topologies in a file: a YAML mapping, or the `Topology` objects a Python file leaves as globals."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError([Problem(str(path), "is a folder; name the topology files in it")])
    if not path.is_file():
        raise ConfigError([Problem(str(path), "no such file" + suggest(path.name, _neighbours(path)))])
    if path.suffix == ".py":
        return _load_python(path)
    if path.suffix in (".yaml", ".yml"):
        return (_load_yaml(path),)
    raise ConfigError([Problem(str(path), "a topology file ends in .yaml, .yml or .py")])


def dump_yaml(topology: Topology) -> str:
    """The topology as a YAML file that loads as an equal object; settings at their default are left out."""
    return yaml.safe_dump(_plain(topology), sort_keys=False, allow_unicode=True, width=100)


def _neighbours(path: Path) -> list[str]:
    if not path.parent.is_dir():
        return []
    return [item.name for item in path.parent.iterdir() if item.suffix in (".yaml", ".yml", ".py")]


def _load_python(path: Path) -> tuple[Topology, ...]:
    try:
        names = runpy.run_path(str(path))
    except ConfigError:
        raise
    except Exception as error:
        problem = Problem(str(path), f"could not be run: {type(error).__name__}: {error}")
        raise ConfigError([problem]) from error
    found = tuple(dict.fromkeys(id(value) for value in names.values() if isinstance(value, Topology)))
    by_id = {id(value): value for value in names.values()}
    if not found:
        raise ConfigError([Problem(str(path), "defines no Topology; write: topology = Topology(name=…, …)")])
    for key in found:
        reader = Reader()  # Python does not check what a struct is given; reading it back does
        reader.read(Topology, _plain(by_id[key]), "")
        if reader.problems:
            name = by_id[key].name
            raise ConfigError([Problem(f"{path}: {name}: {p.place}", p.message) for p in reader.problems])
    return tuple(by_id[key] for key in found)


def _load_yaml(path: Path) -> Topology:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repetition(path, node)
        data = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), "is not a text file in UTF-8")]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or str(error)
        raise ConfigError([Problem(place, f"is not valid YAML: {what}")]) from error
    reader = Reader()
    try:
        reader.find_duplicates(node, "")
        topology = reader.read(Topology, data, "")
    except RecursionError as error:
        raise ConfigError([Problem(str(path), "is nested too deeply")]) from error
    if reader.problems:
        lines = _lines(node, "")
        found = [(_line(problem, lines), problem) for problem in reader.problems]
        found.sort(key=lambda item: item[0])
        raise ConfigError([_located(path, line, problem) for line, problem in found])
    assert isinstance(topology, Topology)  # noqa: S101 - for the type checker: no problems means it was built
    return topology


def _refuse_repetition(path: Path, node: yaml.Node | None) -> None:
    """Raises ConfigError where aliases repeat too much, or something contains itself."""
    sizes: dict[int, int] = {}
    inside: set[int] = set()

    def refused(node: yaml.Node, what: str) -> ConfigError:
        return ConfigError([Problem(f"{path}:{node.start_mark.line + 1}", what)])

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in inside:
            raise refused(node, "refers to itself")
        inside.add(id(node))
        found = 1 + sum(size(part) for part in _parts(node))
        inside.remove(id(node))
        sizes[id(node)] = found
        if found - len(sizes) > _REPEATED:
            repeated = f"aliases (*name) repeat more than {_REPEATED:,} values; write out what is needed"
            raise refused(node, repeated)
        return found

    if node is not None:
        size(node)


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _line(problem: Problem, lines: Mapping[str, int]) -> int:
    """Where a problem stands, or what it is a part of."""
    place = problem.place
    while place and place not in lines:
        place = place.rpartition(".")[0]
    return lines.get(place, 1)


def _located(path: Path, line: int, problem: Problem) -> Problem:
    where = f": {problem.place}" if problem.place else ""
    return Problem(f"{path}:{line}{where}", problem.message)


def _lines(node: Any, place: str) -> dict[str, int]:
    """Line number of every dotted place in a YAML document."""
    found: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{place}.{key.value}" if place else str(key.value)
            found[inner] = key.start_mark.line + 1
            found.update(_lines(value, inner))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = f"{place}.{index}" if place else str(index)
            found[inner] = value.start_mark.line + 1
            found.update(_lines(value, inner))
    return found


def _plain(value: Any) -> Any:
    """A struct as plain data for YAML, defaults left out, recipes with their kind."""
    if isinstance(value, Sensor) and value == Sensor(value.name):
        return value.name
    if isinstance(value, msgspec.Struct):
        recipe = isinstance(value, (Detector, TrainableDetector)) and value.kind not in ADAPTERS
        plain: dict[str, Any] = {"kind": value.kind} if recipe else {}  # type: ignore[attr-defined]
        for field in msgspec.structs.fields(value):
            item = getattr(value, field.name)
            if field.required or item != default_of(field):
                plain[field.name] = _plain(item)
        return plain
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
