"""What is wrong about a topology's features, and about what its detectors are to look at."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from detectors.features import Feature
from stream.settings import Settings, is_name

__all__ = ["feature_problems"]


def feature_problems(settings: Settings) -> Iterator[str]:
    """Each problem of a topology's `features` and its detectors' `inputs`, as `place: what is wrong`.

    Looks at what could be read: a name that may be that of an unreadable feature is no problem.
    """
    features: dict[str, Feature | None] = settings.get("features") or {}
    source = settings.get("source")
    known: dict[str, str] = {} if source is None else dict.fromkeys(source.names, "a sensor")
    doubtful = source is None
    for name, feature in features.items():
        if not is_name(name):
            yield f'features: "{name}" must be lower-case letters, digits, - or _, at most 64'
        if feature is None:
            doubtful = True
            continue
        for it in feature.reads:
            if it not in known and not doubtful:
                if it in features:
                    why = "which stands below it; write it first" if it != name else "which is itself"
                    yield f'features.{name}: is made of "{it}", {why}'
                else:
                    yield f'features.{name}: "{it}" is neither a sensor nor a feature{_close(it, known)}'
        for column in feature.columns(name):
            if column in known:
                yield f'features.{name}: "{column}" is the name of {known[column]} already; choose another'
            known[column] = f"the feature {name}"
    for name, spec in (settings.get("detectors") or {}).items():
        inputs = () if spec is None else spec.inputs
        for it in inputs:
            if it not in known and not doubtful:
                yield f'detectors.{name}.inputs: "{it}" is neither a sensor nor a feature{_close(it, known)}'
        if twice := sorted({it for it in inputs if inputs.count(it) > 1}):
            yield f"detectors.{name}.inputs: named twice: {', '.join(twice)}"


def _close(word: str, known: Iterable[str]) -> str:
    """A word that is meant, perhaps, or all there are."""
    names = list(known)
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return f'. Did you mean "{close[0]}"?'
    return f". Known: {', '.join(names)}" if len(names) <= 20 else ""
