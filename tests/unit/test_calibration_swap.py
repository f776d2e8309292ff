"""A calibration knows the scores of one model: after a swap it starts anew, and the model's threshold stands in."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.base import Floats
from detectors.calibration import Calibration
from stream.alerts import ModelInfo
from stream.arrivals import UNNUMBERED
from stream.readings import Batch
from stream.rules import AlertRule
from stream.scorer import Scored, Scorer
from stream.topology import RegistryModel, Sensor, Source, Topology
from tests.plant import Scale

TOPOLOGY = Topology(
    name="t",
    source=Source(sensors=(Sensor("a"), Sensor("b"))),
    detectors={"d": RegistryModel(model="models:/m@champion")},
    calibration=Calibration(warmup=50, history=200),
    alert=AlertRule(probability=1e-3),
)
FAULT = 11.0
"""Above the threshold (10) of a model with factor 1."""


def info(version: int) -> ModelInfo:
    return ModelInfo("m", str(version), f"sha256:{version:064x}", "scale")


def scorer(factor: float = 1.0, version: int = 1) -> Scorer:
    found = Scorer(TOPOLOGY, {"d": (Scale(factor), info(version))})
    found.admit(["m0", "m1"], {})
    return found


def read(found: Scorer, values: Floats, start: int, machine: str = "m0") -> Scored:
    n = len(values)
    times = 1.7e9 + np.arange(start, start + n, dtype=np.float64)
    none = np.full(n, UNNUMBERED)
    pairs = np.column_stack([values, values])
    batch = Batch([machine] * n, times, pairs, np.arange(n), np.zeros(n, np.int64), none)
    return found.process(batch, start + np.arange(n))


def normal(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(0.5, 1.5, n)


def test_larger_scores_of_the_next_version_are_no_anomaly() -> None:
    """Version 2 gives five times the scores: by the history of version 1 every reading would be an alert."""
    found = scorer()
    read(found, normal(200), 0)
    found.swap("d", Scale(5.0), info(2))
    assert not read(found, normal(200, 1), 200).alerts


def test_until_it_is_known_again_the_models_own_threshold_stands_in() -> None:
    found = scorer()
    read(found, normal(200), 0)
    found.swap("d", Scale(1.0), info(2))
    quiet, fault = read(found, normal(10, 1), 200), read(found, np.array([FAULT]), 210)
    assert not quiet.scores["d"].any()
    [alert] = fault.alerts
    assert alert.event == "opened"
    assert alert.threshold == pytest.approx(3.0)
    assert alert.score == pytest.approx(3.0 * FAULT / 10.0)


def test_a_new_machine_is_watched_from_its_first_reading() -> None:
    assert [alert.event for alert in read(scorer(), np.array([FAULT]), 0).alerts] == ["opened"]


def test_a_swap_to_what_serves_keeps_what_is_known() -> None:
    found = scorer()
    read(found, normal(200), 0)
    found.swap("d", Scale(1.0), info(1))
    assert read(found, normal(10, 1), 200).scores["d"].all()


def test_who_was_on_the_disk_during_the_swap_starts_anew_as_well() -> None:
    found = scorer()
    read(found, normal(200), 0, "m1")
    saved = found.components(np.array([1]))
    found.evict(1, np.array([0]))
    changed = found.swap("d", Scale(5.0), info(2))
    assert changed.tolist() == [0]
    found.admit(["m1"], saved)
    slots = found.residents.slots(["m1"])
    assert not found.components(slots)["calibration:d"]["count"].any()
    assert not read(found, normal(200, 1), 200, "m1").alerts


def test_what_stands_in_does_not_depend_on_the_cut_of_batches() -> None:
    values = np.concatenate([normal(40), [FAULT], normal(40, 1), [FAULT], normal(40, 2)])
    whole, parts = scorer(), scorer()
    expected = read(whole, values, 0).scores["d"].tolist()
    found = [read(parts, values[i : i + 7], i).scores["d"].tolist() for i in range(0, len(values), 7)]
    assert [score for part in found for score in part] == expected
