"""What a backtest runs: a topology as it is, with another version of its model, or another topology."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from stream.config import load
from stream.errors import ConfigError, Problem
from stream.references import parse_uri
from stream.topology import Topology

__all__ = ["Candidate", "candidates"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A topology under a name of its own."""

    name: str
    topology: Topology


def candidates(topology: Topology, others: Sequence[str]) -> list[Candidate]:
    """The topology itself; beside one other; or two and more others instead of it.

    An other is a topology file, or what its trained detector shall load: a version (`v12`), an alias
    (`@challenger`), an address (`models:/NAME/12`); `DETECTOR=VERSION` where it has several. Raises ConfigError.
    """
    found = [_candidate(topology, other) for other in others]
    return [Candidate("as it is", topology), *found] if len(found) < 2 else found


def _candidate(topology: Topology, other: str) -> Candidate:
    if other.endswith((".yaml", ".yml", ".py")):
        loaded = load(other)
        if loaded.source.names != topology.source.names:
            problem = "has other sensors, or in another order: the same readings must fit both"
            raise ConfigError([Problem(other, problem)])
        return Candidate(other, loaded)
    detector, equals, version = other.rpartition("=")
    models = topology.registry_models
    if not equals and len(models) == 1:
        detector = next(iter(models))
    if detector not in models:
        known = ", ".join(models) or "it has none"
        what = f'"{other}": name one of the topology\'s trained detectors, DETECTOR=VERSION ({known})'
        raise ConfigError([Problem("--compare", what)])
    spec = models[detector]
    version = version.strip()
    if version.startswith("models:/"):
        address = version
    elif version.removeprefix("v").isdecimal():
        address = f"models:/{spec.name}/{version.removeprefix('v')}"
    else:
        address = f"models:/{spec.name}@{version.removeprefix('@')}"
    try:
        parse_uri(address)
    except ValueError as error:
        raise ConfigError([Problem("--compare", str(error))]) from error
    detectors = {**topology.detectors, detector: msgspec.structs.replace(spec, model=address)}
    return Candidate(other, msgspec.structs.replace(topology, detectors=detectors))
