"""The contract of a model as checks that run: for our detectors and for yours.

>>> from detectors.statistical import AdaptiveZ
>>> check_model(lambda: AdaptiveZ(warmup=5).build(("pressure", "flow")))

With pytest, `@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)` names what is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from detectors.base import ExampleModel, ForgettingModel, Rows, StretchModel
from detectors.trials import (
    N_KEYS,
    Build,
    ContractBroken,
    Stream,
    readings,
    require,
    require_fine,
    require_same,
    require_same_numbers,
    require_same_state,
    run,
)

__all__ = ["CHECKS", "TRAINED_CHECKS", "Build", "Check", "ContractBroken", "check_model"]

Check = Callable[[Build, int], None]
"""Takes the build function and a seed. Raises ContractBroken."""
_ENOUGH = 20
"""Times the readings are repeated until a trained model must have forgotten what came before: 2,000 a key."""


def check_model(build: Build, *, seed: int = 0, trained: bool = False) -> None:
    """Run every check. `trained` adds that nothing but the recent past is remembered.

    Raises ContractBroken, naming the check.
    """
    checks = {**CHECKS, **(TRAINED_CHECKS if trained else {})}
    for name, check in checks.items():
        try:
            check(build, seed)
        except ContractBroken as broken:
            raise ContractBroken(f"{name} (seed {seed}): {broken}") from broken


def _scores_are_finite(build: Build, seed: int) -> None:
    model, stream = build(), readings(build, seed)
    scores = model.score_learn(*stream)
    require(isinstance(scores, np.ndarray) and scores.dtype == np.float64, "scores are not a float64 array")
    require(scores.shape == stream.slots.shape, f"{scores.shape} scores for {len(stream.slots)} readings")
    require(bool(np.isfinite(scores).all()), "a score is not finite")
    require(bool((scores >= 0).all()), "a score is negative")
    require(bool(np.isfinite(model.threshold)), "the threshold is not finite")


def _splits_do_not_matter(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    rng = np.random.default_rng(seed)
    n = len(stream.slots)
    once, reasons, state = run(build(), stream, [0, n])
    for cuts in ([0, *np.sort(rng.integers(0, n, 7)).tolist(), n], list(range(n + 1))):
        scores, other_reasons, other_state = run(build(), stream, cuts)
        require_same(once, scores, "scores depend on where the stream is split")
        require_same(
            reasons.shares, other_reasons.shares, "contributions depend on where the stream is split"
        )
        require_same(
            reasons.expected, other_reasons.expected, "expected values depend on where the stream is split"
        )
        require_same_state(state, other_state, "state depends on where the stream is split")


def _learning_can_be_held_back(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    n = len(stream.slots)
    everything = build().score_learn(*stream[:3], np.ones(n, np.bool_))
    require_same(build().score_learn(*stream[:3]), everything, "learning all is not the default")
    held = stream._replace(learn=np.random.default_rng(seed).random(n) < 0.7)
    once, reasons, state = run(build(), held, [0, n])
    scores, other_reasons, other_state = run(build(), held, [*range(0, n, 7), n])
    require_same(once, scores, "with learning held back, scores depend on where the stream is split")
    require_same(reasons.shares, other_reasons.shares, "so do contributions, with learning held back")
    require_same_state(state, other_state, "with learning held back, state depends on the split")
    first = int(np.argmin(held.learn if held.learn is not None else stream.slots))
    require_same(everything[: first + 1], once[: first + 1], "a reading that is not learned scores otherwise")


def _keys_are_independent(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    together = build().score_learn(*stream)
    renamed = build().score_learn(40 - 3 * stream.slots, stream.values, stream.times)
    require_same(together, renamed, "scores depend on the slots' numbers")
    for slot in range(N_KEYS):
        own = stream.at(stream.slots == slot)
        alone = build().score_learn(np.zeros_like(own.slots), own.values, own.times)
        require_same(together[stream.slots == slot], alone, "a key's scores depend on other keys")


def _the_future_does_not_matter(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    whole = build().score_learn(*stream)
    changed = Stream(stream.slots, stream.values.copy(), stream.times)
    changed.values[200:] += 1e3
    require_same(whole[:200], build().score_learn(*changed)[:200], "a score depends on later readings")


def _missing_values_degrade(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    clean = build().score_learn(*stream)
    n_sensors = stream.values.shape[1]
    for missing in [*([j] for j in range(n_sensors)), list(range(n_sensors))]:
        for hole in (np.nan, np.inf, -np.inf):
            values = stream.values.copy()
            values[np.ix_(range(0, 200, 5), missing)] = hole
            model = build()
            scores = model.score_learn(stream.slots, values, stream.times)
            require_fine(model, scores, f"after {hole} in sensors {missing}")
            blinded = clean[200:].any() and not scores[200:].any()
            require(not blinded, f"after {hole} in sensors {missing} every score is 0")
    for late in range(n_sensors):
        values = stream.values.copy()
        values[:60, late] = np.nan
        model = build()
        require_fine(
            model, model.score_learn(stream.slots, values, stream.times), f"sensor {late} starts late"
        )
    model = build()
    gone = np.full_like(stream.values[:20], np.nan)
    require_fine(
        model,
        model.score_learn(stream.slots[:20], gone, stream.times[:20]),
        "with nothing but missing values",
    )
    require_fine(model, model.score_learn(*stream), "after a start without any value")


def _extreme_values_are_survived(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    for start in (0, 150):
        for extreme in (1e308, -1e308, 5e-324, 1e150, 1e38):
            values = stream.values.copy()
            values[start : start + 6, 0] = extreme
            values[start + 3] = -extreme
            model = build()
            scores = model.score_learn(stream.slots, values, stream.times)
            require_fine(model, scores, f"after {extreme}")
            shares, _ = model.contributions(np.arange(len(scores)))
            require(bool(np.isfinite(shares).all()), f"a share is not finite after {extreme}")


def _inputs_are_left_alone(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    expected, reasons, _ = run(build(), stream, [0, 150, len(stream.slots)])
    model = build()
    parts = []
    for part in (slice(0, 150), slice(150, None)):
        slots, values, times, _ = stream.at(part)
        given = (slots.copy(), values.copy(), times.copy(), np.ones(len(slots), np.bool_))
        for array in given:
            array.flags.writeable = False
        parts.append(model.score_learn(*given))
        require_same(given[1], stream.values[part], "the values given were changed")
        for array in given:
            array.flags.writeable = True
            array.fill(7)
    require_same(
        expected, np.concatenate(parts), "read-only arrays, overwritten afterwards, change the scores"
    )
    require_same(
        reasons.shares[150:], model.contributions(np.arange(150)).shares, "the arrays given were kept"
    )
    strided = np.asfortranarray(np.repeat(stream.values, 2, axis=1))[:, ::2]
    scores = build().score_learn(np.repeat(stream.slots, 2)[::2], strided, np.repeat(stream.times, 2)[::2])
    require_same(expected, scores, "strided arrays change the scores")


def _state_survives_a_restore(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    first, second = stream.at(slice(0, 200)), stream.at(slice(200, None))
    model = build()
    model.score_learn(*first)
    slots = np.arange(N_KEYS)
    state = model.snapshot(slots)
    copy = {name: array.copy() for name, array in state.items()}
    expected = model.score_learn(*second)
    reasons = model.contributions(np.arange(len(expected)))
    require_same_state(copy, state, "a snapshot changes when the model learns on")
    for moved in (0, 17):
        fresh = build()
        fresh.score_learn(first.slots[:5] + moved, first.values[:5], first.times[:5])
        fresh.restore(slots + moved, copy)
        require_same_numbers(copy, fresh.snapshot(slots + moved), "state differs after a restore")
        scores = fresh.score_learn(second.slots + moved, second.values, second.times)
        require_same(expected, scores, "scores differ after a restore")
        again = fresh.contributions(np.arange(len(scores)))
        require_same(reasons.shares, again.shares, "contributions differ after a restore")
    backwards = model.snapshot(slots[::-1])
    for name, array in model.snapshot(slots).items():
        require_same(array[::-1], backwards[name], "a snapshot is not in the order of the slots asked for")


def _odd_state_is_refused(build: Build, seed: int) -> None:
    model = build()
    model.score_learn(*readings(build, seed))
    state = dict(model.snapshot(np.arange(N_KEYS)))
    odd: list[Rows] = [{**state, "surprise": np.zeros(N_KEYS)}]
    if state:
        name = sorted(state)[0]
        odd += [{}, {**state, name: state[name][:-1]}, {k: v for k, v in state.items() if k != name}]
    for rows in odd:
        try:
            build().restore(np.arange(N_KEYS), rows)
        except ValueError:
            continue
        raise ContractBroken(f"restore took {sorted(rows)} of a wrong shape or name")


def _tables_grow(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    expected = build().score_learn(*stream)
    model = build()
    first = model.score_learn(*stream.at(slice(0, 150)))
    model.score_learn(np.array([2000]), stream.values[:1], stream.times[:1])
    rest = model.score_learn(*stream.at(slice(150, None)))
    require_same(expected, np.concatenate((first, rest)), "growing the tables changes other keys")
    fresh = build().snapshot(np.array([300]))
    require_same_state(fresh, model.snapshot(np.array([1999])), "a slot never seen is not fresh")


def _contributions_are_shares(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    values = stream.values.copy()
    values[250, 0] = np.nan
    model = build()
    scores = model.score_learn(stream.slots, values, stream.times)
    shares, expected = model.contributions(np.arange(len(scores)))
    require(
        shares.shape == expected.shape == values.shape, f"shares {shares.shape}, expected {expected.shape}"
    )
    total = np.abs(shares).sum(axis=1)
    require(bool((np.isclose(total, 1.0) | (total == 0)).all()), "shares do not sum to 1 or 0")
    require(not np.isinf(expected).any(), "an expected value is infinite")
    require(shares[250, 0] == 0, "a missing sensor has a share")
    rows = np.array([7, 250, 7, 0])
    some = model.contributions(rows)
    require_same(shares[rows], some.shares, "contributions depend on the rows asked for")
    require_same(expected[rows], some.expected, "expected values depend on the rows asked for")
    none = model.contributions(np.array([], dtype=np.int64))
    require(none.shares.shape == (0, values.shape[1]), "no rows asked for, but contributions given")


def _nearest_examples_have_distances(build: Build, seed: int) -> None:
    model, stream = build(), readings(build, seed)
    model.score_learn(*stream)
    if not isinstance(model, ExampleModel):
        return
    count = len(stream.slots)
    nearest = model.nearest_distances(np.arange(count))
    require(nearest.shape == (count,), f"{nearest.shape} distances for {count} readings")
    require(bool(np.isfinite(nearest).any()), "no reading has a distance to its nearest example")
    require(not np.isinf(nearest).any() and not (nearest < 0).any(), "a distance is infinite or negative")
    rows = np.array([7, 250, 7, 0])
    require_same(nearest[rows], model.nearest_distances(rows), "distances depend on the rows asked for")
    again, parts = build(), []
    for start in range(0, count, 7):
        again.score_learn(*stream.at(slice(start, start + 7)))
        if isinstance(again, ExampleModel):
            parts.append(again.nearest_distances(np.arange(min(7, count - start))))
    require_same(nearest, np.concatenate(parts), "distances depend on where the stream is split")


def _stretches_end_with_their_row(build: Build, seed: int) -> None:
    model, stream = build(), readings(build, seed)
    model.score_learn(*stream)
    if not isinstance(model, StretchModel):
        return
    count = len(stream.slots)
    whole = model.stretches(np.arange(count))
    means = (whole.readings > 0) & (whole.rank == 0)
    require(bool(np.isnan(whole.since[means]).all()), "a mean of all readings that began at a time")
    for i in np.flatnonzero(whole.rank):
        own = np.flatnonzero(stream.slots[: i + 1] == stream.slots[i])
        first = own[len(own) - whole.readings[i]]
        require(whole.since[i] == stream.times[first], f"the stretch up to row {i} began at another time")
    known = np.isfinite(whole.distances)
    require(
        bool((known.any(axis=1) == (whole.readings > 0)).all()),
        "a stretch without a distance, or without readings",
    )
    require(
        bool((np.abs(whole.shifts[known]) <= 1.001 * whole.distances[known] + 1e-9).all()),
        "a mean above the root mean square",
    )
    require(
        bool((np.abs(whole.largest[known]) >= 0.999 * whole.distances[known] - 1e-9).all()),
        "a largest difference below the root mean square",
    )
    again, parts = build(), []
    for start in range(0, count, 7):
        again.score_learn(*stream.at(slice(start, start + 7)))
        if isinstance(again, StretchModel):
            parts.append(again.stretches(np.arange(min(7, count - start))))
    for name, array, cut in zip(whole._fields, whole, zip(*parts, strict=True), strict=True):
        require_same(array, np.concatenate(cut), f"{name} of stretches depend on where the stream is split")


def _warms_up_as_declared(build: Build, seed: int) -> None:
    model, stream = build(), readings(build, seed)
    declared = getattr(model, "warmup_readings", 0)
    require(isinstance(declared, int) and declared >= 0, "warmup_readings is not a whole number from 0 on")
    scores = model.score_learn(*stream)
    for slot in range(N_KEYS):
        early = scores[stream.slots == slot][:declared]
        require(not early.any(), f"a reading scores though {declared} readings are said to warm up")


def _nothing_comes_of_nothing(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    expected = build().score_learn(*stream)
    model = build()
    parts = []
    for part in (slice(0, 0), slice(0, 150), slice(150, 150), slice(150, None)):
        parts.append(model.score_learn(*stream.at(part)))
    require_same(expected, np.concatenate(parts), "an empty batch changes scores")
    empty = np.array([], dtype=np.int64)
    model.restore(empty, model.snapshot(empty))


def _nothing_is_learned(build: Build, seed: int) -> None:
    stream, slots = readings(build, seed), np.arange(N_KEYS)
    nothing = np.zeros(len(stream.slots), np.bool_)
    model, held = build(), build()
    fresh = model.snapshot(slots)
    scores = model.score_learn(*stream)
    state = model.snapshot(slots)
    require_same(
        scores,
        held.score_learn(*stream[:3], nothing),
        "holding learning back changes a trained model's scores",
    )
    require_same_state(state, held.snapshot(slots), "holding learning back changes a trained model's state")
    model.restore(slots, fresh)
    require_same(scores, model.score_learn(*stream), "a trained model scores the same reading differently")
    if state:
        _the_past_is_forgotten(build, stream)
        return
    order = np.random.default_rng(seed).permutation(len(scores))
    require_same(
        scores[order], model.score_learn(*stream.at(order)), "a trained model's scores depend on the order"
    )


def _the_past_is_forgotten(build: Build, stream: Stream) -> None:
    """State of a trained model is its keys' recent past: after enough readings, what was read before is all one."""
    model, other = build(), build()
    model.score_learn(*stream)
    other.score_learn(stream.slots, stream.values + 1e3, stream.times)
    for _ in range(_ENOUGH):
        scores, others = model.score_learn(*stream), other.score_learn(*stream)
    require(np.allclose(scores, others, rtol=1e-6, atol=1e-6), "a trained model does not forget its past")


