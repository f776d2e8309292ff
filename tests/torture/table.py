"""The figures of a campaign, for people."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.torture.campaign import Campaign
from tests.torture.sitting import Report

__all__ = ["table"]

_ROWS = {
    "readings": "messages published",
    "alerts": "alert events expected",
    "repeated": "  delivered more than once, before deduplication",
    "lost": "  lost",
    "spurious": "  spurious",
    "duplicates": "  duplicates after deduplication by id",
    "states": "machines whose state differs in a bit",
    "unlearned": "readings not learned from",
    "relearned": "readings learned from twice",
    "letters": "dead letters expected",
    "letters_repeated": "  delivered more than once, before deduplication",
    "letters_lost": "  lost",
    "letters_doubled": "  duplicates after deduplication by id",
    "swaps": "swaps asked for",
    "receipts_missing": "  receipts missing",
    "receipts_contradicting": "  receipts contradicting",
    "left": "messages left in the source, or out of order",
}


def table(campaign: Campaign) -> str:
    """Kills by point, and what the auditor found, a column for each mode."""
    columns = [[report for report in campaign.reports if report.mode == mode] for mode in campaign.modes]
    columns.append(campaign.reports)
    shown = Table("", *campaign.modes, "all")
    kills = [sum((Counter(report.kills) for report in reports), Counter[str]()) for reports in columns]
    _line(shown, "kills (SIGKILL)", [count.total() for count in kills])
    for point in sorted(kills[-1]):
        _line(shown, f"  {point.replace('_', ' ')}", [count[point] for count in kills])
    for name, text in _ROWS.items():
        _line(shown, text, [_total(reports, name) for reports in columns])
    spent = [sum(report.seconds for report in reports) for reports in columns]
    each = [f"{s / max(count.total(), 1):.2f}" for s, count in zip(spent, kills, strict=True)]
    shown.add_row("seconds a kill, with the audit", *each)
    for column in shown.columns[1:]:
        column.justify = "right"
    out = io.StringIO()
    Console(file=out, width=100).print(shown)
    faults = dict(campaign.faults)
    verdict = (
        f"FAULTS: {faults}" if faults else "all zeros: nothing lost, nothing doubled, every state bit-equal"
    )
    spent_min = campaign.seconds / 60
    return f"{out.getvalue()}{campaign.done} kills in {spent_min:.1f} min, seed {campaign.seed}: {verdict}"


def _line(shown: Table, text: str, figures: Sequence[int]) -> None:
    shown.add_row(text, *(f"{figure:,}" for figure in figures))


def _total(reports: Sequence[Report], name: str) -> int:
    return sum(int(getattr(report.found, name)) for report in reports)
