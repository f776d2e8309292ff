"""A model trained on features: fitted on what it will be shown live, registered, loaded by name, run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from stream.backtest import backtest, fresh_scorer
from stream.cli import cli
from stream.config import load
from stream.errors import ConfigError, ModelRejected
from stream.histories import read_history
from stream.models import Registry
from stream.shelf import Shelf

TOPOLOGY = """
name: pumps
source: {sensors: [pressure, flow]}
features:
  head: {ratio: [pressure, flow]}
  flow_mean: {of: flow, rolling: mean, window: 10}
  hour: {calendar: hour}
detectors:
  type: {model: models:/pumps@champion, inputs: [flow_mean, head], fit: {kind: pca}}
"""


def plant(n: int, *, seed: int) -> pd.DataFrame:
    """Pressure follows flow: only their ratio stays the same."""
    rng = np.random.default_rng(seed)
    flow = 40.0 + np.cumsum(rng.normal(0.0, 0.2, n))
    times = pd.date_range("2024-05-01", periods=n, freq="min").strftime("%Y-%m-%d %H:%M:%S")
    return pd.DataFrame({"time": times, "flow": flow, "pressure": flow / 10 + rng.normal(0, 0.01, n)})


@pytest.mark.timeout(240)
def test_model_is_trained_on_features_and_run_with_them(tmp_path: Path) -> None:
    file, data = tmp_path / "t.yaml", tmp_path / "data"
    file.write_text(TOPOLOGY)
    two = [plant(600, seed=seed).assign(machine=f"m{seed}") for seed in (1, 2)]
    pd.concat(two).sort_values("time", kind="stable").to_csv(tmp_path / "history.csv", index=False)
    arguments = ["train", str(file), "--input", str(tmp_path / "history.csv"), "--data", str(data)]
    with pytest.raises(ConfigError, match="has too few rows of a machine for flow_mean"):
        CliRunner().invoke(cli, [*arguments, "--rows", "15"], catch_exceptions=False)
    trained = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert trained.exit_code == 0, trained.output

    topology = load(file)
    registry = Registry(f"sqlite:///{data / 'mlflow' / 'registry.db'}")
    weights = registry.load(registry.resolve("models:/pumps@champion"))
    assert weights.sensors == ("flow_mean", "head")
    columns = [_columns(frame) for frame in two]
    assert topology.registry_models["type"].fit is not None
    expected = topology.registry_models["type"].fit.fit(_interleaved(columns))
    assert weights.threshold == pytest.approx(expected.threshold, rel=1e-9)
    for name, array in expected.arrays.items():
        np.testing.assert_allclose(weights.arrays[name], array, rtol=1e-6, atol=1e-9)

    live = plant(300, seed=3)
    live.loc[200:210, "pressure"] += 2.0
    live.to_csv(tmp_path / "live.csv", index=False)
    shelf = Shelf(registry, data / "models")
    outcome = backtest(fresh_scorer(topology, shelf), read_history(tmp_path / "live.csv", topology))
    opened = [alert for alert in outcome.alerts if alert.event == "opened"]
    assert 200 in {alert.position.offset for alert in opened}
    assert opened[-1].contributions[0].sensor == "head"
    again = ["backtest", str(file), "--input", str(tmp_path / "live.csv"), "--data", str(data)]
    assert "head is high" in CliRunner().invoke(cli, again, catch_exceptions=False).output

    file.write_text(TOPOLOGY.replace("head", "ratio"))
    with pytest.raises(ModelRejected, match="the topology lacks head; the model does not know ratio"):
        fresh_scorer(load(file), shelf)


def _columns(frame: pd.DataFrame) -> pd.DataFrame:
    """What the model is shown of one machine, without the product's table."""
    shown = {"flow_mean": frame["flow"].rolling(10).mean(), "head": frame["pressure"] / frame["flow"]}
    return pd.DataFrame(shown)


def _interleaved(parts: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
