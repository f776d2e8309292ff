"""From message bodies to columns: what a message may look like, and why one cannot be used.

A message is the unit of acceptance: all of its readings are used, or it becomes a dead letter with a reason.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats
from stream.arrivals import UNNUMBERED
from stream.brokers.base import Delivery, routing_word
from stream.errors import ReadingRejected
from stream.layouts import Row, rows_of, short
from stream.topology import Fields, Source

__all__ = ["LARGEST", "Batch", "Decoder", "epoch_seconds"]

Rejection = tuple[int, ReadingRejected]
"""Index of the delivery, and why it cannot be used."""
_Parts = tuple[str, float, Sequence[float], int]

_MSGPACK = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")
_UNPRINTABLE = (
    r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff"
    r"\u00ad\u061c\u180e\u200b\u200e\u200f\u2060-\u2065\u206a-\u206f\ufeff\ufff0-\ufffb\U000e0000-\U000e0fff"
    r"\u070f\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
"""Control characters, line ends, what turns the direction of writing, halves of characters (no UTF-8 has them); and
what nobody sees: two names that look alike would be two machines."""
_JOINERS = r"\u200c\u200d"
"""Invisible, too, but letters of some scripts need them between each other."""
_BLANK = r"\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
"""Characters of other sorts that show nothing by themselves: a name does not begin with them."""
_MACHINE = re.compile(
    rf"[^\s{_UNPRINTABLE}{_JOINERS}{_BLANK}](?:[^{_UNPRINTABLE}]{{0,253}}[^\s{_UNPRINTABLE}{_JOINERS}])?"
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Readings as columns, in arrival order.

    `machines` n names; `times` (n,) epoch seconds; `values` (n, n_sensors), NaN where a sensor is missing;
    `messages` (n,) index of the delivery a row came from; `rows` (n,) its position within that message;
    `seqs` (n,) what orders a machine's readings, `UNNUMBERED` where it stated none.
    """

    machines: list[str]
    times: Floats
    values: Floats
    messages: NDArray[np.int64]
    rows: NDArray[np.int64]
    seqs: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.machines)

    def select(self, keep: NDArray[Any]) -> Batch:
        """The rows that a mask or an index array keeps."""
        index = np.flatnonzero(keep) if keep.dtype == bool else keep
        return Batch(
            [self.machines[i] for i in index.tolist()],
            self.times[index],
            self.values[index],
            self.messages[index],
            self.rows[index],
            self.seqs[index],
        )


class _Reading(msgspec.Struct):
    """The commonest message, decoded in one typed pass."""

    values: dict[str, float]
    time: float | str
    machine: str | None = None
    seq: int | None = None


