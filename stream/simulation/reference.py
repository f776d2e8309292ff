"""An uninterrupted run, worked out from the readings alone, plainly and one by one; it knows no engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detectors.rates import Rates
from stream.alerts import episode_id, rfc3339
from stream.brokers.base import Delivery
from stream.reasons import duration, number
from stream.simulation.audit_models import Watch, acts, another
from stream.simulation.episodes import Episode, Scored, close, step
from stream.simulation.outcome import Outcome
from stream.simulation.schedule import KILLER, Command
from stream.simulation.shadowed import Shadowed

__all__ = ["THRESHOLDS", "Reference"]

THRESHOLDS = {"spike": 6.0, "scale": 60.0}
_LATENESS = 10.0
_WINDOW = 24
"""Readings of the recent past that an alert shows."""
_NONE = -(2**63)
"""Instead of a sequence number, where there is none."""
_NOTHING = (-np.inf, _NONE)
"""Newest time and highest sequence number of a machine that has sent nothing."""


class Reference:
    """What must be there in the end: alerts, dead letters, the fate of each message, and state."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        plan = outcome.schedule
        self.alerts: list[dict[str, Any]] = []
        self.refused: list[tuple[Delivery, str]] = []
        """Dead letters and why; those that were sent back and refused again among them."""
        self.fates: dict[int, str] = {}
        """By place, what a message counts as."""
        self.twice: dict[int, str] = {}
        """Of these, letters that were sent back twice and refused each time: where both are in one batch, the second
        may count as a duplicate, for its dead letter is there."""
        self.arrivals: dict[str, tuple[float, int]] = {}
        self.ended: dict[str, tuple[float, int]] = {}
        """The same of what came before a machine's counter last began anew."""
        self.slots: dict[str, int] = {}
        self.lives: dict[tuple[str, str], Episode] = {}
        self.past: dict[str, list[tuple[float, float]]] = {}
        """Of each machine, the time and the value of every reading that was scored."""
        self.back: set[str] = set()
        """Dead letters that were sent back and were of use."""
        self.shadow: Shadowed | None = None
        self.watch = Watch(plan.rollback, plan.within) if plan.rollback else None
        detector: Any = outcome.topology.detectors["spike"]
        self.spike = detector.build(("a",))
        self.rates = Rates()
        self._again: set[str | None] = set()
        self._version = 1
        self._problems: list[str] = []

    @property
    def condemned(self) -> Mapping[str, int]:
        """Swaps that are to be taken back, and the place of the reading that showed it."""
        return {} if self.watch is None else self.watch.condemned

    def process(self, messages: Sequence[tuple[int, Delivery]]) -> list[str]:
        """Read these, each at its place, with the commands as they fell between them; what is wrong with those."""
        falling = acts(self.outcome)
        for place, message in messages:
            while falling and falling[0][0] < place:
                self._act(*falling.pop(0)[1:])
            self.fates[place] = fate = self._read(place, message)
            if not message.exchange and fate.startswith("deadlettered"):
                if message.message_id in self._again:
                    self.twice[place] = fate
                self._again.add(message.message_id)
        for _, receipt, command in falling:
            self._act(receipt, command)
        return self._problems

    def _read(self, place: int, message: Delivery) -> str:
        """One message: what it counts as."""
        letter = "" if message.exchange else str(message.message_id)
        if letter in self.back:
            return "dropped duplicate"
        reading = _parsed(message.body)
        if isinstance(reading, str):
            return self._refuse(message, reading)
        machine, time, seq, value = reading
        if machine not in self.slots and len(self.slots) >= self.outcome.schedule.most:
            return self._refuse(message, "too_many_machines")
        if value == KILLER and (letter or not self._verdict(machine, time, seq)[0]):
            return self._refuse(message, "killed_worker")
        self.slots.setdefault(machine, len(self.slots))
        if letter:
            self.back.add(letter)
        else:
            verdict, arrived = self._verdict(machine, time, seq)
            newest, highest = self.arrivals.get(machine, _NOTHING)
            if not verdict and 0 <= seq <= highest:  # its counter began anew
                before = self.ended.get(machine, _NOTHING)
                self.ended[machine] = newest, max(highest, before[1])
            self.arrivals[machine] = arrived
            if verdict == "late" and self.outcome.schedule.late == "deadletter":
                return self._refuse(message, "late")
            if verdict:
                return f"dropped {verdict}"
        position = message.offset if self.outcome.schedule.source == "stream" else seq
        self._score(place, machine, time, value, position)
        return "processed"

    def _score(self, place: int, machine: str, time: float, value: float, position: int) -> None:
        lives = {name: self.lives.setdefault((machine, name), Episode()) for name in THRESHOLDS}
        slot, times = np.array([self.slots[machine]]), np.array([time])
        learn = np.array([lives["spike"].learns])
        score = float(self.spike.score_learn(slot, np.array([[value]]), times, learn)[0])
        scores = {"spike": score, "scale": abs(value) * self._version}
        count = int(self.rates.update(slot, times)[1][0])
        self.past.setdefault(machine, []).append((time, value))
        for name, life in lives.items():
            scored = Scored(time, scores[name], THRESHOLDS[name], count, position)
            before = life.copy()
            told = step(life, scored)
            if name == "scale" and self.watch is not None:
                self.watch.add(machine, time, place, opened=told == "opened")
            if name == "scale" and self.shadow is not None:
                self.shadow.add(machine, scored, abs(value), opened=told == "opened")
            if told is None:
                continue
            why = None
            if name == "spike":
                shares, expected = self.spike.contributions(np.array([0]))
                why = float(expected[0, 0]), float(shares[0, 0])
            shown = before if told == "closed" else life
            self.alerts.append(
                {
                    **self._alert(machine, name, told, shown, time),
                    "score": scored.score,
                    "reason": _sentence(name, told, shown, scored, value, why),
                    "contributions": [
                        {
                            "sensor": "a",
                            "value": value,
                            "expected": why and why[0],
                            "share": why[1] if why else 0.0,
                        }
                    ],
                    "position": {"partition": 0, "offset": position, "row": 0},
                }
            )

    def _alert(self, machine: str, name: str, event: str, life: Episode, time: float) -> dict[str, Any]:
        """What every event tells of an alert that is open, or was until now."""
        version = self._version
        model = {"name": "adaptive_z", "version": "online", "kind": "adaptive_z"}
        if name == "scale":
            model = {"name": "scale", "version": str(version), "kind": "scale"}
        past = self.past[machine][-_WINDOW:]
        here = self.outcome.topology.name
        return {
            "id": episode_id(here, machine, name, 0, life.offset, life.row, life.first_seen),
            "event": event,
            "type": "process",
            "sequence": life.updates + (event == "closed"),
            "topology": here,
            "machine": machine,
            "detector": name,
            "severity": life.word,
            "threshold": THRESHOLDS[name],
            "peak_score": life.peak,
            "anomalous_readings": life.readings,
            "first_seen": rfc3339(life.first_seen),
            "last_seen": rfc3339(life.last_seen),
            "time": rfc3339(time),
            "model": model,
            "window": {"times": [t for t, _ in past], "values": {"a": [v for _, v in past]}},
        }

    def _act(self, receipt: Mapping[str, Any], command: Command | None) -> None:
        """A command was carried out here."""
        verb = receipt["verb"]
        if command is not None:
            self._judged(command)
            return
        version = int(receipt["model"]["version"])
        if verb == "shadow":
            first = receipt["partitions"]["0"]["first_offset"]
            lives = {m: life.copy() for (m, name), life in self.lives.items() if name == "scale"}
            self.shadow = Shadowed(f"shadow:scale:{version:08x}-{first}:", version, lives)
            self.shadow.begin()
            return
        self._version = version
        if verb == "promote":
            self.shadow = None
        if not another(receipt):
            return
        if self.watch is not None:
            self.watch.changed(receipt)
        if self.shadow is not None:
            self.shadow.begin()

    def _judged(self, command: Command) -> None:
        """A machine's open alerts are taken for normal, or closed."""
        names = THRESHOLDS if command.detector is None else (command.detector,)
        machine = str(command.machine)
        alerts = [(name, self.lives.get((machine, name), Episode())) for name in names]
        alerts = [(name, alert) for name, alert in alerts if alert.open]
        if not alerts:
            self._problems.append(f"{command.id}: accepted an alert that was not open")
        for name, alert in alerts:
            if command.verb == "accept":
                alert.accepted = 1
                continue
            time = self.past[machine][-1][0]
            learned = ", and is learned." if command.learn else ", and is not learned."
            self.alerts.append(
                {
                    **self._alert(machine, name, "closed", alert, time),
                    "score": alert.peak,
                    "reason": f"Closed by an operator: this was normal{learned}",
                    "contributions": [],
                    "position": {"partition": 0, "offset": alert.offset, "row": alert.row},
                }
            )
            closed = [alert]
            if name == "scale" and self.shadow is not None:
                closed += [
                    life for life in [self.shadow.lives.get(machine)] if life is not None and life.open
                ]
            count = int(self.rates.snapshot(np.array([self.slots[machine]]))["count"][0])
            for life in closed:
                close(life, time, count)
                life.accepted = 1 if command.learn else 2

    def _refuse(self, message: Delivery, reason: str) -> str:
        self.refused.append((message, reason))
        return f"deadlettered {reason}"

    def _verdict(self, machine: str, time: float, seq: int) -> tuple[str, tuple[float, int]]:
        """What a reading is, `duplicate` or `late` or nothing of it, and the machine's newest and highest with it."""
        newest, highest = self.arrivals.get(machine, _NOTHING)
        for until, most in ((newest, highest), self.ended.get(machine, _NOTHING)):
            if 0 <= seq <= most and time <= until:
                return "duplicate", (newest, highest)
        late = time < newest - _LATENESS
        return "late" if late else "", (max(newest, time), seq if seq >= 0 else highest)

    def tables(self, machine: str) -> dict[str, dict[str, bytes]]:
        """What the checkpoint must hold of a machine, bit for bit, without what shadows left."""
        past = self.past.get(machine, [])
        times, values = np.zeros(_WINDOW), np.full((_WINDOW, 1), np.nan)
        for i, (time, value) in enumerate(past):
            times[i % _WINDOW], values[i % _WINDOW] = time, value
        slot = np.array([self.slots[machine]])
        count = np.array(len(past)).tobytes()
        return {
            "recent": {"count": count, "times": times.tobytes(), "values": values.tobytes()},
            "arrivals": _arrived(*self.arrivals.get(machine, _NOTHING)),
            "lives": _arrived(*self.ended.get(machine, _NOTHING)),
            "rates": _bytes(self.rates.snapshot(slot)),
            "kin": {"readings": count},
            "model:spike": _bytes(self.spike.snapshot(slot)),
            "model:scale": {},
            **{f"alert:{name}": self.lives.get((machine, name), Episode()).columns() for name in THRESHOLDS},
        }


