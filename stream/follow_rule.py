"""Whether a batch detector follows the alias that its model names: the settings of `follow:`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import structs

from stream.settings import Seconds, Settings, refuse

__all__ = ["Follow"]

_LEAST = 0.1


class Follow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the alias moves in the registry, the model is swapped, as by command."""

    poll: Seconds = 60.0
    """How often the registry is asked what the alias means. A webhook has it asked at once."""

    def __post_init__(self) -> None:
        refuse(self.check(structs.asdict(self)))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        if settings.get("poll", 1.0) < _LEAST:
            yield f"poll: must be at least {_LEAST * 1000:.0f}ms; a webhook has the registry asked at once"
