"""What a topology must say before a model that is code may run."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream.config import dump_yaml, load
from stream.errors import ConfigError
from stream.references import Pin

PINNED = f"sha256:{7:064x}"
HEAD = "name: t\nsource: {sensors: [a, b]}\ndetectors:\n  d:\n    model: models:/m@champion\n"


def loaded(folder: Path, *lines: str) -> Path:
    file = folder / "t.yaml"
    file.write_text(HEAD + "".join(f"    {line}\n" for line in lines))
    return file


def test_one_digest_or_several_are_read_and_written(tmp_path: Path) -> None:
    said = (f"trust: {PINNED}", "anomalous: low", "method: score_samples", "threshold: 0.6")
    topology = load(loaded(tmp_path, *said))
    assert topology.registry_models["d"].pin == Pin((PINNED,), "score_samples", "low", 0.6)
    again = tmp_path / "again.yaml"
    again.write_text(dump_yaml(topology))
    assert load(again) == topology
    several = load(loaded(tmp_path, f"trust: [{PINNED}, sha256:{8:064x}]", "anomalous: high", "threshold: 1"))
    assert len(several.registry_models["d"].pin.digests) == 2


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            ("trust: sha256:abc", "anomalous: low", "threshold: 1"),
            r"detectors.d.trust: \"sha256:abc\" is not",
        ),
        ((f"trust: {PINNED}", "threshold: 1"), "detectors.d.anomalous: say high or low"),
        ((f"trust: {PINNED}", "anomalous: low"), "detectors.d: threshold is missing|detectors.d.*threshold"),
        ((f"trust: {PINNED}", "anomalous: lowest", "threshold: 1"), "expected one of high, low"),
    ],
)
def test_what_is_missing_is_told(tmp_path: Path, lines: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(loaded(tmp_path, *lines))
