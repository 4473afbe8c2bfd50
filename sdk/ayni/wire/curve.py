"""The transport over CURVE ZeroMQ: the coordinator binds one ROUTER port, sites dial out with a DEALER.

Fails closed. libzmq admits any key when no ZAP handler answers, so the server binds its own responder first and
enforces the domain; and since revoking a key does not cut a live connection (libzmq issue 2877), the authenticated
key of every single message goes to the handler, which looks it up again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import zmq
import zmq.utils.monitor

from ayni.errors import AyniError, LineError, NotAdmittedError, UserError
from ayni.keys import CurveKeys
from ayni.wire.connection import Admit, Connection, Dial, Frames, Handler
from ayni.wire.messages import MAX_FRAMES, MAX_PAYLOAD_BYTES

CURVE_BYTES = 33  # of CURVE in each frame (RFC 26): name of the command, nonce, authenticator, flags
HANDSHAKE_BYTES_UP, HANDSHAKE_BYTES_DOWN = 567, 301
DIAL_TIMEOUT_S = 10.0
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"ayni"
_MAX_FRAME_BYTES = MAX_PAYLOAD_BYTES + 4096
_ZERO_COPY_BYTES = 16 << 10
_REFUSED_ATTEMPTS = 2
_WRONG_KEY_ATTEMPTS = 3  # libzmq would retry for ever


def wire_bytes(frames: Frames) -> int:
    """What these frames cost on the line, without TCP and IP: ZMTP adds 2 bytes up to 255, else 9 (RFC 37).

    >>> wire_bytes([bytes(222)]), wire_bytes([bytes(223)])
    (257, 265)
    """
    bodies = [len(frame) + CURVE_BYTES for frame in frames]
    return sum(body + (2 if body <= 255 else 9) for body in bodies)


class CurveServer:
    """One ROUTER port. `serve` runs in the caller's thread until `stop` returns true."""

    def __init__(self, endpoint: str, secret: bytes, admit: Admit, handler: Handler) -> None:
        if not zmq.has("curve"):
            raise UserError("this ZeroMQ has no CURVE encryption. Install the pyzmq wheel on a 64-bit system.")
        self._handler = handler
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._zap = _ZapResponder(self._context, admit)  # bound before the ROUTER: never a moment without it
        self._router = self._context.socket(zmq.ROUTER)
        options: dict[int, int | bytes] = {
            zmq.LINGER: 0,
            zmq.ROUTER_MANDATORY: 1,
            zmq.MAXMSGSIZE: _MAX_FRAME_BYTES,
            zmq.HANDSHAKE_IVL: 5000,
            zmq.ZAP_DOMAIN: ZAP_DOMAIN,
            zmq.ZAP_ENFORCE_DOMAIN: 1,
            zmq.CURVE_SERVER: 1,
            zmq.CURVE_SECRETKEY: secret,
            zmq.RCVHWM: 64,
            zmq.SNDHWM: 64,  # a peer that asks and does not read costs 64 MiB at most, then loses its replies
            zmq.TCP_KEEPALIVE: 1,
            zmq.IPV6: int("[" in endpoint),
        }
        for option, value in options.items():
            self._router.setsockopt(option, value)
        try:
            self._router.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UserError(
                f"cannot listen on {endpoint}: {error.strerror}. Does another program listen there, or is it no "
                "address of this machine? `bind` in coordinator.toml says where to listen."
            ) from None
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)

    def serve(self, stop: Callable[[], bool], tick: Callable[[], None] = lambda: None, *, tick_s: float = 0.1) -> None:
        """Answer requests; call `tick` between them, at least every `tick_s`."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        while not stop():
            if poller.poll(round(tick_s * 1000)):
                for _ in range(64):  # then the clock gets its turn
                    if not self._answer_one():
                        break
            tick()

    def _answer_one(self) -> bool:
        try:
            route = self._router.recv(zmq.NOBLOCK)
        except zmq.Again:
            return False
        frames: list[zmq.Frame] = []
        while self._router.getsockopt(zmq.RCVMORE):
            frame = self._router.recv(zmq.NOBLOCK, copy=False)
            if len(frames) <= MAX_FRAMES:  # a longer message is read to its end and dropped by the parser
                frames.append(frame)
        if not frames:
            return True
        peer_key = bytes.fromhex(str(frames[0].get("User-Id")))  # set by our own responder, not by the peer
        reply = self._handler(peer_key, [frame.buffer for frame in frames])
        if reply is not None:
            # A peer that has gone or does not read loses its reply and asks again; nobody waits for it.
            with contextlib.suppress(zmq.Again, zmq.ZMQError):
                _send(self._router, [route, *reply], zmq.NOBLOCK)
        return True

    def close(self) -> None:
        self._router.close(0)
        self._zap.close()
        self._context.term()

    def __enter__(self) -> CurveServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _send(socket: zmq.Socket[bytes], frames: Frames, flags: int = 0) -> None:
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        more = zmq.SNDMORE if number < last else 0
        socket.send(frame, flags | more, copy=len(frame) < _ZERO_COPY_BYTES)


class _ZapResponder:
    """Answers libzmq's question "may this key in?" from memory; any trouble is a no (RFC 27)."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], admit: Admit) -> None:
        self._admit = admit
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ZAP_ENDPOINT)
        self._stop_writer = context.socket(zmq.PAIR)
        self._stop_reader = context.socket(zmq.PAIR)
        self._stop_reader.bind("inproc://ayni.zap.stop")
        self._stop_writer.connect("inproc://ayni.zap.stop")
        self._thread = threading.Thread(target=self._run, name="ayni-zap", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._stop_reader, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stop_reader in ready:
                break
            request = self._socket.recv_multipart()
            self._socket.send_multipart(self._decide(request))
        self._socket.close(0)
        self._stop_reader.close(0)

    def _decide(self, request: list[bytes]) -> list[bytes]:
        version, request_id = b"1.0", request[1] if len(request) > 1 else b""
        try:
            _, _, domain, _, _, mechanism, key = request
            welcome = domain == ZAP_DOMAIN and mechanism == b"CURVE" and len(key) == 32 and self._admit(key)
            status, user = (b"200", key.hex().encode()) if welcome else (b"400", b"")
        except Exception:  # whatever went wrong while deciding, the answer is no, and the next peer is served
            status, user = b"500", b""
        return [version, request_id, status, b"", user, b""]

    def close(self) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._stop_writer.send(b"")
        self._thread.join()
        self._stop_writer.close(0)


class CurveConnection:
    """One dialled line. The monitor tells a refused key from a line that is down: `send` alone would not."""

    def __init__(self, endpoint: str, server_key: bytes, keys: CurveKeys) -> None:
        self._endpoint = endpoint
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        options: dict[int, int | bytes] = {
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,
            zmq.MAXMSGSIZE: _MAX_FRAME_BYTES,
            zmq.HANDSHAKE_IVL: 5000,
            zmq.RECONNECT_IVL: 200,
            zmq.CURVE_SERVERKEY: server_key,
            zmq.CURVE_PUBLICKEY: keys.public,
            zmq.CURVE_SECRETKEY: keys.secret,
            zmq.SNDTIMEO: 20_000,
            zmq.TCP_KEEPALIVE: 1,
            zmq.IPV6: int("[" in endpoint),
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CLOSED
        )
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        try:
            self._socket.connect(endpoint)
            self._shake_hands()
        except zmq.ZMQError as error:
            self.close()
            raise LineError(f"{endpoint} cannot be dialled: {error.strerror}") from None
        except AyniError:
            self.close()
            raise

    def _shake_hands(self) -> None:
        failures, refusals, waits = 0, 0, round(DIAL_TIMEOUT_S / 0.1)
        while waits > 0:
            if not self._monitor.poll(100):
                waits -= 1
                continue
            event = zmq.utils.monitor.recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise NotAdmittedError(
                    f"the coordinator at {self._endpoint} does not let this key in: the invitation was used or has "
                    "expired, or the site has left or was revoked. Ask the coordinator for a new invitation."
                )
            refusals += event == zmq.EVENT_CLOSED  # nobody listens there: no need to wait the whole time
            if refusals >= _REFUSED_ATTEMPTS:
                raise LineError(
                    f"nothing listens at {self._endpoint}. Check the address, and whether the coordinator is serving."
                )
            failures += event not in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED)
            if failures >= _WRONG_KEY_ATTEMPTS:
                raise NotAdmittedError(
                    f"what answers at {self._endpoint} is not the coordinator that sent the invitation (it has another "
                    "key). Check the address with the coordinator, and ask for a new invitation if it was set up anew."
                )
        raise LineError(
            f"no coordinator answers at {self._endpoint} within {DIAL_TIMEOUT_S:.0f} seconds. Check that this machine "
            "is online and that outgoing connections to that port are allowed."
        )

    def send(self, frames: Frames) -> None:
        try:
            _send(self._socket, frames)
        except zmq.ZMQError as error:
            raise LineError(f"the line to {self._endpoint} is down: {error.strerror}") from None

    def receive(self, timeout_s: float) -> list[bytes] | None:
        ready = dict(self._poller.poll(round(timeout_s * 1000)))
        if self._socket in ready:
            return self._socket.recv_multipart()
        if self._monitor in ready:
            event = zmq.utils.monitor.recv_monitor_message(self._monitor)["event"]
            if event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
                raise LineError(f"the line to {self._endpoint} was cut")
        return None

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()


def curve_dial(endpoint: str, server_key: bytes, keys: CurveKeys) -> Dial:
    def dial() -> Connection:
        return CurveConnection(endpoint, server_key, keys)

    return dial