class Decoder:
    """Decodes deliveries by a source's settings. `now` gives epoch seconds (only to refuse future times)."""

    def __init__(self, source: Source, now: Callable[[], float]) -> None:
        self._source = source
        self._now = now
        self._names = source.names
        self._index = {name: i for i, name in enumerate(self._names)}
        self._words: dict[tuple[str, str], str | None] = {}
        self._key_words = source.routing_key.split(".")
        self._earliest = epoch_seconds(source.earliest)
        fields = source.fields
        plain = fields == Fields()
        self._fast = plain and source.layout == "auto" and not any(sensor.path for sensor in source.sensors)
        self._json = msgspec.json.Decoder(_Reading)
        self._msgpack = msgspec.msgpack.Decoder(_Reading)
        low = [-np.inf if s.minimum is None else s.minimum for s in source.sensors]
        high = [np.inf if s.maximum is None else s.maximum for s in source.sensors]
        self._low, self._high = np.maximum(low, -LARGEST), np.minimum(high, LARGEST)
        anybody = "*" in source.machines
        self._patterns = None if anybody else re.compile("|".join(map(fnmatch.translate, source.machines)))

    def decode(self, deliveries: Sequence[Delivery]) -> tuple[Batch, list[Rejection]]:
        """All usable readings as columns, and the deliveries that cannot be used, with their reasons."""
        machines: list[str] = []
        times: list[float] = []
        values: list[Sequence[float]] = []
        messages: list[int] = []
        rows: list[int] = []
        seqs: list[int] = []
        rejected: list[Rejection] = []
        by_time = self._source.order_by == "time"
        horizon = self._now() + self._source.max_ahead
        for index, delivery in enumerate(deliveries):
            start = len(times)
            try:
                for number, (machine, time, row, seq) in enumerate(self._rows(delivery)):
                    if not self._earliest <= time <= horizon:
                        raise ReadingRejected("time_out_of_range", self._time_detail(time))
                    machines.append(machine)
                    times.append(time)
                    values.append(row)
                    messages.append(index)
                    rows.append(number)
                    seqs.append(int(time * 1e6) if by_time else seq)
            except ReadingRejected as error:
                for column in (machines, times, values, messages, rows, seqs):
                    del column[start:]
                rejected.append((index, error))
        batch = Batch(
            machines,
            np.array(times, dtype=np.float64),
            np.array(values, dtype=np.float64).reshape(len(times), len(self._names)),
            np.array(messages, dtype=np.int64),
            np.array(rows, dtype=np.int64),
            np.array(seqs, dtype=np.int64),
        )
        return self._check_values(batch, rejected)

    def _rows(self, delivery: Delivery) -> list[_Parts]:
        """The readings of one message: machine, epoch seconds, values in the order of the columns, number."""
        body = delivery.body
        if len(body) > self._source.max_body:
            limit = self._source.max_body
            raise ReadingRejected("too_large", f"{len(body)} bytes, the limit (max_body) is {limit}")
        packed = delivery.content_type in _MSGPACK or (
            body[:1] > b"\x7f" and not body.startswith(b"\xef\xbb\xbf")
        )
        if self._fast:
            try:
                reading = (self._msgpack if packed else self._json).decode(body)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                pass  # not this shape: the general way finds out what it is, or why it is nothing
            else:
                machine = self._machine(reading.machine, delivery)
                if packed:  # MessagePack can carry a NaN, JSON cannot
                    reading.values = {k: np.inf if v != v else v for k, v in reading.values.items()}
                values = self._columns(reading.values)
                return [(machine, epoch_seconds(reading.time), values, _sequence(reading.seq))]
        found = rows_of(self._parse(body, packed), self._source, self._sensor_of(delivery))
        if not found:
            raise ReadingRejected("no_values", "the message holds no reading")
        if len(found) > (limit := self._source.max_rows):
            raise ReadingRejected("too_large", f"{len(found)} readings, the limit (max_rows) is {limit}")
        return [self._row(row, delivery) for row in found]

    def _row(self, row: Row, delivery: Delivery) -> _Parts:
        numbers = {name: _number(name, value) for name, value in row.values.items() if value is not None}
        machine, time = self._machine(row.machine, delivery), epoch_seconds(row.time)
        return machine, time, self._columns(numbers), _sequence(row.seq)

    def _columns(self, values: Mapping[str, float]) -> Sequence[float]:
        source = self._source
        get = values.get
        row = [get(name, _MISSING) for name in self._names]
        present = len(row) - row.count(_MISSING)
        if present < len(values) and source.unknown_sensor == "deadletter":
            name = next(name for name in values if name not in self._index)
            known = ", ".join(self._names[:8])
            raise ReadingRejected("unknown_sensor", f'"{short(name)}" is not declared (known: {known})')
        if present == 0:
            raise ReadingRejected("no_values", "no declared sensor has a value")
        if present < len(row):
            if source.missing_sensor == "deadletter" and source.layout != "narrow":
                name = next(name for name in self._names if name not in values)
                raise ReadingRejected("missing_sensor", f'"{name}" has no value')
            row = [np.nan if value is _MISSING else value for value in row]
        return row

    def _machine(self, stated: object, delivery: Delivery) -> str:
        by_key = self._word(delivery, "{machine}")
        if stated is None:
            stated = by_key or self._source.machine
        if stated is None:
            raise ReadingRejected("missing_machine", "neither the body nor the routing key names a machine")
        if not isinstance(stated, str):
            raise ReadingRejected("bad_machine", f"{short(stated)} is not a text; write it in quotes")
        if not _MACHINE.fullmatch(stated):
            raise ReadingRejected("bad_machine", f'"{short(stated)}" is not 1 to 255 visible characters')
        if self._patterns is not None and not self._patterns.match(stated):
            allowed = ", ".join(self._source.machines[:8])
            raise ReadingRejected("bad_machine", f'"{short(stated)}" may not send here (machines: {allowed})')
        if by_key is not None and by_key not in (stated, routing_word(stated)):
            detail = f'the body says "{short(stated)}", the routing key "{short(by_key)}"'
            raise ReadingRejected("machine_mismatch", detail)
        return stated

    def _sensor_of(self, delivery: Delivery) -> str | None:
        return self._word(delivery, "{sensor}") if self._source.layout == "narrow" else None

    def _word(self, delivery: Delivery, name: str) -> str | None:
        """The word of the routing key at a placeholder, None where the key has another form."""
        key = delivery.routing_key
        known: str | None = self._words.get((name, key), _MISSING)
        if known is _MISSING:
            if len(self._words) >= _MOST_KEYS:
                self._words.clear()
            known = self._words[name, key] = self._find_word(key, name)
        return known

    def _find_word(self, key: str, name: str) -> str | None:
        words = key.split(".")
        if name not in self._key_words or len(words) != len(self._key_words):
            return None
        for word, wanted in zip(words, self._key_words, strict=True):
            if wanted != word and wanted != "*" and not wanted.startswith("{"):
                return None
        return words[self._key_words.index(name)]

    def _parse(self, body: bytes, packed: bool) -> object:
        try:
            if packed:
                return msgspec.msgpack.decode(body)
            # The standard library's parser, because it reads what Python clients write: NaN, Infinity, a BOM.
            return json.loads(body.decode("utf-8-sig"))
        except RecursionError:
            raise ReadingRejected("not_decodable", "nested too deeply") from None
        except (ValueError, msgspec.DecodeError) as error:
            form = "neither JSON in UTF-8 nor MessagePack" if packed else "not JSON"
            raise ReadingRejected("not_decodable", f"{form}: {short(str(error))}") from None

    def check_rows(self, values: Floats) -> tuple[Floats, dict[int, ReadingRejected]]:
        """Rows (n, n_sensors) of a table, NaN where a value is missing, as if each had come in a message of its own:
        what is left of them, and which are refused for their values, and why."""
        refused: dict[int, ReadingRejected] = {}
        absent = np.isnan(values)
        demanding = self._source.missing_sensor == "deadletter"
        for row in np.flatnonzero(absent.any(axis=1) if demanding else absent.all(axis=1)).tolist():
            if absent[row].all():
                refused[row] = ReadingRejected("no_values", "no declared sensor has a value")
            else:
                name = self._names[int(absent[row].argmax())]
                refused[row] = ReadingRejected("missing_sensor", f'"{name}" has no value')
        each = np.arange(len(values))
        nobody = [""] * len(values)
        rows = Batch(nobody, np.zeros(len(values)), values.copy(), each, np.zeros_like(each), each)
        checked = rows.values
        for row, error in self._check_values(rows, [])[1]:
            refused.setdefault(row, error)
        return checked, dict(sorted(refused.items()))

    def _check_values(self, batch: Batch, rejected: list[Rejection]) -> tuple[Batch, list[Rejection]]:
        """Infinite, NaN and out-of-range values: a dead letter or a missing sensor, as the source says."""
        source, values = self._source, batch.values
        low, high = values < self._low, values > self._high
        outside = (low | high) & np.isfinite(values)
        infinite = np.isinf(values)
        refused: dict[int, ReadingRejected] = {}
        for mask, policy, reason in (
            (infinite, source.not_finite, "not_finite"),
            (outside, source.out_of_range, "out_of_range"),
        ):
            if not mask.any():
                continue
            if policy == "alert":  # for whoever looks after the sensors' health
                continue
            if policy == "missing":
                values[mask] = np.nan
                continue
            for row, column in np.argwhere(mask).tolist():
                value = float(values[row, column])
                shown = "infinite or not a number" if value in (np.inf, -np.inf) else f"{value:g}"
                detail = f'"{self._names[column]}" is {shown} in row {batch.rows[row]}'
                refused.setdefault(int(batch.messages[row]), ReadingRejected(reason, detail))
        if not refused:
            return batch, rejected
        rejected = [*rejected, *refused.items()]
        return batch.select(~np.isin(batch.messages, list(refused))), rejected

    def _time_detail(self, time: float) -> str:
        try:
            text = datetime.fromtimestamp(time, UTC).isoformat()
        except (ValueError, OverflowError, OSError):
            text = repr(time)
        return f"{text} is before {self._source.earliest} or more than max_ahead in the future"


