"""An alias that is followed: each move is one swap, nothing else is, and a registry that is away stops nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream.checkpoint import Checkpoint
from stream.config import load
from stream.errors import CheckpointError, ConfigError, ModelError, RegistryUnreachable
from stream.follow_rule import Follow
from stream.following import _pause
from stream.gates import RollbackWhen
from stream.models import ModelRef, ModelVersion
from stream.runtimes.local import Worker
from stream.scorer import Scorer
from stream.state import Changes, Store
from stream.topology import RegistryModel, Topology
from tests import aio
from tests.plant import Plant, ScaleShelf, readings, topology

run = partial(aio.run, seconds=60.0)
SOON = Follow(poll=0.1)
NEVER = Follow(poll=86_400.0)
"""Only the look at the start, and what a hint brings about."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.engine._IDLE", 0.005)
    monkeypatch.setattr("stream.control._WATCH", 0.005)
    monkeypatch.setattr("stream.runtimes.local._BACKOFF", (0.01, 0.01))


@dataclass
class Shelf(ScaleShelf):
    """Counts looks. `away`: what is raised instead of an answer, at looks or at one version."""

    looks: int = 0
    away: Exception | None = None
    unloadable: dict[int, Exception] = field(default_factory=dict)
    denied: Exception | None = None
    moves_all_the_same: bool = False

    def meaning(self, name: str, alias: str) -> ModelVersion:
        self.looks += 1
        if self.away is not None:
            raise self.away
        return super().meaning(name, alias)

    def resolve(self, uri: str) -> ModelRef:
        ref = super().resolve(uri)
        if not uri.endswith("@champion") and ref.version in self.unloadable:
            raise self.unloadable.pop(ref.version)
        return ref

    def point(self, ref: ModelRef, alias: str) -> None:
        if self.denied is None or self.moves_all_the_same:
            super().point(ref, alias)
        if self.denied is not None:
            raise self.denied


@dataclass
class Site(Plant):
    """A plant whose store may fail around one commit."""

    fail: Callable[[Changes, Callable[[], int]], int] | None = None

    def worker(self) -> Worker:
        return Worker(
            (self.topology,),
            connect=self.connect or super().worker()._connect,
            data=self.data,
            shelf=self.shelf,
            metrics=self.metrics,
            observer=lambda _, scored: self.scored.append(scored),
            store=self._opened,
        )

    def _opened(self, plan: Topology) -> Store:
        store = Checkpoint(self.data / "plant.checkpoint", plan.name, Scorer.recipes(plan))
        inner, site = store.commit, self

        def commit(changes: Changes) -> int:
            return inner(changes) if site.fail is None else site.fail(changes, partial(inner, changes))

        store.commit = commit  # type: ignore[method-assign]
        return store

    def declared(self, **rules: Any) -> None:
        """The batch detector's settings from the next start on."""
        spec = msgspec.structs.replace(self.topology.registry_models["scale"], **rules)
        detectors = {**self.topology.detectors, "scale": spec}
        self.topology = msgspec.structs.replace(self.topology, detectors=detectors)

    async def serving(self) -> str:
        return str((await self.ask("status"))["models"]["scale"]["version"])

    async def until(self, wanted: int) -> None:
        """Returns when this version serves."""
        while await self.serving() != str(wanted):  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def looked(self, times: int = 3) -> None:
        """Returns after so many further looks; their outcome is then decided."""
        until = self.shelf.looks + times
        while self.shelf.looks < until:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await self.ask("status")

    async def begun(self) -> None:
        """Returns after the look at the start."""
        while not self.shelf.looks:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await self.ask("status")

    async def events(self) -> list[tuple[str, str]]:
        """Id and outcome of every command of the registry, in order."""
        lines = (await self.ask("audit"))["audit"]
        return [(line["id"], line["status"]) for line in lines if line["by"] == "registry"]


def site(folder: Path, follow: Follow | None = SOON, **rules: Any) -> Site:
    found = Site(folder, topology(batch_model=True, max_batch=16), shelf=Shelf())
    found.declared(follow=follow, **rules)
    return found


