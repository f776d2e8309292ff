"""What a scorer's state depends on: whether what a checkpoint holds is still comparable is told by texts."""

from __future__ import annotations

import hashlib

import msgspec

from detectors.base import Detector
from detectors.features import definitions
from detectors.registry import ONLINE
from stream.alerts import ModelInfo
from stream.endings import ALERTS
from stream.rules import COMBINED
from stream.topology import HEALTH, RegistryModel, Topology

__all__ = ["SHADOWS", "online_info", "recipes"]

SHADOWS = "shadow:"
"""How the names of tables begin that are of shadows."""


def recipes(topology: Topology) -> dict[str, str]:
    """A scorer's state tables by name, each with a text that changes when its state is no longer comparable."""
    sensors = "/".join(topology.source.names)
    narrow = topology.source.layout == "narrow"
    found = {"recent": sensors, "arrivals": topology.source.order_by + (sensors if narrow else "")}
    found["lives"] = found["arrivals"]
    if narrow:
        found["align"] = sensors
    meaning = definitions(topology.source.names, topology.features)
    if topology.features:
        found["features"] = "/".join(meaning.values())
    found[HEALTH] = sensors  # without a health check, too: what one left open must be closed
    for name, spec in topology.detectors.items():
        fixed = isinstance(spec, RegistryModel)
        seen = "/".join(meaning[column] for column in topology.inputs(name))
        found[f"model:{name}"] = seen + ("" if fixed else online_info(spec).digest)  # type: ignore[arg-type]
        if name in topology.limited:
            found[f"limit:{name}"] = f"2/{found[f'model:{name}']}"
    calibration, members = repr(topology.calibration), list(topology.detectors)
    found["rates"] = ""
    found[ALERTS] = "3"  # of any name: what a detector left open that is no more must be closed
    if topology.alert.shares_budget:
        found["census"] = ""
    for name in members if topology.combine is None else [COMBINED]:
        found[f"alert:{name}"] = "3"
        if topology.alert.budget is not None:
            found[f"budget:{name}"] = repr(topology.alert.openings) + calibration
    if topology.registry_models:
        found[SHADOWS] = "2"  # of any model: those of a calibration count what was offered
    if topology.calibration is not None:
        for name in members:
            by_model = "/by model" if name in topology.registry_models else ""
            found[f"calibration:{name}"] = "2/" + calibration + found[f"model:{name}"] + by_model
        if topology.combine is not None and topology.combine.calibrate:
            each = [found[f"calibration:{name}"] for name in members]
            found[f"calibration:{COMBINED}"] = "/".join([repr(topology.combine), *each])
    found["kin"] = calibration + "".join(found[f"model:{name}"] for name in members)
    return found


def online_info(recipe: Detector) -> ModelInfo:
    """The identity of a detector that learns as it goes: its kind and its settings' digest."""
    plain = msgspec.to_builtins(
        msgspec.convert(msgspec.to_builtins(recipe), type(recipe))
    )  # a whole number where one of floats is meant
    if recipe.kind not in ONLINE:  # of ours no two have the same settings
        plain["kind"] = recipe.kind
    del plain["machines"]  # which keys it has, not what it is
    if not recipe.inputs:  # all it can be shown
        del plain["inputs"]
    digest = hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()
    return ModelInfo(recipe.kind, "online", f"sha256:{digest}", recipe.kind)
