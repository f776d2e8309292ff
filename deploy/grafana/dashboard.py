"""Write the Grafana dashboard: python deploy/grafana/dashboard.py

It is a list of panels, read top to bottom as on the screen. The result, dashboards/mmlw.json, is committed; a test
asks that this file still writes the same bytes and that every query finds data in a real Prometheus.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common as look
from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = ["PATH", "build", "text"]

PATH = Path(__file__).resolve().parent / "dashboards" / "mmlw.json"
SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="prometheus")
"""The data source of provisioning/datasources/prometheus.yml."""

CHOSEN = 'topology=~"$topology"'
AGE = f"time() - max by (topology) (mmlw_checkpoint_timestamp_seconds{{{CHOSEN}}} > 0)"
UNSETTLED = " - ".join(
    f"sum by (topology) (mmlw_messages_{name}_total{{{CHOSEN}}})"
    for name in ("received", "processed", "deadlettered", "passed_over")
)

Query = tuple[str, str]
"""An expression and the legend of its series."""
Levels = tuple[tuple[float | None, str], ...]
"""From which value on a figure has which colour."""

PLAIN: Levels = ((None, "green"),)
ZERO_IS_BAD: Levels = ((None, "red"), (1, "green"))
ONE_IS_ODD: Levels = ((None, "green"), (1, "orange"))
ONE_IS_BAD: Levels = ((None, "green"), (1, "red"))
LAGGING: Levels = ((None, "green"), (1_000, "orange"), (10_000, "red"))


def panels() -> Iterator[Any]:
    """Rows and panels, in reading order."""
    yield board.Row("Now")
    yield figure(
        "Reading",
        "Whether the source is being read.",
        total("mmlw_consuming"),
        levels=ZERO_IS_BAD,
        words=("stopped", "reading"),
    )
    yield figure(
        "Paused",
        "By an operator's command.",
        total("mmlw_paused"),
        levels=ONE_IS_ODD,
        words=("running", "paused"),
    )
    yield figure(
        "Readings/s", "Decoded; a message can carry many.", rate("mmlw_readings_decoded_total"), unit="reqps"
    )
    yield figure("Lag", "Messages not yet processed.", total("mmlw_lag_messages"), levels=LAGGING)
    yield figure("Machines", "Machines with state.", total("mmlw_machines"))
    yield figure("Open alerts", "Of all detectors.", total("mmlw_alerts_open"), levels=ONE_IS_ODD)
    yield figure("Checkpoint age", "It grows while nothing arrives, too.", (AGE, "{{topology}}"), unit="s")
    yield figure(
        "Offsets lost",
        "Removed by retention before they were read, since the worker started.",
        total("mmlw_offsets_lost_total"),
        levels=ONE_IS_BAD,
    )

    yield board.Row("Readings")
    decoded, scored = rate("mmlw_readings_decoded_total"), rate("mmlw_readings_scored_total", "detector")
    yield graph("Readings/s", "Decoded, and scored by each detector.", decoded, scored, unit="reqps", width=6)
    yield graph(
        "Messages/s",
        "Received, and those whose effect is in the checkpoint. The rest are dead letters, or come again.",
        rate("mmlw_messages_received_total", name="received"),
        rate("mmlw_messages_processed_total", name="processed"),
        unit="cps",
        width=6,
    )
    waiting = total("mmlw_lag_messages")
    yield graph("Lag", "Messages in the source that are not yet processed.", waiting, width=6)
    yield graph(
        "Batch size",
        "Readings in a batch: small ones when the worker keeps up.",
        *halves("mmlw_batch_readings"),
        width=6,
    )
    yield graph(
        "Latency until scored",
        "From receipt of a message until it is scored.",
        *halves("mmlw_scored_latency_seconds"),
        unit="s",
    )
    yield graph(
        "Latency until the alert is confirmed",
        "From receipt of a message until RabbitMQ has confirmed its alert.",
        *halves("mmlw_alert_latency_seconds"),
        unit="s",
    )
    yield graph(
        "Dead letters by reason",
        "Messages that could not be used.",
        rate("mmlw_messages_deadlettered_total", "reason"),
        unit="cps",
    )

    yield board.Row("Alerts")
    events = rate("mmlw_alerts_total", "detector", "event")
    yield graph(
        "Alert events/s by detector",
        "Opened, updated and closed, each confirmed by RabbitMQ.",
        events,
        unit="cps",
        width=8,
    )
    yield graph("Open alerts", "By detector.", total("mmlw_alerts_open", "detector"), width=8)
    yield graph(
        "Alerts opened per machine and day",
        "Over the last day: hold it against the budget of the alert rule.",
        realised_rate(),
        width=8,
    )
    yield graph(
        "Sick now",
        "Sensors and machines by what ails them, and sensors that no detector sees for that.",
        total("mmlw_health_alerts_open", "type"),
        total("mmlw_sensors_masked", name="masked"),
        width=12,
    )
    yield graph(
        "Sick sensors and machines told",
        "Alert events in five minutes, each confirmed by RabbitMQ.",
        grown("mmlw_health_alerts_total", "type", "event"),
        width=12,
    )

    yield board.Row("Models and commands")
    yield models(width=12)
    yield graph("Swaps", "In five minutes.", grown("mmlw_swaps_total", "detector", "status"), width=6)
    yield graph(
        "Commands",
        "In five minutes; and answers that could not be given.",
        grown("mmlw_commands_total", "verb", "status"),
        grown("mmlw_receipts_undelivered_total", "reason"),
        width=6,
    )
    yield graph(
        "Aliases followed",
        "In five minutes: moves, by what had the registry asked; and times that it did not answer.",
        grown("mmlw_registry_events_total", "detector", "way"),
        grown("mmlw_registry_polls_failed_total", "detector"),
        width=12,
    )
    yield graph(
        "Webhooks",
        "In five minutes: requests to the workers' address of MLflow's webhooks, by outcome; all topologies.",
        ("sum by (outcome) (increase(mmlw_webhooks_total[5m]))", "{{outcome}}"),
        width=12,
    )

    yield board.Row("Shadows")
    yield graph("Shadow's version", "0: none runs.", total("mmlw_shadow_version", "detector"))
    yield graph(
        "Agreement, drift",
        "Share of readings judged alike, Cohen's kappa, and the distance between the distributions of scores.",
        total("mmlw_shadow_agreement", "detector", name="agreement"),
        total("mmlw_shadow_kappa", "detector", name="kappa"),
        total("mmlw_shadow_drift", "detector", name="drift"),
    )
    yield graph(
        "Readings by who calls them anomalous",
        "Since the shadow began.",
        total("mmlw_shadow_readings", "detector", "anomalous"),
    )
    yield graph(
        "Alerts beside each other",
        "Opened since the shadow began; the shadow's were not sent.",
        total("mmlw_shadow_alerts", "detector", "model"),
    )
    yield graph(
        "Time for a reading",
        "Of each model, the mean since the shadow began.",
        total("mmlw_shadow_reading_seconds", "detector", "model"),
        unit="s",
    )
    yield graph(
        "Shadows dropped, swaps taken back",
        "In five minutes: shadows that failed; swaps that the topology's own rule took back.",
        grown("mmlw_shadows_dropped_total", "detector"),
        grown("mmlw_automatic_rollbacks_total", "detector"),
    )

    yield board.Row("Retraining")
    yield graph(
        "Quality by labels",
        "Precision, recall and F1 of the alerts of late, as far as somebody said what they were.",
        (
            f'max by (topology, detector, metric) (mmlw_label_quality{{{CHOSEN}, metric!="false_alarms_per_day"}})',
            legend(("detector", "metric")),
        ),
    )
    yield graph(
        "False alarms a day, labels",
        "Said to be false, of all machines together; and labels that came in five minutes.",
        (
            f'max by (topology, detector) (mmlw_label_quality{{{CHOSEN}, metric="false_alarms_per_day"}})',
            legend(("detector",)),
        ),
        grown("mmlw_labels_total", "label"),
    )
    yield graph(
        "Trainings asked for",
        "In five minutes, by what asked: begun, or held back and why.",
        grown("mmlw_retrain_triggers_total", "detector", "trigger", "outcome"),
    )
    yield graph(
        "What came of them",
        "In five minutes: models trained, failures, challengers that became shadows and were promoted.",
        grown("mmlw_retrain_results_total", "detector", "outcome"),
        width=12,
    )
    yield graph(
        "Age of the last training",
        "Of detectors that are trained by rule.",
        (
            f"time() - max by (topology, detector) (mmlw_retrain_timestamp_seconds{{{CHOSEN}}} > 0)",
            legend(("detector",)),
        ),
        unit="s",
        width=12,
    )

    yield board.Row("State")
    yield graph(
        "Checkpoint duration", "One transaction.", *halves("mmlw_checkpoint_duration_seconds"), unit="s"
    )
    yield graph(
        "Checkpoint age",
        "Since the last commit. It grows while nothing arrives.",
        (AGE, "{{topology}}"),
        unit="s",
    )
    yield graph("Checkpoint size", "The file below --data.", total("mmlw_checkpoint_bytes"), unit="bytes")
    yield graph("Restarts from the checkpoint", "In five minutes.", grown("mmlw_restarts_total", "cause"))
    yield graph(
        "Reading, paused, disk full, blocked",
        "1 is yes. Nothing is read while the disk has no room for the checkpoint, or RabbitMQ takes no messages.",
        total("mmlw_consuming", name="reading"),
        total("mmlw_paused", name="paused"),
        total("mmlw_checkpoint_full", name="disk full"),
        total("mmlw_broker_blocked", name="blocked"),
    )
    yield graph(
        "Offsets lost, streams made anew",
        "Lost to retention; streams of ours that were deleted, with what they held unread.",
        total("mmlw_offsets_lost_total", name="lost"),
        total("mmlw_streams_replaced_total", name="made anew"),
    )

    yield board.Row("Care")
    yield graph(
        "Received and not settled",
        "Received - processed - dead letters - passed over: the batches at work, and 0 at rest. Nothing vanishes.",
        (UNSETTLED, "{{topology}}"),
        width=6,
    )
    yield graph(
        "Passed over",
        "Messages without effect: read again after a failure, or a duplicate or late as the source says.",
        total("mmlw_messages_passed_over_total", "policy"),
        width=6,
    )
    yield graph(
        "Readings dropped, detectors unhealthy",
        "In five minutes: duplicate and late readings; readings for which a detector gave no finite score.",
        grown("mmlw_readings_dropped_total", "policy"),
        grown("mmlw_detector_unhealthy_total", "detector"),
        width=6,
    )
    yield graph(
        "Machines known, in memory, warming up",
        "The others wait in the checkpoint until they send again. While it warms up a machine raises no alert.",
        total("mmlw_machines", name="known"),
        total("mmlw_machines_resident", name="in memory"),
        total("mmlw_machines_warming", "detector", name="warming up"),
        width=6,
    )
    yield graph(
        "Captured readings/s",
        "Written to Parquet with their scores, where the topology says `capture`; those that could not be written.",
        rate("mmlw_capture_rows_total", name="written"),
        rate("mmlw_capture_dropped_total", name="dropped"),
        rate("mmlw_capture_file_failures_total", name="failures to make a file"),
        unit="reqps",
        width=12,
    )
    yield graph(
        "Captured bytes/s", "Of finished files.", rate("mmlw_capture_bytes_total"), unit="Bps", width=12
    )

    yield board.Row("RabbitMQ")
    queues = '{vhost="/", queue=~"mmlw[.].+"}'
    yield graph(
        "Queue depth",
        "A stream counts all that it keeps; what waits in it is the lag above.",
        (f"sum by (queue) (rabbitmq_detailed_queue_messages{queues})", "{{queue}}"),
        width=6,
    )
    yield graph(
        "Consumers",
        "Each queue of readings and of commands needs one. On readings, a second measures the lag for moments; "
        "one that was killed may stay counted.",
        (f"sum by (queue) (rabbitmq_detailed_queue_consumers{queues})", "{{queue}}"),
        width=6,
    )
    yield graph(
        "Connections",
        "Of machines, workers and consumers together.",
        ("sum(rabbitmq_connections)", "connections"),
        ("sum(rabbitmq_channels)", "channels"),
        width=6,
    )
    yield graph(
        "Memory and disk",
        "When memory reaches its limit, or free disk falls to its own, RabbitMQ holds back publishers.",
        ("rabbitmq_process_resident_memory_bytes", "memory used"),
        ("rabbitmq_resident_memory_limit_bytes", "memory limit"),
        ("rabbitmq_disk_space_available_bytes", "disk free"),
        ("rabbitmq_disk_space_available_limit_bytes", "disk limit"),
        unit="bytes",
        width=6,
    )


def total(metric: str, *by: str, name: str = "") -> Query:
    """A gauge or a count as it stands, by topology and these labels."""
    return f"sum by ({labels(by)}) ({metric}{{{CHOSEN}}})", legend(by, name)


def rate(metric: str, *by: str, name: str = "") -> Query:
    """A counter's growth each second."""
    return f"sum by ({labels(by)}) (rate({metric}{{{CHOSEN}}}[$__rate_interval]))", legend(by, name)