LARGEST = 3.4e38
"""No sensor measures beyond single precision; the square of a larger number may not be finite."""
_MISSING: Any = object()
_MOST_KEYS = 100_000
"""Routing keys remembered at a time: bounds memory."""


def epoch_seconds(time: object) -> float:
    """Epoch seconds of an RFC 3339 text (UTC where it names no zone), a datetime, or a number.

    A number is seconds, milliseconds, micro- or nanoseconds by its size (seconds below 1e11, the year 5138).
    Raises ReadingRejected. Example: `epoch_seconds("1970-01-01T00:01:00Z") == epoch_seconds(60) == 60.0`.
    """
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError:
            raise ReadingRejected("bad_time", f"{short(time)} is not an RFC 3339 time") from None
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    if time is None:
        raise ReadingRejected("bad_time", "the reading has no time")
    if isinstance(time, bool) or not isinstance(time, (int, float)):
        raise ReadingRejected("bad_time", f"{short(time)} is not a time")
    size = abs(time)
    if size < 1e11:
        return float(time)
    if size < 1e14:
        return time / 1e3
    if size < 1e17:
        return time / 1e6
    if size < 1e20:
        return time / 1e9
    raise ReadingRejected("bad_time", f"{short(time)} is not a time")


def _sequence(stated: object) -> int:
    """A reading's number, `UNNUMBERED` where it has none. Raises ReadingRejected."""
    if stated is None:
        return UNNUMBERED
    if isinstance(stated, bool) or not isinstance(stated, int) or not 0 <= stated < 2**63:
        raise ReadingRejected("bad_sequence", f"{short(stated)} is not a whole number from 0 to 2^63 - 1")
    return stated


def _number(name: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
        return float("inf") if number != number else number  # NaN is refused, or missing, with the infinities
    raise ReadingRejected("wrong_type", f'"{short(name)}" is {short(value)}, not a number')
