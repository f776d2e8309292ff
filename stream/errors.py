"""Every error this package raises on purpose.

MmlwError
├── ConfigError          a topology file or setting is wrong; carries every problem found
├── BrokerError          the message broker
│   ├── BrokerUnreachable    nothing answers, or the connection was lost: worth another try
│   │   └── BrokerBlocked        it takes no messages for now: out of memory or disk
│   ├── BrokerRefused        wrong password, missing permission, conflicting declaration: a person must act
│   │   └── BrokerMissing    an exchange or queue that does not exist
│   ├── Stalled              connected, but nothing is delivered although there is something to read
│   └── Unroutable           a mandatory message found no queue
├── ModelError           the registry or a model
│   ├── ModelNotFound        no such name, version or alias
│   ├── ModelRejected        found, but not usable: wrong digest, sensors, kind or content
│   │   └── ForeignModel         no weights of ours: code, which runs only where it is pinned
│   ├── RegistryUnreachable  the registry does not answer
│   └── TrainingCancelled    a training that was ended by command
├── CheckpointError      the checkpoint file is damaged, or belongs to something else
│   └── CheckpointFull       the disk is full: reading waits until there is room
├── CommandRefused       a control command that will not be carried out, with the reason
└── ReadingRejected      a message that cannot be used; becomes a dead letter, never leaves the engine

A message says what happened, where, and what to do now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "BrokerBlocked",
    "BrokerError",
    "BrokerMissing",
    "BrokerRefused",
    "BrokerUnreachable",
    "CheckpointError",
    "CheckpointFull",
    "CheckpointUnproven",
    "CommandRefused",
    "ConfigError",
    "ForeignModel",
    "MmlwError",
    "ModelError",
    "ModelNotFound",
    "ModelRejected",
    "Problem",
    "ReadingRejected",
    "RegistryUnreachable",
    "Stalled",
    "TrainingCancelled",
    "Unroutable",
    "first_error",
]


class MmlwError(Exception):
    """Root of the tree: catching it catches everything below."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration, where it stands and what would mend it."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class ConfigError(MmlwError):
    """One or more problems in a topology file or a setting, all found in one pass."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class BrokerError(MmlwError):
    """The message broker did not do what was asked."""


class BrokerUnreachable(BrokerError):
    """Nothing answers at the broker's address, or the connection was lost."""


class BrokerBlocked(BrokerUnreachable):
    """The broker takes no messages from this connection and said so (`connection.blocked`)."""


class BrokerRefused(BrokerError):
    """The broker answered and said no: password, permission or a declaration that conflicts."""


class BrokerMissing(BrokerRefused):
    """An exchange or queue that is named does not exist on the broker."""


class Stalled(BrokerError):
    """The source holds messages and delivers none: worth a new connection."""


class Unroutable(BrokerError):
    """A mandatory message matched no queue: bind one, or let the topology declare its own."""


class ModelError(MmlwError):
    """The registry or a model in it."""


class ModelNotFound(ModelError):
    """No such model name, version or alias."""


class ModelRejected(ModelError):
    """The model was found and must not be used: digest, sensors, kind or content do not fit."""


class ForeignModel(ModelRejected):
    """The model was found and holds no weights of ours."""


class RegistryUnreachable(ModelError):
    """The model registry does not answer."""


class TrainingCancelled(ModelError):
    """A training was ended by command; the registry has nothing of it."""


class CheckpointError(MmlwError):
    """The checkpoint file is damaged, or was written for another topology or stream."""


class CheckpointUnproven(CheckpointError):
    """A checkpoint that can be read, but lost commits, or is another or older one, or may be."""


class CheckpointFull(CheckpointError):
    """There is no room on the disk for the checkpoint: make some, reading then goes on by itself."""


class CommandRefused(MmlwError):
    """A control command that will not be carried out; the text is the receipt's reason."""


class ReadingRejected(MmlwError):
    """A message that cannot be used. `reason` is one of a closed set of labels, `detail` is for people: printable,
    at most 300 characters, whatever stood in the message or in a detector's complaint."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        if not detail.isprintable():
            detail = "".join(c if c.isprintable() else "?" for c in detail[:300])
        self.detail = detail if len(detail) <= 300 else f"{detail[:299]}…"
        super().__init__(f"{reason}: {self.detail}")


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception in a group, however deep; a task group wraps even a single one."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
