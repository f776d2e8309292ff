"""Models in use, kept beside the checkpoint by digest: a restart needs no registry and loads the same weights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectors.base import Model, Weights
from stream.alerts import ModelInfo
from stream.errors import ForeignModel, ModelRejected
from stream.models import ModelRef, Registry, build
from stream.outside import PINNED, OutsideModel, folder_digest
from stream.references import ModelVersion, Pin
from stream.weights import digest, read_weights, write_weights

__all__ = ["Shelf", "info_of"]


def info_of(ref: ModelRef) -> ModelInfo:
    """How alerts and metrics name a registered model."""
    return ModelInfo(ref.name, str(ref.version), ref.digest, ref.kind)


class Shelf:
    """Loads models of a registry through a folder of verified copies. Blocks: call it from a thread.

    `pins` tells, by registered name, which models that are code may run, each in a process of its own.
    """

    def __init__(self, registry: Registry, folder: Path, pins: Mapping[str, Pin] | None = None) -> None:
        self.registry = registry
        self._folder = folder
        self._pins = pins or {}

    def resolve(self, uri: str) -> ModelRef:
        """The version and digest an address means now. Raises ModelNotFound, ModelRejected, RegistryUnreachable."""
        try:
            return self.registry.resolve(uri)
        except ForeignModel as error:
            return self._pinned(uri, error)

    def meaning(self, name: str, alias: str) -> ModelVersion:
        """What an alias means now, by one request to the registry; nothing is downloaded. Raises ModelError."""
        return self.registry.meaning(name, alias)

    def model(self, ref: ModelRef, sensors: Sequence[str]) -> Model:
        """A fresh model of this very content for these sensors. Raises ModelRejected, RegistryUnreachable."""
        if ref.kind != PINNED:
            return build(self._weights(ref), sensors)
        pin, place = self._pins.get(ref.name), self._folder / f"pinned-{ref.digest.replace(':', '-')}"
        if pin is None or ref.digest not in pin.digests:
            raise ModelRejected(f"{ref.uri} is code, and the topology does not pin it: trust: {ref.digest}")
        if not place.is_dir() and self._pinned(ref.uri, ForeignModel(ref.uri)).digest != ref.digest:
            raise ModelRejected(f"{ref.uri}: its content is not {ref.digest} any more")
        if folder_digest(place) != ref.digest:
            raise ModelRejected(
                f"{place}: the copy of {ref.uri} was changed. Remove the folder and try again"
            )
        return OutsideModel(place, pin, sensors)

    def point(self, ref: ModelRef, alias: str) -> None:
        """Have the registry's alias mean this version. Raises ModelError."""
        self.registry.set_alias(ref.name, alias, ref.version)

    def _pinned(self, uri: str, refusal: ForeignModel) -> ModelRef:
        """The reference of a model that is code, laid on the shelf. Raises ModelRejected unless it is pinned."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            name, version, fresh = self.registry.fetch(uri, Path(folder))
            found = folder_digest(fresh)
            pin, place = self._pins.get(name), self._folder / f"pinned-{found.replace(':', '-')}"
            if pin is None or found not in pin.digests:
                how = f"trust: {found}, with anomalous: high or low"
                raise ModelRejected(
                    f"{refusal}. Or have it run in a process of its own, if you trust it: {how}"
                )
            if not place.exists():
                os.rename(fresh, place)  # noqa: PTH104 - atomic, on one file system
        return ModelRef(name, version, found, PINNED, f"models:/{name}/{version}")

    def _weights(self, ref: ModelRef) -> Weights:
        place = self._folder / ref.digest.replace(":", "-")
        if place.is_dir():
            if digest(place) != ref.digest:
                raise ModelRejected(
                    f"{place}: the copy of {ref.uri} was changed. Remove the folder and try again"
                )
            return read_weights(place)
        weights = self.registry.load(ref)
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            fresh = Path(folder) / "copy"
            fresh.mkdir()
            write_weights(fresh, weights)
            if digest(fresh) == ref.digest and not place.exists():
                os.rename(fresh, place)  # noqa: PTH104 - atomic, on one file system
        return weights
