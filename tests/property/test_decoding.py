"""Whatever arrives, each message is either readings or a rejection with a reason; nothing else happens."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.metrics import Reason
from stream.readings import Decoder
from stream.topology import Sensor, Source
from tests.unit.test_readings import EPOCH, NOW, delivery

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
)
_TIMES = st.sampled_from([EPOCH, EPOCH * 1000, "2024-08-07T00:00:00Z", 0, None]) | _SCALARS
_VALUES = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), _SCALARS | st.lists(_SCALARS, max_size=3), max_size=3
)
_NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "machine": st.sampled_from(["pump-07", "x"]) | _SCALARS,
        "time": _TIMES | st.lists(_TIMES, max_size=3),
        "values": _VALUES | _ANYTHING,
        "value": _SCALARS,
        "sensor": st.sampled_from(["a", "z"]) | _SCALARS,
        "tsdata": st.lists(_ANYTHING, max_size=3),
        "ds": st.dictionaries(st.sampled_from(["0", "1"]), _TIMES, max_size=2),
    },
)
_MESSAGE = _NEARLY | _ANYTHING | st.lists(_NEARLY, max_size=3)


def _packed(message: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(message)
    except OverflowError:
        return b"\x80"


_BODIES = st.binary(max_size=60) | _MESSAGE.map(lambda m: json.dumps(m).encode()) | _MESSAGE.map(_packed)
_WIDE = Source(sensors=(Sensor("a"), Sensor("b")))
_NARROW = Source(sensors=(Sensor("a"), Sensor("b")), layout="narrow", routing_key="sensor.{machine}.{sensor}")


@settings(max_examples=500, deadline=None)
@given(bodies=st.lists(_BODIES, max_size=5), narrow=st.booleans())
def test_every_message_is_readings_or_a_rejection(bodies: list[bytes], *, narrow: bool) -> None:
    decoder = Decoder(_NARROW if narrow else _WIDE, lambda: NOW)
    batch, rejected = decoder.decode([delivery(body, offset=i) for i, body in enumerate(bodies)])
    used = set(batch.messages.tolist())
    refused = [index for index, _ in rejected]
    assert len(refused) == len(set(refused))
    assert used.isdisjoint(refused)
    assert used | set(refused) == set(range(len(bodies)))
    assert {error.reason for _, error in rejected} <= set(get_args(Reason))
    assert not np.isinf(batch.values).any()
    assert np.isfinite(batch.times).all()
    assert len(batch.machines) == len(batch.times) == len(batch.values) == len(batch.rows)
