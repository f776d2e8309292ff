"""A shadow scores what its champion does, alerts nowhere, harms nobody; and is promoted once it has shown enough."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from detectors import ADWIN, AdaptiveZ
from detectors.base import Floats, Mask, Model, ModelUnavailable, Slots
from detectors.calibration import Calibration
from detectors.registry import TRAINABLE
from stream.alerts import ModelInfo
from stream.arrivals import UNNUMBERED
from stream.errors import ModelError, RegistryUnreachable
from stream.gates import PromoteWhen, RollbackWhen
from stream.models import ModelRef
from stream.readings import Batch
from stream.recipes import online_info
from stream.retrain_rule import Drift, Retrain
from stream.rules import AlertRule, Combination
from stream.scorer import Scorer
from stream.topology import RegistryModel, Sensor, Source, Topology
from tests.aio import run
from tests.plant import Plant, Scale, ScaleShelf, readings, topology


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.engine._IDLE", 0.01)
    monkeypatch.setattr("stream.control._WATCH", 0.005)


class Failing(Scale):
    """Scores like any, until a value is large."""

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        if (values > 20.0).any():
            raise ValueError("too large for me")
        return super().score_learn(slots, values, times, learn)


class Away(Scale):
    """Gives no score, as a model in a process of its own that is not there."""

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        raise ModelUnavailable("its process ended")


class Shelf(ScaleShelf):
    """Version 40 fails, and 41 gives no score; `sealed`: nobody may move an alias; `gone`: nothing can be loaded."""

    sealed = False
    gone = False

    def model(self, ref: ModelRef, sensors: Sequence[str]) -> Model:
        if self.gone and ref.version != 1:
            raise ModelError("the registry is closed")
        if ref.version == 41:
            return Away(1.0)
        return Failing(1.0) if ref.version == 40 else super().model(ref, sensors)

    def point(self, ref: ModelRef, alias: str) -> None:
        if self.sealed:
            raise ModelError("permission denied")
        super().point(ref, alias)


def plant(folder: Path, **rules: Any) -> Plant:
    declared = topology(batch_model=True, max_batch=16)
    spec = msgspec.structs.replace(declared.registry_models["scale"], **rules)
    detectors = {**declared.detectors, "scale": spec}
    return Plant(folder, msgspec.structs.replace(declared, detectors=detectors), shelf=Shelf())


async def shadows(found: Plant) -> dict[str, Any]:
    status: dict[str, Any] = (await found.ask("status"))["shadows"]
    return status


async def audit(found: Plant) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = (await found.ask("audit"))["audit"]
    return lines


def without_times(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name != "us_per_reading"}


def test_a_shadow_is_compared_and_the_champion_does_what_it_would_do_alone(tmp_path: Path) -> None:
    async def story(*, shadow: bool) -> tuple[list[Any], dict[str, Any]]:
        found = plant(tmp_path / str(shadow))
        await found.declare()
        messages = readings(600)
        figures: dict[str, Any] = {}
        async with found.running() as worker:
            if shadow:
                receipt = await found.ask("shadow", model="models:/scale/9")
                assert receipt["status"] == "applied"
                assert (receipt["model"]["version"], receipt["champion"]["version"]) == (9, 1)
                assert receipt["partitions"] == {"0": {"first_offset": 0}}
            await found.publish(messages)
            await found.reached(worker, 600)
            if shadow:
                figures = (await shadows(found))["scale"]
        return await found.alerts(), figures

    alone, _ = run(story(shadow=False))
    beside, figures = run(story(shadow=True))
    assert beside == alone
    values = np.array([msgspec.json.decode(message.body)["values"]["a"] for message in readings(600)])
    champion, shadow = np.abs(values) >= 10.0, np.abs(values) * 9.0 >= 10.0
    assert figures["readings"] == 600
    assert figures["agreement"] == pytest.approx((champion == shadow).mean(), abs=1e-6)
    opened = [alert for alert in alone if alert.detector == "scale" and alert.event == "opened"]
    assert figures["alerts"]["champion"] == len(opened)
    assert figures["alerts"]["shadow"] > len(opened)


def test_a_comparison_goes_on_over_restarts_as_if_there_were_none(tmp_path: Path) -> None:
    async def story(name: str, stops: Sequence[int]) -> dict[str, Any]:
        found = plant(tmp_path / name, promote_when=PromoteWhen(readings=100))
        await found.declare()
        messages = readings(500)
        async with found.running():
            await found.ask("shadow", model="models:/scale/9")
        start = 0
        for stop in (*stops, 500):
            async with found.running() as worker:
                await found.publish(messages[start:stop])
                await found.reached(worker, stop)
                figures: dict[str, Any] = (await shadows(found))["scale"]
            start = stop
        assert found.value("mmlw_shadow_version", detector="scale") == 9
        counts = [
            found.value("mmlw_shadow_readings", detector="scale", anomalous=who)
            for who in ("both", "neither", "champion", "shadow")
        ]
        assert sum(counts) == 500
        figures["window"] = without_times(figures["window"])
        return without_times(figures)

    assert run(story("whole", ())) == run(story("parts", (130, 333)))


def test_a_shadow_that_fails_is_dropped_and_its_champion_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        async with found.running() as worker:
            assert (await found.ask("shadow", model="models:/scale/40"))["status"] == "applied"
            await found.publish(readings(600))
            await found.reached(worker, 600)
            assert await shadows(found) == {}
        assert found.value("mmlw_shadows_dropped_total", detector="scale") == 1
        assert found.value("mmlw_restarts_total", cause="detector") == 0
        assert sum(len(part.offsets) for part in found.scored) == 600
        async with found.running():
            assert await shadows(found) == {}

    run(story())


def test_a_shadow_that_has_no_score_for_most_readings_is_dropped(tmp_path: Path) -> None:
    """As a pinned model in a process of its own that fails over most of them."""

    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        async with found.running() as worker:
            assert (await found.ask("shadow", model="models:/scale/41"))["status"] == "applied"
            await found.publish(readings(90))
            await found.reached(worker, 90)
            assert (await shadows(found))["scale"]["missed"] == 90
            await found.publish(readings(300)[90:])
            await found.reached(worker, 300)
            assert await shadows(found) == {}
        assert found.value("mmlw_shadows_dropped_total", detector="scale") == 1
        assert found.value("mmlw_messages_processed_total") == 300

    run(story())


def test_a_shadow_that_cannot_be_loaded_again_does_not_keep_its_champion_from_running(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        async with found.running():
            await found.ask("shadow", model="models:/scale/9")
        found.shelf.gone = True
        async with found.running() as worker:
            assert await shadows(found) == {}
            await found.publish(readings(10))
            await found.reached(worker, 10)
        found.shelf.gone = False
        async with found.running():
            assert await shadows(found) == {}, "it was dropped for good"

    run(story())


def test_a_shadow_is_stopped_and_replaced_by_command(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        async with found.running() as worker:
            assert "has no shadow" in (await found.ask("shadow", stop=True))["reason"]
            await found.ask("shadow", model="models:/scale/9")
            await found.publish(readings(50))
            await found.reached(worker, 50)
            await found.ask("shadow", model="models:/scale/8")
            figures = (await shadows(found))["scale"]
            assert (figures["model"]["version"], figures["readings"]) == ("8", 0)
            assert (await found.ask("shadow", stop=True))["status"] == "applied"
            assert await shadows(found) == {}
        async with found.running():
            assert await shadows(found) == {}

    run(story())


@pytest.mark.parametrize(
    ("verb", "arguments", "reason"),
    [
        ("shadow", {}, 'shadow needs "model"'),
        ("shadow", {"model": "models:/scale/80"}, 'takes versions of "scale"'),
        ("shadow", {"model": "models:/scale/70"}, "sensors differ"),
        ("shadow", {"model": "models:/scale/99"}, "no such version"),
        ("shadow", {"model": "models:/scale/2", "digest": "sha256:0"}, "not the one"),
        ("shadow", {"model": "models:/scale/2", "stop": True}, 'either "model" or "stop"'),
        ("promote", {}, "has no shadow to promote"),
        ("promote", {"model": "models:/scale/2"}, 'promote takes no "model"'),
        ("swap", {"model": "models:/scale/2", "force": True}, 'swap takes no "force"'),
    ],
)
def test_what_cannot_be_done_is_refused(
    tmp_path: Path, verb: str, arguments: dict[str, Any], reason: str
) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        async with found.running():
            receipt = await found.ask(verb, **arguments)
            assert receipt["status"] == "refused"
            assert re.search(reason, receipt["reason"])
            assert await shadows(found) == {}
        swaps = found.value("mmlw_swaps_total", detector="scale", status="refused")
        assert swaps == 0 or verb == "promote"

    run(story())


def test_a_promoted_shadow_scores_from_the_offset_that_the_receipt_names(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        messages = readings(900)
        async with found.running() as worker:
            await found.ask("shadow", model="models:/scale/3")
            await found.publish(messages[:600])
            await found.reached(worker, 100)
            receipt = await found.ask("promote")
            await found.publish(messages[600:])
            await found.reached(worker, 900)
            assert await shadows(found) == {}
        assert receipt["status"] == "applied"
        assert (receipt["model"]["version"], receipt["replaced"]["version"]) == (3, 1)
        assert receipt["alias"] == "models:/scale@champion"
        assert found.shelf.alias == 3
        assert receipt["compared"]["readings"] == receipt["partitions"]["0"]["first_offset"]
        offsets = np.concatenate([part.offsets for part in found.scored])
        scores = np.concatenate([part.scores["scale"] for part in found.scored])
        values = np.vstack([part.batch.values for part in found.scored])
        first = receipt["partitions"]["0"]["first_offset"]
        np.testing.assert_allclose(scores, np.abs(values[:, 0]) * np.where(offsets >= first, 3.0, 1.0))
        async with found.running():
            assert (await found.ask("status"))["models"]["scale"]["version"] == "3"
            assert (await found.ask("rollback"))["model"]["version"] == 1

    run(story())


def test_an_alias_that_may_not_be_moved_is_told_and_the_promotion_holds(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        found.shelf.sealed = True
        await found.declare()
        async with found.running():
            await found.ask("shadow", model="models:/scale/3")
            receipt = await found.ask("promote")
            assert (receipt["status"], receipt["alias"]) == ("applied", "not moved: permission denied")
            assert (await found.ask("status"))["models"]["scale"]["version"] == "3"

    run(story())


def test_the_gate_refuses_with_figures_and_force_is_audited(tmp_path: Path) -> None:
    async def story() -> None:
        gate = PromoteWhen(readings=100, agreement=">= 0.98", alerts="<= 1.2 x champion")
        found = plant(tmp_path, promote_when=gate)
        await found.declare()
        async with found.running() as worker:
            await found.ask("shadow", model="models:/scale/9")
            early = await found.ask("promote")
            assert "the first window of the comparison has not ended yet" in early["reason"]
            await found.publish(readings(150))
            await found.reached(worker, 150)
            assert (await shadows(found))["scale"]["unmet"]
            refused = await found.ask("promote")
            assert refused["status"] == "refused"
            assert re.search(
                r"promote_when is not met: agreement is 0\.\d+, which is not >= 0.98", refused["reason"]
            )
            assert refused["serving"]["scale"]["version"] == 1
            forced = await found.ask("promote", force=True)
            assert forced["status"] == "applied"
            line = (await found.ask("audit"))["audit"][-1]
            assert (line["verb"], line["status"], line["by"]) == ("promote", "applied", "operator")
            assert line["reason"].startswith("forced: agreement is 0.")
            await found.ask("shadow", model="models:/scale/9")
            await found.publish(readings(100))
            await found.reached(worker, 250)
            same = await found.ask("promote")
            assert (same["status"], "note" in same) == ("applied", False), "it agrees with itself"

    run(story())


def test_an_alert_storm_after_a_swap_is_taken_back_by_itself(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path, rollback_when=RollbackWhen(within=3600.0, alerts="> 5 x before"))
        await found.declare()
        messages = readings(400, seed=3)
        async with found.running() as worker:
            await found.publish(messages[:200])
            await found.reached(worker, 200)
            swap = await found.ask("swap", model="models:/scale/9")
        async with found.running() as worker:  # what is on probation stays so over a restart
            await found.publish(messages[200:])
            await found.reached(worker, 400)
            while (status := await found.ask("status"))["models"]["scale"]["version"] == "9":
                pass
            assert status["models"]["scale"]["version"] == "1"
            [line] = [line for line in (await found.ask("audit"))["audit"] if line["verb"] == "rollback"]
        assert (line["by"], line["verb"], line["status"]) == ("rollback_when", "rollback", "applied")
        assert re.match(
            r"alerts since the swap: \d+ beside \d+ before the swap, which is > 5 x before", line["reason"]
        )
        assert swap["model"]["version"] == 9
        assert found.value("mmlw_automatic_rollbacks_total", detector="scale") == 1
        async with found.running() as worker:
            await found.publish(messages)
            await found.reached(worker, 800)
            assert (await found.ask("status"))["models"]["scale"]["version"] == "1"
        assert found.value("mmlw_automatic_rollbacks_total", detector="scale") == 1

    run(story())


def test_swap_that_an_operator_made_before_the_rollback_came_to_its_turn_stays(tmp_path: Path) -> None:
    """The storm is the first swap's; the second one is being prepared as it is noticed."""

    class Slow(Shelf):
        def __init__(self) -> None:
            super().__init__()
            self.asked, self.go_on = threading.Event(), threading.Event()

        def model(self, ref: ModelRef, sensors: Sequence[str]) -> Model:
            if ref.version == 2:
                self.asked.set()
                assert self.go_on.wait(60)
            return super().model(ref, sensors)

    async def story() -> None:
        found = plant(tmp_path, rollback_when=RollbackWhen(within=1e9, alerts="> 0"))
        found.shelf = shelf = Slow()
        await found.declare()
        async with found.running() as worker, asyncio.TaskGroup() as tasks:
            assert (await found.ask("swap", model="models:/scale/9"))["status"] == "applied"
            swap = tasks.create_task(found.ask("swap", model="models:/scale/2"))
            assert await asyncio.to_thread(shelf.asked.wait, 60)
            await found.publish(readings(200))
            await found.reached(worker, 200)
            control = worker.control("plant")
            assert control is not None
            beside = control._engine.scorer.beside
            assert "scale" in beside.verdicts()
            while not control._one._waiters:  # noqa: ASYNC110 - until the rollback waits for its turn
                await asyncio.sleep(0.001)
            shelf.go_on.set()
            assert (await swap)["status"] == "applied"
            for _ in range(3):
                verbs = [line["verb"] for line in await audit(found)]
            assert "rollback" not in verbs
            assert (await found.ask("status"))["models"]["scale"]["version"] == "2"
        assert found.value("mmlw_automatic_rollbacks_total", detector="scale") == 0

    run(story())


