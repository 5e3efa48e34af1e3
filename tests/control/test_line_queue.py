"""Lines of workers that wait for the log: in order, and bounded."""

from __future__ import annotations

import trio
import trio.testing

from proxy.control import line_queue
from proxy.control.line_queue import LineQueue
from proxy.engine.flow_lines import Lines


def part(number: int, count: int = 10) -> Lines:
    return Lines(b"%d\n" % number * count, count)


async def test_lines_come_in_their_order_and_are_waited_for() -> None:
    queue, taken = LineQueue(), list[Lines]()

    async def take() -> None:
        while len(taken) < 3:
            taken.append(await queue.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(2):
            queue.put(part(number))
        await trio.testing.wait_all_tasks_blocked()
        assert taken == [part(0), part(1)]
        queue.put(part(2))
    assert taken == [part(0), part(1), part(2)]


async def test_the_oldest_fall_out_and_are_counted() -> None:
    queue = LineQueue()
    parts = line_queue.LINES_MAX // 10
    for number in range(parts + 7):
        queue.put(part(number))
    assert queue.dropped in {70, 80}
    assert (await queue.wait()) == part(queue.dropped // 10)


async def test_one_part_is_kept_however_long_it_is() -> None:
    queue = LineQueue()
    queue.put(part(0))
    queue.put(part(1, line_queue.LINES_MAX + 1))
    assert queue.dropped == 10
    assert (await queue.wait()).count == line_queue.LINES_MAX + 1
