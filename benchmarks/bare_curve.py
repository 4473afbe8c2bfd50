"""The yardstick: one ROUTER and its DEALERs move bytes under CURVE, and do nothing else with them."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any

import zmq

CHUNK_BYTES = 1 << 20  # what Ayni sends at a time once it has seen that the line is fast


def serve(secret: bytes, num_sites: int, num_bytes: int, num_rounds: int, told: Queue[Any], done: Barrier) -> None:
    """In each round: take everything from every site, then send everything to every site."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, secret)
        router.bind("tcp://127.0.0.1:*")
        told.put(router.getsockopt_string(zmq.LAST_ENDPOINT))
        model = _chunks(num_bytes)
        for _ in range(num_rounds):
            received: dict[bytes, int] = defaultdict(int)
            while sum(received.values()) < num_sites * num_bytes:
                route = router.recv()
                received[route] += len(router.recv(copy=False).buffer)
            for chunk in model:
                for route in received:
                    router.send(route, zmq.SNDMORE)
                    router.send(chunk, copy=False)
        done.wait()  # until every site has everything and the memory was read


def exchange(
    endpoint: str, server_key: bytes, num_bytes: int, num_rounds: int, start: Barrier, told: Queue[Any], done: Barrier
) -> None:
    """One site's side. Says when it had everything, on the system's monotonic clock."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.DEALER) as dealer:
        public, secret = zmq.curve_keypair()
        dealer.setsockopt(zmq.CURVE_SERVERKEY, server_key)
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, public)
        dealer.setsockopt(zmq.CURVE_SECRETKEY, secret)
        dealer.connect(endpoint)
        update = _chunks(num_bytes)
        start.wait()
        for _ in range(num_rounds):
            for chunk in update:
                dealer.send(chunk, copy=False)
            received = 0
            while received < num_bytes:
                received += len(dealer.recv(copy=False).buffer)
        told.put((time.monotonic(), num_rounds * num_bytes, num_rounds * num_bytes))
        done.wait()


def _chunks(num_bytes: int) -> list[bytes]:
    return [secrets.token_bytes(min(CHUNK_BYTES, num_bytes - at)) for at in range(0, num_bytes, CHUNK_BYTES)]