def test_swap_is_taken_back_where_the_operators_clock_is_ahead(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path, rollback_when=RollbackWhen(within=1e9, alerts="> 0"))
        await found.declare()
        async with found.running() as worker:
            ahead = time.time() + 4.0
            assert (await found.ask("swap", model="models:/scale/9", issued=ahead))["status"] == "applied"
            await found.publish(readings(200))
            await found.reached(worker, 200)
            while not (lines := [x for x in await audit(found) if x["by"] == "rollback_when"]):
                pass
            assert [line["status"] for line in lines] == ["applied"]
            assert (await found.ask("status"))["models"]["scale"]["version"] == "1"

    run(story())


def test_swap_is_taken_back_once_the_registry_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.control.AGAIN", 0.005)

    class Away(Shelf):
        asked = 0
        away = False

        def model(self, ref: ModelRef, sensors: Sequence[str]) -> Model:
            if self.away:
                self.asked += 1
                raise RegistryUnreachable("nothing answers")
            return super().model(ref, sensors)

    async def story() -> None:
        found = plant(tmp_path, rollback_when=RollbackWhen(within=1e9, alerts="> 0"))
        found.shelf = shelf = Away()
        await found.declare()
        async with found.running() as worker:
            decided = time.time()
            assert (await found.ask("swap", model="models:/scale/9"))["status"] == "applied"
            shelf.away = True
            await found.publish(readings(200))
            await found.reached(worker, 200)
            while shelf.asked < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert not [line for line in await audit(found) if line["by"] == "rollback_when"]
            shelf.away = False
            while not (lines := [x for x in await audit(found) if x["by"] == "rollback_when"]):
                pass
            assert [line["status"] for line in lines] == ["applied"]
            assert (await found.ask("status"))["models"]["scale"]["version"] == "1"
            early = await found.ask("pause", issued=decided)
            assert "out of order" in early["reason"], "the operator's own swap came after it"

    run(story())