def _forgetting_concerns_what_is_named(build: Build, seed: int) -> None:
    stream = readings(build, seed)
    model, plain = build(), build()
    if not isinstance(model, ForgettingModel):
        return
    head, tail = stream.at(slice(0, 200)), stream.at(slice(200, None))
    first = np.arange(stream.values.shape[1]) == 0
    unseen = np.array([N_KEYS + 3])
    model.forget_recent(unseen, first)
    require_same_state(
        plain.snapshot(unseen), model.snapshot(unseen), "a key without a reading forgets something"
    )
    model.score_learn(*head)
    plain.score_learn(*head)
    model.forget_recent(np.zeros(0, np.int64), first)
    model.forget_recent(np.array([0]), np.zeros_like(first))
    keys = np.arange(N_KEYS)
    require_same_state(plain.snapshot(keys), model.snapshot(keys), "state changes where nothing is named")
    model.forget_recent(np.array([0]), first)
    restored = build()
    restored.restore(keys, model.snapshot(keys))
    scores, others = model.score_learn(*tail), tail.slots != 0
    require_fine(model, scores, "after a sensor was forgotten")
    require_same(restored.score_learn(*tail), scores, "what was forgotten is remembered after a restore")
    require_same(plain.score_learn(*tail)[others], scores[others], "keys that are not named forget, too")


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        check.__name__.strip("_"): check
        for check in (
            _scores_are_finite,
            _splits_do_not_matter,
            _learning_can_be_held_back,
            _keys_are_independent,
            _the_future_does_not_matter,
            _missing_values_degrade,
            _extreme_values_are_survived,
            _inputs_are_left_alone,
            _state_survives_a_restore,
            _odd_state_is_refused,
            _tables_grow,
            _contributions_are_shares,
            _nearest_examples_have_distances,
            _stretches_end_with_their_row,
            _nothing_comes_of_nothing,
            _warms_up_as_declared,
            _forgetting_concerns_what_is_named,
        )
    }
)
"""Checks by name, for every model."""
TRAINED_CHECKS: Mapping[str, Check] = MappingProxyType({"nothing_is_learned": _nothing_is_learned})
"""What holds besides for trained models, which do not learn while they run: the `learn` mask changes nothing, and
scores do not depend on the order of readings or, with state per key, on what was read long ago."""
