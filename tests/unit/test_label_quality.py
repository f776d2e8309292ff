"""How good alerts were by people's words: the last one counts, about machines that the model scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_equal

from detectors import AdaptiveZ
from detectors.quality import event_quality
from detectors.registry import TRAINABLE
from stream.arrivals import UNNUMBERED
from stream.feedback import Feedback, Raised, Window
from stream.label_quality import Found, label_quality
from stream.readings import Batch
from stream.recipes import online_info
from stream.retrain_rule import Quality, Retrain
from stream.retraining import Retraining
from stream.scorer import Scorer
from stream.topology import RegistryModel, Sensor, Source, Topology

HOUR, DAY = 3600.0, 86400.0
NAN = math.nan


def said(*words: Any) -> Feedback:
    """Alerts `(opened, label)` of half an hour, and windows `(start, end, label)`, said one after the other; a third
    or fourth more is the machine."""
    feedback = Feedback()
    feedback.observe((), ["m1"] * 2, np.array([0.0, DAY]))
    for at, word in enumerate(words):
        machine = word[-1] if str(word[-1]).startswith("m") else "m1"
        if isinstance(word[1], float):
            feedback.mark(f"c{at}", Window(machine, word[0], word[1], word[2], float(at)))
            continue
        name = f"{machine} {word[0]}"
        known = feedback.find(name)
        if known is None:
            opened = word[0]
            known = Raised(name, machine, "scale", 1.0, opened, opened, opened + HOUR / 2)
            feedback.alerts[name] = known
        if word[1] is not None:
            feedback.label(known, word[1], learned=False, at=float(at))
    return feedback


def found(feedback: Feedback, since: float = 0.0, **rest: Any) -> Found:
    return label_quality(feedback, "scale", since, DAY, **rest)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param([(0.0, HOUR, "anomaly")], (1, NAN, 0.0, 0.0), id="nothing was told"),
        pytest.param([(HOUR, "false")], (1, 0.0, NAN, 0.0), id="nothing was to be told"),
        pytest.param([(HOUR, None)], (0, NAN, NAN, NAN), id="nothing was said"),
        pytest.param(
            [(0.0, HOUR, "anomaly"), (0.0, HOUR, "normal")],
            (0, NAN, NAN, NAN),
            id="a time that was corrected",
        ),
        pytest.param(
            [(0.0, HOUR, "normal"), (0.0, HOUR, "anomaly")], (1, NAN, 0.0, 0.0), id="corrected the other way"
        ),
        pytest.param(
            [(0.0, HOUR, "anomaly"), (10.0, HOUR + 10, "anomaly")],
            (1, NAN, 0.0, 0.0),
            id="said of one event twice",
        ),
        pytest.param(
            [(0.0, 9 * HOUR, "anomaly"), (HOUR, 8 * HOUR, "normal"), (0.0, None)],
            (2, 1.0, 0.5, 2 / 3),
            id="in the middle it was normal",
        ),
        pytest.param([(HOUR, "true"), (HOUR, "false")], (1, 0.0, NAN, 0.0), id="an alert that was corrected"),
        pytest.param(
            [(HOUR, "true"), (0.0, 2 * HOUR, "normal")],
            (1, 0.0, NAN, 0.0),
            id="an alert, corrected by its time",
        ),
        pytest.param(
            [(0.0, 2 * HOUR, "normal"), (HOUR, "true")],
            (1, 1.0, 1.0, 1.0),
            id="a time, corrected by its alert",
        ),
        pytest.param(
            [(HOUR, HOUR + HOUR / 2, "anomaly"), (HOUR, "false")],
            (1, 0.0, NAN, 0.0),
            id="an event that was none",
        ),
        pytest.param(
            [
                (0.0, 5 * HOUR, "anomaly"),
                (HOUR, None),
                (2 * HOUR, None),
                (6 * HOUR, "false"),
                (8 * HOUR, "true"),
            ],
            (4, 3 / 4, 1.0, 6 / 7),
            id="one event with two alerts, one without",
        ),
    ],
)
def test_the_last_word_counts(words: list[Any], expected: tuple[float, ...]) -> None:
    quality = found(said(*words))
    assert_equal(
        (quality.labels, quality.precision, quality.recall, quality.f1), pytest.approx(expected, nan_ok=True)
    )


def test_an_event_that_was_found_before_is_left_out_and_one_that_lasts_unfound_is_not() -> None:
    lasting = said((0.0, 10 * HOUR, "anomaly"), (HOUR, None))
    assert (found(lasting).recall, found(lasting).labels) == (1.0, 1)
    assert found(lasting, 2 * HOUR).labels == 0
    assert found(said((0.0, 10 * HOUR, "anomaly")), 2 * HOUR).recall == 0.0
    assert found(said((0.0, HOUR, "anomaly")), 2 * HOUR).labels == 0


def test_an_alert_that_lasts_is_one_event_up_to_now() -> None:
    feedback = said((HOUR, "true"), (2 * HOUR, 3 * HOUR, "anomaly"), (4 * HOUR, "true", "m2"))
    feedback.labelled["m1 3600.0"].closed = None
    assert (found(feedback).labels, found(feedback).recall) == (2, 1.0)
    assert found(feedback, 3.5 * HOUR).labels == 1, "found before"


def test_other_machines_and_detectors_do_not_count() -> None:
    words = said((HOUR, "true"), (HOUR, "false", "m2"), (2 * HOUR, 3 * HOUR, "anomaly", "m2"))
    assert (found(words).precision, found(words).recall) == (0.5, 0.5)
    mine = found(words, scored=lambda machine: machine == "m1")
    assert (mine.labels, mine.precision, mine.recall) == (1, 1.0, 1.0)
    assert label_quality(words, "other", 0.0, DAY).labels == 1, "the event that it missed"


def retraining(feedback: Feedback, metric: Any, threshold: float, machines: str = "*") -> Retraining:
    spec = RegistryModel(
        model="models:/scale@champion",
        fit=TRAINABLE["isolation_forest"](),
        machines=machines,
        retrain=Retrain(quality=Quality(window=DAY, metric=metric, threshold=threshold, labels=1)),
    )
    plant = Topology(name="plant", source=Source(sensors=(Sensor("a"),)), detectors={"scale": spec})
    return Retraining(plant, feedback, {"scale": "sha256:1"})


def test_a_model_that_finds_nothing_is_trained_anew_by_f1_and_recall_not_by_precision() -> None:
    blind = said((0.0, HOUR, "anomaly"))
    assert "f1 is 0 by 1 labels" in retraining(blind, "f1", 0.5).look(0.0)["scale"]["quality"]
    assert "recall is 0" in retraining(blind, "recall", 0.5).look(0.0)["scale"]["quality"]
    assert retraining(blind, "precision", 0.5).look(0.0) == {}


def test_a_model_is_not_trained_anew_for_a_machine_that_it_does_not_score() -> None:
    words = said((0.0, HOUR, "anomaly", "m2"))
    assert retraining(words, "recall", 0.5, machines="m1*").look(0.0) == {}
    assert "scale" in retraining(words, "recall", 0.5, machines="m2*").look(0.0)


def test_false_alarms_are_those_of_a_machine_a_day_as_a_backtest_counts_them() -> None:
    """Two machines that are scored and one that is not, watched for two days, with two false alarms in all."""
    every = np.arange(0.0, 2 * DAY + 1, HOUR)
    times, names = np.repeat(every, 3), ["m1", "m2", "x1"] * len(every)
    spike = AdaptiveZ(machines="m*")
    plant = Topology(name="plant", source=Source(sensors=(Sensor("a"),)), detectors={"scale": spike})
    scorer = Scorer(plant, {"scale": (spike.build(("a",)), online_info(spike))})
    scorer.admit(["m1", "m2", "x1"], {})
    n = len(times)
    batch = Batch(names, times, np.zeros((n, 1)), np.zeros(n, np.int64), np.arange(n), np.full(n, UNNUMBERED))
    scorer.process(batch, np.arange(n))
    assert scorer.watched_days("scale", 0.0, 9 * DAY) == 4.0
    assert scorer.watched_days("scale", DAY, 9 * DAY) == 2.0
    feedback = said((HOUR, "false"), (5 * HOUR, "false", "m2"))
    quality = found(feedback, days=lambda: scorer.watched_days("scale", 0.0, 9 * DAY))
    mine = np.array(names) != "x1"
    alerts = (np.array(names) == "m1") & (times == HOUR) | (np.array(names) == "m2") & (times == 5 * HOUR)
    tested = event_quality(times[mine], np.zeros(mine.sum()), alerts[mine], np.array(names)[mine])
    assert quality.false_alarms_per_day == tested.false_alarms_per_day == 0.5
    asked = retraining(feedback, "false_alarms_per_day", 0.4)
    assert "scale" in asked.look(0.0, lambda *_: 4.0)
    assert asked.look(0.0, lambda *_: 5.1) == {}