def test_commands_of_the_worker_itself_do_not_void_those_of_operators(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path, rollback_when=RollbackWhen(within=1e9, alerts="> 0"))
        await found.declare()
        async with found.running() as worker:
            assert (await found.ask("swap", model="models:/scale/9"))["status"] == "applied"
            decided = time.time()
            await found.publish(readings(200))
            await found.reached(worker, 200)
            while not [line for line in await audit(found) if line["by"] == "rollback_when"]:
                pass
            assert (await found.ask("pause", issued=decided))["status"] == "applied"
        async with found.running() as worker:
            assert (await found.ask("resume", issued=decided))["status"] == "applied"
            assert "out of order" in (await found.ask("pause", issued=decided - 1.0))["reason"]

    run(story())


TOGETHER = Topology(
    name="t",
    source=Source(sensors=(Sensor("a"), Sensor("b"))),
    detectors={"z": AdaptiveZ(warmup=20, half_life=200), "m": RegistryModel(model="models:/m@champion")},
    calibration=Calibration(warmup=50),
    combine=Combination(),
    alert=AlertRule(probability=1e-2),
)


def together(wanted: Topology = TOGETHER) -> Scorer:
    online = wanted.detectors["z"]
    models = {
        "z": (online.build(("a", "b")), online_info(online)),  # type: ignore[union-attr,arg-type]
        "m": (Scale(1.0), ModelInfo("m", "1", "sha256:1", "scale")),
    }
    found = Scorer(wanted, models)
    found.admit(["m0", "m1"], {})
    return found


