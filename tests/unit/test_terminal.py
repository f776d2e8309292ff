"""Tables of the command line: whole words at 80 columns, the terminal's width where there is more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from stream.cli import cli
from stream.references import ModelRef, ModelVersion
from stream.watch import show_audit

_WHY = (
    "out of order: issued 0.250 s before the last command that was carried out. Send it again with a new id"
)
_AUDIT = [
    {
        "at": f"2026-05-01T06:00:0{number}.250+00:00",
        "by": by,
        "verb": verb,
        "id": f"{number}a5f0c9d1e2b34f6789abcdef0123456",
        "status": status,
        "reason": reason,
        "digest": "",
    }
    for number, (by, verb, status, reason) in enumerate(
        [
            ("operator", "train", "running", None),
            ("operator", "train", "failed", _WHY),
            ("rollback_when", "rollback", "applied", "alerts: 12, at most 5 x before"),
            (None, "pa\x1b[31muse", "refused", "a sender who does not state a user_id is not on the list"),
        ]
    )
]


@pytest.mark.parametrize("width", [80, 200])
def test_audit_shows_ids_whole_and_breaks_between_words(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show_audit(_AUDIT)
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= width
    for line in _AUDIT:
        at = str(line["at"])[:19].replace("T", " ")
        [head] = [text for text in said if at in text]
        assert str(line["status"]) in head
        assert any(str(line["id"]) in text for text in said)
    assert set(_WHY.split()) <= {word for text in said for word in text.split()}
    assert not any("\x1b[31m" in text for text in said)
    assert len(said) <= (2 if width == 80 else 1) * len(_AUDIT) + 3
    assert any(len(text) > 80 for text in said) == (width == 200)


def versions(name: str) -> list[ModelVersion]:
    digest = f"sha256:{7:064x}"
    return [
        ModelVersion(
            number,
            aliases,
            1.7e9,
            "run",
            {},
            ModelRef(name, number, digest, "isolation_forest", f"models:/{name}/{number}"),
        )
        for number, aliases in ((12, ("challenger", "champion", "night")), (11, ()))
    ]


@pytest.mark.parametrize("width", [80, 200])
def test_list_of_models_breaks_nothing_but_between_aliases(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("pump-line-isolation-forest", "fan")
    registry: Any = SimpleNamespace(names=lambda: names, versions=versions)
    monkeypatch.setattr("stream.lineup.registry_of", lambda uri, data: registry)
    monkeypatch.setenv("COLUMNS", str(width))
    said = CliRunner().invoke(cli, ["models", "list"], catch_exceptions=False).output.splitlines()
    assert max(map(len, said)) <= width
    rows = [text.split() for text in said if "isolation_forest" in text]
    assert [row[-4:] for row in rows] == [
        ["isolation_forest", "2023-11-14", "22:13", "sha256:000000000000"]
    ] * 4
    words = {word.strip(",") for text in said for word in text.split()}
    assert {*names, "challenger", "champion", "night", "11", "12"} <= words
    assert len(rows[0]) == (9 if width == 200 else 6)


def test_width_without_a_terminal_is_no_narrow_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show_audit(_AUDIT)
    assert any(len(text) > 120 for text in capsys.readouterr().out.splitlines())
