"""Commands: what one holds, and everything for which one is refused before anything is done.

A command is decided once, under its id. The same command again is answered with its first receipt; another one
under that id is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec

from stream.errors import CommandRefused, ReadingRejected
from stream.predicting import Row
from stream.readings import epoch_seconds
from stream.state import ModelRows
from stream.training_data import TrainingOptions, TrainingSource
from stream.validation import suggest

__all__ = [
    "AGAIN",
    "CLOCK_SKEW",
    "MODEL_VERBS",
    "READ_ONLY",
    "VERBS",
    "Asked",
    "Command",
    "Docket",
    "Receipt",
    "Term",
    "ended",
    "largest",
    "limit",
]

Verb = Literal[
    "status",
    "audit",
    "predict",
    "swap",
    "rollback",
    "shadow",
    "promote",
    "pause",
    "resume",
    "accept",
    "train",
    "cancel",
    "label",
]
VERBS: tuple[Verb, ...] = get_args(Verb)
MODEL_VERBS: tuple[Verb, ...] = ("swap", "rollback", "shadow", "promote")
"""Verbs about the models of batch detectors."""
READ_ONLY: tuple[Verb, ...] = ("status", "audit", "predict")
"""Verbs that change nothing: they need neither a time nor an order."""
CLOCK_SKEW = 60.0
"""Seconds that an issuer's clock may be ahead of the worker's."""
_AHEAD = 5.0
"""Of these, seconds that are usual: a clock that is more ahead has an order of its own."""
_EXPIRES = 300.0
_LONGEST = 86_400.0
"""Seconds a command may be good for: by default, and at the most."""
_LARGEST = 16_384
"""Bytes of a command's body."""
_LARGEST_WITH_DATA = 8_388_608
"""Bytes of the body of a verb that brings readings along."""
_REMEDIES = {
    "train": 'train from the stream or a capture ("source": {"stream": {}} or {"capture": PATH}), or on fewer rows',
    "predict": "send fewer rows at a time",
}
"""Those verbs, with what to do instead of bringing more."""
_TAKES = {
    "model": ("swap", "shadow", "predict"),
    "digest": ("swap", "shadow"),
    "machine": ("accept", "label"),
    "stop": ("shadow",),
    "force": ("promote",),
    "alias": ("train",),
    "source": ("train",),
    "options": ("train",),
    "rows": ("predict",),
    "command": ("cancel",),
    "alert": ("label",),
    "label": ("label",),
    "since": ("label",),
    "until": ("label",),
    "learn": ("label",),
}
"""Verbs that take a field; the others do not."""
_CALLED = {"since": "from", "until": "to"}
"""Fields whose names are words of Python."""
_REMEMBERED = 10_000
"""Receipts of commands carried out, as many as the checkpoint keeps; and of refused ones a tenth of it."""

Receipt = dict[str, Any]
"""The answer to a command: `command` (its id), `verb`, `topology`, `status` (`applied` or `refused`; of a training
also `running`, and then `failed` or `cancelled`), and `reason` or what was done."""


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename=_CALLED):
    """The body of a command. Those of verbs that change something need `id` and `issued`; over HTTP both are
    made where they are missing."""

    id: str | None = None
    issued: str | int | float | None = None
    """When the issuer decided it: RFC 3339, or epoch seconds."""
    expires: float | None = None
    """Seconds after `issued` for which it is good."""
    detector: str | None = None
    """Which batch detector; may be left out where the topology has one. accept, label: whose alert; all where it is
    left out."""
    machine: str | None = None
    """accept: the machine whose open alert is normal from now on, and is learned. label: whose alert, or time."""
    model: str | None = None
    """swap, shadow: `models:/name@alias`, or `models:/name/version`."""
    digest: str | None = None
    """swap, shadow: the content that the model must have, `sha256:…`."""
    stop: bool = False
    """shadow: end the one that runs."""
    force: bool = False
    """promote: whatever `promote_when` says; it stands in the audit."""
    source: TrainingSource | None = None
    """train: the readings, `{"stream": {"from": …, "to": …}}`, `{"capture": PATH}` or `{"frame": {COLUMN: […]}}`."""
    alias: str | None = None
    """train: what to call the new version, `challenger` where it is left out."""
    options: TrainingOptions | None = None
    """train: `rows`, `newest`, `since`, `timeout`."""
    rows: list[Row] | None = None
    """predict: what to score."""
    command: str | None = None
    """cancel: the id of the command that began the training."""
    alert: str | None = None
    """label: the id of an alert."""
    label: str | None = None
    """label: of an alert `true` or `false`, of a time `anomaly` or `normal`."""
    since: str | int | float | None = None
    """label, `from`: when a machine was so; RFC 3339, or epoch seconds."""
    until: str | int | float | None = None
    """label, `to`."""
    learn: bool | None = None
    """label, of an alert that was none: whether it is learned, online and in the next training."""


