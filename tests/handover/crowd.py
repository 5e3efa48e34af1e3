"""A crowd in two processes of its own: the clients of thousands of flows, and their endpoints.

    python -m tests.handover.crowd clients|endpoints ORDER

ORDER is a JSON object: ``seed``, ``stuck`` (seconds after which a flow that stands still is a
fault), and ``groups``: by name the ``kind`` of its flows, their ``count``, and ``listener`` and
``endpoint`` (ports). Both obey one word a line:

* ``open``: the clients begin all flows; endpoints have nothing to do;
* ``look``: tell how it stands;
* ``brace``: ends of flows may come from now on;
* ``stop``: bring all flows to their end;
* ``tell``: what each flow has carried.

Each is answered by one line, a JSON object with the key ``done``; so is the beginning. Faults are
told when they are seen, each by a line with the key ``fault``. A crowd leaves when its stdin ends.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
from collections import Counter
from select import EPOLLIN
from time import monotonic
from typing import Any, Final, TypedDict

from tests.handover.datagrams import Responder, Talker
from tests.handover.kinds import DATAGRAMS, STREAMS, StreamKind
from tests.handover.loop import Loop
from tests.handover.streams import HEADER, MAGIC, End, shrink
from tests.handover.told import WORDLESS, Account, Fault, together

HOST: Final = "127.0.0.1"
BACKLOG: Final = 4096
LOOK_EVERY: Final = 1.0
NUMBERS: Final = 1 << 26
"""Flows of one group at most, by which their numbers tell the group as well; they have 32 bits. In
half an hour a group whose flows end with their answer has a million."""

PATIENCE_TO_CONNECT: Final = 30.0


class Place(TypedDict):
    """Of one group of flows: what they are, how many, and the ports they go to."""

    kind: str
    count: int
    listener: int
    endpoint: int


class Order(TypedDict):
    seed: int
    stuck: float
    groups: dict[str, Place]


class Crowd:
    """One half of it: what both have in common."""

    def __init__(self, order: Order) -> None:
        self.loop = Loop()
        self.seed = order["seed"]
        self.stuck = order["stuck"]
        self.places = order["groups"]
        self.bracing = self.stopping = self.ended = False
        self.faults = 0
        self.ends: dict[int, End] = {}
        self.accounts: dict[int, Account] = {}
        self.waits: list[float] = []
        self._line = b""
        self.loop.watch(sys.stdin.fileno(), self._obey, EPOLLIN)
        self.loop.later(LOOK_EVERY, self._look)

    def fault(self, fault: Fault) -> None:
        self.faults += 1
        print(json.dumps({"fault": fault}), flush=True)

    def finished(self, end: End) -> None:
        self.accounts[end.number] = end.account()
        self.ends.pop(end.number, None)
        self._end_if_all_have()

    def _look(self) -> None:
        for end in list(self.ends.values()):
            end.look()
        self.loop.later(LOOK_EVERY, self._look)

    def _obey(self, mask: int) -> None:
        data = os.read(sys.stdin.fileno(), 4096)
        if not data:
            raise SystemExit
        *words, self._line = (self._line + data).split(b"\n")
        for word in words:
            getattr(self, f"do_{word.decode()}")()

    def answer(self, **told: Any) -> None:
        print(json.dumps({"done": told}), flush=True)

    def do_look(self) -> None:
        """Tell how it stands, and what there was since the last time."""
        waits = sorted(self.waits) or [0.0]
        carried: Counter[str] = Counter()
        for end in self.ends.values():
            carried[end.group] += end.received
        self.answer(
            live=len(self.ends),
            received=carried,
            longest_turn=self.loop.longest_turn,
            waits=[waits[len(waits) // 2], waits[len(waits) * 99 // 100], waits[-1]],
            **self.more(),
        )
        self.loop.longest_turn = 0.0
        self.waits.clear()

    def more(self) -> dict[str, Any]:
        return {}

    def do_brace(self) -> None:
        self.bracing = True
        self.answer()

    def do_stop(self) -> None:
        self.bracing = self.stopping = True
        for end in list(self.ends.values()):
            end.stop()
        self._end_if_all_have()

    def _end_if_all_have(self) -> None:
        if self.stopping and not self.ended and not self.ends and self.quiet():
            self.ended = True
            self.answer()

    def do_tell(self) -> None:
        self.answer(accounts=self.all_accounts())

    def quiet(self) -> bool:
        return True

    def all_accounts(self) -> dict[int, Account]:
        """Those of what has not come to its end, too."""
        return self.accounts | {flow: end.account() for flow, end in self.ends.items()}


class Clients(Crowd):
    """The clients: each at an address of its own, by which it is steered to a worker."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self.talkers: dict[int, Talker] = {}
        self._fresh: Counter[str] = Counter()

    def do_open(self) -> None:
        for index, (group, place) in enumerate(self.places.items()):
            for number in range(place["count"]):
                self.begin(group, index, number)
        self.answer()

    def begin(self, group: str, index: int, number: int, first: int | None = None) -> None:
        """Begin a flow.

        Args:
            group: its group.
            index: of the group.
            number: of the flow in it.
            first: the flow of whose client it is, where that begins one after the other.

        """
        self.loop.now = monotonic()  # to begin many takes its time, and each begins when it does
        flow = index * NUMBERS + number
        source = f"127.{1 + index}.{number % 65536 // 256}.{1 + number % 256 % 254}"
        target = HOST, self.places[group]["listener"]
        if self.places[group]["kind"] in STREAMS:
            self._connect(group, flow, source, target)
        else:
            self._talk(group, index, (flow, flow if first is None else first), source, target)

    def _connect(self, group: str, flow: int, source: str, target: tuple[str, int]) -> None:
        of = STREAMS[self.places[group]["kind"]]
        connecting = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connecting.settimeout(PATIENCE_TO_CONNECT)
        shrink(of.client, connecting)
        connecting.bind((source, 0))
        try:
            connecting.connect(target)
            connecting.sendall(HEADER.pack(MAGIC, flow))
        except OSError as error:
            connecting.close()
            self.fault(Fault("client", group, flow, "original", 0, f"no flow: {error.strerror}"))
            return
        end = self.ends[flow] = End(self, connecting, group, of, flow, "client")
        end.start()

    def finished(self, end: End) -> None:
        group = end.group
        if STREAMS[self.places[group]["kind"]].fresh and not self.stopping:
            self._next(group, list(self.places).index(group))
        super().finished(end)

    def _next(self, group: str, index: int, first: int | None = None) -> None:
        """The next flow of a client that begins one for each question."""
        self._fresh[group] += 1
        self.begin(group, index, self.places[group]["count"] + self._fresh[group] - 1, first)

    def _talk(
        self,
        group: str,
        index: int,
        flows: tuple[int, int],
        source: str,
        target: tuple[str, int],
    ) -> None:
        of = DATAGRAMS[self.places[group]["kind"]]
        flow, _ = flows
        talker = Talker(self, group, of, flow, source, target)
        if of.fresh:
            talker.renew = lambda: self._renew(group, index, flows)  # type: ignore[method-assign]
        self.talkers[flow] = talker
        talker.start()

    def _renew(self, group: str, index: int, flows: tuple[int, int]) -> None:
        """Have another flow, in place of one that has its answer; all have one account."""
        flow, first = flows
        self.accounts[first] = together(self.accounts.get(first), self.talkers.pop(flow).account())
        if not self.stopping:
            self._next(group, index, first)
        self._end_if_all_have()

    def do_stop(self) -> None:
        super().do_stop()
        self.loop.later(LOOK_EVERY, self._look_at_talkers)

    def _look_at_talkers(self) -> None:
        self._end_if_all_have()
        self.loop.later(LOOK_EVERY, self._look_at_talkers)

    def more(self) -> dict[str, Any]:
        return {"talking": len(self.talkers), "fresh": self._fresh.total()}

    def quiet(self) -> bool:
        return not any(talker.waiting for talker in self.talkers.values())

    def all_accounts(self) -> dict[int, Account]:
        return super().all_accounts() | {
            flow: talker.account() for flow, talker in self.talkers.items()
        }


