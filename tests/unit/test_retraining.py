"""What asks for a training, and what holds it back: by a clock that is told, without worker or broker."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from detectors import AdaptiveZ
from stream.alerts import Alert, ModelInfo, Position, Window, rfc3339
from stream.checkpoint import Checkpoint
from stream.commands import Asked
from stream.config import dump_yaml, load
from stream.cron import next_instant, previous_instant
from stream.drifting import DriftWatch
from stream.errors import ConfigError, RegistryUnreachable
from stream.feedback import Feedback
from stream.feedback import Window as Labelled
from stream.gates import PromoteWhen
from stream.label_quality import label_quality
from stream.metrics import Metrics
from stream.readings import epoch_seconds
from stream.retrain_rule import Drift, Quality, Retrain
from stream.retrainer import Retrainer
from stream.retraining import Retraining
from stream.state import Changes, StreamPosition
from stream.topology import RegistryModel, Sensor, Source, Topology
from stream.training_data import Marked, kept_rows
from tests.aio import run

MONDAY = 1_722_826_800.0  # 2024-08-05 03:00 UTC
HOUR, DAY = 3600.0, 86400.0


def topology(**rule: Any) -> Topology:
    spec = RegistryModel(
        model="models:/scale@champion",
        fit=_fit(),
        promote_when=PromoteWhen(readings=100, agreement=">= 0.9"),
        retrain=Retrain(**rule),
    )
    return Topology(name="plant", source=Source(sensors=(Sensor("a"),)), detectors={"scale": spec})


def _fit() -> Any:
    from detectors.registry import TRAINABLE

    return TRAINABLE["isolation_forest"]()


def retraining(feedback: Feedback | None = None, *, readings: bool = True, **rule: Any) -> Retraining:
    feedback = feedback or Feedback(follows=True)
    if readings:
        feedback.observe((), ["m1"] * 2, np.array([MONDAY - 30 * DAY, MONDAY]))
    return Retraining(topology(**rule), feedback, {"scale": "sha256:1"})


def again(old: Retraining, feedback: Feedback, **rule: Any) -> Retraining:
    """The same after a restart."""
    rows = json.loads(json.dumps({**old.rows(), **feedback.rows()}))
    fresh = Feedback(follows=True)
    fresh.restore(rows)
    found = Retraining(topology(**rule), fresh, {"scale": "sha256:1"})
    found.restore(rows)
    return found


def test_a_schedule_asks_once_each_time_it_comes() -> None:
    found = retraining(schedule="0 3 * * 1", min_interval=0.0)
    assert found.look(MONDAY - 10) == {}, "what was due before the first start is not made up"
    assert found.look(MONDAY - 1) == {}
    assert found.look(MONDAY + 1) == {"scale": {"schedule": "0 3 * * 1 UTC"}}
    found.began("scale", MONDAY + 1, by_rule=True)
    found.trained("scale", "2", MONDAY + 60)
    assert found.look(MONDAY + 61) == {}
    assert found.look(MONDAY + 6 * DAY) == {}
    assert "schedule" in found.look(MONDAY + 7 * DAY)["scale"]


def test_schedules_missed_while_the_worker_was_down_are_made_up_once() -> None:
    feedback = Feedback(follows=True)
    found = retraining(feedback, schedule="0 3 * * 1")
    found.look(MONDAY - HOUR)
    found = again(found, feedback, schedule="0 3 * * 1")
    later = MONDAY + 22 * DAY
    assert "schedule" in found.look(later)["scale"], "four were missed"
    found.began("scale", later, by_rule=True)
    found.trained("scale", "2", later + 60)
    assert found.look(later + DAY) == {}


def test_a_schedule_is_in_the_time_zone_that_is_named() -> None:
    assert previous_instant("0 3 * * 1", "UTC", MONDAY) == MONDAY
    assert previous_instant("0 3 * * 1", "UTC", MONDAY + 0.5) == MONDAY
    assert previous_instant("0 3 * * 1", "UTC", MONDAY - 0.5) == MONDAY - 7 * DAY
    assert previous_instant("0 3 * * 1", "Europe/Zurich", MONDAY) == MONDAY - 2 * HOUR
    assert next_instant("0 3 * * 1", "Europe/Zurich", MONDAY) == MONDAY + 7 * DAY - 2 * HOUR


def test_a_training_waits_for_the_interval_the_week_and_another_training() -> None:
    found = retraining(drift=Drift(), min_interval=HOUR, per_week=3)
    assert found.hold("scale", MONDAY, busy=True) == "running"
    assert found.hold("scale", MONDAY, busy=False) is None
    now = MONDAY
    for number in range(3):
        found.began("scale", now, by_rule=True)
        assert found.hold("scale", now + 5, busy=False) == "running"
        found.trained("scale", str(number), now + 60)
        assert found.hold("scale", now + HOUR - 1, busy=False) == "cooldown"
        now += HOUR
    assert found.hold("scale", now, busy=False) == "limit"
    assert found.hold("scale", MONDAY + 7 * DAY, busy=False) is None


def test_a_training_over_more_than_there_ever_was_begins_with_the_epoch() -> None:
    assert retraining(schedule="0 3 * * 1", over=1e15).since("scale") == 0.0


def test_without_a_reading_there_is_nothing_to_train_on() -> None:
    found = retraining(readings=False, schedule="* * * * *")
    assert found.hold("scale", MONDAY, busy=False) == "no_data"


def test_the_interval_and_what_asked_survive_a_restart_and_a_training_cut_short_has_failed() -> None:
    feedback = Feedback(follows=True)
    rule: dict[str, Any] = {"drift": Drift(), "min_interval": HOUR}
    found = retraining(feedback, **rule)
    found.watches["scale"].drifted["m1"] = MONDAY
    assert "drift" in found.look(MONDAY)["scale"]
    found.began("scale", MONDAY, by_rule=True)
    found = again(found, feedback, **rule)
    status = found.status(MONDAY + 60)["scale"]
    assert status["last"] == {"outcome": "failed", "reason": "the worker ended meanwhile"}
    assert not status["running"]
    assert status["held"] == "cooldown"
    assert status["drifted"] == ["m1"]
    assert "drift" in found.look(MONDAY + HOUR)["scale"]
    assert found.hold("scale", MONDAY + HOUR, busy=False) is None
    other = again(found, feedback, schedule="0 3 * * 1")
    assert other.look(MONDAY + HOUR) == {}, "what the rule does not ask for any more is forgotten"
    other = again(found, feedback, drift=Drift(every=3))
    other.drop("scale", "drift")
    assert other.look(MONDAY + HOUR) == {}, "by another rule nothing has drifted yet"


def test_a_drift_is_over_once_a_model_was_trained_and_a_failed_training_leaves_it() -> None:
    found = retraining(drift=Drift(machines=2, within=HOUR))
    found.watches["scale"].drifted["m1"] = MONDAY
    assert found.look(MONDAY) == {}, "one of two machines"
    found.watches["scale"].drifted["m2"] = MONDAY + 2 * HOUR
    assert found.look(MONDAY) == {}, "not within the hour"
    found.watches["scale"].drifted["m3"] = MONDAY + 2 * HOUR + 1
    assert found.look(MONDAY) == {"scale": {"drift": "the scores of m2, m3 have drifted (adwin)"}}
    found.began("scale", MONDAY, by_rule=True)
    found.failed("scale", "no rows", MONDAY + 1)
    assert "drift" in found.look(MONDAY + 2)["scale"]
    found.began("scale", MONDAY + DAY, by_rule=True)
    found.trained("scale", "2", MONDAY + DAY + 1)
    assert found.look(MONDAY + DAY + 2) == {}


def test_only_what_the_rule_trained_becomes_a_shadow() -> None:
    found = retraining(schedule="0 3 * * 1")
    found.began("scale", MONDAY, by_rule=False)
    found.trained("scale", "7", MONDAY)
    assert found.challengers() == {}
    found.began("scale", MONDAY + DAY, by_rule=True)
    found.trained("scale", "8", MONDAY + DAY)
    assert found.challengers() == {"scale": "8"}
    found.shadowed("scale", "8")
    assert (found.challengers(), found.shadows()) == ({}, {"scale": "8"})
    found.shadowed("scale", "9")  # an operator's, in its place
    assert found.shadows() == {}


def test_a_challenger_waits_for_a_registry_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.retrainer._LOOK", 0.0)
    monkeypatch.setattr("stream.retrainer.AGAIN", 0.0)
    plant = topology(schedule="0 3 * * 1")
    feedback = Feedback(follows=True)
    found = retraining(feedback, schedule="0 3 * * 1")
    beside: Any = SimpleNamespace(retraining=found, feedback=feedback, shadows={})
    found.began("scale", MONDAY, by_rule=True)
    found.trained("scale", "8", MONDAY)
    asked: list[str] = []

    async def serve(command: Asked, answer: Any) -> None:
        asked.append(command.verb)
        if len(asked) < 3:
            raise RegistryUnreachable("nothing answers")
        await answer({"status": "applied"})
        found.shadowed("scale", "8")

    async def story() -> None:
        metrics = Metrics().of("plant", ("scale",))
        clock: Any = SimpleNamespace(now=lambda: MONDAY + 1.0)
        retrainer = Retrainer(
            plant, beside, serve, metrics=metrics, clock=clock, busy=lambda: False, watched=lambda *_: 1.0
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(retrainer.run())
            while found.challengers():  # noqa: ASYNC110
                await asyncio.sleep(0)
            running.cancel()

    run(story())
    assert asked == ["shadow"] * 3


def test_an_operator_may_keep_the_promotion() -> None:
    found = retraining(schedule="0 3 * * 1", promote="by_command")
    found.began("scale", MONDAY, by_rule=True)
    found.trained("scale", "8", MONDAY)
    found.shadowed("scale", "8")
    assert found.shadows() == {}


def drift_watch(rule: Drift, sizes: list[int], values: np.ndarray[Any, Any]) -> DriftWatch:
    """Fed with two machines in turns, cut into batches of these sizes, each taken up after a restart."""
    found, start = DriftWatch("scale", rule, ("score",), "sha256:1"), 0
    for size in sizes:
        rows = np.arange(start, start + size)
        slots = rows % 2
        times = MONDAY + rows.astype(np.float64)
        for row in found.add(slots, times, values[rows]):
            found.note(f"m{slots[row]}", float(times[row]))
        after = DriftWatch("scale", rule, ("score",), "sha256:1")
        after.restore(np.arange(2), found.snapshot(np.arange(2)))
        after.restore_found(json.loads(json.dumps(found.saved())))
        found, start = after, start + size
    return found


@pytest.mark.parametrize("every", [1, 3])
def test_a_drift_of_one_machine_is_found_however_readings_are_cut(every: int) -> None:
    values = np.random.default_rng(4).normal(size=(1600, 1)) ** 2
    values[900::2] += 3.0  # m0
    rule = Drift(every=every)
    whole = drift_watch(rule, [1600], values)
    assert list(whole.drifted) == ["m0"]
    assert MONDAY + 900 < whole.drifted["m0"] < MONDAY + 1200
    cut = drift_watch(rule, [1, 7, 300, 592, 33, 667], values)
    assert cut.drifted == whole.drifted
    one, other = whole.snapshot(np.arange(2)), cut.snapshot(np.arange(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_another_model_or_rule_is_watched_anew() -> None:
    watch = DriftWatch("scale", Drift(), ("score",), "sha256:1")
    watch.drifted["m1"] = MONDAY
    before = watch.table
    watch.swapped("sha256:2")
    assert (watch.drifted, watch.table != before) == ({}, True)
    assert DriftWatch("scale", Drift(every=3), ("score",), "sha256:1").table != before
    assert DriftWatch("scale", Drift(), ("score",), "sha256:1").table == before


def alert(number: int, time: float, *, event: str = "opened", machine: str = "m1") -> Alert:
    return Alert(
        id=f"a{number}",
        event=event,
        type="process",
        sequence=0,
        topology="plant",
        machine=machine,
        detector="scale",
        severity="warning",
        score=1.0,
        threshold=1.0,
        peak_score=1.0,
        anomalous_readings=1,
        first_seen=rfc3339(time),
        last_seen=rfc3339(time),
        time=rfc3339(time),
        reason="",
        contributions=[],
        model=ModelInfo("scale", "1", "sha256:1", "scale"),
        position=Position(0, number, 0),
        window=Window([], {}),
    )


def raised(feedback: Feedback, count: int, start: float = MONDAY) -> None:
    for number in range(count):
        time = start + number * HOUR
        events = [alert(number, time), alert(number, time + 60, event="closed")]
        feedback.observe(events, ["m1"], np.array([time]))


def say(feedback: Feedback, number: int, label: Any, *, learned: bool = False) -> None:
    known = feedback.find(f"a{number}")
    assert known is not None
    feedback.label(known, label, learned=learned, at=MONDAY + 50 * DAY + number)


def test_labels_that_come_late_are_joined_and_quality_below_the_threshold_asks() -> None:
    feedback = Feedback()
    quality = Quality(window=2 * DAY, metric="precision", threshold=0.5, labels=4)
    found = retraining(feedback, readings=False, quality=quality)
    raised(feedback, 10)
    for number, label in enumerate(["true", "false", "false"]):
        say(feedback, number, label)
    assert found.look(MONDAY) == {}, "three labels are too few"
    say(feedback, 3, "false")
    assert found.look(MONDAY) == {"scale": {"quality": "precision is 0.25 by 4 labels, below 0.5"}}
    say(feedback, 1, "true")  # the last word counts
    assert found.look(MONDAY) == {}
    say(feedback, 1, "false")
    found.began("scale", MONDAY, by_rule=True)
    found.trained("scale", "2", MONDAY)
    say(feedback, 4, "false")
    assert found.look(MONDAY) == {}, "what is known of the alerts before a training asks for no second one"
    raised(feedback, 10, MONDAY + DAY)
    for number in range(4):
        say(feedback, number, "false")
    assert "quality" in found.look(MONDAY)["scale"]


def test_a_machine_whose_clock_is_a_year_ahead_steers_no_retraining() -> None:
    """Neither what is trained on, nor which labels count, before a training and after it."""
    feedback, ahead = Feedback(follows=True), 365 * DAY
    rule: dict[str, Any] = {
        "quality": Quality(window=2 * DAY, metric="precision", threshold=0.5, labels=4),
        "over": DAY,
    }
    found = retraining(feedback, readings=False, **rule)

    def day(number: int) -> None:
        for hour in range(24):
            time = MONDAY + number * DAY + hour * HOUR
            times = np.array([time, time + ahead, time + 1.0])
            name = 24 * number + hour
            events = [alert(name, time), alert(name, time + 60, event="closed")]
            feedback.observe(events, ["m1", "wrong", "m2"], times)

    day(0)
    assert found.since("scale") == MONDAY + 23 * HOUR + 1.0 - DAY
    for number in range(4):
        say(feedback, number, "false")
    assert "by 4 labels" in found.look(MONDAY)["scale"]["quality"]
    spans: list[tuple[float, float]] = []

    def watched(detector: str, since: float, until: float) -> float:
        spans.append((since, until))
        return 1.0

    found.quality(watched)
    assert spans == [(MONDAY, MONDAY + 23 * HOUR + 1.0)], "it was watched for no year"
    found.began("scale", MONDAY, by_rule=True)
    found.trained("scale", "2", MONDAY)
    assert found.look(MONDAY) == {}, "what is known of these alerts asks for no second training"
    day(1)
    for number in range(24, 28):
        say(feedback, number, "false")
    found = again(found, feedback, **rule)
    assert "by 4 labels" in found.look(MONDAY)["scale"]["quality"]


def test_what_a_wrong_clock_told_of_a_training_long_ago_silences_no_label() -> None:
    """As a checkpoint of before has it, by the newest time of any machine."""
    feedback = Feedback(follows=True)
    found = retraining(
        feedback, readings=False, quality=Quality(window=DAY, metric="precision", threshold=0.5, labels=1)
    )
    feedback.observe((), ["wrong"], np.array([MONDAY + 365 * DAY]))
    found.began("scale", MONDAY, by_rule=True)
    found.trained("scale", "2", MONDAY)
    raised(feedback, 3)
    say(feedback, 0, "false")
    assert "scale" in found.look(MONDAY)


def test_windows_tell_what_alerts_were_and_what_was_missed() -> None:
    feedback = Feedback()
    raised(feedback, 4)
    feedback.mark("c1", Labelled("m1", MONDAY - 60, MONDAY + 60, "anomaly", 1.0))  # a0 is true
    feedback.mark(
        "c2", Labelled("m1", MONDAY + 1.5 * HOUR, MONDAY + 2.5 * HOUR, "normal", 2.0)
    )  # a2 is false
    feedback.mark("c3", Labelled("m2", MONDAY, MONDAY + HOUR, "anomaly", 3.0))  # missed
    say(feedback, 3, "true")
    found = label_quality(feedback, "scale", MONDAY, MONDAY + 3 * HOUR, days=lambda: 0.25)
    assert (found.precision, found.recall, found.labels) == (2 / 3, 2 / 3, 4)
    assert found.f1 == pytest.approx(2 / 3)
    assert found.false_alarms_per_day == 4.0
    assert math.isnan(label_quality(feedback, "other", MONDAY, MONDAY + 3 * HOUR).precision)


def test_a_missed_anomaly_asks_by_recall() -> None:
    feedback = Feedback()
    found = retraining(
        feedback, readings=False, quality=Quality(window=DAY, metric="recall", threshold=0.8, labels=1)
    )
    raised(feedback, 2)
    feedback.mark("c1", Labelled("m2", MONDAY, MONDAY + 60, "anomaly", 1.0))
    assert "recall is 0" in found.look(MONDAY)["scale"]["quality"]


def test_what_is_said_of_alerts_is_in_the_checkpoint_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.feedback._KEPT", 3)
    feedback = Feedback()
    checkpoint = Checkpoint(tmp_path / "t.checkpoint", "t", None)
    for number in range(20):
        time = MONDAY + number * HOUR
        events = [alert(number, time), alert(number, time + 60, event="closed")]
        feedback.observe(events, ["m1"], np.array([time]))
        if number % 2:
            say(feedback, number, "false")
        feedback.mark(f"c{number}", Labelled("m1", time, time, "normal", time))
        checkpoint.commit(Changes(StreamPosition(number), models=feedback.rows()))
    kept = Feedback()
    kept.restore(checkpoint.load().models)
    checkpoint.verify()
    checkpoint.close()
    assert list(kept.alerts) == list(feedback.alerts) == ["a16", "a18"]
    assert list(kept.labelled) == list(feedback.labelled) == ["a15", "a17", "a19"]
    assert list(kept.windows) == ["c17", "c18", "c19"]
    assert kept.alerts == feedback.alerts
    assert (kept.seen, kept.now) == (MONDAY, MONDAY + 19 * HOUR)


def test_a_training_leaves_out_faults_and_keeps_what_is_normal_by_the_last_word() -> None:
    feedback = Feedback()
    raised(feedback, 4)
    say(feedback, 0, "true")
    say(feedback, 1, "false")
    say(feedback, 2, "false", learned=True)
    feedback.mark(
        "c1", Labelled("m1", MONDAY, MONDAY + 2 * HOUR, "anomaly", 1.0)
    )  # said before those of alerts
    feedback.mark("c2", Labelled("m1", MONDAY + 10, MONDAY + 20, "normal", MONDAY + 90 * DAY))
    times = np.array([0.0, 15.0, 60.0, 100.0, HOUR, HOUR + 59, 2 * HOUR, 2 * HOUR + 1, 3 * HOUR]) + MONDAY
    kept = kept_rows(["m1"] * 9, times, feedback.marked())
    assert (times[kept] - MONDAY).tolist() == [15.0, 2 * HOUR, 2 * HOUR + 1, 3 * HOUR]
    assert len(kept_rows(["m2"] * 9, times, feedback.marked())) == 9
    assert kept_rows(["m1"], np.array([9e9]), [Marked("m1", 0.0, None, False)]).tolist() == []


def test_the_last_reading_of_an_alert_is_left_out_although_alerts_tell_microseconds() -> None:
    times = np.array([MONDAY + i / 3.0 for i in range(9)])
    ends = [epoch_seconds(rfc3339(time)) for time in times.tolist()]
    for i in range(9):
        kept = kept_rows(["m1"] * 9, times, [Marked("m1", ends[0], ends[i], False)])
        assert kept.tolist() == list(range(i + 1, 9))


BASE = """\
name: plant
source: {{sensors: [a, b]{source}}}
detectors:
  scale:
    model: models:/scale@{alias}
    {fit}
    retrain: {rule}