def largest(verb: str) -> int:
    """Bytes that the body of such a command may have."""
    return _LARGEST_WITH_DATA if verb in _REMEDIES else _LARGEST


def limit(verb: str) -> str:
    """How large a command may be, and what to do with more."""
    remedy = f". Instead, {_REMEDIES[verb]}" if verb in _REMEDIES else ""
    return f"a command has at most {largest(verb)} bytes{remedy}"


AGAIN = 5.0
"""Seconds until what found no registry asks it again."""
Via = Literal["broker", "http", "worker"]
"""How a command came; `worker` for what the topology's own rules ask for, which nobody else can."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A command as it came, nothing of it believed yet."""

    verb: str
    body: bytes
    by: str | None
    """The user whom the broker verified, None where the sender did not state one; `http` for who had the token;
    the rule's name for what the topology's own rules ask for."""
    via: Via = "broker"
    id: str | None = None
    """The id of a command that brings none."""
    note: str | None = None
    """Why, for the audit: of what the topology's own rules ask for."""
    kept: ModelRows | None = None
    """What the checkpoint is to hold once it is decided (see `Changes.models`)."""

    @property
    def digest(self) -> str:
        """Of its body; empty for a body that is too large to be looked at."""
        return hashlib.sha256(self.body).hexdigest() if len(self.body) <= self.largest else ""

    @property
    def largest(self) -> int:
        """Bytes that its body may have."""
        return largest(self.verb)


@dataclass(frozen=True, slots=True)
class Term:
    """When a command was issued and until when it is good, in epoch seconds."""

    issued: float
    until: float

    def check(self, now: float) -> None:
        """Raises CommandRefused once it is over."""
        if now > self.until:
            good, late = self.until - self.issued, now - self.until
            raise CommandRefused(
                f"expired {late:.0f} s ago: it was good for {good:g} s. Send it again with a new id and time"
            )


