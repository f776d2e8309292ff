"""Plain data into structs, with every problem found: unknown settings, wrong types and ranges, what a part's own
`check` says, each with its place and remedy."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from detectors import registry
from detectors.base import Detector, TrainableDetector
from detectors.features import FEATURES, Feature
from stream.errors import Problem
from stream.topology import AUTO, RegistryModel, Sensor

__all__ = ["Reader", "default_of", "suggest"]

_UNITS: Mapping[str, Mapping[str, float]] = {
    "seconds": {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400},
    "bytes": {"B": 1, "kB": 1000, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    "a day": {"/hour": 24, "/h": 24, "/day": 1, "/d": 1, "/week": 1 / 7, "/month": 1 / 30},
}
_FORMS = {
    "seconds": "500ms, 30s, 10m, 12h or 7d",
    "bytes": "64kB, 10MB or 5GB",
    "a day": "1/hour, 2/day or 3/week",
}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(/?[a-zA-Z]+)\s*")


def suggest(word: str, known: Iterable[str]) -> str:
    """` Did you mean "…"?` where a known word is close, else the known words, else nothing."""
    names = sorted(set(known))
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return f'. Did you mean "{close[0]}"?'
    return f". Known: {', '.join(names)}" if 0 < len(names) <= 20 else ""


class Reader:
    """Turns plain data into structs and gathers problems instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def wrong(self, place: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(place, message))

    def find_duplicates(self, node: Any, place: str) -> None:
        """YAML lets a later key silently win; here it is a problem."""
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                inner = f"{place}.{key.value}" if place else str(key.value)
                if key.value in seen:
                    self.wrong(inner, "is written twice")
                seen.add(key.value)
                self.find_duplicates(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.find_duplicates(value, f"{place}.{index}")

    def read(self, kind: Any, data: Any, place: str) -> Any:
        """`data` as an object of this type, or None with the problems noted."""
        if get_origin(kind) is Annotated:
            data = self._quantity(kind, data)
        if get_origin(kind) in (Union, UnionType):
            if kind == Detector | RegistryModel:
                return self._detector(data, place)
            members = [member for member in get_args(kind) if member is not type(None)]
            if data is None and len(members) < len(get_args(kind)):
                return None
            if len(members) == 1:
                return self.read(members[0], data, place)
        if kind is Feature:
            return self._feature(data, place)
        if kind is Detector:
            return self._online(data, place)
        if kind is TrainableDetector:
            return self._recipe(registry.TRAINABLE, data, place)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if kind is Sensor and isinstance(data, str):
                data = {"name": data}
            return self._struct(kind, data, place)
        if get_origin(kind) is tuple and isinstance(data, list):
            items = [self.read(get_args(kind)[0], item, f"{place}.{i}") for i, item in enumerate(data)]
            return tuple(item for item in items if item is not None)
        if get_origin(kind) is dict and data == AUTO and get_args(kind)[1] == Detector | RegistryModel:
            return AUTO
        if get_origin(kind) is dict and isinstance(data, dict):
            return {
                str(key): self.read(get_args(kind)[1], item, f"{place}.{key}") for key, item in data.items()
            }
        if get_origin(kind) is dict:
            self._no_mapping(kind, data, place)
            return None
        if get_origin(kind) is Literal and data not in get_args(kind):
            words = [str(word) for word in get_args(kind)]
            hint = suggest(data, words) if isinstance(data, str) else ""
            self.wrong(place, f"expected one of {', '.join(words)}; found {_shown(data)}{hint}")
            return None
        try:
            value = msgspec.convert(data, kind)
        except msgspec.ValidationError as error:
            self.wrong(place, _expected(kind, data) or str(error).split(" - at ")[0].replace("`", ""))
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self.wrong(place, f"expected a finite number, found {data}")
            return None
        return value

    def _no_mapping(self, kind: Any, data: Any, place: str) -> None:
        """Something else where parts are named."""
        if get_args(kind)[1] != Detector | RegistryModel:
            self.wrong(place, f"must be a mapping of names, found {_shown(data)}")
            return
        hint = suggest(data, [AUTO]) if isinstance(data, str) else ""
        hint = hint if hint.endswith("?") else ""
        self.wrong(place, f"must be a mapping of names, or the word {AUTO}; found {_shown(data)}{hint}")

    def _quantity(self, kind: Any, data: Any) -> Any:
        """`10m` or `5GB` as a number, where the setting has such a unit."""
        units = _units(kind)
        if units is None or not isinstance(data, str) or not (match := _QUANTITY.fullmatch(data)):
            return data
        factor = _UNITS[units].get(match[2])
        if factor is None:
            return data
        number = float(match[1]) * factor
        return int(number) if units == "bytes" else number

    def _struct(self, kind: type[msgspec.Struct], data: Any, place: str) -> Any:
        if not isinstance(data, dict):
            self.wrong(place, f"expected settings (a mapping), found {_type_name(data)}")
            return None
        hints = get_type_hints(kind, include_extras=True)
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        before = len(self.problems)
        for key in data:
            if key not in fields:
                self.wrong(_join(place, str(key)), f'unknown setting "{key}"{suggest(str(key), fields)}')
        values: dict[str, Any] = {}
        sound: dict[str, Any] = {}
        for name, field in fields.items():
            if name in data:
                known = len(self.problems)
                values[name] = self.read(hints[name], data[name], _join(place, name))
                if len(self.problems) == known or values[name] is not None:
                    sound[name] = values[name]
            elif field.required:
                self.wrong(place, f'the setting "{name}" is missing')
            else:
                sound[name] = default_of(field)
        if len(self.problems) == before:
            try:
                return kind(**values)
            except (ValueError, TypeError) as error:
                found = str(error).splitlines()
        else:  # what can be read is checked all the same, so that nothing hides behind another problem
            check = getattr(kind, "check", None)
            found = [] if check is None else list(check(sound))
        for line in found:
            setting, colon, text = line.partition(": ")
            if colon and setting.partition(".")[0] in fields:
                self.wrong(_join(place, setting), text)
            else:
                self.wrong(place, line)
        with contextlib.suppress(ValueError, TypeError):  # stands in, for what is checked around it
            return kind(**sound)
        return None

    def _detector(self, data: Any, place: str) -> Any:
        if not isinstance(data, dict):
            self.wrong(place, f"expected settings (a mapping), found {_type_name(data)}")
            return None
        chosen = [key for key in ("kind", *sorted(registry.ADAPTERS), "model") if key in data]
        if len(chosen) != 1:
            self.wrong(
                place,
                "say exactly one of kind: (a native detector), river: (one of river's), pyod: (one of PyOD's), "
                "model: (trained)",
            )
            return None
        if chosen[0] == "model":
            return self._struct(RegistryModel, data, place)
        return self._online(data, place)

    def _online(self, data: Any, place: str) -> Any:
        adapters = [key for key in sorted(registry.ADAPTERS) if isinstance(data, dict) and key in data]
        if adapters:
            return self._struct(registry.ONLINE[adapters[0]], data, place)
        native = {kind: recipe for kind, recipe in registry.ONLINE.items() if kind not in registry.ADAPTERS}
        others = registry.installed()
        kind = data.get("kind") if isinstance(data, dict) else None
        if not isinstance(kind, str) or kind not in others:
            return self._recipe(native, data, place, others)
        try:
            return self._recipe({kind: registry.load_installed(kind)}, data, place)
        except ValueError as error:
            self.wrong(_join(place, "kind"), str(error))
            return None

    def _feature(self, data: Any, place: str) -> Any:
        if not isinstance(data, dict):
            self.wrong(place, f"expected settings (a mapping), found {_type_name(data)}")
            return None
        chosen = [str(key) for key in data if key in FEATURES]
        if len(chosen) == 1:
            return self._struct(FEATURES[chosen[0]], data, place)
        hints = [suggest(str(key), FEATURES) for key in data if key not in FEATURES]
        meant = next((hint for hint in hints if hint.endswith("?")), "") if not chosen else ""
        self.wrong(place, f"say exactly one of {', '.join(FEATURES)}{meant}")
        return None

    def _recipe(
        self,
        kinds: Mapping[str, type[msgspec.Struct]],
        data: Any,
        place: str,
        others: Iterable[str] = (),
    ) -> Any:
        """`others` are kinds that there are, too."""
        known = sorted({*kinds, *others})
        if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
            self.wrong(place, f"say which kind: {', '.join(known)}")
            return None
        kind = data["kind"]
        if kind not in kinds:
            hint = suggest(kind, known) or f". Known: {', '.join(known)}"
            if kind in registry.TRAINABLE and kinds is not registry.TRAINABLE:
                hint = f". It is trained: write model: models:/NAME@champion and fit: {{kind: {kind}}}"
            self.wrong(_join(place, "kind"), f'unknown kind "{kind}"{hint}')
            return None
        return self._struct(kinds[kind], {k: v for k, v in data.items() if k != "kind"}, place)


def _units(kind: Any) -> str | None:
    """`seconds` or `bytes` for a setting that has such a unit."""
    notes = (note.extra for note in get_args(kind)[1:] if isinstance(note, msgspec.Meta) and note.extra)
    return next((extra["unit"] for extra in notes if "unit" in extra), None)


def _expected(kind: Any, data: Any) -> str | None:
    """What a setting with a unit takes, where a text was given that is none of it."""
    units = _units(kind) if get_origin(kind) is Annotated else None
    if units is None or not isinstance(data, str):
        return None
    number = "a number a day" if units == "a day" else f"a number of {units}"
    return f'expected {number}, or such as {_FORMS[units]}; found "{data}"'


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    """What a setting is where it is left out."""
    factory = field.default_factory
    return field.default if factory is msgspec.NODEFAULT else factory()


def _shown(data: Any) -> str:
    return f'"{data}"' if isinstance(data, str) else _type_name(data)


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _type_name(data: Any) -> str:
    names = {type(None): "nothing", list: "a list", str: "a text", bool: "true/false"}
    return names.get(type(data), "a number" if isinstance(data, (int, float)) else type(data).__name__)
