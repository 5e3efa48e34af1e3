"""The steering program, run by hand on headers, against what it is to do."""

from __future__ import annotations

import struct
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.steering import WORKERS_MAX, encode, steering_program
from tests.core.classic_bpf import run

workers = st.integers(1, WORKERS_MAX)
lengths_v4 = st.integers(0, 32)
lengths_v6 = st.integers(0, 128)
Source = IPv4Address | IPv6Address


def header(source: Source, rest: bytes = b"") -> bytes:
    """The network header of a packet from there; ``rest`` fills what must not matter."""
    filled = (rest + bytes(40))[:40]
    if source.version == 4:
        return bytes([0x45]) + filled[:11] + source.packed + filled[12:16]
    return bytes([0x60 | filled[0] >> 4]) + filled[:7] + source.packed + filled[8:24]


def model(source: Source, workers: int, prefix: int) -> int:
    """The same with Python's numbers: the prefix's words, one after another, mixed."""
    network = ip_network((source, prefix), strict=False).network_address.packed
    mixed = 0
    for (word,) in list(struct.iter_unpack("!I", network))[: -(-prefix // 32)]:
        mixed ^= word
        mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
        mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 % 2**32
        mixed ^= mixed >> 16
    return mixed % workers


@given(workers, lengths_v4, lengths_v6, st.ip_addresses(), st.binary(max_size=40))
def test_the_program_is_the_model(
    workers: int, prefix_v4: int, prefix_v6: int, source: Source, rest: bytes
) -> None:
    program = steering_program(workers, prefix_v4, prefix_v6)
    prefix = prefix_v4 if source.version == 4 else prefix_v6
    index = run(program, header(source, rest))
    assert index == model(source, workers, prefix)
    assert index < workers


@given(workers, st.data())
def test_a_prefix_has_one_worker(workers: int, data: st.DataObject) -> None:
    source = data.draw(st.ip_addresses())
    prefix = data.draw(st.integers(0, source.max_prefixlen))
    network = ip_network((source, prefix), strict=False)
    lengths = (prefix, 64) if source.version == 4 else (32, prefix)
    program = steering_program(workers, *lengths)
    offset = data.draw(st.integers(0, network.num_addresses - 1))
    assert run(program, header(source)) == run(program, header(network[offset]))


def neighbours_v4(step: int) -> list[Source]:
    return [IPv4Address(0x0A000000 + step * number) for number in range(1 << 10)]


def neighbours_v6(bit: int) -> list[Source]:
    base = int(IPv6Address("2001:db8::"))
    return [IPv6Address(base + (number << bit)) for number in range(1 << 10)]


CROWDS = {
    "hosts in a row": neighbours_v4(1),
    "every /24": neighbours_v4(256),
    "every second host": neighbours_v4(2),
    "every /16 and 16 hosts of it": [
        IPv4Address((net << 16) + host) for net in range(64) for host in range(16)
    ],
    "/64 in a row": neighbours_v6(64),
    "/56 in a row": neighbours_v6(72),
    "/48 in a row": neighbours_v6(80),
    "any": [IPv4Address(number) for number in Random(2).sample(range(1 << 32), 1 << 10)],
}


@pytest.mark.parametrize("crowd", CROWDS.values(), ids=CROWDS)
@pytest.mark.parametrize("workers", [2, 3, 8, 64])
def test_sources_spread(workers: int, crowd: list[Source]) -> None:
    """As evenly as dice would: none of the shares is five standard deviations from the mean."""
    program = steering_program(workers)
    shares = Counter(run(program, header(source)) for source in crowd)
    mean = len(crowd) / workers
    deviation = (mean * (1 - 1 / workers)) ** 0.5
    assert set(shares) == set(range(workers))
    assert max(abs(share - mean) for share in shares.values()) < 5 * deviation


def test_shares_of_few_workers_are_equal_within_some_per_cent() -> None:
    program = steering_program(3)
    hosts = [IPv4Address(0x0A000000 + number) for number in range(10_000)]
    shares = Counter(run(program, header(host)) for host in hosts)
    assert all(0.96 < 3 * share / len(hosts) < 1.04 for share in shares.values())


def test_all_is_one_source_without_a_prefix() -> None:
    program = steering_program(64, 0, 0)
    assert {run(program, header(source)) for crowd in CROWDS.values() for source in crowd} == {0}


def test_the_kernel_reads_eight_bytes_an_instruction() -> None:
    program = steering_program(8, 32, 128)
    assert encode(program)[:16] == struct.pack("=HBBIHBBI", 0x30, 0, 0, 0xFFF00000, 0x74, 0, 0, 4)
    assert len(encode(program)) == 8 * len(program)
    assert len(program) < 4096  # BPF_MAXINSNS


@pytest.mark.parametrize("arguments", [(0,), (65,), (2, 33), (2, -1), (2, 32, 129)])
def test_impossible_arguments_are_a_fault(arguments: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        steering_program(*arguments)