class Endpoints(Crowd):
    """The endpoints, one of each kind."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self.responders: list[Responder] = []
        for group, place in self.places.items():
            address, kind = (HOST, place["endpoint"]), place["kind"]
            if kind in STREAMS:
                self._listen(group, STREAMS[kind], address)
            else:
                self.responders.append(Responder(self, group, DATAGRAMS[kind], address))

    def do_open(self) -> None:
        self.answer()

    def _listen(self, group: str, of: StreamKind, address: tuple[str, int]) -> None:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shrink(of.endpoint, listening)
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
        self.loop.watch(listening.fileno(), lambda _: self._accept(group, of, listening), EPOLLIN)

    def _accept(self, group: str, of: StreamKind, listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        self.loop.watch(accepted.fileno(), lambda _: self._greet(group, of, accepted), EPOLLIN)

    def _greet(self, group: str, of: StreamKind, accepted: socket.socket) -> None:
        """Learn which flow this is. The header is one send of a few bytes, and comes in one."""
        self.loop.forget(accepted.fileno())
        try:
            header = accepted.recv(HEADER.size)
        except ConnectionResetError:
            self.fault(Fault("endpoint", group, 0, "original", 0, WORDLESS))
            accepted.close()
            return
        magic, flow = HEADER.unpack(header) if len(header) == HEADER.size else (b"", 0)
        if magic != MAGIC or flow in self.ends or flow in self.accounts:
            self.fault(Fault("endpoint", group, flow, "original", 0, f"begins with {header.hex()}"))
            accepted.close()
            return
        end = self.ends[flow] = End(self, accepted, group, of, flow, "endpoint")
        end.start()

    def all_accounts(self) -> dict[int, Account]:
        found = super().all_accounts()
        for responder in self.responders:
            found |= responder.accounts()
        return found


def main(side: str, order: str) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowd: Crowd = Clients(json.loads(order)) if side == "clients" else Endpoints(json.loads(order))
    crowd.answer()
    crowd.loop.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
