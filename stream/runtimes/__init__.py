"""Where a topology runs: `local`, one asyncio process."""
