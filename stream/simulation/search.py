"""Many schedules: run, audit, and make a failing one as small as it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from stream.simulation.audit import audit
from stream.simulation.full import compare, undisturbed
from stream.simulation.outcome import Outcome
from stream.simulation.schedule import Schedule
from stream.simulation.seeds import schedule
from stream.simulation.world import run

__all__ = ["Failure", "search", "shrink", "simulate"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A schedule after which something was wrong."""

    schedule: Schedule
    problems: tuple[str, ...]


def simulate(plan: Schedule) -> tuple[Outcome | None, tuple[str, ...]]:
    """Run a schedule and audit it: what was seen, and what is wrong. An exception of the worker is wrong too."""
    try:
        outcome = run(plan)
        problems = compare(outcome, run(undisturbed(plan))) if plan.full else audit(outcome)
        return outcome, tuple(problems)
    except Exception as error:  # whatever escapes the worker is what the simulation looks for
        leaf: BaseException = error
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        return None, (f"{type(leaf).__name__}: {leaf}",)


def search(seeds: range, progress: Callable[[int, Outcome | None], None] | None = None) -> Iterator[Failure]:
    """The failures among the schedules of these seeds."""
    for seed in seeds:
        plan = schedule(seed)
        outcome, problems = simulate(plan)
        if progress is not None:
            progress(seed, outcome)
        if problems:
            yield Failure(plan, problems)


def shrink(failure: Failure) -> Failure:
    """The same failure with as few faults, commands and readings as still show it."""
    smaller = True
    while smaller:
        smaller = False
        for name in ("faults", "retention", "commands", "readings"):
            for i in reversed(range(len(getattr(failure.schedule, name)))):
                items = getattr(failure.schedule, name)
                if len(items) == 1 and name == "readings":
                    continue
                plan = msgspec.structs.replace(failure.schedule, **{name: items[:i] + items[i + 1 :]})
                _, problems = simulate(plan)
                if _kinds(problems) & _kinds(failure.problems):
                    failure, smaller = Failure(plan, problems), True
    return failure


def _kinds(problems: tuple[str, ...]) -> set[str]:
    """What sort of thing is wrong: the words before the particulars."""
    return {" ".join(problem.split(":")[0].split()[:2]) for problem in problems}
