"""What the simulated schedules hold, and how a failing one is told."""

from __future__ import annotations

from click.testing import CliRunner

from stream.simulation.command import command
from stream.simulation.search import Failure, search, shrink, simulate
from stream.simulation.seeds import schedule
from stream.simulation.world import run
from tests.simulation.mutants import MUTANTS, PATIENCE, planted


def test_schedules_hold_every_kind_of_failure() -> None:
    plans = [schedule(seed) for seed in range(2000)]
    struck = {(fault.op, fault.kind, fault.after) for plan in plans for fault in plan.faults}
    assert len(struck) >= 30
    assert {plan.source for plan in plans} == {"stream", "queue"}
    assert any(plan.retention for plan in plans)
    assert any(plan.segment for plan in plans)
    assert any(plan.stops for plan in plans)
    commands = [command for plan in plans for command in plan.commands]
    assert any(command.by == "stranger" for command in commands)
    assert any(command.expires is not None for command in commands)
    bodies = [{(command.id, command.body) for command in plan.commands} for plan in plans]
    assert any(len({name for name, _ in body}) < len(body) for body in bodies)


def test_schedules_have_crashes_alerts_duplicates_and_dead_letters() -> None:
    outcomes = [run(schedule(seed)) for seed in range(100)]
    assert sum(outcome.crashes for outcome in outcomes) > 20
    assert sum(len(outcome.alerts) for outcome in outcomes) > 120
    assert sum(len(outcome.dead) for outcome in outcomes) > 50
    assert sum(len(outcome.lives) for outcome in outcomes) > 100
    assert sum(b"666.0" in letter.body for o in outcomes for letter in o.dead) > 3
    repeated = [len(o.alerts) - len({alert.message_id for alert in o.alerts}) for o in outcomes]
    assert sum(repeated) > 3


def test_same_seed_same_story() -> None:
    for seed in range(20):
        one, other = run(schedule(seed)), run(schedule(seed))
        assert [(a.message_id, a.body) for a in one.alerts] == [(a.message_id, a.body) for a in other.alerts]
        assert one.lives == other.lives
        assert one.saved.position == other.saved.position


def test_failing_schedule_is_made_small() -> None:
    with planted(next(mutant for mutant in MUTANTS if mutant.name == "commit before publish")):
        failure = next(search(range(PATIENCE)))
        small = shrink(failure)
        assert simulate(small.schedule)[1] == small.problems
    assert len(small.schedule.faults) <= 2
    assert len(small.schedule.readings) < len(failure.schedule.readings)


def test_command_replays_a_seed_and_tells_what_is_wrong() -> None:
    told = CliRunner().invoke(command, ["--seed", "5", "--schedules", "1"])
    assert told.exit_code == 0
    assert "nothing wrong" in told.output
    with planted(next(mutant for mutant in MUTANTS if mutant.name == "no sequence check")):
        told = CliRunner().invoke(command, ["--seed", "0", "--schedules", "1"])
    assert told.exit_code == 1
    assert "WRONG" in told.output


def test_failure_is_plain_data() -> None:
    failure = Failure(schedule(1), ("x",))
    assert "seed 1" in failure.schedule.text()
