"""What is kept of a client's header, and how it is shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.identity import TLVS_MAX, kept_tlvs, tlv_row
from proxy.core.proxy_block import AUTHORITY, CRC32C, NOOP
from proxy.core.proxy_header import Tlv

TLVS = st.lists(st.builds(Tlv, st.integers(0, 6), st.binary(max_size=300)), max_size=8)


@given(TLVS)
def test_what_says_something_is_kept_as_far_as_it_fits(tlvs: list[Tlv]) -> None:
    kept = kept_tlvs(tlvs)
    assert sum(3 + len(tlv.value) for tlv in kept) <= TLVS_MAX
    saying = [tlv for tlv in tlvs if tlv.type not in {CRC32C, NOOP}]
    if sum(3 + len(tlv.value) for tlv in saying) <= TLVS_MAX:
        assert list(kept) == saying
    else:
        assert set(kept) <= set(saying)


def test_rows() -> None:
    assert tlv_row(Tlv(AUTHORITY, b"a.example")) == {
        "type": 2,
        "name": "authority",
        "text": "a.example",
        "hex": "612e6578616d706c65",
    }
    for value in (b"\xff", b"a\x1b[2J", "\u202e".encode()):
        row = tlv_row(Tlv(0xE0, value))
        assert (row["name"], row["text"], row["hex"]) == (None, None, value.hex())


def test_what_does_not_fit_is_left_out_and_what_follows_may_fit() -> None:
    first, large, last = (Tlv(0xE0, bytes(size)) for size in (100, TLVS_MAX, TLVS_MAX - 106))
    assert kept_tlvs([first, large, last]) == (first, last)
    assert kept_tlvs([first, large, last, Tlv(0xE1, b"")]) == (first, last)
