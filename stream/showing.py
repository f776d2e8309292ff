"""What an engine tells of its work: metrics, and lines in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stream import log
from stream.alerts import Alert
from stream.brokers.base import Delivery
from stream.clock import Clock
from stream.ledger import Ledger
from stream.metrics import TopologyMetrics
from stream.readings import Batch
from stream.scorer import Scored, Scorer
from stream.topology import Topology

__all__ = ["Showing"]


class Showing:
    """Counts, measures and logs for one topology's engine."""

    def __init__(
        self, topology: Topology, scorer: Scorer, ledger: Ledger, metrics: TopologyMetrics, clock: Clock
    ) -> None:
        self._topology = topology
        self._scorer = scorer
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        for name, lane in scorer.lanes.items():
            metrics.active_model(name, *lane.info.labels)

    def lost(self, last: int, offsets: Sequence[int]) -> None:
        """Retention may take messages behind `last` before they are read. A stream skips one offset at the end of a
        segment."""
        steps = np.diff([last, *(offset for offset in offsets if offset > last)])
        if last >= 0 and (lost := int((steps[steps > 2] - 1).sum())):
            self._metrics.gaps.inc(lost)
            log.get().error("readings_lost", topology=self._topology.name, lost=lost, cause="retention")

    def scored(self, messages: Sequence[Delivery], batch: Batch, scored: Scored) -> None:
        """A batch was scored."""
        now = self._clock.monotonic()
        self._metrics.decoded.inc(len(batch))
        self._metrics.batch.observe(len(scored.batch))
        for delivery in messages:
            self._metrics.scored_latency.observe(now - delivery.received)
        for name, scores in scored.scores.items():
            self._metrics.scored(name, int(np.count_nonzero(~np.isnan(scores))))
        self._metrics.machine_days.inc(scored.machine_days)
        for _, policy in scored.dropped:
            self._metrics.dropped_readings(policy, 1)
        for detector, machine in scored.unhealthy:
            self._metrics.unhealthy(detector)
            name = self._topology.name
            log.limited(
                "detector_unhealthy", f"{name}/{detector}", topology=name, detector=detector, machine=machine
            )
        if len(scored.batch):
            self._metrics.last_reading.set(float(scored.batch.times[-1]))

    def alerted(self, alerts: Sequence[Alert], received: Mapping[int, float]) -> None:
        """Alerts were published; `received` says when the message at an alert's offset came, in monotonic seconds."""
        now = self._clock.monotonic()
        for alert in alerts:
            self._metrics.told(alert)
            if (came := received.get(alert.position.offset)) is not None:
                self._metrics.alert_latency.observe(now - came)
            log.get().info(
                f"alert_{alert.event}",
                topology=alert.topology,
                machine=alert.machine,
                detector=alert.detector,
                type=alert.type,
                severity=alert.severity,
                score=round(alert.score, 4),
                reason=alert.reason,
            )

    def dropped_shadows(self, dropped: Sequence[tuple[str, str]]) -> None:
        """These shadows failed, and why."""
        for detector, cause in dropped:
            self._metrics.shadow_dropped(detector)
            log.get().warning(
                "shadow_dropped", topology=self._topology.name, detector=detector, cause=cause[:300]
            )

    def state(self) -> None:
        """How things are now, in gauges."""
        self._metrics.machines.set(self._ledger.machines)
        self._metrics.resident.set(len(self._scorer.residents))
        for name, count in self._scorer.open_alerts().items():
            self._metrics.open_alerts(name, count)
        for name, count in self._scorer.warming().items():
            self._metrics.warming(name, count)
        self._metrics.sick(self._scorer.sick())
        for name in self._topology.registry_models:
            shadow = self._scorer.beside.shadows.get(name)
            if shadow is None:
                self._metrics.compared(name, None, None)
            else:
                self._metrics.compared(name, shadow.lane.info.version, shadow.comparison.total)
