"""The auditor: what killed workers left, held against what an uninterrupted one leaves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stream.brokers.base import Binding, Delivery, Exchange, Message, Plan, Queue
from stream.brokers.memory import MemoryBroker
from stream.checkpoint import Checkpoint
from stream.scorer import Scorer
from stream.topology import Topology
from tests.plant import Plant, ScaleShelf
from tests.torture.hall import EXCHANGE, QUEUE, Sent

__all__ = ["Evidence", "Findings", "audit", "reference", "state_of"]

State = dict[str, bytes]
"""Machine -> every array of its state in the checkpoint."""


@dataclass(slots=True)
class Evidence:
    """What is there in the end: messages as (id, body), each as often as it was delivered."""

    alerts: list[tuple[str, bytes]]
    letters: list[tuple[str, bytes]]
    state: State
    learned: dict[str, int]
    """Machine -> readings that its online detector has learned from."""
    receipts: list[dict[str, Any]] = field(default_factory=list)
    recorded: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Command -> receipt in the checkpoint."""
    swaps: Sequence[Mapping[str, Any]] = ()
    left: int = 0
    """Messages that the source still holds though all were to be processed."""


class Findings(msgspec.Struct, kw_only=True):
    """Figures of one audit; all but the first three must be zero after deduplication."""

    readings: int = 0
    alerts: int = 0
    repeated: int = 0
    """Alert events delivered more than once, before deduplication by id."""
    lost: int = 0
    spurious: int = 0
    duplicates: int = 0
    """Alert events that are there more than once after deduplication by id."""
    states: int = 0
    """Machines whose state is not bit for bit the same."""
    unlearned: int = 0
    relearned: int = 0
    letters: int = 0
    letters_repeated: int = 0
    letters_lost: int = 0
    letters_doubled: int = 0
    """Dead letters that are there more than once after deduplication by id."""
    swaps: int = 0
    receipts_missing: int = 0
    receipts_contradicting: int = 0
    left: int = 0

    @property
    def faults(self) -> dict[str, int]:
        """What must be zero and is not."""
        return {name: value for name in FAULTS if (value := getattr(self, name))}


FAULTS = (
    "lost",
    "spurious",
    "duplicates",
    "states",
    "unlearned",
    "relearned",
    "letters_lost",
    "letters_doubled",
    "receipts_missing",
    "receipts_contradicting",
    "left",
)


def audit(sent: Sequence[Sent], commands: Sequence[str], got: Evidence, wanted: Evidence) -> Findings:
    """Compare. `sent` is all that was published, `commands` the ids of all swaps that were asked for."""
    found = Findings(readings=len(sent), swaps=len(commands), left=got.left)
    _alerts(found, got.alerts, wanted.alerts)
    _letters(found, sent, got.letters)
    machines = got.state.keys() | wanted.state.keys()
    found.states = sum(got.state.get(machine) != wanted.state.get(machine) for machine in machines)
    usable = Counter(item.machine for item in sent if item.kind == "fresh")
    for machine in usable.keys() | got.learned.keys():
        more = got.learned.get(machine, 0) - usable[machine]
        found.relearned += max(more, 0)
        found.unlearned += max(-more, 0)
    _receipts(found, commands, got)
    return found


def _alerts(found: Findings, got: Sequence[tuple[str, bytes]], wanted: Sequence[tuple[str, bytes]]) -> None:
    """An event that bears an id with another content than it should is lost, and spurious."""
    distinct, expected = set(got), set(wanted)
    found.alerts = len(expected)
    found.repeated = len(got) - len({name for name, _ in got})
    found.lost = len(expected - distinct)
    found.spurious = len(distinct - expected)
    deduplicated = dict(reversed(got))
    found.duplicates = sum(n - 1 for n in Counter(map(_event, deduplicated.values())).values())


def _event(body: bytes) -> tuple[Any, ...]:
    """What an alert tells, by what the machines know of it."""
    alert = json.loads(body)
    return tuple(alert[name] for name in ("machine", "detector", "event", "time"))


