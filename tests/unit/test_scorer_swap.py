"""A swapped model takes over its keys' recent past where it can, and whoever comes from the disk is treated alike."""

from __future__ import annotations

import numpy as np
import pandas as pd

from detectors import registry
from detectors.base import Floats, Weights
from stream.alerts import ModelInfo
from stream.arrivals import UNNUMBERED
from stream.readings import Batch
from stream.scorer import Scorer
from stream.topology import RegistryModel, Sensor, Source, Topology

SENSORS = ("a", "b")
MACHINES = ["m0", "m1", "m2"]
INFO = ModelInfo(name="m", version="1", digest="sha256:0", kind="any")
TOPOLOGY = Topology(
    name="t",
    source=Source(sensors=tuple(Sensor(name) for name in SENSORS)),
    detectors={"d": RegistryModel(model="models:/m@champion")},
)


def trained(kind: str, seed: int) -> Weights:
    walk = np.cumsum(np.random.default_rng(seed).normal(size=(300, 2)), axis=0)
    return registry.TRAINABLE[kind]().fit(pd.DataFrame(walk, columns=list(SENSORS)))


def scorer(weights: Weights) -> Scorer:
    found = Scorer(TOPOLOGY, {"d": (registry.load(weights), INFO)})
    found.admit(MACHINES, {})
    return found


def read(found: Scorer, machines: list[str], start: int) -> Floats:
    n = len(machines)
    rng = np.random.default_rng(start)
    times = 1.7e9 + np.arange(start, start + n, dtype=np.float64)
    none = np.full(n, UNNUMBERED)
    batch = Batch(machines, times, rng.normal(size=(n, 2)), np.arange(n), np.zeros(n, np.int64), none)
    return found.process(batch, start + np.arange(n)).scores["d"]


def test_the_recent_past_goes_on_under_the_next_version() -> None:
    first, second = trained("exponential_smoothing", 1), trained("exponential_smoothing", 2)
    found = scorer(first)
    read(found, MACHINES * 20, 0)
    slots = found.residents.occupied
    before = found.components(slots)["model:d"]
    assert found.swap("d", registry.load(second), INFO).tolist() == []
    after = found.components(slots)["model:d"]
    assert before["level"].any()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_another_kind_starts_afresh_and_its_state_is_to_be_saved() -> None:
    found = scorer(trained("pca", 1))
    read(found, MACHINES * 20, 0)
    changed = found.swap("d", registry.load(trained("exponential_smoothing", 1)), INFO)
    assert changed.tolist() == [0, 1, 2]
    assert not found.components(changed)["model:d"]["count"].any()


def test_a_machine_from_the_disk_comes_back_whatever_model_left_its_state() -> None:
    for left, now in (("exponential_smoothing", "pca"), ("pca", "exponential_smoothing")):
        found = scorer(trained(left, 1))
        read(found, MACHINES * 20, 0)
        saved = found.components(np.array([2]))
        found.evict(1, np.array([0, 1]))
        found.swap("d", registry.load(trained(now, 1)), INFO)
        found.admit(["m2"], saved)
        fresh = scorer(trained(now, 1))
        assert read(found, ["m2"], 60).tolist() == read(fresh, ["m2"], 60).tolist()


def test_a_machine_from_the_disk_goes_on_as_one_in_memory_does() -> None:
    first, second = trained("exponential_smoothing", 1), trained("exponential_smoothing", 2)
    found, other = scorer(first), scorer(first)
    for each in (found, other):
        read(each, MACHINES * 20, 0)
    saved = other.components(np.array([2]))
    other.evict(1, np.array([0, 1]))
    for each in (found, other):
        each.swap("d", registry.load(second), INFO)
    other.admit(["m2"], saved)
    assert read(found, ["m2"], 60).tolist() == read(other, ["m2"], 60).tolist()