"""
FIT = "fit: {kind: isolation_forest}"


@pytest.mark.parametrize(
    ("rule", "more", "told"),
    [
        ("{}", {}, "say when: schedule, drift or quality"),
        ('{schedule: "0 3 * * 9"}', {}, 'retrain.schedule: "0 3 * * 9" is no cron expression'),
        ('{schedule: "@daily"}', {}, "is no cron expression"),
        ('{schedule: "0 0 31 2 *"}', {}, "is no cron expression"),
        ('{schedule: "H * * * *"}', {}, "is no cron expression"),
        ('{schedule: "0 3 * * 1 5"}', {}, "is no cron expression"),
        ('{schedule: "0 3 * * 1", timezone: Mars}', {}, 'timezone: "Mars" is no time zone'),
        ("{drift: {of: scores}}", {}, "drift.of: expected one of score, inputs"),
        ("{drift: {detector: {kind: adwim}}}", {}, 'Did you mean "adwin"'),
        ("{drift: {detector: {kind: mewma, warmup: 10}}}", {}, "too few"),
        ("{window: 7d, metric: precision}", {}, "retrain.window: needs threshold beside it"),
        ("{window: 7d, metric: precision, threshold: 80}", {}, "a precision is a share"),
        ("{quality: {window: 7d, metric: accuracy, threshold: 1}}", {}, "expected one of precision, recall"),
        ("{window: 7d, quality: {window: 7d, metric: f1, threshold: 1}}", {}, "is said in quality"),
        ("{drift: {}, source: capture}", {}, "there is no capture to train on"),
        ("{drift: {}}", {"source": ", queue: q"}, "there is no capture to train on"),
        ("{drift: {}, source: stream}", {"source": ", queue: q"}, "an existing queue keeps nothing"),
        ("{drift: {}}", {"fit": ""}, "retrain: add fit"),
        ("{drift: {}}", {"alias": "challenger"}, "name another alias in model"),
        ("{drift: {}, over: 0}", {}, "retrain.over: must be above 0"),
        ("{drift: {}, per_weak: 2}", {}, 'Did you mean "per_week"'),
    ],
)
def test_a_rule_that_cannot_work_is_refused_with_its_place(
    tmp_path: Path, rule: str, more: dict[str, str], told: str
) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(BASE.format(**{"source": "", "fit": FIT, "alias": "champion", **more}, rule=rule))
    with pytest.raises(ConfigError) as refused:
        load(file)
    assert told in str(refused.value)
    assert "detectors.scale" in str(refused.value)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{drift: {}}", Retrain(drift=Drift())),
        (
            "{window: 7d, metric: precision, threshold: 0.8}",
            Retrain(quality=Quality(window=7 * DAY, metric="precision", threshold=0.8)),
        ),
        (
            '{schedule: "0 3 * * 1", timezone: Europe/Zurich, over: 14d, min_interval: 1d, promote: by_command}',
            Retrain(schedule="0 3 * * 1", timezone="Europe/Zurich", min_interval=DAY, promote="by_command"),
        ),
        (
            "{drift: {of: inputs, detector: {kind: adaptive_z, half_life: 10}, machines: 3}}",
            Retrain(drift=Drift(of="inputs", detector=AdaptiveZ(half_life=10.0), machines=3)),
        ),
    ],
)
def test_python_and_yaml_say_the_same(tmp_path: Path, rule: str, expected: Retrain) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(BASE.format(source="", fit=FIT, alias="champion", rule=rule))
    found = load(file)
    assert found.registry_models["scale"].retrain == expected
    file.write_text(dump_yaml(found))
    assert load(file) == found
