"""What a topology needs of the broker: exchanges, queues, bindings."""

from __future__ import annotations

from stream.brokers.base import Binding, Exchange, Plan, Queue
from stream.topology import Topology

__all__ = [
    "CONTROL_EXCHANGE",
    "DEADLETTER_EXCHANGE",
    "broker_plan",
    "control_queue",
    "deadletter_queue",
    "readings_queue",
]

CONTROL_EXCHANGE = "mmlw.control"
DEADLETTER_EXCHANGE = "mmlw.deadletters"


def readings_queue(topology: Topology) -> Queue:
    """The stream of our own that the sensor exchange is bound to, or the existing queue that is named."""
    if topology.source.queue is not None:
        return Queue(name=topology.source.queue, kind="existing", exclusive=topology.source.exclusive)
    return Queue(
        name=f"mmlw.readings.{topology.name}",
        max_age=topology.source.keep_age,
        max_bytes=topology.source.keep_bytes,
        segment_bytes=max(1_000_000, min(500_000_000, topology.source.keep_bytes // 4)),
    )


def control_queue(topology_name: str) -> Queue:
    """Where a topology's commands wait for it."""
    return Queue(name=f"mmlw.control.{topology_name}", kind="classic")


def deadletter_queue() -> Queue:
    """The stream that keeps what could not be used, for all topologies."""
    return Queue(name="mmlw.deadletters", max_age=30 * 86400.0, max_bytes=1_000_000_000)


def broker_plan(topology: Topology) -> Plan:
    """Every exchange, queue and binding this topology needs."""
    readings, control = readings_queue(topology), control_queue(topology.name)
    dead, sink = deadletter_queue(), topology.sink
    queues = [readings, control, dead]
    bindings = []
    exchanges = [sink.exchange, CONTROL_EXCHANGE, DEADLETTER_EXCHANGE]
    if topology.source.queue is None:
        exchanges.insert(0, topology.source.exchange)
        bindings += [Binding(readings.name, exchanges[0], pattern) for pattern in topology.source.bindings]
    bindings.append(Binding(control.name, CONTROL_EXCHANGE, f"control.{topology.name}.*"))
    bindings.append(Binding(dead.name, DEADLETTER_EXCHANGE, "deadletter.#"))
    if sink.queue is not None:
        queues.append(Queue(name=sink.queue, max_age=sink.keep_age, max_bytes=sink.keep_bytes))
        bindings.append(Binding(sink.queue, sink.exchange, "alert.#"))
    names = dict.fromkeys(exchanges)
    return Plan(
        exchanges=tuple(Exchange(name) for name in names), queues=tuple(queues), bindings=tuple(bindings)
    )