def grown(metric: str, *by: str) -> Query:
    """A counter's growth in five minutes: for what is rare."""
    return f"sum by ({labels(by)}) (increase({metric}{{{CHOSEN}}}[5m]))", legend(by)


def realised_rate() -> Query:
    """Alerts opened in the last day for each day that a machine was watched."""
    opened = f'sum by (topology) (increase(mmlw_alerts_total{{{CHOSEN}, event="opened"}}[1d]))'
    return f"{opened} / sum by (topology) (increase(mmlw_machine_days_total{{{CHOSEN}}}[1d]))", legend(())


def halves(histogram: str) -> tuple[Query, Query]:
    """The median and the 99th percentile of a histogram."""
    rates = f"sum by (topology, le) (rate({histogram}_bucket{{{CHOSEN}}}[$__rate_interval]))"
    return (
        (f"histogram_quantile(0.5, {rates})", legend((), "p50")),
        (f"histogram_quantile(0.99, {rates})", legend((), "p99")),
    )


def labels(by: Iterable[str]) -> str:
    """Topology and these, for `sum by`."""
    return ", ".join(("topology", *by))


def legend(by: Iterable[str], name: str = "") -> str:
    """Topology, these labels' values and a fixed name."""
    return " ".join([*(f"{{{{{label}}}}}" for label in ("topology", *by)), *([name] if name else [])])


