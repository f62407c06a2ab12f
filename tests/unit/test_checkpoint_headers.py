"""The header parser against the safetensors library: what the library refuses is never accepted."""

from __future__ import annotations

import json
import os
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from parity.errors import ParityError
from parity.io.checkpoints.header import BITS, parse_header

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "400"))
"""Headers to draw; `make fuzz` draws many more."""
NUMBERS = st.one_of(st.integers(-1, 9), st.sampled_from([0.0, 1.0, True, None, "1", 1 << 32, 1 << 63, (1 << 64) - 1]))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BITS, "U9", "u8", ""]),
        "shape": st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
    }
)
KEYS = st.one_of(st.text(max_size=3), st.sampled_from(["a", "__metadata__", "../a", "\x1b[2J"]))


@st.composite
def honest(draw: st.DrawFn) -> tuple[bytes, int]:
    """A header that is right, so that one change of it comes near the line."""
    at, out = 0, {}
    for key in draw(st.lists(KEYS.filter(lambda key: key != "__metadata__"), unique=True, max_size=3)):
        dtype, shape = draw(st.sampled_from(sorted(BITS))), draw(st.lists(st.integers(0, 4), max_size=3))
        size = BITS[dtype]
        for n in shape:
            size *= n
        out[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size // 8]}
        at += size // 8
    return json.dumps(out, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"), at


def changed(text: bytes, at: int, new: bytes) -> bytes:
    return text[:at] + new + text[at + 1 :]


ANY = st.tuples(st.dictionaries(KEYS, ENTRIES, max_size=3).map(lambda h: json.dumps(h).encode()), st.integers(0, 40))
BYTES = st.sampled_from([b"", b"0", b"-0", b"1", b"}", b",", b" ", b"\\", b'"'])
NEAR = st.tuples(honest(), st.integers(0, 300), BYTES)
FUZZED = st.one_of(ANY, honest(), NEAR.map(lambda held: (changed(held[0][0], held[1], held[2]), held[0][1])))


@settings(max_examples=EXAMPLES, deadline=None)
@given(FUZZED)
def test_never_accepts_what_the_library_refuses(held: tuple[bytes, int]) -> None:
    text, data = held
    try:
        ours = parse_header(text, 8 + len(text) + data)
    except ParityError:
        return
    try:
        theirs = dict(deserialize(  # type: ignore[no-untyped-call]
            struct.pack("<Q", len(text)) + text + bytes(data)
        ))
    except SafetensorError as error:
        raise AssertionError(f"accepted, refused by the library: {text!r}") from error
    assert {key: list(entry.shape) for key, entry in ours.entries.items()} == {k: v["shape"] for k, v in theirs.items()}


@settings(max_examples=max(EXAMPLES // 4, 1), deadline=None)
@given(honest())
def test_accepts_what_is_right(held: tuple[bytes, int]) -> None:
    text, data = held
    bits = [e for e in json.loads(text).values() if e["dtype"] in ("F4", "F6_E2M3", "F6_E3M2")]
    if not bits:
        parse_header(text, 8 + len(text) + data)
