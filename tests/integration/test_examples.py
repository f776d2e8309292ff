"""The example for data scientists does what it says, from the first cell to the last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_model_lives_from_capture_to_rollback(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "life_of_a_model.py"), str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stdout
    assert "captured 21,600 readings" in told
    assert "promote   refused: promote_when is not met" in told
    assert "promote   applied: version 2 scores from offset 12960 on" in told
    assert "rollback  applied: version 1 scores from offset 17280 on" in told
    assert (tmp_path / "backtest.html").stat().st_size > 10_000
    assert list((tmp_path / "mmlw-data" / "capture" / "pumps").rglob("*.parquet"))