def figure(
    title: str,
    explanation: str,
    query: Query,
    *,
    unit: str = "short",
    levels: Levels = PLAIN,
    words: tuple[str, ...] = (),
) -> Any:
    """A number for each topology; `words` stand for 0 and 1."""
    panel = stat.Panel().title(title).description(explanation).datasource(SOURCE)
    panel.unit(unit).span(3).height(4)
    panel.reduce_options(look.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.graph_mode(common.BigValueGraphMode.NONE).color_mode(common.BigValueColorMode.VALUE)
    steps = [dashboard.Threshold(value, color) for value, color in levels]
    panel.thresholds(board.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
    if words:
        named = {str(i): dashboard.ValueMappingResult(text=word, index=i) for i, word in enumerate(words)}
        panel.mappings([dashboard.ValueMap(options=named)])
    return asking(panel, [query])


def graph(title: str, explanation: str, *queries: Query, unit: str = "short", width: int = 8) -> Any:
    """Lines over time, a legend below."""
    panel = timeseries.Panel().title(title).description(explanation).datasource(SOURCE)
    panel.unit(unit).min(0).span(width).height(8).line_width(1).fill_opacity(8)
    panel.show_points(common.VisibilityMode.NEVER)
    below = look.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True).calcs([])
    panel.legend(below.placement(common.LegendPlacement.BOTTOM))
    all_at_once = look.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    panel.tooltip(all_at_once.sort(common.SortOrder.DESCENDING))
    return asking(panel, queries)


def models(width: int) -> Any:
    """The models that score now, one a line."""
    order = ("topology", "detector", "name", "version", "kind", "digest", "instance")
    columns = {
        "excludeByName": dict.fromkeys(("Time", "Value", "__name__", "job"), True),
        "indexByName": {name: index for index, name in enumerate(order)},
        "renameByName": {"name": "model"},
    }
    panel = table.Panel().title("Active models").datasource(SOURCE).span(width).height(8).show_header(True)
    panel.description(
        "What scores now: a registered version with its digest, or a detector that learns by itself."
    )
    query = (
        prometheus.Dataquery().expr(f"mmlw_model_info{{{CHOSEN}}}").instant().format(PromQueryFormat.TABLE)
    )
    panel.with_target(query.ref_id("A").datasource(SOURCE))
    return panel.with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=columns))


