"""Many sittings, one after the other, each written down as it ends, so that a campaign can be resumed."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from tests.rabbitmq_node import RabbitNode, rabbit_node
from tests.torture.hall import Mode
from tests.torture.sitting import Report, sit

__all__ = ["Campaign", "resumed", "run_campaign"]

_KILLS = 25
"""In one sitting."""
_SECONDS_A_KILL = 0.9
"""With the audit, before anything was measured."""


class Campaign(msgspec.Struct, kw_only=True):
    """So many kills over these modes, in turn. What is the same for a seed: readings, points, passages, pauses."""

    seed: int
    modes: tuple[Mode, ...]
    kills: int
    reports: list[Report] = []

    @property
    def done(self) -> int:
        """Kills so far."""
        return sum(sum(report.kills.values()) for report in self.reports)

    @property
    def seconds(self) -> float:
        """Time spent so far."""
        return sum(report.seconds for report in self.reports)

    @property
    def faults(self) -> Counter[str]:
        """What should be zero and is not."""
        return sum((Counter(report.found.faults) for report in self.reports), Counter[str]())


def resumed(asked: Campaign, results: Path) -> Campaign:
    """The campaign of a results file, with as many kills as asked for now. Raises SystemExit for another one."""
    past = msgspec.json.decode(results.read_bytes(), type=Campaign)
    if (past.seed, past.modes) != (asked.seed, asked.modes):
        raise SystemExit(f"{results} holds seed {past.seed}, {', '.join(past.modes)}: resume with those")
    past.kills = asked.kills
    return past


def run_campaign(campaign: Campaign, results: Path) -> None:
    """Sit until all kills are done. A sitting that found something keeps its files, and says where."""
    with rabbit_node() as node:
        while (missing := campaign.kills - campaign.done) > 0:
            number = len(campaign.reports)
            mode = campaign.modes[number % len(campaign.modes)]
            _estimate(campaign, missing)
            report = _sit(node, mode, seed=campaign.seed * 10_000 + number, kills=min(_KILLS, missing))
            campaign.reports.append(report)
            _write(campaign, results)


def _sit(node: RabbitNode, mode: Mode, *, seed: int, kills: int) -> Report:
    folder = Path(tempfile.mkdtemp(prefix="mmlw-torture-"))
    vhost = node.vhost()
    print(f"  {mode}, seed {seed}: {kills} kills", flush=True)
    report = asyncio.run(sit(node.url(vhost=vhost), folder, mode, seed=seed, kills=kills))
    if report.found.faults:
        print(f"  FOUND {report.found.faults}; files are in {folder}", flush=True)
    else:
        shutil.rmtree(folder)
    node.ctl("delete_vhost", vhost)
    return report


def _estimate(campaign: Campaign, missing: int) -> None:
    each = campaign.seconds / campaign.done if campaign.done else _SECONDS_A_KILL
    now = time.strftime("%H:%M:%S")
    print(
        f"{now} {campaign.done} kills done, {missing} to come: about {missing * each / 60:.0f} min",
        flush=True,
    )


def _write(campaign: Campaign, results: Path) -> None:
    """As a whole or not at all: a campaign may be interrupted at any moment, too."""
    fresh = results.with_suffix(".part")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(campaign)))
    fresh.replace(results)
