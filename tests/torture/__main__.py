"""Kill workers for real, by the hundred: `python -m tests.torture --kills 500 --mode both --seed 1 [--resume]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stream import log
from tests.torture.campaign import Campaign, resumed, run_campaign
from tests.torture.hall import MODES, Mode
from tests.torture.table import table

_CHOICES: dict[str, tuple[Mode, ...]] = {"stream": ("stream",), "queue": MODES[1:], "both": MODES}


def main() -> int:
    """0 when every figure that must be zero is."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--mode", choices=list(_CHOICES), default="both", help="what the workers read")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on with the kills of --results")
    parser.add_argument("--results", type=Path, default=Path("mmlw-torture.json"), help="written as it goes")
    given = parser.parse_args()
    log.configure(level="error")
    campaign = Campaign(seed=given.seed, modes=_CHOICES[given.mode], kills=given.kills)
    if given.resume and given.results.exists():
        campaign = resumed(campaign, given.results)
    try:
        run_campaign(campaign, given.results)
    except KeyboardInterrupt:
        print(f"stopped; go on with --resume --results {given.results}")
        return 1
    print(table(campaign))
    print(f"written to {given.results}")
    return 1 if campaign.faults or campaign.done < campaign.kills else 0


if __name__ == "__main__":
    sys.exit(main())