def test_a_move_is_a_swap_by_the_registry_with_receipt_and_audit(tmp_path: Path) -> None:
    async def story() -> None:
        found = site(tmp_path)
        await found.declare()
        async with found.running() as worker:
            await found.publish(readings(20))
            await found.reached(worker, 20)
            found.shelf.alias = 2
            await found.until(2)
            await found.publish(readings(20, seed=1))
            await found.reached(worker, 40)
            (line,) = [x for x in (await found.ask("audit"))["audit"] if x["by"] == "registry"]
            assert (line["verb"], line["status"], line["id"]) == ("swap", "applied", "registry-scale-v2-1")
            assert line["reason"] == "models:/scale@champion moved to version 2, told by poll"
            assert found.value("mmlw_registry_events_total", detector="scale", way="poll") == 1
            assert found.value("mmlw_registry_events_total", detector="scale", way="webhook") == 0
            assert found.value("mmlw_swaps_total", detector="scale", status="applied") == 1
        saved = Checkpoint(tmp_path / "plant.checkpoint", "plant", Scorer.recipes(found.topology)).load(0)
        receipt = saved.commands["registry-scale-v2-1"]
        assert (receipt["by"], receipt["model"]["version"], receipt["replaced"]["version"]) == (
            "registry",
            2,
            1,
        )
        assert receipt["partitions"] == {"0": {"first_offset": 20}}
        for part in found.scored:
            factor = 2.0 if part.offsets[0] >= 20 else 1.0
            assert part.scores["scale"] == pytest.approx(abs(part.batch.values[:, 0]) * factor)

    run(story())


def test_a_webhook_has_the_registry_asked_at_once_and_is_not_believed(tmp_path: Path) -> None:
    async def story() -> None:
        found = site(tmp_path, NEVER)
        await found.declare()
        async with found.running() as worker:
            await found.begun()
            looks = found.shelf.looks
            for model, alias in (("scale", "challenger"), ("other", "champion"), ("spike", "champion")):
                assert worker.hint(model, alias) == []
            assert worker.hint("scale", "champion") == ["plant"]
            await found.looked(1)
            assert (found.shelf.looks, await found.events()) == (looks + 1, []), "nothing has moved"
            found.shelf.alias = 3
            for _ in range(5):
                worker.hint("scale", "champion")
            await found.until(3)
            assert found.value("mmlw_registry_events_total", detector="scale", way="webhook") == 1
            assert await found.events() == [("registry-scale-v3-1", "applied")]

    run(story())


def test_each_move_is_followed_once_also_back_and_forth(tmp_path: Path) -> None:
    async def story() -> None:
        found = site(tmp_path)
        await found.declare()
        async with found.running() as worker:
            for version in (2, 1, 2, 1, 2):
                found.shelf.alias = version
                worker.hint("scale", "champion")
                await found.until(version)
            await found.looked()
            expected = [(f"registry-scale-v{v}-{n}", "applied") for n, v in enumerate((2, 1, 2, 1, 2), 1)]
            assert await found.events() == expected

    run(story())


@pytest.mark.parametrize("verb", ["rollback", "swap"])
def test_what_an_operator_decided_is_not_undone_by_the_poll_nor_a_restart(tmp_path: Path, verb: str) -> None:
    async def story() -> None:
        found = site(tmp_path)
        await found.declare()
        body = {"model": "models:/scale/5"} if verb == "swap" else {}
        serves = 5 if verb == "swap" else 1
        async with found.running():
            found.shelf.alias = 2
            await found.until(2)
            assert (await found.ask(verb, **body))["status"] == "applied"
            await found.looked()
            assert await found.serving() == str(serves)
        async with found.running() as worker:
            worker.hint("scale", "champion")
            await found.looked()
            assert await found.serving() == str(serves)
            assert await found.events() == [("registry-scale-v2-1", "applied")]
            found.shelf.alias = 3
            await found.until(3)
            assert (await found.events())[1:] == [("registry-scale-v3-2", "applied")]

    run(story())


def test_a_swap_that_the_topologys_rule_took_back_is_not_done_again(tmp_path: Path) -> None:
    async def story() -> None:
        found = site(tmp_path, rollback_when=RollbackWhen(within=1e9, alerts="> 0 x before"))
        await found.declare()
        async with found.running() as worker:
            await found.publish(readings(50))
            await found.reached(worker, 50)
            found.shelf.alias = 60
            await found.until(60)
            await found.publish(readings(50, seed=1))
            await found.until(1)
            await found.looked()
            assert await found.serving() == "1"
            assert await found.events() == [("registry-scale-v60-1", "applied")]
            assert found.value("mmlw_automatic_rollbacks_total", detector="scale") == 1

    run(story())


