"""The yardstick: one ROUTER and its DEALERs move bytes under CURVE, and do nothing else with them.

Three ways. `whole`: one message for each update and each model, as frameworks without pieces send them. `asked`:
pieces of 1 MiB, each acknowledged or asked for, four under way, as any line needs that goes on after a cut and whose
server must not drown; these are Ayni's messages, without what Ayni does with them. `pushed`: the same pieces as fast as
the sockets take them, and nothing kept; the least that these bytes can cost.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any, Literal

import zmq

Way = Literal["whole", "asked", "pushed"]
CHUNK_BYTES = 1 << 20  # what Ayni sends at a time once it has seen that the line is fast
WINDOW = 4


def serve(
    way: Way, secret: bytes, num_sites: int, num_bytes: int, num_rounds: int, told: Queue[Any], done: Barrier
) -> None:
    """In each round: take everything from every site, then give everything to every site."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, secret)
        router.bind("tcp://127.0.0.1:*")
        told.put(router.getsockopt_string(zmq.LAST_ENDPOINT))
        model = _chunks(way, num_bytes)
        if way == "asked":
            _serve_asked(router, num_sites, num_rounds, model)
        else:
            for _ in range(num_rounds):
                _serve_pushed(router, num_sites * num_bytes, model)
        done.wait()  # until every site has everything and the memory was read


def _serve_pushed(router: zmq.Socket[bytes], wanted_bytes: int, model: list[bytes]) -> None:
    received: dict[bytes, int] = defaultdict(int)
    while sum(received.values()) < wanted_bytes:
        route = router.recv()
        received[route] += len(router.recv(copy=False).buffer)
    for chunk in model:
        for route in received:
            router.send_multipart([route, chunk], copy=False)


def _serve_asked(router: zmq.Socket[bytes], num_sites: int, num_rounds: int, model: list[bytes]) -> None:
    """The answers of a round are kept until it is over, since a mean would be made of them."""
    kept: list[list[zmq.Frame]] = [[] for _ in range(num_rounds)]
    waiting: list[tuple[bytes, int, int]] = []
    num_given = [0] * num_rounds
    while sum(num_given) < num_rounds * num_sites * len(model):
        route, place = router.recv(), int.from_bytes(router.recv())
        round_number, number = divmod(place, len(model))
        if router.getsockopt(zmq.RCVMORE):
            kept[round_number].append(router.recv(copy=False))
            router.send_multipart([route, b"ok"])
        else:
            waiting.append((route, round_number, number))
        ready = [asked for asked in waiting if len(kept[asked[1]]) == num_sites * len(model)]
        for asked in ready:
            waiting.remove(asked)
            router.send_multipart([asked[0], model[asked[2]]], copy=False)
            num_given[asked[1]] += 1
            if num_given[asked[1]] == num_sites * len(model):
                kept[asked[1]].clear()


def exchange(
    way: Way,
    endpoint: str,
    server_key: bytes,
    num_bytes: int,
    num_rounds: int,
    start: Barrier,
    told: Queue[Any],
    done: Barrier,
) -> None:
    """One site's side. Says when it had everything, on the system's monotonic clock."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.DEALER) as dealer:
        public, secret = zmq.curve_keypair()
        dealer.setsockopt(zmq.CURVE_SERVERKEY, server_key)
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, public)
        dealer.setsockopt(zmq.CURVE_SECRETKEY, secret)
        dealer.connect(endpoint)
        update = _chunks(way, num_bytes)
        start.wait()
        for round_number in range(num_rounds):
            if way == "asked":
                first = round_number * len(update)
                numbers = [number.to_bytes(4) for number in range(first, first + len(update))]
                _ask(dealer, [[number, chunk] for number, chunk in zip(numbers, update, strict=True)])
                _ask(dealer, [[number] for number in numbers])
            else:
                _exchange_pushed(dealer, update)
        told.put((time.monotonic(), num_rounds * num_bytes, num_rounds * num_bytes))
        done.wait()


def _exchange_pushed(dealer: zmq.Socket[bytes], update: list[bytes]) -> None:
    for chunk in update:
        dealer.send(chunk, copy=False)
    for _ in update:  # the model has as many
        dealer.recv(copy=False)


def _ask(dealer: zmq.Socket[bytes], requests: list[list[bytes]]) -> None:
    for number, request in enumerate(requests):
        dealer.send_multipart(request, copy=False)
        if number >= WINDOW - 1:
            dealer.recv(copy=False)
    for _ in range(min(WINDOW - 1, len(requests))):
        dealer.recv(copy=False)


def _chunks(way: Way, num_bytes: int) -> list[bytes]:
    size = num_bytes if way == "whole" else CHUNK_BYTES
    return [secrets.token_bytes(min(size, num_bytes - at)) for at in range(0, num_bytes, size)]
