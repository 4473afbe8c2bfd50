"""The coordinator as the transport sees it: `admit` a key, `handle` a message, `tick` with the clock."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import assert_never

import msgspec
from sqlalchemy.orm import Session

from ayni.errors import AyniError, IntegrityError, PeerProtocolError, RefusedError
from ayni.task import Task
from ayni.tensors import safe
from ayni.tensors.image_set import decode_image_set
from ayni.tensors.safe import Bytes
from ayni.wire.connection import Frames
from ayni.wire.curve import wire_bytes
from ayni.wire.messages import (
    Chunk,
    ExpertIs,
    GetChunk,
    GetManifest,
    GetRound,
    GetUpload,
    Join,
    Leave,
    Left,
    ManifestIs,
    PutChunk,
    Refusal,
    Reply,
    ReplyBody,
    Request,
    RoundIs,
    ShareExpert,
    Submit,
    UploadIs,
    parse_request,
    to_frames,
)
from ayni_coordinator import experts, federation, registry
from ayni_coordinator.aggregation import RoundInputs, check_soft_labels, check_update
from ayni_coordinator.database import DatabaseError, ManifestRow, SiteRow, TrafficRow, note, transaction
from ayni_coordinator.home import CoordinatorHome, find_artefact
from ayni_coordinator.uploads import Uploads

log = logging.getLogger(__name__)
REFRESH_S = 0.5  # how soon a revocation made by another process is seen
FLUSH_TRAFFIC_S = 5.0
UPLOAD_ALLOWANCE = 1 << 20


def bytes_per_answer(task: Task) -> int:
    """At most, of soft labels on one public image: maps have half its size, and a byte for each place before packing.

    >>> from ayni.task import ImageSettings, TrainingSettings
    >>> image, training = ImageSettings(depth=8, height=16, width=16), TrainingSettings(rounds=1)
    >>> shared = {"name": "t", "title": "t", "classes": ("a", "b"), "image": image, "training": training}
    >>> bytes_per_answer(Task(**shared)), bytes_per_answer(Task(kind="segmentation", **shared))
    (8, 520)
    """
    places = math.prod(side // 2 for side in task.image.size) if task.kind == "segmentation" else 0
    return len(task.classes) * (places + 4)


class Coordinator:
    """Serves one federation. `now_s` is given by the caller on every call: no clock in here."""

    def __init__(self, home: CoordinatorHome, now_s: float) -> None:
        self.home = home
        self._averaging: tuple[int, Future[federation.StoredResult]] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ayni-average")
        self._traffic: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        self._seen_s: dict[str, float] = {}
        self._standing: federation.Standing | None = None  # as stored, until anything may have changed
        self._flushed_s = self._refreshed_s = 0.0
        with transaction(home.engine) as session:
            newest = federation.current_round(session)
            whole = safe.decode(home.store.read(newest.global_sha256))
            public_set = find_artefact(session, "public-set")
            experts.remove_strays(home, session)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in whole.items()}
        whole_bytes = sum(tensor.nbytes for tensor in whole.values())
        self._image_set, self._num_images = "", 0
        if public_set:
            images = decode_image_set(home.store.read(public_set.sha256))
            self._image_set, self._num_images = public_set.sha256, images.info.shape[0]
        soft_label_bytes = self._num_images * bytes_per_answer(home.task)
        self._uploads = Uploads(home.uploads, home.store, 2 * whole_bytes + soft_label_bytes + UPLOAD_ALLOWANCE)
        self._purposes: dict[bytes, str] = {}
        self._refresh(now_s)

    # What the transport asks

    def admit(self, key: bytes) -> bool:
        return key in self._sites or key in self._invitations

    def handle(self, key: bytes, frames: Frames, now_s: float) -> Frames | None:
        """The reply to one message, or nothing for a key that is not admitted (any more)."""
        if not self.admit(key):
            return None
        site = self._sites.get(key, "")
        try:
            request, payload = parse_request(frames)
        except PeerProtocolError as error:
            log.warning("dropped a message of %s: %s", site or "an invitation", error)
            return None
        reply, sent = self._reply(key, site, request, payload, now_s)
        answer = to_frames(Reply(request.id, reply), sent)
        if site:
            meter = self._traffic[site, self._purpose(request)]
            meter[0] += wire_bytes(frames)
            meter[1] += wire_bytes(answer)
            self._seen_s[site] = now_s
        return answer

    def tick(self, now_s: float) -> None:
        """What happens by itself: deadlines, averaging, publishing. Cheap when there is nothing to do."""
        if self._averaging and self._averaging[1].done():
            number, future = self._averaging
            self._averaging = None
            self._publish(number, future, now_s)
        if now_s - self._refreshed_s >= REFRESH_S:
            self._refresh(now_s)
            self._advance(now_s)
        if now_s - self._flushed_s >= FLUSH_TRAFFIC_S:
            self._flush_traffic(now_s)

    def close(self, now_s: float) -> None:
        self._worker.shutdown(wait=True)
        self._uploads.close()
        self._flush_traffic(now_s)

    # Requests

    def _reply(
        self, key: bytes, site: str, request: Request, payload: bytes | memoryview, now_s: float
    ) -> tuple[ReplyBody, bytes]:
        try:
            if isinstance(request.body, Join):
                with transaction(self.home.engine) as session:
                    joined = registry.join(self.home, session, key, request.body, now_s)
                self._refresh(now_s)
                self._advance(now_s)
                return joined, b""
            if not site:
                raise RefusedError("not-allowed", "an invitation can only be used to join")
            if isinstance(request.body, GetChunk):
                return self._chunk(request.body)
            if isinstance(request.body, PutChunk):
                return self._put(site, request.body, payload), b""
            if isinstance(request.body, GetRound):
                return self._round(site, now_s), b""
            if isinstance(request.body, Submit):
                self._check_answer(site, request.body)
            with transaction(self.home.engine) as session:
                reply = self._ask_database(session, site, request, now_s)
            if isinstance(request.body, Leave):
                self._refresh(now_s)
            if isinstance(request.body, Leave | Submit):
                self._advance(now_s)
            return reply
        except RefusedError as error:
            return Refusal(code=error.code, message=error.message), b""  # type: ignore[arg-type]
        except DatabaseError as error:
            log.error("%s", error)
            return Refusal(
                code="busy", message="the coordinator's disk or database is in trouble; try again later."
            ), b""
        except AyniError as error:
            return Refusal(code="bad-request", message=str(error)[:1000]), b""
        except Exception:  # one site's request must not end the service for the others
            log.exception("a request of %s failed", site or "an invitation")
            return Refusal(code="busy", message="the coordinator has a fault; its log says more. Try again later."), b""

    def _ask_database(self, session: Session, site: str, request: Request, now_s: float) -> tuple[ReplyBody, bytes]:
        match request.body:
            case GetManifest(have_version=have):
                newest = session.query(ManifestRow).order_by(ManifestRow.version.desc()).first()
                version, signed = (newest.version, newest.signed) if newest else (0, b"")
                return ManifestIs(version=version), signed if version != have else b""
            case GetUpload(sha256=sha256):
                received, stored = self._uploads.received(site, sha256.hex())
                return UploadIs(sha256=sha256, received_bytes=received, stored=stored), b""
            case Submit() as asked:
                return federation.answer_round(session, site, asked, now_s), b""
            case ShareExpert(expert=sha256):
                return self._share(session, site, sha256, now_s), b""
            case Leave():
                registry.end_site(session, site, state="left", who=site, now_s=now_s)
                experts.withdraw(self.home, session, site, who=site, now_s=now_s)
                return Left(), b""
            case Join() | GetRound() | GetChunk() | PutChunk():
                raise AssertionError("answered before")
            case other:
                assert_never(other)

    def _round(self, site: str, now_s: float) -> RoundIs:
        """Asked most often by far: read from the database once after every change."""
        if self._standing is None:
            with transaction(self.home.engine) as session:
                self._standing = federation.standing(self.home, session)
        return federation.seen_from(site, self._standing, self.home.task, now_s)

    def _chunk(self, asked: GetChunk) -> tuple[ReplyBody, bytes]:
        sha256 = asked.sha256.hex()
        listed = self._listed.get(sha256)
        if listed is None:
            raise RefusedError(
                "unknown-artefact", f"artefact {sha256[:12]} is not (any more) in the manifest; fetch it anew"
            )
        if asked.offset >= listed:
            raise RefusedError("bad-request", f"artefact {sha256[:12]} has {listed} bytes")
        data = self.home.store.read_part(sha256, asked.offset, asked.length)
        return Chunk(sha256=asked.sha256, offset=asked.offset, total_bytes=listed), data

    def _put(self, site: str, asked: PutChunk, payload: bytes | memoryview) -> UploadIs:
        received, stored = self._uploads.put(site, asked.sha256.hex(), asked.offset, asked.total_bytes, payload)
        return UploadIs(sha256=asked.sha256, received_bytes=received, stored=stored)

    def _check_answer(self, site: str, asked: Submit) -> None:
        """What is averaged later is checked before it is counted."""
        with transaction(self.home.engine) as session:
            row = session.get(SiteRow, site)
            role, participation = (row.role, row.participation) if row else ("", "")
            if not federation.is_open(session, asked.round_number):
                return  # it will be told that it is late; nothing of it is used
        if asked.update is None and participation == "weights":
            raise RefusedError("bad-request", "an update is missing: this site takes part by weights")
        if (asked.update and participation != "weights") or (asked.soft_labels and role != "hospital"):
            raise RefusedError("not-allowed", f"a {role} that takes part by {participation} does not send this")
        try:
            if asked.update:
                check_update(self._stored(asked.update), self._shapes, self.home.task.traffic.form)
            if asked.soft_labels:
                check_soft_labels(self._stored(asked.soft_labels), self.home.task, self._image_set, self._num_images)
        except IntegrityError as error:
            raise RefusedError("bad-artefact", f"the answer of {site!r} was not counted: {error}") from None

    def _share(self, session: Session, site: str, sha256: bytes | None, now_s: float) -> ExpertIs:
        """What was put is the site's alone: once it is taken or refused, it lies nowhere else."""
        if sha256 is None:
            experts.withdraw(self.home, session, site, who=site, now_s=now_s)
        elif not experts.shares(self.home, session, site, sha256.hex()):
            data = self._stored(sha256)
            try:
                experts.share(self.home, session, site, data, self._shapes, now_s)
            finally:
                if sha256.hex() not in federation.referenced(session):
                    self.home.store.remove(sha256.hex())
        return ExpertIs(expert=sha256)

    def _stored(self, sha256: bytes) -> Bytes:
        """Hashed when it arrived; before it is averaged it is hashed again."""
        if not self.home.store.has(sha256.hex()):
            raise RefusedError("unknown-artefact", f"artefact {sha256.hex()[:12]} has not arrived; put it first")
        if self.home.store.num_bytes(sha256.hex()) > self._uploads.max_bytes:  # the public set, say
            raise RefusedError("bad-artefact", f"artefact {sha256.hex()[:12]} is not what a site puts")
        return self.home.store.view(sha256.hex())

    # What happens by itself

    def _refresh(self, now_s: float) -> None:
        with transaction(self.home.engine) as session:
            self._sites, self._invitations = registry.admitted_keys(session, now_s)
            rows = federation.listed_artefacts(session)
        self._listed = {row.sha256: row.num_bytes for row in rows}
        self._purposes = {bytes.fromhex(row.sha256): row.kind for row in rows}
        self._refreshed_s = now_s
        self._standing = None

    def _advance(self, now_s: float) -> None:
        self._standing = None
        with transaction(self.home.engine) as session:
            closed = federation.advance(self.home, session, now_s)
            inputs = closed.inputs if closed else b""
        if closed and not self._averaging:
            work = msgspec.json.decode(inputs, type=RoundInputs)
            self._averaging = (closed.number, self._worker.submit(federation.average_round, self.home, work))

    def _publish(self, number: int, future: Future[federation.StoredResult], now_s: float) -> None:
        try:
            result = future.result()
        except AyniError as error:
            log.error("round %d cannot be averaged: %s", number, error)
            with transaction(self.home.engine) as session:
                note(session, now_s, "coordinator", f"round {number} cannot be averaged: {error}")
            raise
        with transaction(self.home.engine) as session:
            federation.publish_round(self.home, session, number, result, now_s)
        with transaction(self.home.engine) as session:  # nobody lists a new artefact while the old ones go
            self.home.store.sweep(federation.referenced(session))
        self._worker.submit(self.home.store.remove_swept)
        self._uploads.start_anew()
        self._refresh(now_s)

    def _purpose(self, request: Request) -> str:
        match request.body:
            case GetChunk(sha256=sha256):
                return self._purposes.get(sha256, "other")
            case PutChunk(kind=kind):
                return kind
            case GetManifest():
                return "manifest"
            case _:
                return "control"

    def _flush_traffic(self, now_s: float) -> None:
        self._flushed_s = now_s
        if not self._traffic:
            return
        with transaction(self.home.engine) as session:
            for (name, purpose), (up, down) in self._traffic.items():
                row = session.get(TrafficRow, (name, purpose))
                if row is None:
                    row = TrafficRow(site=name, purpose=purpose, bytes_up=0, bytes_down=0)
                    session.add(row)
                row.bytes_up += up
                row.bytes_down += down
            for name, seen_s in self._seen_s.items():
                if site := session.get(SiteRow, name):
                    site.last_seen_s = seen_s
        self._traffic.clear()
        self._seen_s.clear()
