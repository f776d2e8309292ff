"""A hall of machines whose readings are known: what they send, and the topologies that read it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from detectors import AdaptiveZ
from stream.rules import AlertRule, Learning
from stream.topology import CheckpointRule, RegistryModel, Sensor, Source, Topology

__all__ = ["EXCHANGE", "LAST", "MODES", "QUEUE", "Kind", "Mode", "Sent", "last", "readings", "topology"]

Mode = Literal["stream", "classic", "quorum"]
"""Where a topology reads: a stream of its own, or somebody else's queue of this type."""
MODES: tuple[Mode, ...] = ("stream", "classic", "quorum")
Kind = Literal["fresh", "again", "broken"]

EXCHANGE = "mmlw.sensors"
QUEUE = "hall.readings"
"""The existing queue, in the modes that read one."""
LAST = "last"
"""The machine that sends the last reading of all."""
_START = 1_722_988_800.0
_MACHINES = 30


@dataclass(frozen=True, slots=True)
class Sent:
    """A message as it was published. `again` repeats an earlier one; `broken` cannot be used."""

    kind: Kind
    seq: int
    """Rises over all machines, so it also tells the order; -1 where it is broken."""
    machine: str
    body: bytes

    id: str
    """The publisher's, another one for each time that it is published."""

    @property
    def key(self) -> str:
        """Its routing key."""
        return f"sensor.{self.machine}.readings"


def readings(seed: int) -> Iterator[Sent]:
    """Readings without end, with spikes that open and close alerts; some twice, some that cannot be used.

    No two broken ones have the same body.
    """
    rng = random.Random(seed)
    recent: list[Sent] = []
    number = 0
    while True:
        number += 1
        chance = rng.random()
        machine = f"m{rng.randrange(_MACHINES):02d}"
        if chance < 0.02 and recent:
            first = rng.choice(recent)
            yield replace(first, kind="again", id=f"again-{number}")
            continue
        if chance < 0.03:
            cut = f'{{"cut": {number}, "values": {{"a": 1'.encode()
            yield Sent("broken", -1, machine, cut, str(number))
            continue
        size = 30.0 if rng.random() < 0.03 else 0.0
        values = {"a": rng.gauss(size, 1.0), "b": rng.gauss(size, 1.0)}
        if chance < 0.04:  # it has a machine and a number, and is refused all the same
            values["nobody_knows"] = 1.0
        body = {"machine": machine, "time": _START + number, "seq": number, "values": values}
        kind: Kind = "broken" if chance < 0.04 else "fresh"
        item = Sent(kind, number, machine, json.dumps(body).encode(), str(number))
        if kind == "fresh":
            recent = [*recent[-99:], item]
        yield item


def last() -> Sent:
    """The last reading of all: whoever has processed it has processed everything."""
    number = 1_000_000_000
    body = {"machine": LAST, "time": _START, "seq": number, "values": {"a": 0.0, "b": 0.0}}
    return Sent("fresh", number, LAST, json.dumps(body).encode(), LAST)


def topology(mode: Mode) -> Topology:
    """Two sensors; an online detector, and a batch model that can be swapped. It commits often."""
    return Topology(
        name="hall",
        source=Source(
            sensors=(Sensor("a"), Sensor("b")),
            max_batch=32,
            queue=None if mode == "stream" else QUEUE,
        ),
        detectors={
            "spike": AdaptiveZ(warmup=10, half_life=50),
            "scale": RegistryModel(model="models:/scale@champion"),
        },
        alert=AlertRule(close_after=2),
        learning=Learning(while_open=True),  # every reading, so that the audit can count them
        checkpoint=CheckpointRule(every=0.05, after=100),
    )
