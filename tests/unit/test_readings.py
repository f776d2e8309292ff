"""What a message may look like, and why one cannot be used."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any

import msgspec
import numpy as np
import pytest

from stream.brokers.base import Delivery
from stream.errors import ReadingRejected
from stream.readings import Batch, Decoder, epoch_seconds
from stream.topology import Fields, Sensor, Source

NOW = 1_800_000_000.0
TIME = "2024-08-07T00:00:00Z"
EPOCH = 1_722_988_800.0


def delivery(
    body: object, *, key: str = "sensor.pump-07.readings", content_type: str = "", offset: int = 0
) -> Delivery:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Delivery(
        body=data,
        exchange="mmlw.sensors",
        routing_key=key,
        offset=offset,
        tag=offset,
        received=0.0,
        content_type=content_type,
    )


def source(**settings: Any) -> Source:
    return Source(**{"sensors": ("a", "b"), **settings})


def decode(body: object, *, src: Source | None = None, **how: Any) -> Batch:
    batch, rejected = Decoder(src or source(), lambda: NOW).decode([delivery(body, **how)])
    assert not rejected, rejected[0][1]
    return batch


def reason(body: object, *, src: Source | None = None, **how: Any) -> ReadingRejected:
    batch, rejected = Decoder(src or source(), lambda: NOW).decode([delivery(body, **how)])
    assert len(batch) == 0
    assert len(rejected) == 1
    assert rejected[0][1].detail
    return rejected[0][1]


def test_row_is_decoded() -> None:
    batch = decode({"machine": "pump-07", "time": TIME, "seq": 4, "values": {"b": 2, "a": 1.5}})
    assert batch.machines == ["pump-07"]
    assert batch.times.tolist() == [EPOCH]
    assert batch.values.tolist() == [[1.5, 2.0]]


@pytest.mark.parametrize("content_type", ["application/msgpack", ""])
def test_message_pack_is_decoded_with_and_without_its_content_type(content_type: str) -> None:
    body = msgspec.msgpack.encode({"machine": "pump-07", "time": EPOCH, "values": {"a": 1.5, "b": 2}})
    batch = decode(body, content_type=content_type)
    assert batch.values.tolist() == [[1.5, 2.0]]


def test_columns_of_many_rows_are_decoded() -> None:
    batch = decode(
        {"machine": "pump-07", "time": [EPOCH, EPOCH + 1], "values": {"a": [1, None], "b": [3, 4]}}
    )
    assert batch.times.tolist() == [EPOCH, EPOCH + 1]
    np.testing.assert_array_equal(batch.values, [[1, 3], [np.nan, 4]])
    assert batch.rows.tolist() == [0, 1]


def test_columns_may_name_a_machine_for_every_row() -> None:
    body = {"machine": ["x", "y"], "time": [EPOCH, EPOCH], "values": {"a": [1, 2], "b": [3, 4]}}
    assert decode(body, key="gateway").machines == ["x", "y"]


def test_list_of_rows_is_decoded() -> None:
    row = {"machine": "pump-07", "time": EPOCH, "values": {"a": 1, "b": 2}}
    assert len(decode([row, row])) == 2


def test_table_of_the_ancestor_is_decoded_with_any_column_name() -> None:
    body = {
        "line/1 pressure": {"0": 0.96, "1": 0.97},
        "sensor_00": {"0": 1, "1": 2},
        "ds": {"0": 1611547200000, "1": 1611550800000},
    }
    batch = decode(body, src=source(sensors=("sensor_00", "line/1 pressure"), machine="m1"), key="anything")
    assert batch.times.tolist() == [1611547200.0, 1611550800.0]
    assert batch.values.tolist() == [[1.0, 0.96], [2.0, 0.97]]
    assert batch.machines == ["m1", "m1"]


def test_long_form_of_the_ancestor_is_decoded() -> None:
    body = {
        "tsdata": [
            {"target": "a", "date": "2024-08-07T00:00:00", "value": 0.12},
            {"target": "b", "date": "2024-08-07T00:00:00", "value": 0.2},
            {"target": "a", "date": "2024-08-07T00:00:01", "value": 0.13},
        ]
    }
    batch = decode(body)
    assert batch.times.tolist() == [EPOCH, EPOCH + 1]
    np.testing.assert_array_equal(batch.values, [[0.12, 0.2], [0.13, np.nan]])


def test_one_sensor_a_message_takes_machine_and_sensor_from_the_routing_key() -> None:
    narrow = source(layout="narrow", routing_key="sensor.{machine}.{sensor}")
    batch = decode({"time": EPOCH, "value": 3.5}, src=narrow, key="sensor.pump-1.b")
    assert batch.machines == ["pump-1"]
    np.testing.assert_array_equal(batch.values, [[np.nan, 3.5]])


def test_foreign_layout_is_mapped_by_paths() -> None:
    src = source(
        sensors=(Sensor("a", path="payload.p.1"), Sensor("b", path="payload.q")),
        fields=Fields(machine="meta.device", time="meta.ts", values="none"),
    )
    body = {"meta": {"device": "d1", "ts": EPOCH * 1000}, "payload": {"p.1": 1, "q": 2}}
    batch = decode(body, src=src, key="x")
    assert (batch.machines, batch.times[0], batch.values.tolist()) == (["d1"], EPOCH, [[1.0, 2.0]])


def test_flat_message_is_mapped_with_an_empty_path() -> None:
    src = source(fields=Fields(machine="id", time="ts", values=""))
    assert decode({"id": "d1", "ts": EPOCH, "a": 1, "b": 2}, src=src, key="x").values.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (EPOCH, EPOCH),
        (int(EPOCH) * 1000, EPOCH),
        (int(EPOCH) * 10**6, EPOCH),
        (int(EPOCH) * 10**9, EPOCH),
        ("2024-08-07T02:00:00+02:00", EPOCH),
        ("2024-08-07T00:00:00", EPOCH),
        ("2024-08-07", EPOCH),
    ],
)
def test_times_are_understood_in_every_common_form(time: object, seconds: float) -> None:
    assert epoch_seconds(time) == seconds


GOOD: dict[str, Any] = {"machine": "pump-07", "time": EPOCH, "values": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "not_decodable"),
        (b"{", "not_decodable"),
        (b"\xff\xfe\x00", "not_decodable"),
        (b"\xc1", "not_decodable"),
        (b"[" * 100_000 + b"]" * 100_000, "not_decodable"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not_decodable"),
        (b"\x91" * 100_000, "not_decodable"),
        (b" " * 2_000_000, "too_large"),
        ([], "no_values"),
        ("text", "wrong_shape"),
        (3, "wrong_shape"),
        ([[GOOD]], "wrong_shape"),
        (None, "wrong_shape"),
        ({**GOOD, "values": 3}, "wrong_shape"),
        ({**GOOD, "values": {}}, "no_values"),
        ({**GOOD, "values": {"a": None}}, "no_values"),
        ({**GOOD, "values": {"a": "1"}}, "wrong_type"),
        ({**GOOD, "values": {"a": True}}, "wrong_type"),
        ({**GOOD, "values": {"a": [1]}}, "wrong_type"),
        (b'{"machine":"pump-07","time":0,"values":{"a":1' + b"0" * 5000 + b"}}", "not_decodable"),
        ({**GOOD, "values": {"a": 10**400}}, "not_finite"),
        (b'{"machine":"pump-07","time":1722988800,"values":{"a":NaN}}', "not_finite"),
        (b'{"machine":"pump-07","time":1722988800,"values":{"a":-Infinity}}', "not_finite"),
        (b'{"machine":"pump-07","time":1722988800,"values":{"a":1e999}}', "not_finite"),
        ({**GOOD, "values": {"a": 1, "c": 2}}, "unknown_sensor"),
        ({**GOOD, "machine": "other"}, "machine_mismatch"),
        ({**GOOD, "machine": ""}, "bad_machine"),
        ({**GOOD, "machine": "x" * 300}, "bad_machine"),
        ({**GOOD, "machine": "a\nb"}, "bad_machine"),
        ({**GOOD, "machine": 7}, "bad_machine"),
        ({**GOOD, "time": None}, "bad_time"),
        ({**GOOD, "time": "yesterday"}, "bad_time"),
        ({**GOOD, "time": True}, "bad_time"),
        ({**GOOD, "time": {}}, "bad_time"),
        ({**GOOD, "time": 1e300}, "bad_time"),
        (b'{"machine":"pump-07","time":NaN,"values":{"a":1}}', "bad_time"),
        ({**GOOD, "time": "1850-01-01T00:00:00Z"}, "time_out_of_range"),
        ({**GOOD, "time": "2100-01-01T00:00:00Z"}, "time_out_of_range"),
        ({**GOOD, "time": [EPOCH], "values": {"a": [1, 2]}}, "wrong_shape"),
        ({**GOOD, "time": [EPOCH], "values": {"a": 1}}, "wrong_shape"),
        ({"tsdata": [{"target": "a"}]}, "bad_time"),
        ({"tsdata": ["x"]}, "wrong_shape"),
        ({"a": {"0": 1, "7": 2}, "ds": {"0": EPOCH}}, "wrong_shape"),
    ],
)
def test_message_that_cannot_be_used_names_its_reason(body: object, expected: str) -> None:
    src = source() if not isinstance(body, dict) or "machine" in body else source(machine="pump-07")
    assert reason(body, src=src).reason == expected


SHOWN = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u0890\u0891\u08e2\U000110bd\U000110cd"
"""Of the format characters, those that are signs for numbers: they are seen."""
UNSEEN = [
    chr(code)
    for code in range(sys.maxunicode + 1)
    if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs") and chr(code) not in SHOWN
]
JOINERS = "\u200c\u200d"
"""Some scripts are not written without these."""


def named(name: str) -> ReadingRejected | None:
    """How a machine of this name is refused."""
    body = msgspec.msgpack.encode({**GOOD, "machine": "m"}).replace(b"\xa1m", msgspec.msgpack.encode(name))
    delivered = delivery(body, key="elsewhere", content_type="application/msgpack")
    _, rejected = Decoder(source(), lambda: NOW).decode([delivered])
    return rejected[0][1] if rejected else None


def test_name_of_which_nothing_is_seen_is_refused() -> None:
    names = [name for c in UNSEEN if not "\ud800" <= c <= "\udfff" for name in (c, c * 3, f"{c}a", f"a{c}")]
    names += ["\u3164", "\u2800\u2800", "\u115f\u1160", "\ufe0f", "\u200b\u00a0\u200d"]
    assert len(names) > 400
    assert {name: refused for name in names if (refused := named(name)) is None} == {}
    assert {refused.reason for name in names if (refused := named(name))} == {"bad_machine"}


def test_what_nobody_sees_is_refused_inside_a_name_too() -> None:
    inside = [c for c in UNSEEN if not c.isspace() and not "\ud800" <= c <= "\udfff" and c not in JOINERS]
    assert [c for c in (*inside, "\n", "\u2028") if named(f"pump{c}7") is None] == []


@pytest.mark.parametrize(
    "name",
    ["pump 7", "Pumpe\u00a07", "\u067e\u0645\u067e\u200c\u0647\u0627", "\u2764\ufe0f", "\u0928\u0940", SHOWN],
)
def test_name_of_any_script_is_taken(name: str) -> None:
    assert named(name) is None


def test_message_without_machine_is_rejected_only_when_nothing_names_it() -> None:
    body = {"time": EPOCH, "values": {"a": 1}}
    assert reason(body, key="elsewhere").reason == "missing_machine"
    assert decode(body, key="elsewhere", src=source(machine="m")).machines == ["m"]
    assert decode(body).machines == ["pump-07"]


def test_policies_decide_on_unknown_missing_infinite_and_impossible_values() -> None:
    assert decode({**GOOD, "values": {"a": 1, "c": 9}}, src=source(unknown_sensor="ignore")).values[0, 0] == 1
    assert (
        reason({**GOOD, "values": {"a": 1}}, src=source(missing_sensor="deadletter")).reason
        == "missing_sensor"
    )
    np.testing.assert_array_equal(decode({**GOOD, "values": {"a": 1}}).values, [[1, np.nan]])
    nan = b'{"machine":"pump-07","time":1722988800,"values":{"a":NaN,"b":1}}'
    np.testing.assert_array_equal(decode(nan, src=source(not_finite="missing")).values, [[np.nan, 1]])
    limits = (Sensor("a", minimum=0, maximum=10), Sensor("b"))
    cold = {**GOOD, "values": {"a": -300, "b": 1}}
    assert reason(cold, src=source(sensors=limits, out_of_range="deadletter")).reason == "out_of_range"
    np.testing.assert_array_equal(decode(cold, src=source(sensors=limits)).values, [[-300, 1]])
    missing = decode(cold, src=source(sensors=limits, out_of_range="missing"))
    np.testing.assert_array_equal(missing.values, [[np.nan, 1]])


def test_nan_in_message_pack_is_rejected() -> None:
    body = msgspec.msgpack.encode(
        {"machine": "pump-07", "time": EPOCH, "values": {"a": float("nan"), "b": 2}}
    )
    assert reason(body).reason == "not_finite"


def test_message_is_used_whole_or_not_at_all() -> None:
    bad = {"machine": "pump-07", "time": [EPOCH, EPOCH, 0], "values": {"a": [1, 2, 3]}}
    good = {"machine": "pump-07", "time": EPOCH, "values": {"a": 9}}
    batch, rejected = Decoder(source(), lambda: NOW).decode([delivery(bad), delivery(good, offset=1)])
    assert [error.reason for _, error in rejected] == ["time_out_of_range"]
    assert batch.messages.tolist() == [1]
