"""The first five minutes of a user: the demo and one's own CSV, without any server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stream.config import load


def mmlw(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "stream", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.timeout(240)
def test_demo_trains_runs_swaps_and_reports(tmp_path: Path) -> None:
    said = mmlw(tmp_path, "demo", "--rows", "12000").stdout
    assert "@champion = version 1" in said
    assert "@challenger = version 2" in said
    assert re.search(r"shuttle: 12,000 readings .* alerts opened", said)
    assert re.search(r"water_flow: 1,268 readings .* 3 alerts opened, 3 closed again", said)
    swap = re.search(r"swap applied: forest is version 2 from offset (\d+) on", said)
    assert swap is not None
    assert 6000 <= int(swap[1]) < 12000
    areas = [
        float(found) for found in re.findall(r"^ +(?:spike|examples|forest|level) +(0\.\d+)", said, re.M)
    ]
    assert len(areas) == 4
    assert min(areas) > 0.9
    page = (tmp_path / "mmlw-report.html").read_text()
    for part in ("Plotly.newPlot", "swap to v2", "alert opened", "threshold", "first_offset"):
        assert part in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page), "the page must need no other file"


def pumps(path: Path) -> None:
    rng = np.random.default_rng(1)
    n = 1500
    frame = pd.DataFrame(
        {
            "timestamp": pd.date_range("2026-01-01", periods=n, freq="min").repeat(2),
            "machine": ["pump-1", "pump-2"] * n,
            "pressure (bar)": rng.normal(3, 0.05, 2 * n),
            "line/2 flow": rng.normal(100, 2, 2 * n),
            "comment": "fine",
        }
    )
    frame.loc[2000:2040:2, "pressure (bar)"] = 5.0
    frame.to_csv(path, index=False)


@pytest.mark.timeout(240)
def test_try_finds_the_columns_writes_a_topology_and_a_report(tmp_path: Path) -> None:
    pumps(tmp_path / "My Pumps.csv")
    said = mmlw(tmp_path, "try", "My Pumps.csv").stdout
    assert 'time: column "timestamp"' in said
    assert 'machine: column "machine" (machines: 2)' in said
    assert "left out (not numbers): comment" in said
    assert re.search(r"opened +critical +pump-1 +pressure \(bar\) is high at 5.*spike: score", said)
    topology = load(tmp_path / "My Pumps.mmlw.yaml")
    assert topology.source.names == ("pressure (bar)", "line/2 flow")
    assert "pump-1: sensors" in (tmp_path / "My Pumps.mmlw.html").read_text()
    mmlw(tmp_path, "check", "My Pumps.mmlw.yaml")
    again = mmlw(tmp_path, "try", "My Pumps.csv").stdout
    assert "using the topology My Pumps.mmlw.yaml" in again
    path = tmp_path / "My Pumps.mmlw.yaml"
    trained = "detectors:\n  type: {model: models:/pumps@champion, fit: {kind: pca}}\n"
    path.write_text(path.read_text().replace("detectors:\n", trained))
    missing = mmlw(tmp_path, "try", "My Pumps.csv", check=False)
    assert (missing.returncode, "pumps" in missing.stderr) == (2, True)
    mmlw(tmp_path, "train", "My Pumps.mmlw.yaml", "--input", "My Pumps.csv", "--rows", "1500")
    assert re.search(r"opened .*type: score", mmlw(tmp_path, "try", "My Pumps.csv").stdout)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"", "cannot be read as CSV"),
        (b"time,name\n2026-01-01,x\n2026-01-02,y\n", "no column of numbers"),
        (b"time,a\n", "holds no rows"),
        (b"\x00\x01\x02\xff\xfe", "CSV"),
    ],
)
def test_try_says_in_one_line_what_is_wrong_with_a_file(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / "f.csv").write_bytes(content)
    done = mmlw(tmp_path, "try", "f.csv", check=False)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