def _arrived(newest: float, highest: int) -> dict[str, bytes]:
    row = 0 if highest >= 0 else -1
    columns = {"time": np.array([newest]), "seq": np.array([highest]), "row": np.array([row])}
    return {name: column.tobytes() for name, column in columns.items()}


def _bytes(rows: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(column).tobytes() for name, column in rows.items()}


def _sentence(
    name: str, event: str, life: Episode, scored: Scored, value: float, why: tuple[float, float] | None
) -> str:
    alert_from = f"alert from {number(scored.threshold)}"
    if event == "closed":
        seen = f"{life.readings} anomalous readings in {duration(life.last_seen - life.first_seen)}"
        if life.readings == 1:
            seen = "one anomalous reading"
        return f"Back to normal after {seen} (peak score {number(life.peak)}, {alert_from})."
    how = f"{name}: score {number(scored.score)}, {alert_from}"
    if why is None:
        return f"The reading as a whole is unusual ({how})."
    side = "high" if value > why[0] else "low"
    return f"a is {side} at {number(value)}, expected about {number(why[0])} ({how})."


def _parsed(body: bytes) -> tuple[str, float, int, float] | str:
    """Machine, time, sequence number and value; or why it cannot be used."""
    try:
        message = json.loads(body)
    except ValueError:
        return "not_decodable"
    if not isinstance(message, dict):
        return "wrong_shape"
    if "time" not in message:
        return "bad_time"
    return message["machine"], message["time"], message.get("seq", -1), message["values"]["a"]
