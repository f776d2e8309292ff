"""A shadow of the reference: what it would have alerted of, and how it compares with its champion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stream.simulation.episodes import Episode, Scored, step

__all__ = ["Shadowed"]


@dataclass(slots=True)
class Shadowed:
    """A shadow, what it would have alerted of, and how it compares with its champion since that one came."""

    name: str
    """Of its table in the checkpoint."""
    version: int
    lives: dict[str, Episode]
    tally: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        """Compare anew."""
        names = ("both", "neither", "champion_only", "shadow_only", "champion", "shadow")
        self.tally = {**dict.fromkeys(names, 0), "since": None, "until": None}

    def add(self, machine: str, reading: Scored, size: float, *, opened: bool) -> None:
        """Both scored a reading; the champion's."""
        mine = Scored(reading.time, size * self.version, reading.threshold, reading.number, reading.offset)
        told = step(self.lives.setdefault(machine, Episode()), mine)
        one, other = reading.score >= reading.threshold, mine.score >= mine.threshold
        names = {(True, True): "both", (False, False): "neither", (True, False): "champion_only"}
        tally = self.tally
        tally[names.get((one, other), "shadow_only")] += 1
        tally["champion"] += opened
        tally["shadow"] += told == "opened"
        tally["since"] = reading.time if tally["since"] is None else tally["since"]
        tally["until"] = max(reading.time, tally["until"] or reading.time)
