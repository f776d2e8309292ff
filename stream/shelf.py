"""Models in use, kept beside the checkpoint by digest: a restart needs no registry and loads the same weights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detectors.base import Model, Weights
from stream.alerts import ModelInfo
from stream.errors import ModelRejected
from stream.models import ModelRef, Registry, build
from stream.weights import digest, read_weights, write_weights

__all__ = ["Shelf", "info_of"]


def info_of(ref: ModelRef) -> ModelInfo:
    """How alerts and metrics name a registered model."""
    return ModelInfo(ref.name, str(ref.version), ref.digest, ref.kind)


class Shelf:
    """Loads models of a registry through a folder of verified copies. Blocks: call it from a thread."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry = registry
        self._folder = folder

    def resolve(self, uri: str) -> ModelRef:
        """The version and digest an address means now. Raises ModelNotFound, RegistryUnreachable."""
        return self.registry.resolve(uri)

    def model(self, ref: ModelRef, sensors: Sequence[str]) -> Model:
        """A fresh model of this very content for these sensors. Raises ModelRejected, RegistryUnreachable."""
        return build(self._weights(ref), sensors)

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