def read(found: Scorer, n: int, start: int, size: int = 50, machines: int = 2) -> list[Any]:
    values = np.random.default_rng(5).normal(size=(10_000, 2))[start : start + n]
    got = []
    for at in range(0, n, size):
        rows = np.arange(at, min(at + size, n))
        none = np.full(len(rows), UNNUMBERED)
        names = [f"m{i % machines}" for i in rows.tolist()]
        batch = Batch(
            names,
            1.7e9 + (start + rows).astype(np.float64),
            values[rows],
            np.arange(len(rows)),
            none + 1,
            none,
        )
        scored = found.process(batch, start + rows)
        found.beside.observe(scored)
        got.append(scored)
    return got


@pytest.mark.parametrize("size", [1, 7, 50])
def test_of_detectors_that_decide_together_one_has_a_shadow(size: int) -> None:
    """The same model as a shadow, from the first reading on: all decide alike, to the last alert."""
    found = together()
    found.shadow("m", Scale(1.0), ModelInfo("m", "2", "sha256:2", "scale"), reference={}, identity="x")
    scored = read(found, 1000, 0, size)
    total = found.beside.shadows["m"].comparison.total
    opened = sum(len(part.opened.get("combined", ())) for part in scored)
    assert opened > 0
    assert (total.readings, total.agreement, total.drift) == (1000, 1.0, 0.0)
    assert total.champion.alerts == total.shadow.alerts == opened


