"""Which machines a detector scores: patterns of names, looked at once when a machine comes into memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase, translate

import numpy as np

from detectors.base import Mask, Slots
from stream.settings import Settings

__all__ = ["Binding", "binding_problems", "patterns_of"]

_WILD = re.compile(r"[*?\[]")


def patterns_of(machines: str | Sequence[str]) -> tuple[str, ...]:
    """A pattern or several, as several.

    >>> patterns_of("pump-*")
    ('pump-*',)
    """
    return (machines,) if isinstance(machines, str) else tuple(machines)


class Binding:
    """Machines of certain names, by slot."""

    def __init__(self, machines: str | Sequence[str]) -> None:
        self._match = re.compile("|".join(map(translate, patterns_of(machines)))).match
        self._bound = np.zeros(0, np.bool_)

    def matches(self, machine: str) -> bool:
        """Whether a machine has such a name."""
        return self._match(machine) is not None

    def admit(self, machines: Sequence[str], slots: Slots) -> None:
        """Machines come into these slots (n,), whoever was there before."""
        if len(slots) and (missing := int(slots.max()) + 1 - len(self._bound)) > 0:
            more = max(missing, len(self._bound))
            self._bound = np.concatenate([self._bound, np.zeros(more, np.bool_)])
        self._bound[slots] = [self.matches(machine) for machine in machines]

    def of(self, slots: Slots) -> Mask:
        """Which of these slots (n,) hold one that is bound."""
        return self._bound[slots]


def binding_problems(settings: Settings) -> Iterator[str]:
    """Each problem of the detectors' `machines`, as `place: what is wrong`."""
    source = settings.get("source")
    senders = ("*",) if source is None else source.machines
    for name, spec in (settings.get("detectors") or {}).items():
        for pattern in () if spec is None else patterns_of(spec.machines):
            place = f"detectors.{name}.machines"
            if not pattern.strip():
                yield f"{place}: a pattern is empty; name machines, such as pump-*"
            elif pattern.count("[") != pattern.count("]"):
                yield f'{place}: "{pattern}" has a bracket without its other half'
            elif not _meets(pattern, senders):
                yield f'{place}: "{pattern}" is no machine that may send (source.machines: {", ".join(senders)})'


def _meets(pattern: str, senders: Sequence[str]) -> bool:
    """Whether a name may fit the pattern and one of the senders'; True where both leave too much open to tell."""
    for sender in senders:
        if not _WILD.search(pattern):
            if fnmatchcase(pattern, sender):
                return True
        elif _WILD.search(sender) or fnmatchcase(sender, pattern):
            return True
    return False
