"""Every metric of the product, declared in this one file: `mmlw_<noun>_<unit>`, seconds and bytes.

Label sets are closed: topology and detector names come from the topology file, reasons and policies from the
enumerations below. A machine or sensor name is never a label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from detectors.health import Ailment
from stream.agreement import Tally
from stream.alerts import PROCESS, Alert

__all__ = [
    "CONTENT_TYPE",
    "Cause",
    "Metrics",
    "Policy",
    "QualityMetric",
    "Reason",
    "TopologyMetrics",
    "TrainingResult",
    "TriggerOutcome",
    "Undelivered",
    "Way",
    "WebhookOutcome",
]

CONTENT_TYPE = CONTENT_TYPE_LATEST
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, used by nobody

Reason = Literal[
    "too_large",
    "not_decodable",
    "wrong_shape",
    "wrong_type",
    "missing_machine",
    "bad_machine",
    "machine_mismatch",
    "too_many_machines",
    "bad_sequence",
    "duplicate",
    "bad_time",
    "time_out_of_range",
    "unknown_sensor",
    "missing_sensor",
    "not_finite",
    "out_of_range",
    "no_values",
    "late",
    "detector_failed",
    "killed_worker",
]
"""Why a message became a dead letter."""

Policy = Literal["replayed", "returned", "duplicate", "late"]
"""Why a message was passed over without effect: `replayed`, it lies before the checkpoint's position;
`returned`, a failure came before its commit and it is read again; `duplicate` and `late`, as the source says."""

Cause = Literal["broker", "stalled", "checkpoint", "registry", "detector"]
"""What made a topology start anew from its checkpoint; `stalled`: connected, but nothing was delivered."""

TriggerOutcome = Literal["started", "running", "cooldown", "limit", "no_data", "refused"]
"""What became of a trigger: a training started; or one runs already, the last began too short ago, there were too
many in seven days, there is nothing to train on yet, or the command was refused."""

TrainingResult = Literal["trained", "failed", "shadowed", "promoted"]

QualityMetric = Literal["precision", "recall", "f1", "false_alarms_per_day"]
Way = Literal["webhook", "poll"]
"""What had the registry asked when it was found that an alias had moved."""

WebhookOutcome = Literal[
    "woken",
    "ignored",
    "unknown",
    "forged",
    "stale",
    "repeated",
    "malformed",
    "too_large",
    "incomplete",
    "no_secret",
]
"""What became of a request to the webhooks' address; all but the first had no effect."""

Undelivered = Literal["not_a_reply_queue", "no_queue"]
"""Why a command's sender was not answered."""

_VERBS = (
    "status",
    "audit",
    "predict",
    "swap",
    "rollback",
    "shadow",
    "promote",
    "pause",
    "resume",
    "accept",
    "train",
    "cancel",
    "label",
)
_LABELS = ("true", "false", "anomaly", "normal")
_TRIGGERS = ("schedule", "drift", "quality")
_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)


