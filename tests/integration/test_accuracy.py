"""A small part of `make accuracy`: the shipped topologies, scored before anything is learned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import accuracy


@pytest.mark.timeout(300)
def test_shipped_topologies_are_scored_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shuttle comes with river; NAB and SKAB only where the judge and its data lie beside the project."""
    report = tmp_path / "accuracy.html"
    monkeypatch.setattr("sys.argv", ["accuracy", "--files", "2", "--report", str(report)])
    monkeypatch.setattr(accuracy, "DRAWS", 20)
    monkeypatch.setattr(accuracy, "HALVES", 2)
    accuracy.main()
    told = capsys.readouterr().out
    auc = re.search(r"ROC AUC\s+(0\.\d+)", told)
    assert auc is not None
    assert float(auc[1]) > 0.99
    assert "shuttle_online" in report.read_text(encoding="utf-8")
    for corpus in ("nab", "skab"):
        assert (f"{corpus}: 2 files" in told) != (f"{corpus} is left out" in told)
        assert (f"{corpus}_auto: 2 files" in told) != (f"{corpus} is left out" in told)
    assert ("ARTime" in told) != ("nab is left out" in told)