def _letters(found: Findings, sent: Sequence[Sent], got: Sequence[tuple[str, bytes]]) -> None:
    """Bodies of broken messages are all different, so a body counts letters without their ids."""
    expected = {item.body for item in sent if item.kind == "broken"}
    deduplicated = Counter(body for _, body in set(got))
    found.letters = len(expected)
    found.letters_repeated = len(got) - len(set(got))
    found.letters_lost = len(expected - deduplicated.keys())
    found.letters_doubled = sum(n - (body in expected) for body, n in deduplicated.items())


def _receipts(found: Findings, commands: Sequence[str], got: Evidence) -> None:
    """Every command has receipts that all say the same, and what is recorded of it."""
    by_command: dict[str, set[str]] = {name: set() for name in commands}
    for receipt in got.receipts:
        by_command.setdefault(receipt["command"], set()).add(_said(receipt))
    applied = {line["command"]: line["next"] for line in got.swaps}
    for name, said in by_command.items():
        recorded = got.recorded.get(name)
        found.receipts_missing += not said or recorded is None
        if recorded is not None:
            contradicts = bool(said - {_said(recorded)}) or _first(recorded) != applied.get(name)
            found.receipts_contradicting += contradicts


def _said(receipt: Mapping[str, Any]) -> str:
    told = {
        name: receipt.get(name) for name in ("verb", "status", "detector", "model", "replaced", "partitions")
    }
    return json.dumps(told, sort_keys=True)


def _first(receipt: Mapping[str, Any]) -> int | None:
    first: int | None = receipt.get("partitions", {}).get("0", {}).get("first_offset")
    return first


def state_of(topology: Topology, data: Path) -> tuple[State, dict[str, int], dict[str, dict[str, Any]]]:
    """What a checkpoint holds: state, readings learned from by machine, receipts of commands."""
    path = data / f"{topology.name}.checkpoint"
    checkpoint = Checkpoint(path, topology.name, Scorer.recipes(topology))
    try:
        saved = checkpoint.load()
    finally:
        checkpoint.close()
    state, learned = {}, {}
    for group in saved.groups:
        for i, machine in enumerate(group.machines):
            arrays = {
                f"{table}.{name}": array[i]
                for table, rows in group.components.items()
                for name, array in rows.items()
            }
            state[machine] = b"".join(
                name.encode() + str(array.dtype).encode() + array.tobytes()
                for name, array in sorted((name, np.asarray(array)) for name, array in arrays.items())
            )
            learned[machine] = int(np.max(arrays["model:spike.count"]))
    return state, learned, saved.commands


async def reference(
    topology: Topology, data: Path, sent: Sequence[Sent], swaps: Sequence[tuple[int, str]]
) -> Evidence:
    """An uninterrupted run on the memory broker. `swaps`: after so many messages, this model."""
    plant = Plant(data, topology, shelf=ScaleShelf(alias=2))
    await plant.declare() if topology.source.queue is None else await _declare_queue(plant)
    async with plant.running() as worker:
        done = 0
        for until, model in [*swaps, (len(sent), "")]:
            messages = [
                Message(exchange=EXCHANGE, routing_key=item.key, body=item.body) for item in sent[done:until]
            ]
            await plant.publish(messages)
            await plant.reached(worker, until)
            done = until
            if model:
                receipt = await plant.ask("swap", model=model)
                assert _first(receipt) == until, receipt
    state, learned, _ = state_of(topology, data)
    alerts, letters = [await plant.kept(name) for name in ("mmlw.alerts", "mmlw.deadletters")]
    return Evidence(list(_pairs(alerts)), list(_pairs(letters)), state, learned)


def _pairs(deliveries: Sequence[Delivery]) -> Iterator[tuple[str, bytes]]:
    for delivery in deliveries:
        yield delivery.message_id or "", delivery.body


async def _declare_queue(plant: Plant) -> None:
    plan = Plan(
        exchanges=(Exchange(EXCHANGE),),
        queues=(Queue(name=QUEUE, kind="classic"),),
        bindings=(Binding(QUEUE, EXCHANGE, "#"),),
    )
    async with MemoryBroker(plant.server) as broker:
        await broker.declare(plan, mode="declare")