class Metrics:
    """The metrics of one process, in a registry of their own. `of(topology)` binds the topology's label."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, ("topology",), buckets=buckets, registry=self.registry)

        self.received = counter("mmlw_messages_received_total", "Messages taken from the source.", "topology")
        self.processed = counter(
            "mmlw_messages_processed_total", "Messages whose effect is in the checkpoint.", "topology"
        )
        self.deadlettered = counter(
            "mmlw_messages_deadlettered_total",
            "Messages that could not be used, by reason.",
            "topology",
            "reason",
        )
        self.dropped = counter(
            "mmlw_messages_passed_over_total",
            "Messages without effect under a named policy.",
            "topology",
            "policy",
        )
        self.gaps = counter(
            "mmlw_offsets_lost_total", "Offsets that retention removed before they were read.", "topology"
        )
        self.decoded = counter("mmlw_readings_decoded_total", "Readings decoded from messages.", "topology")
        self.scored = counter(
            "mmlw_readings_scored_total", "Readings scored, by detector.", "topology", "detector"
        )
        self.readings_dropped = counter(
            "mmlw_readings_dropped_total",
            "Readings without effect under a named policy: duplicate, late.",
            "topology",
            "policy",
        )
        self.unhealthy = counter(
            "mmlw_detector_unhealthy_total",
            "Readings for which a detector gave no finite score; its machine's last good state was restored.",
            "topology",
            "detector",
        )
        self.alerts = counter(
            "mmlw_alerts_total",
            "Alert events confirmed by the broker: opened, updated, closed.",
            "topology",
            "detector",
            "event",
        )
        self.health_alerts = counter(
            "mmlw_health_alerts_total",
            "Alert events about sick sensors and machines, confirmed by the broker, by type.",
            "topology",
            "type",
            "event",
        )
        self.sick = gauge(
            "mmlw_health_alerts_open",
            "Sensors, and machines, that are sick now, by type; of the machines in memory.",
            "topology",
            "type",
        )
        self.masked = gauge(
            "mmlw_sensors_masked",
            "Sensors whose values no detector sees, because they are sick; of the machines in memory.",
            "topology",
        )
        self.machine_days = counter(
            "mmlw_machine_days_total",
            "Days that machines were watched, by their readings' times.",
            "topology",
        )
        self.alerts_open = gauge("mmlw_alerts_open", "Alerts open now.", "topology", "detector")
        self.machines = gauge("mmlw_machines", "Machines with state.", "topology")
        self.resident = gauge("mmlw_machines_resident", "Machines whose state is in memory.", "topology")
        self.machines_warming = gauge(
            "mmlw_machines_warming",
            "Machines in memory that a detector has not seen often enough to judge.",
            "topology",
            "detector",
        )
        self.replaced = counter(
            "mmlw_streams_replaced_total", "Times our stream was gone and had to be made anew.", "topology"
        )
        self.lag = gauge("mmlw_lag_messages", "Messages in the source not yet processed.", "topology")
        self.last_reading = gauge(
            "mmlw_last_reading_timestamp_seconds",
            "Time of the newest reading processed, as the machine stated it.",
            "topology",
        )
        self.batch = histogram("mmlw_batch_readings", "Readings in a batch.", _SIZES)
        self.scored_latency = histogram(
            "mmlw_scored_latency_seconds", "From receipt of a message until it is scored.", _LATENCY
        )
        self.alert_latency = histogram(
            "mmlw_alert_latency_seconds",
            "From receipt of a message until its alert is confirmed by the broker.",
            _LATENCY,
        )
        self.checkpoint_duration = histogram(
            "mmlw_checkpoint_duration_seconds", "Duration of one checkpoint transaction.", _LATENCY
        )
        self.checkpoint_time = gauge(
            "mmlw_checkpoint_timestamp_seconds",
            "When the last checkpoint was committed; time() minus this is its age.",
            "topology",
        )
        self.checkpoint_bytes = gauge("mmlw_checkpoint_bytes", "Size of the checkpoint file.", "topology")
        self.checkpoint_full = gauge(
            "mmlw_checkpoint_full",
            "1 while the disk has no room for the checkpoint: nothing is read.",
            "topology",
        )
        self.blocked = gauge(
            "mmlw_broker_blocked",
            "1 while the broker takes no messages (a memory or disk alarm): nothing is read.",
            "topology",
        )
        self.model = gauge(
            "mmlw_model_info",
            "1 for the model that scores now.",
            "topology",
            "detector",
            "name",
            "version",
            "digest",
            "kind",
        )
        self.swaps = counter(
            "mmlw_swaps_total", "Model swaps asked for, by outcome.", "topology", "detector", "status"
        )
        self.commands = counter(
            "mmlw_commands_total", "Control commands, by verb and outcome.", "topology", "verb", "status"
        )
        self.undelivered = counter(
            "mmlw_receipts_undelivered_total",
            "Answers to commands that could not be given, by reason.",
            "topology",
            "reason",
        )
        self.captured = counter(
            "mmlw_capture_rows_total", "Readings captured with their scores, by commit.", "topology"
        )
        self.capture_bytes = counter(
            "mmlw_capture_bytes_total", "Bytes of Parquet files written by capture.", "topology"
        )
        self.capture_failures = counter(
            "mmlw_capture_file_failures_total",
            "Attempts to make or remove a file of a capture that failed; tried again every few seconds.",
            "topology",
        )
        self.capture_dropped = counter(
            "mmlw_capture_dropped_total", "Readings processed that could not be captured.", "topology"
        )
        self.shadow_version = gauge(
            "mmlw_shadow_version",
            "Version of the model that runs as a shadow; 0: none.",
            "topology",
            "detector",
        )
        self.shadow_readings = gauge(
            "mmlw_shadow_readings",
            "Readings compared since the shadow began, by who called them anomalous.",
            "topology",
            "detector",
            "anomalous",
        )
        self.shadow_agreement = gauge(
            "mmlw_shadow_agreement",
            "Share of readings that champion and shadow judge alike, 0 to 1.",
            "topology",
            "detector",
        )
        self.shadow_kappa = gauge(
            "mmlw_shadow_kappa", "Cohen's kappa: agreement beyond chance.", "topology", "detector"
        )
        self.shadow_drift = gauge(
            "mmlw_shadow_drift",
            "Largest distance between the distributions of both scores, 0 to 1.",
            "topology",
            "detector",
        )
        self.shadow_alerts = gauge(
            "mmlw_shadow_alerts",
            "Alerts opened since the shadow began; the shadow's were not sent.",
            "topology",
            "detector",
            "model",
        )
        self.shadow_seconds = gauge(
            "mmlw_shadow_reading_seconds",
            "Mean time of a model for a reading since the shadow began.",
            "topology",
            "detector",
            "model",
        )
        self.shadows_dropped = counter(
            "mmlw_shadows_dropped_total", "Shadows that failed and were ended.", "topology", "detector"
        )
        self.rollbacks = counter(
            "mmlw_automatic_rollbacks_total",
            "Swaps taken back by the topology's own rule (rollback_when).",
            "topology",
            "detector",
        )
        self.labels = counter("mmlw_labels_total", "Labels that came, by what they say.", "topology", "label")
        self.label_quality = gauge(
            "mmlw_label_quality",
            "How good the alerts of late were by the labels that came; NaN where that is not known.",
            "topology",
            "detector",
            "metric",
        )
        self.retrain_triggers = counter(
            "mmlw_retrain_triggers_total",
            "Trainings that the topology's rule asked for, and whether they began or why not.",
            "topology",
            "detector",
            "trigger",
            "outcome",
        )
        self.retrainings = counter(
            "mmlw_retrain_results_total",
            "What came of trainings by rule: trained, failed; shadowed, promoted.",
            "topology",
            "detector",
            "outcome",
        )
        self.retrained_time = gauge(
            "mmlw_retrain_timestamp_seconds",
            "When the last training of a detector with a retrain rule succeeded; 0 before the first.",
            "topology",
            "detector",
        )
        self.alias_moves = counter(
            "mmlw_registry_events_total",
            "Moves of an alias that were followed by a swap, or by its refusal; by what had the registry asked.",
            "topology",
            "detector",
            "way",
        )
        self.polls_failed = counter(
            "mmlw_registry_polls_failed_total",
            "Times that the registry did not tell what a followed alias means.",
            "topology",
            "detector",
        )
        self.webhooks = counter(
            "mmlw_webhooks_total", "Requests to the address of MLflow's webhooks, by outcome.", "outcome"
        )
        for outcome in get_args(WebhookOutcome):
            self.webhooks.labels(outcome)
        self.consuming = gauge("mmlw_consuming", "1 while the source is being read.", "topology")
        self.paused = gauge("mmlw_paused", "1 while paused by command.", "topology")
        self.restarts = counter(
            "mmlw_restarts_total",
            "Starts from the checkpoint after a failure, by cause.",
            "topology",
            "cause",
        )
        self.info = gauge("mmlw_build_info", "1; the version is a label.", "version")

    def of(self, topology: str, detectors: Iterable[str]) -> TopologyMetrics:
        """The metrics with this topology's label; every child of a closed label set exists from now on."""
        return TopologyMetrics(self, topology, tuple(detectors))

    def dead_letters(self, topology: str) -> dict[str, int]:
        """How many messages of a topology became dead letters, by reason; only reasons that occurred."""
        counts = {reason: self.deadlettered.labels(topology, reason) for reason in get_args(Reason)}
        found = {reason: int(next(iter(c.collect())).samples[0].value) for reason, c in counts.items()}
        return {reason: count for reason, count in found.items() if count}

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class TopologyMetrics:
    """The metrics of one topology, labels bound. Children are created at once, so no panel says "no data"."""

    def __init__(self, metrics: Metrics, topology: str, detectors: tuple[str, ...]) -> None:
        self.received = metrics.received.labels(topology)
        self.processed = metrics.processed.labels(topology)
        self.gaps = metrics.gaps.labels(topology)
        self.decoded = metrics.decoded.labels(topology)
        self.machine_days = metrics.machine_days.labels(topology)
        self.machines = metrics.machines.labels(topology)
        self.resident = metrics.resident.labels(topology)
        self.replaced = metrics.replaced.labels(topology)
        self.checkpoint_full = metrics.checkpoint_full.labels(topology)
        self.blocked = metrics.blocked.labels(topology)
        self.lag = metrics.lag.labels(topology)
        self.last_reading = metrics.last_reading.labels(topology)
        self.batch = metrics.batch.labels(topology)
        self.scored_latency = metrics.scored_latency.labels(topology)
        self.alert_latency = metrics.alert_latency.labels(topology)
        self.checkpoint_duration = metrics.checkpoint_duration.labels(topology)
        self.checkpoint_time = metrics.checkpoint_time.labels(topology)
        self.checkpoint_bytes = metrics.checkpoint_bytes.labels(topology)
        self.captured = metrics.captured.labels(topology)
        self.capture_bytes = metrics.capture_bytes.labels(topology)
        self.capture_failures = metrics.capture_failures.labels(topology)
        self.capture_dropped = metrics.capture_dropped.labels(topology)
        self.consuming = metrics.consuming.labels(topology)
        self.paused = metrics.paused.labels(topology)
        self._deadlettered = {r: metrics.deadlettered.labels(topology, r) for r in get_args(Reason)}
        self._dropped = {p: metrics.dropped.labels(topology, p) for p in get_args(Policy)}
        self._readings = {p: metrics.readings_dropped.labels(topology, p) for p in ("duplicate", "late")}
        self._unhealthy = {d: metrics.unhealthy.labels(topology, d) for d in detectors}
        self._alerts = {
            (d, e): metrics.alerts.labels(topology, d, e)
            for d in detectors
            for e in ("opened", "updated", "closed")
        }
        self._health_alerts = {
            (a, e): metrics.health_alerts.labels(topology, a, e)
            for a in get_args(Ailment)
            for e in ("opened", "closed")
        }
        self._sick = {a: metrics.sick.labels(topology, a) for a in get_args(Ailment)}
        self._masked = metrics.masked.labels(topology)
        self._scored = {d: metrics.scored.labels(topology, d) for d in detectors}
        self._warming = {d: metrics.machines_warming.labels(topology, d) for d in detectors}
        self._open = {d: metrics.alerts_open.labels(topology, d) for d in detectors}
        self._metrics = metrics
        self._topology = topology
        self._models: dict[str, tuple[str, ...]] = {}
        for detector in detectors:
            for status in ("applied", "refused"):
                metrics.swaps.labels(topology, detector, status)
            metrics.shadows_dropped.labels(topology, detector)
            metrics.rollbacks.labels(topology, detector)
            metrics.polls_failed.labels(topology, detector)
            for way in get_args(Way):
                metrics.alias_moves.labels(topology, detector, way)
            self.compared(detector, None, None)
            metrics.retrained_time.labels(topology, detector)
            for trigger in _TRIGGERS:
                for outcome in get_args(TriggerOutcome):
                    metrics.retrain_triggers.labels(topology, detector, trigger, outcome)
            for result in get_args(TrainingResult):
                metrics.retrainings.labels(topology, detector, result)
            for name in get_args(QualityMetric):
                metrics.label_quality.labels(topology, detector, name).set(math.nan)
        for label in _LABELS:
            metrics.labels.labels(topology, label)
        for verb in (*_VERBS, "unknown"):
            for status in ("applied", "refused"):
                metrics.commands.labels(topology, verb, status)
        for status in ("failed", "cancelled"):
            metrics.commands.labels(topology, "train", status)
        for undelivered in get_args(Undelivered):
            metrics.undelivered.labels(topology, undelivered)
        for cause in get_args(Cause):
            metrics.restarts.labels(topology, cause)

    def deadlettered(self, reason: str, count: int = 1) -> None:
        """Count messages that became dead letters for this reason (one of `Reason`)."""
        self._deadlettered[reason].inc(count)

    def passed_over(self, policy: str, count: int = 1) -> None:
        """Count messages without effect under this policy (one of `Policy`)."""
        self._dropped[policy].inc(count)

    def dropped_readings(self, policy: str, count: int) -> None:
        """Count readings without effect under this policy, `duplicate` or `late`."""
        self._readings[policy].inc(count)

    def unhealthy(self, detector: str) -> None:
        """Count a reading for which a detector gave no finite score."""
        self._unhealthy[detector].inc()

    def scored(self, detector: str, count: int) -> None:
        """Count readings scored by this detector."""
        self._scored[detector].inc(count)

    def alerted(self, detector: str, event: str) -> None:
        """Count a confirmed alert event; the detector may be one that the topology had before."""
        if (detector, event) not in self._alerts:
            self._alerts[detector, event] = self._metrics.alerts.labels(self._topology, detector, event)
        self._alerts[detector, event].inc()

    def told(self, alert: Alert) -> None:
        """Count a confirmed alert event, of a detector or of something sick."""
        if alert.type == PROCESS:
            self.alerted(alert.detector, alert.event)
        else:
            self.health_alerted(alert.type, alert.event)

    def open_alerts(self, detector: str, count: int) -> None:
        """Set how many alerts of this detector are open."""
        self._open[detector].set(count)

    def warming(self, detector: str, count: int) -> None:
        """Set how many machines this detector has not seen often enough."""
        self._warming[detector].set(count)

    def health_alerted(self, ailment: str, event: str) -> None:
        """Count a confirmed alert event about something sick."""
        self._health_alerts[ailment, event].inc()

    def sick(self, found: Mapping[Ailment, int]) -> None:
        """Set how many sensors, and machines, have each ailment."""
        for ailment, gauge in self._sick.items():
            gauge.set(found.get(ailment, 0))
        of_machines = ("clock_skew", "machine_silent")
        self._masked.set(sum(count for ailment, count in found.items() if ailment not in of_machines))

    def active_model(self, detector: str, name: str, version: str, digest: str, kind: str) -> None:
        """Name the model that scores from now on, in place of the one before."""
        labels = (self._topology, detector, name, version, digest, kind)
        if old := self._models.get(detector):
            self._metrics.model.remove(*old)
        self._metrics.model.labels(*labels).set(1)
        self._models[detector] = labels

    def compared(self, detector: str, version: str | None, tally: Tally | None) -> None:
        """Set how a shadow of this version compares with its champion; None where there is none."""
        metrics, labels, found = self._metrics, (self._topology, detector), tally or Tally()
        metrics.shadow_version.labels(*labels).set(int(version or 0) if (version or "0").isdecimal() else 0)
        metrics.shadow_agreement.labels(*labels).set(found.agreement)
        metrics.shadow_kappa.labels(*labels).set(found.kappa)
        metrics.shadow_drift.labels(*labels).set(found.drift)
        counts = {
            "both": found.both,
            "neither": found.neither,
            "champion": found.champion_only,
            "shadow": found.shadow_only,
            "unscored": found.unscored,
        }
        for who, count in counts.items():
            metrics.shadow_readings.labels(*labels, who).set(count)
        for name, side in (("champion", found.champion), ("shadow", found.shadow)):
            metrics.shadow_alerts.labels(*labels, name).set(side.alerts)
            metrics.shadow_seconds.labels(*labels, name).set(side.seconds / max(found.readings, 1))

    def shadow_dropped(self, detector: str) -> None:
        """Count a shadow that failed."""
        self._metrics.shadows_dropped.labels(self._topology, detector).inc()

    def rolled_back(self, detector: str) -> None:
        """Count a swap that the topology's rule took back."""
        self._metrics.rollbacks.labels(self._topology, detector).inc()

    def labelled(self, label: str) -> None:
        """Count a label."""
        self._metrics.labels.labels(self._topology, label).inc()

    def quality(self, detector: str, metric: QualityMetric, value: float) -> None:
        """Set how good the alerts of a detector were by their labels."""
        self._metrics.label_quality.labels(self._topology, detector, metric).set(value)

    def retrain_asked(self, detector: str, trigger: str, outcome: TriggerOutcome) -> None:
        """Count what became of a trigger, `schedule`, `drift` or `quality`."""
        self._metrics.retrain_triggers.labels(self._topology, detector, trigger, outcome).inc()

    def retrained(self, detector: str, result: TrainingResult) -> None:
        """Count what came of a training by rule, or of the model that it gave."""
        self._metrics.retrainings.labels(self._topology, detector, result).inc()

    def last_trained(self, detector: str, time: float) -> None:
        """Set when a training succeeded last."""
        self._metrics.retrained_time.labels(self._topology, detector).set(time)

    def alias_moved(self, detector: str, way: Way) -> None:
        """Count an alias that moved and was followed."""
        self._metrics.alias_moves.labels(self._topology, detector, way).inc()

    def poll_failed(self, detector: str) -> None:
        """Count a look at the registry that it did not answer."""
        self._metrics.polls_failed.labels(self._topology, detector).inc()

    def swapped(self, detector: str, status: str) -> None:
        """Count a swap by outcome, `applied` or `refused`."""
        self._metrics.swaps.labels(self._topology, detector, status).inc()

    def commanded(self, verb: str, status: str) -> None:
        """Count a control command by outcome, `applied` or `refused`, of a training also `failed` or `cancelled`. A
        verb that there is none of is `unknown`."""
        self._metrics.commands.labels(self._topology, verb, status).inc()

    def undelivered(self, reason: Undelivered) -> None:
        """Count an answer that could not be given."""
        self._metrics.undelivered.labels(self._topology, reason).inc()

    def restarted(self, cause: Cause) -> None:
        """Count a start from the checkpoint after a failure."""
        self._metrics.restarts.labels(self._topology, cause).inc()