class Docket:
    """A topology's commands that were decided, and by that what a further one may be.

    `receipts` are those of commands carried out, `audited` the last lines of the audit, both from the checkpoint.
    """

    def __init__(
        self,
        operators: Sequence[str],
        receipts: Mapping[str, Receipt],
        audited: Iterable[Mapping[str, Any]],
        now: float,
    ) -> None:
        self._operators = operators
        self._applied = {name: ended(receipt) for name, receipt in receipts.items()}
        self._refused: dict[str, Receipt] = {}
        self._last = self._fast = 0.0
        """When the last command of an operator was issued that was carried out: by clocks that are right, hardly
        after it was; and as it said, which only a clock that is as far ahead is held against."""
        for receipt in receipts.values():
            self._follow(receipt, now)
        for line in audited:
            if line.get("status") == "refused" and line.get("id") is not None:
                known = {"command": line["id"], "verb": line["verb"], "body": line["digest"]}
                self.refused({**known, "status": "refused", "reason": line["reason"]})

    def admit(self, asked: Asked) -> tuple[Command, str]:
        """The command and its id. Raises CommandRefused for an unknown issuer or verb, or a body that is none."""
        if asked.via == "broker" and asked.by not in self._operators:
            who = f'"{asked.by}"' if asked.by else "a sender who does not state a user_id"
            raise CommandRefused(f"{who} is not on this topology's list of operators")
        if asked.verb not in VERBS:
            raise CommandRefused(f'unknown command "{asked.verb[:64]}"{suggest(asked.verb[:64], VERBS)}')
        if len(asked.body) > asked.largest:
            raise CommandRefused(f"the body has {len(asked.body)} bytes; {limit(asked.verb)}")
        try:
            command = msgspec.json.decode(asked.body, type=Command)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise CommandRefused(f"the body is not a command: {str(error)[:200]}") from error
        name = asked.id if command.id is None else command.id
        if name is None or not 0 < len(name) <= 200 or not name.isprintable():
            raise CommandRefused("a command needs an id of 1 to 200 printable characters")
        return command, name

    def precedent(self, asked: Asked, name: str) -> Receipt | None:
        """The first receipt where this command was decided before. Raises CommandRefused for another one."""
        first = self.known(name)
        if first is None:
            return None
        if (first["verb"], first.get("body", asked.digest)) != (asked.verb, asked.digest):
            raise CommandRefused(f'the id "{name}" was used by another command; send this one with a new id')
        return {**first, "duplicate": True}

    def known(self, name: str) -> Receipt | None:
        """The receipt of a command that was decided."""
        return self._applied.get(name) or self._refused.get(name)

    def term(self, asked: Asked, command: Command, now: float) -> Term:
        """When it holds. Raises CommandRefused when it expired, comes from the future, or comes out of order."""
        for field, verbs in _TAKES.items():
            if asked.verb not in verbs and getattr(command, field) not in (None, False):
                raise CommandRefused(f'{asked.verb} takes no "{_CALLED.get(field, field)}"')
        if command.issued is not None:
            try:
                issued = round(epoch_seconds(command.issued), 6)  # microseconds, as RFC 3339 texts have them
            except ReadingRejected as error:
                raise CommandRefused(f'"issued": {error.detail}') from None
        elif asked.via != "broker":
            issued = max(now, self._last)
        else:
            raise CommandRefused('a command needs "issued": when it was decided, RFC 3339 or epoch seconds')
        lasts = _EXPIRES if command.expires is None else command.expires
        if not 0 < lasts <= _LONGEST:
            raise CommandRefused(f'"expires" must be above 0 and at most {_LONGEST:.0f} s after "issued"')
        term = Term(issued, issued + lasts)
        term.check(now)
        if issued > now + CLOCK_SKEW:
            raise CommandRefused(
                f"issued {issued - now:.0f} s in the future: set the clock of who sent it, or of this worker"
            )
        last = self._last if issued <= now + _AHEAD else self._fast
        if issued < last:
            raise CommandRefused(
                f"out of order: issued {last - issued:.3f} s before the last command that was carried out. "
                f"Send it again with a new id and time if it is still meant"
            )
        return term

    def applied(self, receipt: Receipt, now: float) -> None:
        """Remember a command that was carried out."""
        self._applied[receipt["command"]] = receipt
        self._follow(receipt, now)
        _forget(self._applied, _REMEMBERED)

    def _follow(self, receipt: Receipt, now: float) -> None:
        """Operators' commands have an order; what the worker did meanwhile by its own rules does not void them."""
        if receipt.get("via") != "worker":
            issued = float(receipt.get("issued", 0.0))
            self._last, self._fast = max(self._last, min(issued, now + _AHEAD)), max(self._fast, issued)

    def refused(self, receipt: Receipt) -> None:
        """Remember an operator's command that was refused, unless its id was used before."""
        if receipt["command"] not in self._applied:
            self._refused.setdefault(receipt["command"], receipt)
            _forget(self._refused, _REMEMBERED // 10)


def ended(receipt: Receipt, left: str = "") -> Receipt:
    """What became of a command that was still being carried out when the worker ended, and what it left."""
    if receipt.get("status") != "running":
        return receipt
    return {
        **receipt,
        "status": "failed",
        "reason": f"the worker ended meanwhile{left}; send it again with a new id",
    }


def _forget(receipts: dict[str, Receipt], most: int) -> None:
    while len(receipts) > most:
        del receipts[next(iter(receipts))]
