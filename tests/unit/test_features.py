"""Each feature against pandas or plain numpy, over machines in any mix, with gaps; and what no feature may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import Floats, Slots
from detectors.features import (
    Band,
    Calendar,
    Change,
    Correlation,
    Crossings,
    Difference,
    Feature,
    FeatureTable,
    Lag,
    Product,
    Rate,
    Ratio,
    Rolling,
    Sum,
    definitions,
)

SENSORS = ("a", "b")
N = 900
EVERYTHING: dict[str, Feature] = {
    **{
        f"r_{what}": Rolling(of="a", rolling=what, window=7)
        for what in ("mean", "std", "min", "max", "median", "range", "rms", "skew", "kurtosis", "slope")
    },
    "long": Rolling(of="b", rolling="mean", window=31),
    "lag": Lag(of="a", lag=5),
    "change": Change(of="b", change=2),
    "rate": Rate(of="a", rate="per_minute"),
    "band": Band(of="a", band=(1.0, 3.0), window=16, sample_rate=8.0),
    "odd_band": Band(of="b", band=(0.0, 4.0), window=21, sample_rate=8.0, power="absolute"),
    "mean_crossings": Crossings(of="a", crossings="mean", window=9),
    "zero_crossings": Crossings(of="b", crossings="zero", window=9),
    "level_crossings": Crossings(of="a", crossings="level", level=0.3, window=9),
    "ratio": Ratio(ratio=("a", "b")),
    "difference": Difference(difference=("a", "b")),
    "product": Product(product=("a", "b", "a")),
    "sum": Sum(sum=("a", "b")),
    "together": Correlation(correlation=("a", "b"), window=8),
    "hour": Calendar(calendar="hour", zone="Europe/Berlin"),
    "day": Calendar(calendar="weekday"),
    "free": Calendar(calendar="weekend", zone="America/New_York"),
    "of_rate": Rolling(of="rate", rolling="median", window=4),
}


def stream(seed: int = 0, n: int = N) -> tuple[Slots, Floats, Floats]:
    """Three machines in any mix, each sensor missing now and then, times at no fixed distance."""
    rng = np.random.default_rng(seed)
    slots = rng.integers(0, 3, n)
    values = rng.normal(size=(n, 2)) + slots[:, None]
    values[rng.random((n, 2)) < 0.1] = np.nan
    times = 1.711e9 + np.cumsum(rng.exponential(400.0, n))
    return slots.astype(np.int64), values, times


def compute(features: dict[str, Feature], *columns: Any) -> pd.DataFrame:
    table = FeatureTable(SENSORS, features)
    return pd.DataFrame(table.compute(*columns), columns=list(table.columns))


def band(x: Floats, low: float, high: float, power: str) -> float:
    n, padded = len(x), 2 ** int(np.ceil(np.log2(len(x))))
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    spectrum = np.abs(np.fft.fft((x - x.mean()) * taper, padded)) ** 2
    frequency = np.abs(np.fft.fftfreq(padded, 1 / 8.0))
    inside = spectrum[(frequency >= low) & (frequency <= high) & (frequency > 0)].sum()
    return float(inside / spectrum.sum() if power == "share" else inside / (padded * (taper**2).sum()))


def crossings(x: Floats, level: float) -> float:
    signs = np.sign(x - level)
    return float((np.diff(signs[signs != 0]) != 0).sum())


def slopes(x: pd.Series, t: pd.Series, n: int) -> pd.Series:
    pairs = [(t.iloc[i - n + 1 : i + 1], x.iloc[i - n + 1 : i + 1]) for i in range(n - 1, len(x))]
    found = [np.polyfit(when - when.iloc[0], what, 1)[0] for when, what in pairs]
    return pd.Series([np.nan] * (n - 1) + found, index=x.index)


def applied(x: pd.Series, n: int, what: Callable[[Floats], float]) -> pd.Series:
    return x.rolling(n).apply(what, raw=True)


def expected(frame: pd.DataFrame) -> pd.DataFrame:
    """What one machine's features are: columns a, b and t in, independent of the product's code."""
    a, b, both = frame["a"].dropna(), frame["b"].dropna(), frame[["a", "b"]].dropna()
    found: dict[str, pd.Series] = {}
    seven = a.rolling(7)
    for what in ("mean", "std", "min", "max", "median"):
        found[f"r_{what}"] = getattr(seven, what)()
    found["r_range"] = seven.max() - seven.min()
    found["r_rms"] = a.pow(2).rolling(7).mean().pow(0.5)
    found["r_skew"] = applied(a, 7, scipy.stats.skew)
    found["r_kurtosis"] = applied(a, 7, scipy.stats.kurtosis)
    found["r_slope"] = slopes(a, frame["t"].loc[a.index], 7)
    found["long"] = b.rolling(31).mean()
    found["lag"] = a.shift(5)
    found["change"] = b.diff(2)
    found["rate"] = a.diff() / frame["t"].loc[a.index].diff() * 60
    found["band"] = applied(a, 16, lambda x: band(x, 1.0, 3.0, "share"))
    found["odd_band"] = applied(b, 21, lambda x: band(x, 0.0, 4.0, "absolute"))
    found["mean_crossings"] = applied(a, 9, lambda x: crossings(x, x.mean()))
    found["zero_crossings"] = applied(b, 9, lambda x: crossings(x, 0.0))
    found["level_crossings"] = applied(a, 9, lambda x: crossings(x, 0.3))
    found["ratio"] = frame["a"] / frame["b"]
    found["difference"] = frame["a"] - frame["b"]
    found["product"] = frame["a"] ** 2 * frame["b"]
    found["sum"] = frame["a"] + frame["b"]
    found["together"] = both["a"].rolling(8).corr(both["b"])
    utc = pd.to_datetime(frame["t"], unit="s", utc=True)
    berlin, york = utc.dt.tz_convert("Europe/Berlin").dt, utc.dt.tz_convert("America/New_York").dt
    hours = berlin.hour + berlin.minute / 60 + (berlin.second + berlin.microsecond / 1e6) / 3600
    days = utc.dt.day_of_week + (frame["t"] % 86400) / 86400
    for name, turns in (("hour", hours / 24), ("day", days / 7)):
        found[f"{name}_sin"] = turns.map(lambda part: np.sin(2 * np.pi * part))
        found[f"{name}_cos"] = turns.map(lambda part: np.cos(2 * np.pi * part))
    found["free"] = (york.day_of_week >= 5).astype(float)
    found["of_rate"] = found["rate"].dropna().rolling(4).median()
    return pd.DataFrame({name: column.reindex(frame.index) for name, column in found.items()})


@pytest.mark.parametrize("seed", range(3))
def test_features_are_what_pandas_and_numpy_say(seed: int) -> None:
    slots, values, times = stream(seed)
    given = pd.DataFrame({"a": values[:, 0], "b": values[:, 1], "t": times})
    truth = pd.concat([expected(given[slots == slot]) for slot in range(3)]).sort_index()
    found = compute(EVERYTHING, slots, values, times)
    assert list(found.columns) == [*SENSORS, *truth.columns]
    pd.testing.assert_frame_equal(found[list(truth.columns)], truth, rtol=1e-7, atol=1e-9)
    shares = found.notna().mean()
    assert shares.min() > 0.5, "what is compared is there"
    np.testing.assert_array_equal(found[["a", "b"]], values)


def test_band_of_a_sine_has_its_power() -> None:
    x = 3.0 * np.sin(2 * np.pi * 20.0 * np.arange(600) / 100.0)
    features: dict[str, Feature] = {
        "share": Band(of="a", band=(15.0, 25.0), window=256, sample_rate=100.0),
        "other": Band(of="a", band=(30.0, 50.0), window=256, sample_rate=100.0),
        "power": Band(of="a", band=(15.0, 25.0), window=200, sample_rate=100.0, power="absolute"),
    }
    values = np.column_stack([x, x])
    found = compute(features, np.zeros(600, np.int64), values, np.arange(600.0)).iloc[-1]
    assert found["share"] > 0.9999
    assert found["other"] < 1e-6
    assert found["power"] == pytest.approx(4.5, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, [np.nan, 2.0, -19.0, 3.0]),
        ({"resets": True}, [np.nan, 2.0, 1.0, 3.0]),
        ({"wraps_at": 24.0}, [np.nan, 2.0, 5.0, 3.0]),
    ],
)
def test_counters_that_fall_began_anew_or_went_round(settings: dict[str, Any], rates: list[float]) -> None:
    counts = np.array([[18.0, 0.0], [20.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
    features: dict[str, Feature] = {"rate": Rate(of="a", rate="per_second", **settings)}
    found = compute(features, np.zeros(4, np.int64), counts, np.arange(4.0))
    np.testing.assert_array_equal(found["rate"], rates)


def test_reading_that_is_not_newer_has_no_rate_and_the_next_one_has() -> None:
    values = np.array([[0.0, 0.0], [4.0, 0.0], [5.0, 0.0], [9.0, 0.0]])
    features: dict[str, Feature] = {"rate": Rate(of="a", rate="per_hour")}
    found = compute(features, np.zeros(4, np.int64), values, np.array([0.0, 2.0, 1.0, 3.0]))
    np.testing.assert_array_equal(found["rate"], [np.nan, 7200.0, np.nan, 7200.0])


def test_flat_line_has_no_shape() -> None:
    values = np.full((20, 2), 0.1)
    found = compute(EVERYTHING, np.zeros(20, np.int64), values, np.arange(20.0)).iloc[-1]
    assert found["r_std"] == found["change"] == found["rate"] == found["zero_crossings"] == 0.0
    assert found[["r_skew", "r_kurtosis", "band", "together"]].isna().all()
    assert found["r_slope"] == pytest.approx(0.0, abs=1e-15)


def test_clock_change_moves_the_hour() -> None:
    before, after = 1_711_846_799.0, 1_711_846_800.0  # 2024-03-31, 01:59:59 and then 03:00:00 in Berlin
    features: dict[str, Feature] = {"hour": Calendar(calendar="hour", zone="Europe/Berlin")}
    found = compute(features, np.zeros(2, np.int64), np.zeros((2, 2)), np.array([before, after]))
    hours = np.arctan2(found["hour_sin"], found["hour_cos"]) * 12 / np.pi
    np.testing.assert_allclose(hours, [2.0 - 1 / 3600, 3.0], atol=1e-9)


@pytest.mark.parametrize("extreme", [1e308, -1e308, 1e150, 5e-324, np.inf, -np.inf])
def test_extreme_values_are_survived(extreme: float) -> None:
    slots, values, times = stream(1, 300)
    spoiled = values.copy()
    spoiled[100:104] = extreme
    spoiled[102, 0] = -extreme
    table = FeatureTable(SENSORS, EVERYTHING)
    found = table.compute(slots, spoiled, times)
    assert not np.isinf(found[:, 2:]).any()
    assert all(np.isfinite(array).all() for array in table.snapshot(np.arange(3)).values())
    clean = compute(EVERYTHING, slots, values, times).to_numpy()
    if np.isfinite(extreme):  # they are seen as extreme, not as missing
        seen = [table.columns.index(name) for name in ("r_mean", "r_std", "r_range", "r_rms", "r_kurtosis")]
        assert np.isfinite(found[:, seen][np.isfinite(clean[:, seen])]).all()
    forgotten = 230  # by then no window holds them; sensors, lags and long means are as if nothing had been
    if np.isfinite(extreme):
        np.testing.assert_array_equal(found[forgotten:], clean[forgotten:])
    assert np.isfinite(found[forgotten:]).mean() > 0.8


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    cuts=st.lists(st.integers(0, 200), max_size=8).map(sorted),
    restart=st.booleans(),
)
def test_cuts_and_restarts_change_nothing(seed: int, cuts: list[int], *, restart: bool) -> None:
    columns = stream(seed, 200)
    once = FeatureTable(SENSORS, EVERYTHING)
    whole = once.compute(*columns)
    table, parts = FeatureTable(SENSORS, EVERYTHING), []
    for start, stop in zip([0, *cuts], [*cuts, 200], strict=True):
        parts.append(table.compute(columns[0][start:stop], columns[1][start:stop], columns[2][start:stop]))
        if restart:
            saved, table = table.snapshot(np.arange(3)), FeatureTable(SENSORS, EVERYTHING)
            table.restore(np.arange(3), saved)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    one, other = once.snapshot(np.arange(3)), table.snapshot(np.arange(3))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(set(EVERYTHING) - {"rate", "of_rate"})), unique=True),
    st.integers(0, 2**16),
)
def test_feature_does_not_depend_on_what_else_is_declared_or_in_which_order(
    names: list[str], seed: int
) -> None:
    columns = stream(seed, 200)
    whole = compute(EVERYTHING, *columns)
    chosen = {name: EVERYTHING[name] for name in ["rate", *names, "of_rate"]}
    some = compute(chosen, *columns)
    pd.testing.assert_frame_equal(some, whole[list(some.columns)], check_exact=True)


def test_machines_are_independent_and_later_readings_do_not_matter() -> None:
    slots, values, times = stream(2)
    whole = compute(EVERYTHING, slots, values, times).to_numpy()
    for slot in range(3):
        own = slots == slot
        alone = compute(EVERYTHING, slots[own] + 1000 * slot, values[own], times[own]).to_numpy()
        np.testing.assert_array_equal(whole[own], alone)
    for prefix in (1, 37, 500):
        later = values.copy()
        later[prefix:] += 1e3
        found = compute(
            EVERYTHING, slots, later, times + np.where(np.arange(N) < prefix, 0.0, 1e4)
        ).to_numpy()
        np.testing.assert_array_equal(found[:prefix], whole[:prefix])


def test_inputs_are_left_alone_and_may_be_of_any_layout() -> None:
    slots, values, times = stream(3, 100)
    whole = compute(EVERYTHING, slots, values, times).to_numpy()
    table = FeatureTable(SENSORS, EVERYTHING)
    given = (slots.copy(), np.asfortranarray(values), times.copy())
    for array in given:
        array.flags.writeable = False
    found = table.compute(*given)
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(given[1], values)
    assert table.compute(slots[:0], values[:0], times[:0]).shape == (0, found.shape[1])


def test_odd_state_is_refused() -> None:
    table = FeatureTable(SENSORS, EVERYTHING)
    table.compute(*stream())
    slots = np.arange(3)
    state = dict(table.snapshot(slots))
    with pytest.raises(ValueError, match="negative"):
        table.restore(slots, {**state, "count": -1 - state["count"]})
    with pytest.raises(ValueError, match="not finite"):
        table.restore(slots, {**state, "recent": state["recent"] * np.nan})
    with pytest.raises(ValueError, match="expected"):
        FeatureTable(SENSORS, {"lag": Lag(of="a", lag=5)}).restore(slots, state)


def test_state_is_as_long_as_the_longest_window_of_a_sensor() -> None:
    features: dict[str, Feature] = {
        "one": Rolling(of="a", rolling="mean", window=60),
        "two": Rolling(of="a", rolling="std", window=20),
        "three": Lag(of="a", lag=24),
        "hour": Calendar(calendar="hour"),
    }
    table = FeatureTable(SENSORS, features)
    assert {name: array.shape for name, array in table.snapshot(np.array([5])).items()} == {
        "count": (1, 1),
        "recent": (1, 60),
    }


def test_feature_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match='mean: "c" is neither a sensor nor a feature above it'):
        FeatureTable(SENSORS, {"mean": Rolling(of="c", rolling="mean", window=3)})


def test_definition_tells_features_of_one_name_apart() -> None:
    def told(window: int) -> dict[str, str]:
        rate: dict[str, Feature] = {
            "rate": Rolling(of="a", rolling="mean", window=window),
            "of_rate": Lag(of="rate", lag=1),
            "other": Lag(of="b", lag=1),
        }
        return definitions(SENSORS, rate)

    one, two = told(5), told(6)
    assert one["a"] == "a"
    assert one["other"] == two["other"]
    assert one["rate"] != two["rate"]
    assert one["of_rate"] != two["of_rate"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Band(of="a", band=(5.0, 2.0), window=8, sample_rate=20.0),
            "band: say the lowest and the highest",
        ),
        (
            lambda: Band(of="a", band=(5.0,), window=8, sample_rate=20.0),
            "band: say the lowest and the highest",
        ),
        (lambda: Band(of="a", band=(5.0, 20.0), window=8, sample_rate=20.0), "show nothing above 10 Hz"),
        (lambda: Band(of="a", band=(3.0, 4.0), window=8, sample_rate=20.0), "tell only 2.5 Hz apart"),
        (lambda: Crossings(of="a", crossings="level", window=8), "level: goes with crossings: level"),
        (
            lambda: Crossings(of="a", crossings="zero", level=0.0, window=8),
            "level: goes with crossings: level",
        ),
        (lambda: Rate(of="a", rate="per_day", resets=True, wraps_at=5.0), "remove resets or wraps_at"),
        (lambda: Ratio(ratio=("a", "b", "c")), "ratio: takes two sensors"),
        (lambda: Sum(sum=("a",)), "sum: takes two sensors or more"),
        (lambda: Calendar(calendar="hour", zone="Europe/Berlan"), 'Did you mean "Europe/Berlin"'),
        (lambda: Calendar(calendar="hour", zone="../etc"), "is not a time zone"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(make: Callable[[], Feature], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