@pytest.mark.parametrize("combine", [None, Combination()], ids=["alone", "combined"])
def test_a_shadow_of_a_model_bound_to_some_machines_is_compared_on_these(combine: Combination | None) -> None:
    """Machines in memory when it begins, and those that come later; others are no readings without a score."""
    bound = RegistryModel(
        model="models:/m@champion", machines="m[02]", rollback_when=RollbackWhen(errors="> 0")
    )
    detectors = {**TOGETHER.detectors, "m": bound}
    found = together(msgspec.structs.replace(TOGETHER, detectors=detectors, combine=combine))
    found.shadow("m", Scale(1.0), ModelInfo("m", "2", "sha256:2", "scale"), reference={}, identity="x")
    found.beside.swapped("m", back=False)
    read(found, 1000, 0)
    found.admit(["m2", "m3"], {})
    read(found, 600, 1000, machines=4)
    total = found.beside.shadows["m"].comparison.total
    assert (total.readings, total.agreement, total.unscored) == (500 + 300, 1.0, 0)
    assert found.beside.probations["m"].verdict is None
    assert found.promote("m").tolist() == [0, 1, 2, 3]
    again = np.concatenate([part.scores["m"] for part in read(found, 8, 1600, machines=4)])
    np.testing.assert_array_equal(np.isnan(again), [False, True] * 4)


