"""What detectors look at: the columns that are meant, and what is wrong about features and inputs as declared."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from detectors.features import Feature
from stream.settings import Settings, is_name

__all__ = ["expanded", "feature_problems", "timed_columns", "units_of"]


def expanded(names: Sequence[str], features: Mapping[str, Feature]) -> tuple[str, ...]:
    """Columns by name, where a feature's name stands for all of its columns.

    >>> from detectors.features import Calendar
    >>> expanded(("flow", "hour"), {"hour": Calendar(calendar="hour")})
    ('flow', 'hour_sin', 'hour_cos')
    """
    return tuple(
        column for name in names for column in (features[name].columns(name) if name in features else (name,))
    )


def units_of(sensors: Mapping[str, str | None], features: Mapping[str, Feature]) -> dict[str, str]:
    """The units of the columns that have one; `sensors` with theirs, or None.

    >>> from detectors.features import Lag, Ratio
    >>> units_of({"flow": "l/min"}, {"before": Lag(of="flow", lag=24), "part": Ratio(ratio=("flow", "before"))})
    {'flow': 'l/min', 'before': 'l/min'}
    """
    found = {name: unit for name, unit in sensors.items() if unit is not None}
    for name, feature in features.items():
        units = {found.get(it) for it in feature.reads}
        if feature.keeps_unit and len(units) == 1 and (unit := units.pop()) is not None:
            found[name] = unit
    return found


def timed_columns(features: Mapping[str, Feature]) -> frozenset[str]:
    """The columns of features that follow from a reading's time alone.

    >>> from detectors.features import Calendar, Lag
    >>> sorted(timed_columns({"day": Calendar(calendar="weekend"), "before": Lag(of="flow", lag=24)}))
    ['day']
    """
    found: set[str] = set()
    for name, feature in features.items():
        if found.issuperset(feature.reads):
            found.update(feature.columns(name))
    return frozenset(found)


def feature_problems(settings: Settings) -> Iterator[str]:
    """Each problem of a topology's `features` and its detectors' `inputs`, as `place: what is wrong`.

    Looks at what could be read: what an unreadable feature may be called is no problem.
    """
    features: dict[str, Feature | None] = settings.get("features") or {}
    source = settings.get("source")
    known = set() if source is None else set(source.names)
    taken = dict.fromkeys(known, "a sensor")
    for name, feature in features.items():
        if not is_name(name):
            yield f"features.{name}: a name must be lower-case letters, digits, - or _, at most 64"
        columns = (name, f"{name}_sin", f"{name}_cos") if feature is None else feature.columns(name)
        for it in () if feature is None or source is None else feature.reads:
            if it in known:
                continue
            if it in features:
                yield f"features.{name}: is made of {_why(it, name, features[it], it in taken)}"
            else:
                yield f'features.{name}: "{it}" is neither a sensor nor a feature{_close(it, known)}'
        for column in dict.fromkeys((name, *columns)):
            if column in taken and feature is not None:
                yield f'features.{name}: "{column}" is the name of {taken[column]} already; choose another'
            taken[column] = f"the feature {name}"
        known.update(columns)
    readable = {name: feature for name, feature in features.items() if feature is not None}
    for name, spec in (settings.get("detectors") or {}).items():
        inputs = expanded(() if spec is None else spec.inputs, readable)
        for it in inputs if source is not None else ():
            if it not in known:
                yield f'detectors.{name}.inputs: "{it}" is neither a sensor nor a feature{_close(it, known)}'
        if twice := sorted({it for it in inputs if inputs.count(it) > 1}):
            yield f"detectors.{name}.inputs: named twice: {', '.join(twice)}"


def _why(wanted: str, name: str, feature: Feature | None, above: bool) -> str:
    """What keeps a feature from being made of another one."""
    if wanted == name:
        return "itself"
    if above and feature is not None:
        return f'"{wanted}", which gives {" and ".join(feature.columns(wanted))}; take one of them'
    return f'"{wanted}", which stands below it; write that first'


def _close(word: str, known: Iterable[str]) -> str:
    """A word that is meant, perhaps, or all there are."""
    names = sorted(known)
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return f'. Did you mean "{close[0]}"?'
    return f". Known: {', '.join(names)}" if len(names) <= 20 else ""