@pytest.mark.parametrize(
    ("denied", "moves"),
    [
        (None, True),
        (ModelError("permission denied"), False),
        (RegistryUnreachable("the answer was lost"), True),
    ],
)
def test_the_alias_that_a_promotion_moves_is_no_event_and_a_rollback_after_it_stays(
    tmp_path: Path, denied: Exception | None, moves: bool
) -> None:
    async def story() -> None:
        found = site(tmp_path, NEVER)
        found.shelf.denied, found.shelf.moves_all_the_same = denied, moves
        await found.declare()
        async with found.running() as worker:
            await found.begun()
            assert (await found.ask("shadow", model="models:/scale/2"))["status"] == "applied"
            promoted = await found.ask("promote")
            assert promoted["status"] == "applied"
            assert (denied is None) == (promoted["alias"] == "models:/scale@champion")
            assert (await found.ask("rollback"))["status"] == "applied"
        found.shelf.looks = 0
        async with found.running() as worker:
            await found.begun()
            for _ in range(3):
                worker.hint("scale", "champion")
                await found.looked(1)
            assert (await found.serving(), await found.events()) == ("1", [])
            if not moves:  # somebody who may moves it by hand: that is an event
                found.shelf.alias = 2
                worker.hint("scale", "champion")
                await found.until(2)
                assert await found.events() == [("registry-scale-v2-1", "applied")]

    run(story())


def test_an_alias_that_comes_to_mean_what_serves_changes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        found = site(tmp_path)
        await found.declare()
        async with found.running():
            await found.ask("swap", model="models:/scale/4")
            found.shelf.alias = 4
            await found.looked()
            assert await found.events() == []
            await found.ask("rollback")
            await found.looked()
            assert (await found.serving(), await found.events()) == ("1", [])

    run(story())


def test_a_move_while_the_worker_was_down_or_its_webhook_was_lost_is_healed(tmp_path: Path) -> None:
    async def story() -> None:
        found = site(tmp_path)
        await found.declare()
        async with found.running():
            await found.begun()
        found.shelf.alias = 2
        async with found.running():
            await found.until(2)
            found.shelf.alias = 3  # nobody tells
            await found.until(3)
            expected = [("registry-scale-v2-1", "applied"), ("registry-scale-v3-2", "applied")]
            assert await found.events() == expected

    run(story())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("version", [2, 70])
def test_a_failure_around_the_commit_of_a_swap_leaves_one_command(
    tmp_path: Path, when: str, version: int
) -> None:
    failed: list[str] = []

    def fail(changes: Changes, commit: Callable[[], int]) -> int:
        decided = any(line["by"] == "registry" for line in changes.audit)
        if not decided or failed:
            return commit()
        failed.append(when)
        if when == "after":
            commit()
        raise CheckpointError("the process dies here")

    async def story() -> None:
        found = site(tmp_path)
        found.fail = fail
        await found.declare()
        async with found.running() as worker:
            found.shelf.alias = version
            while not failed or not worker.ready:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await found.looked()
            status = "refused" if version == 70 else "applied"
            assert await found.events() == [(f"registry-scale-v{version}-1", status)]
            assert await found.serving() == ("1" if version == 70 else "2")
            assert failed == [when]

    run(story())


