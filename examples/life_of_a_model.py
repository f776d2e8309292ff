"""The life of a model, for a data scientist: capture, train, backtest, shadow, promote, roll back.

Run it whole (`python examples/life_of_a_model.py`, a minute or two, no server), or cell by cell in an editor that
knows `# %%`. Commands of `mmlw` are run as you would type them; what needs a running stream is done in Python,
on the broker that is part of the product.
"""

# %% What we need
from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from detectors import PCA, AdaptiveZ
from stream import log
from stream.capture_rule import CaptureRule
from stream.config import dump_yaml
from stream.embedded import at_work
from stream.gates import PromoteWhen
from stream.models import Registry
from stream.rules import AlertRule
from stream.shelf import Shelf
from stream.tables import Table
from stream.topology import RegistryModel, Sensor, Source, Topology

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="mmlw-life-"))
log.configure("console", "error")  # alerts, commands and swaps are log lines, too: "info" shows them
REGISTRY = f"sqlite:///{FOLDER.absolute()}/mlflow/registry.db"


def mmlw(*words: str) -> None:
    """A command, as in a terminal."""
    print(f"\n$ mmlw {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "stream", *words], cwd=FOLDER, check=True)


# %% A line of three pumps: a reading a minute. Load drives all four sensors, so they move together.
SENSORS = (
    Sensor("pressure_bar", unit="bar"),
    Sensor("flow_l_min", unit="l/min"),
    Sensor("vibration_mm_s", unit="mm/s"),
    Sensor("temperature_c", unit="°C"),
)
PUMPS = ("pump-1", "pump-2", "pump-3")
MINUTES_A_DAY = 24 * 60


def days(
    first: int, count: int, *, cautious: bool = False, leaks: bool = False
) -> tuple[Table, pd.DataFrame]:
    """Readings of so many days, and when something was wrong: `start,end,machine`.

    While the line is run in (`cautious`) its load is low. A leak costs a fifth of the flow for four hours: no
    sensor leaves its usual range, only their relation is wrong.
    """
    rng = np.random.default_rng(first)
    minutes = np.arange(first * MINUTES_A_DAY, (first + count) * MINUTES_A_DAY)
    times, parts, faults = pd.Timestamp("2024-05-01", tz="UTC") + pd.to_timedelta(minutes, unit="min"), [], []
    for pump in PUMPS:
        drift = np.cumsum(rng.normal(scale=0.004, size=len(minutes)))
        load = 0.5 + 0.25 * np.sin(2 * np.pi * minutes / MINUTES_A_DAY) + drift - drift.mean()
        load = np.clip(load * (0.4 if cautious else 1.0), 0.05, 1.0)
        noise = rng.normal(size=(len(minutes), 4))
        flow = 300 + 400 * load
        if leaks:
            start = int(rng.integers(6 * 60, (count - 1) * MINUTES_A_DAY))
            flow[start : start + 240] *= 0.8
            faults.append((times[start], times[start + 239], pump))
        columns = [8 + 4 * load, flow, 2 + 1.5 * load**2, 40 + 25 * load]
        parts.append(np.column_stack(columns) + noise * [0.1, 8.0, 0.05, 0.5])
    values = np.stack(parts, axis=1).reshape(-1, 4)  # minute by minute, pump by pump
    seconds = np.repeat(times.as_unit("ns").astype(np.int64).to_numpy() / 1e9, len(PUMPS))
    names = tuple(sensor.name for sensor in SENSORS)
    table = Table("pumps", names, list(PUMPS) * len(minutes), seconds, values, None)
    return table, pd.DataFrame(faults, columns=["start", "end", "machine"])


# %% 1  Capture. The line is watched by a detector that needs no training, and every reading is kept.
source = Source(sensors=SENSORS)
rule = AlertRule(hold=3, close_after=10)
own = AdaptiveZ(half_life=500, warmup=200)
watching = Topology(name="pumps", source=source, detectors={"own": own}, alert=rule, capture=CaptureRule())


async def capture() -> None:
    """The line runs for five days."""
    async with at_work(watching, data=FOLDER / "mmlw-data") as site:
        await site.publish("pumps", days(0, 2, cautious=True)[0])
        await site.publish("pumps", days(2, 3)[0])
    print(f"captured {site.recordings['pumps'].readings:,} readings below {FOLDER}/mmlw-data/capture/pumps")


FOLDER.mkdir(parents=True, exist_ok=True)
asyncio.run(capture())
mmlw("capture", "list", "pumps")

# %% 2  Train. One model for all pumps: the planes in which their sensors move together.
# The first version knows only the two days of running in; the second all five days.
type_of_pump = RegistryModel(
    model="models:/pump-pca@champion",
    fit=PCA(),
    promote_when=PromoteWhen(readings=3000, alerts="<= 0.5 x champion"),
)
topology = Topology(
    name="line",
    source=source,
    detectors={"own": own, "type": type_of_pump},
    alert=rule,
    capture=CaptureRule(),
)
(FOLDER / "line.yaml").write_text(dump_yaml(topology))
mmlw("check", "line.yaml")
captured = "mmlw-data/capture/pumps"
running_in = 2 * MINUTES_A_DAY * len(PUMPS)
mmlw("train", "line.yaml", "--from", captured, "--rows", str(running_in), "--registry", REGISTRY)
mmlw("train", "line.yaml", "--from", captured, "--registry", REGISTRY)
mmlw("models", "list", "--registry", REGISTRY)

# %% 3  Backtest. Three later days, with a leak at each pump: which version would have found them?
later, faults = days(5, 3, leaks=True)
frame = pd.DataFrame(later.values, columns=list(later.sensors))
frame.insert(0, "machine", later.machines)
frame.insert(0, "time", pd.to_datetime(later.times, unit="s", utc=True))
frame.to_csv(FOLDER / "later.csv", index=False)
faults.to_csv(FOLDER / "faults.csv", index=False)
labelled = ("--input", "later.csv", "--labels", "faults.csv", "--registry", REGISTRY)
mmlw("backtest", "line.yaml", *labelled, "--compare", "v1", "v2", "--report", "backtest.html")


# %% 4  Shadow, promote, roll back: while readings flow.
async def live() -> None:
    """The line runs for five days more, while models change."""
    shelf = Shelf(Registry(REGISTRY), FOLDER / "models")
    async with at_work(topology, data=FOLDER / "live", shelf=shelf) as site:
        await site.publish("line", days(8, 1)[0])
        begun = await site.command("line", "shadow", model="models:/pump-pca@challenger")
        print(f"\nshadow    version {begun['model']['version']} beside {begun['champion']['version']}")
        early = await site.command("line", "promote")
        print(f"promote   {early['status']}: {early.get('reason')}")
        await site.publish("line", days(9, 2)[0])
        compared = (await site.command("line", "status"))["shadows"]["type"]
        print(f"compared  {compared['window']}")
        promoted = await site.command("line", "promote")
        print(f"promote   {told(promoted)}")
        await site.publish("line", days(11, 1)[0])
        taken_back = await site.command("line", "rollback")
        print(f"rollback  {told(taken_back)}")
        await site.publish("line", days(12, 1)[0])


def told(receipt: dict[str, Any]) -> str:
    """A receipt in a line."""
    if receipt["status"] != "applied":
        return f"{receipt['status']}: {receipt.get('reason')}"
    model, partitions, pause = (receipt[name] for name in ("model", "partitions", "pause_s"))
    first = partitions["0"]["first_offset"]
    return f"applied: version {model['version']} scores from offset {first} on, pause {1000 * pause:.1f} ms"


asyncio.run(live())
mmlw("models", "list", "--registry", REGISTRY)
print(f"\nLook at {FOLDER / 'backtest.html'}")
