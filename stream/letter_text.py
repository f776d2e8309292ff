"""A dead letter in words: what its reason means, and its body so that it can be read on any terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from stream.metrics import Reason

__all__ = ["MEANINGS", "body_text", "legible"]

MEANINGS: Mapping[Reason, str] = {
    "too_large": "The message is larger than the source allows (max_body, max_rows).",
    "not_decodable": "The message is neither JSON nor MessagePack, or nested too deeply.",
    "wrong_shape": "The message can be decoded, but is not built as the source's layout says.",
    "wrong_type": "A text, a list or something else stands where a number belongs.",
    "missing_machine": "Neither the body nor the routing key names a machine.",
    "bad_machine": "What stands as the machine cannot be a name, or may not send here (machines).",
    "machine_mismatch": "The body names one machine, the routing key another.",
    "too_many_machines": "As many machines are known as the source allows (max_machines).",
    "bad_sequence": "The sequence number is not a whole number from 0 to 2^63 - 1.",
    "duplicate": "The machine sent this sequence number before (duplicate: deadletter).",
    "bad_time": "The reading has no time, or one that cannot be read.",
    "time_out_of_range": "The time is far in the past or in the future (earliest, max_ahead).",
    "unknown_sensor": "A sensor is not declared in the topology (unknown_sensor: ignore passes it over).",
    "missing_sensor": "A declared sensor has no value (missing_sensor: accept scores the others).",
    "not_finite": "A value is NaN, infinite or null (not_finite: missing takes it as a missing sensor).",
    "out_of_range": "A value lies beyond its sensor's physical limits (minimum, maximum).",
    "no_values": "No declared sensor has a value.",
    "late": "Newer readings of the machine were processed before it (late, lateness, align_within).",
    "detector_failed": "A detector failed over it; the state is as if it had not come. Report the detector's bug.",
    "killed_worker": "The worker's process died three times over it: look at it before it is sent back.",
}
"""What each reason means, and the setting that decides."""

_MOST = 8_000
"""Characters of a body that are shown; a quarter as many bytes of a hex dump would fill as much room."""
_MOST_HEX = 512


def body_text(body: bytes) -> str:
    """A body as indented JSON, whether it is JSON or MessagePack; else a hex dump. Bounded, printable, no escapes."""
    for read in (_json, _loose_json, _msgpack):
        try:
            text = legible(read(body))
        except (ValueError, TypeError, RecursionError, msgspec.DecodeError):
            continue
        rest = len(text) - _MOST
        return text if rest <= 0 else f"{text[:_MOST]}\n… {rest} characters more"
    return _hex(body)


def legible(text: str) -> str:
    """A text of anybody's, that does nothing to a terminal: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _json(body: bytes) -> str:
    json.loads(body)  # the formatter checks less
    return msgspec.json.format(body, indent=2).decode()


def _loose_json(body: bytes) -> str:
    """What Python clients write: NaN, a byte order mark."""
    return json.dumps(json.loads(body.decode("utf-8-sig")), indent=2, ensure_ascii=False)


def _msgpack(body: bytes) -> str:
    value = msgspec.msgpack.decode(body)
    if not isinstance(value, (dict, list)):
        raise ValueError("any byte is MessagePack for something")
    return json.dumps(value, indent=2, ensure_ascii=False, default=repr)


def _hex(body: bytes) -> str:
    """Sixteen bytes a line: place, hex, and the characters that ASCII has for them."""
    lines = []
    for start in range(0, min(len(body), _MOST_HEX), 16):
        part = body[start : start + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:06x}  {part.hex(' '):<47}  {shown}")
    if len(body) > _MOST_HEX:
        lines.append(f"… {len(body) - _MOST_HEX} bytes more")
    return "\n".join(lines) or "(empty)"