def test_a_promoted_shadow_brings_its_calibration() -> None:
    found = together()
    found.shadow("m", Scale(5.0), ModelInfo("m", "2", "sha256:2", "scale"), reference={}, identity="x")
    read(found, 400, 0)
    assert found.promote("m").tolist() == [0, 1]
    assert found.components(np.array([0]))["calibration:m"]["count"] > 150
    assert np.concatenate([part.scores["m"] for part in read(found, 100, 400)]).all(), "no warm-up"
    found.admit(["m2"], {})
    slots = found.residents.slots(["m2"])
    assert not found.components(slots)["calibration:m"]["count"].any(), "a new machine starts fresh"


def test_the_state_of_a_shadow_goes_to_the_disk_with_its_machine() -> None:
    found, other = together(), together()
    for each in (found, other):
        each.shadow("m", Scale(2.0), ModelInfo("m", "2", "sha256:2", "scale"), reference={}, identity="x")
        read(each, 300, 0)
    saved = other.components(np.array([1]))
    assert "shadow:m:x:calibration:m" in saved
    other.evict(1, np.array([0]))
    other.admit(["m1"], saved)
    for each in (found, other):
        read(each, 300, 300)
    one, two = (each.beside.shadows["m"].comparison.total for each in (found, other))
    assert (one.both, one.neither, one.shadow.scores) == (two.both, two.neither, two.shadow.scores)