def test_a_move_back_while_the_process_dies_after_the_swap_is_followed(tmp_path: Path) -> None:
    """What was seen is committed with the swap: else the alias would seem never to have moved."""

    async def story() -> None:
        found = site(tmp_path)

        def fail(changes: Changes, commit: Callable[[], int]) -> int:
            size = commit()
            if "registry-scale-v2-1" in changes.commands:
                found.shelf.alias = 1
                raise CheckpointError("the process dies here")
            return size

        found.fail = fail
        await found.declare()
        async with found.running():
            found.shelf.alias = 2
            while len(await found.events()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            expected = [("registry-scale-v2-1", "applied"), ("registry-scale-v1-2", "applied")]
            assert await found.events() == expected
            assert await found.serving() == "1"

    run(story())


def test_a_version_that_does_not_fit_is_refused_once_and_the_old_one_serves_on(tmp_path: Path) -> None:
    async def story() -> None:
        found = site(tmp_path)
        await found.declare()
        async with found.running() as worker:
            for number, version in enumerate((70, 80, 66), 1):
                found.shelf.alias = version
                worker.hint("scale", "champion")
                while len(await found.events()) < number:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            await found.looked()
            lines = [x for x in (await found.ask("audit"))["audit"] if x["by"] == "registry"]
            reasons = [line["reason"] for line in lines]
            assert reasons[0] == "its sensors differ"
            assert reasons[1] == '"scale" takes versions of "scale", not of "other"'
            assert "sabotage" in reasons[2]
            assert [line["status"] for line in lines] == ["refused"] * 3
            assert await found.serving() == "1"
            assert found.value("mmlw_swaps_total", detector="scale", status="refused") == 3
            found.shelf.alias = 2
            await found.until(2)

    run(story())


@pytest.mark.parametrize("error", [RegistryUnreachable("no answer"), KeyError("surprise")])
def test_a_registry_that_is_away_is_counted_and_the_stream_goes_on(tmp_path: Path, error: Exception) -> None:
    async def story() -> None:
        found = site(tmp_path)
        await found.declare()
        async with found.running() as worker:
            found.shelf.away = error
            await found.looked(2)
            await found.publish(readings(20))
            await found.reached(worker, 20)
            assert found.value("mmlw_registry_polls_failed_total", detector="scale") >= 1
            found.shelf.alias, found.shelf.away = 2, None
            await found.until(2)
            assert found.value("mmlw_restarts_total", cause="registry") == 0

    run(story())


def test_a_download_that_the_registry_does_not_answer_is_tried_again_and_not_refused(tmp_path: Path) -> None:
    async def story() -> None:
        found = site(tmp_path)
        found.shelf.unloadable[2] = RegistryUnreachable("went away just then")
        await found.declare()
        async with found.running():
            found.shelf.alias = 2
            await found.until(2)
            assert await found.events() == [("registry-scale-v2-1", "applied")]
            assert found.value("mmlw_registry_polls_failed_total", detector="scale") == 1

    run(story())


def test_pauses_double_with_each_failure_up_to_a_limit() -> None:
    pauses = [_pause(60.0, failures) for failures in (0, 1, 2, 3, 1000)]
    for pause, most in zip(pauses, (60, 120, 240, 300, 300), strict=True):
        assert 0.9 * most <= pause <= most
    assert _pause(3600.0, 5) >= 3240, "never sooner than the poll"


def test_following_is_for_those_who_ask_and_begins_with_what_is(tmp_path: Path) -> None:
    """Moves while nobody followed are no events: what serves was decided by operators then."""

    async def story() -> None:
        found = site(tmp_path, None)
        await found.declare()
        async with found.running() as worker:
            await found.ask("swap", model="models:/scale/4")
            found.shelf.alias = 2
            assert worker.hint("scale", "champion") == []
            assert await found.serving() == "4"
            assert found.shelf.looks == 0
        found.declared(follow=SOON)
        async with found.running():
            await found.looked()
            assert (await found.serving(), await found.events()) == ("4", [])
            found.shelf.alias = 3
            await found.until(3)
        found.declared(follow=None)
        async with found.running():
            found.shelf.alias = 5
            await found.ask("swap", model="models:/scale/6")
        found.declared(follow=SOON)
        async with found.running():
            await found.looked()
            assert await found.serving() == "6"
            found.shelf.alias = 3
            await found.until(3)
            ids = [name for name, _ in await found.events()]
            assert ids == ["registry-scale-v3-1", "registry-scale-v3-2"], "no two events share an id"

    run(story())


TOPOLOGY = """
name: pumps
source: {{sensors: [a]}}
detectors:
  forest: {{model: "{model}", follow: {follow}}}
"""


def test_follow_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "pumps.yaml"

    def found(model: str, follow: str) -> Topology:
        file.write_text(TOPOLOGY.format(model=model, follow=follow))
        return load(file)

    spec = found("models:/pump@champion", "{}").detectors["forest"]
    assert isinstance(spec, RegistryModel)
    assert spec.follow == Follow(poll=60.0)
    spec = found("models:/pump@champion", "{poll: 5m}").detectors["forest"]
    assert isinstance(spec, RegistryModel)
    assert spec.follow == Follow(poll=300.0)
    with pytest.raises(ConfigError, match="one version, which does not move; name an alias"):
        found("models:/pump/3", "{}")
    with pytest.raises(ConfigError, match="poll: must be at least 100ms"):
        found("models:/pump@champion", "{poll: 0s}")
    with pytest.raises(ConfigError, match='Did you mean "poll"'):
        found("models:/pump@champion", "{pol: 5s}")
