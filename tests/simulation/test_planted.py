"""Bugs planted on purpose: the simulation must find each of them, or it would not find ours."""

from __future__ import annotations

from itertools import chain

import pytest

from stream.simulation.search import search, simulate
from tests.simulation.mutants import MUTANTS, PATIENCE, Mutant, planted


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_bug_is_found(mutant: Mutant) -> None:
    assert mutant.seed < PATIENCE
    with planted(mutant):
        known, every = search(range(mutant.seed, mutant.seed + 1)), search(range(PATIENCE))
        failure = next(chain(known, every), None)
    assert failure is not None, f"{PATIENCE} schedules did not show: {mutant.name}"
    _, problems = simulate(failure.schedule)
    assert problems == (), "the seed fails without the planted bug, too"


def test_mutant_whose_text_is_gone_is_an_error() -> None:
    gone = Mutant("gone", "stream.ledger:Ledger.commit", "no such text", "")
    with pytest.raises(LookupError, match="does not hold"), planted(gone):
        pass
