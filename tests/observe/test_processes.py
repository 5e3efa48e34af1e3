"""What our processes use, with those of workers, and when one ends."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time

from proxy.observe.processes import RESIDENT, WHOLE, cpu_seconds, memory_bytes

# Spends a second's tenth, says so, and waits to be told to end.
BUSY = """
import sys, time
big = b"x" * 50_000_000
while time.process_time() < 0.1:
    pass
print("done", flush=True)
sys.stdin.read()
"""


def test_a_worker_counts_while_it_lives_and_when_it_has_ended() -> None:
    own = cpu_seconds([])
    memory = memory_bytes([], RESIDENT)
    worker = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"done\n"
        living = cpu_seconds([worker.pid])
        assert living >= own + 0.09
        assert memory_bytes([worker.pid], RESIDENT) >= memory + 50_000_000
        assert memory_bytes([worker.pid], WHOLE) > memory_bytes([worker.pid], RESIDENT)
    ended = cpu_seconds([worker.pid])
    assert ended >= living - 1 / os.sysconf("SC_CLK_TCK")


def test_our_own_process_counts_once() -> None:
    before = time.process_time()
    assert cpu_seconds([os.getpid()]) >= before
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    children = usage.ru_utime + usage.ru_stime
    assert cpu_seconds([os.getpid()]) - children <= time.process_time() + 0.001
    one, same = memory_bytes([], RESIDENT), memory_bytes([os.getpid()], RESIDENT)
    assert abs(one - same) < 10_000_000