def test_a_shadow_that_begins_does_not_end_its_first_window_with_the_first_machine() -> None:
    """Where machines deliver by turns, a hundred seconds of one and then of the next."""
    gate = PromoteWhen(window=90.0, agreement=">= 0")
    bound = RegistryModel(model="models:/m@champion", promote_when=gate)
    detectors = {**TOGETHER.detectors, "m": bound}
    found = together(msgspec.structs.replace(TOGETHER, detectors=detectors))
    found.admit(["m2", "m3"], {})
    none = np.full(100, -1, np.int64)

    def turn(number: int) -> None:
        times = 1.7e9 + 100.0 * (number // 4) + np.arange(100.0)
        batch = Batch([f"m{number % 4}"] * 100, times, np.zeros((100, 2)), np.arange(100), none + 1, none)
        found.beside.observe(found.process(batch, 100 * number + np.arange(100)))

    for number in range(8):
        turn(number)
    found.shadow("m", Scale(1.0), ModelInfo("m", "2", "sha256:2", "scale"), reference={}, identity="x")
    turn(8)
    assert found.beside.shadows["m"].comparison.window is None
    turn(9)
    turn(10)
    assert found.beside.shadows["m"].comparison.window is not None


def test_a_drift_is_noted_by_the_time_of_the_plant_however_readings_are_cut() -> None:
    """One of four machines is a year ahead; all drift within a minute."""
    rule = Retrain(drift=Drift(of="inputs", every=1, detector=ADWIN(), machines=4, within=60.0))
    fit = TRAINABLE["isolation_forest"]()
    bound = RegistryModel(model="models:/m@champion", fit=fit, retrain=rule)
    alone = msgspec.structs.replace(
        TOGETHER, detectors={"m": bound}, combine=None, calibration=None, alert=AlertRule()
    )
    noted = []
    for size in (1, 77, 1600):
        found = Scorer(alone, {"m": (Scale(0.01), ModelInfo("m", "1", "sha256:1", "scale"))})
        found.admit([f"m{i}" for i in range(4)], {})
        values = np.random.default_rng(3).normal(size=(1600, 2))
        values[1200:] += 4.0
        for start in range(0, 1600, size):
            rows = np.arange(start, min(start + size, 1600))
            times = 1.7e9 + rows / 4 + np.where(rows % 4 == 2, 365 * 86400.0, 0.0)
            none = np.full(len(rows), -1, np.int64)
            names = [f"m{i % 4}" for i in rows.tolist()]
            batch = Batch(names, times, values[rows], np.arange(len(rows)), none + 1, none)
            found.beside.observe(found.process(batch, rows))
        [watch] = found.beside.retraining.watches.values()
        assert watch.cause() is not None
        noted.append(watch.drifted)
    assert noted[0] == noted[1] == noted[2]
    assert all(1.7e9 + 299 < time < 1.7e9 + 401 for time in noted[0].values())


class Broken(AdaptiveZ, frozen=True, kw_only=True):
    """A drift detector that fails on the first reading."""

    kind = "broken"

    def build(self, sensors: tuple[str, ...]) -> Any:
        return Failing(1.0)


def test_a_watch_for_drift_that_fails_ends_and_harms_nobody() -> None:
    rule = Retrain(drift=Drift(of="inputs", every=1, detector=Broken()))
    fit = TRAINABLE["isolation_forest"]()
    detectors = {**TOGETHER.detectors, "m": RegistryModel(model="models:/m@champion", fit=fit, retrain=rule)}
    watched = msgspec.structs.replace(TOGETHER, detectors=detectors)
    plain, found = together(), together(watched)
    assert found.beside.retraining.watches
    for scorer in (plain, found):
        scorer.admit(["loud"], {})
    loud = [read_loud(scorer) for scorer in (plain, found)]
    assert loud[0].scores["m"].tolist() == loud[1].scores["m"].tolist()
    assert found.beside.retraining.watches == {}
    assert found.beside.retraining.take_ended() == [("m", "ValueError: too large for me")]
    assert not found.beside.take_dropped()


def read_loud(found: Scorer) -> Any:
    none = np.full(1, UNNUMBERED)
    batch = Batch(["loud"], np.array([1.7e9]), np.array([[30.0, 30.0]]), none + 1, none + 1, none)
    scored = found.process(batch, np.array([0]))
    found.beside.observe(scored)
    return scored