def asking(panel: Any, queries: Iterable[Query]) -> Any:
    """The panel with these queries, A, B and so on."""
    for letter, (expression, name) in zip(string.ascii_uppercase, queries, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(name).range()
        panel.with_target(query.ref_id(letter).datasource(SOURCE))
    return panel


def build() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    topology = board.QueryVariable("topology").label("Topology").datasource(SOURCE)
    topology.query({"query": "label_values(mmlw_consuming, topology)", "refId": "topology"})
    topology.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
    topology.sort(dashboard.VariableSort.ALPHABETICAL_ASC).multi(True).include_all(True).all_value(".+")
    topology.current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    whole = board.Dashboard("MMLW").uid("mmlw").tags(["mmlw"]).timezone("browser")
    whole.description("Anomaly detection on machine readings: what is read, scored, alerted and kept.")
    whole.time("now-1h", "now").refresh("10s").tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    whole.with_variable(topology)
    for panel in panels():
        if isinstance(panel, board.Row):
            whole.with_row(panel)
        else:
            whole.with_panel(panel)
    content: dict[str, Any] = pruned(json.loads(json.dumps(whole.build(), cls=JSONEncoder)))
    for number, panel in enumerate(content["panels"], start=1):
        panel["id"] = number
    return content


def pruned(value: Any) -> Any:
    """Without the nulls that stand for "not set". A threshold's null stays: it means minus infinity."""
    if isinstance(value, dict):
        return {
            k: pruned(v) for k, v in value.items() if v is not None or (k == "value" and "color" in value)
        }
    if isinstance(value, list):
        return [pruned(item) for item in value]
    return value


def text() -> str:
    """The file's content; the same for the same panels."""
    return json.dumps(build(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
