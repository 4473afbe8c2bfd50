"""What a site puts: resumed, verified, bounded - and what one with a valid key and bad intentions can do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ayni.errors import PeerProtocolError, RefusedError
from ayni.tensors import safe
from ayni.tensors.update import encode_whole
from ayni.wire.messages import (
    MAX_PAYLOAD_BYTES,
    GetChunk,
    GetUpload,
    PutChunk,
    Submit,
    UploadIs,
    new_request,
    parse_reply,
    to_frames,
)
from ayni_coordinator.uploads import Uploads
from desk import Desk, task_with, write_public_set


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    task = task_with(public_set=str(write_public_set(tmp_path / "public.npz")))
    desk = Desk(tmp_path / "centre", task)
    for site, role in (("north", "clinic"), ("south", "hospital"), ("west", "hospital")):
        desk.join(site, role)  # type: ignore[arg-type]
    yield desk
    desk.close()


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def put(
    desk: Desk, site: str, data: bytes, offset: int = 0, total_bytes: int | None = None, **changes: bytes
) -> UploadIs:
    sha256, part = changes.get("sha256", sha(data)), changes.get("part", data)
    total_bytes = len(data) if total_bytes is None else total_bytes
    reply = desk.ask(site, PutChunk(kind="update", sha256=sha256, offset=offset, total_bytes=total_bytes), part)
    assert isinstance(reply, UploadIs)
    return reply


def submit(desk: Desk, site: str, update: bytes | None, soft_labels: bytes | None = None) -> str:
    asked = Submit(round_number=1, update=update, soft_labels=soft_labels, num_examples=1, train_s=0.0)
    return str(desk.ask(site, asked).outcome)


def test_parts_come_in_order_and_a_repeated_one_is_ignored(desk: Desk) -> None:
    data = b"0123456789"
    assert put(desk, "north", data, 0, part=data[:4]).received_bytes == 4
    assert put(desk, "north", data, 0, part=data[:4]).received_bytes == 4  # its acknowledgement was lost
    assert put(desk, "north", data, 7, part=data[7:]).received_bytes == 4  # one in between is missing
    reply = put(desk, "north", data, 4, part=data[4:])
    assert (reply.received_bytes, reply.stored) == (10, True)
    assert desk.home.store.read(sha(data).hex()) == data
    assert put(desk, "north", data).stored  # asked again when it is there


def test_an_upload_goes_on_after_the_coordinator_was_killed(desk: Desk) -> None:
    data = bytes(range(256)) * 100
    put(desk, "north", data, 0, part=data[:20_000])
    again = desk.restarted()
    reply = again.ask("north", GetUpload(sha256=sha(data)))
    assert (reply.received_bytes, reply.stored) == (20_000, False)
    assert put(again, "north", data, 20_000, part=data[20_000:]).stored


def test_a_kill_between_the_last_byte_and_its_place_in_the_store_costs_nothing(desk: Desk) -> None:
    data = bytes(range(256))
    (desk.home.uploads / f"north.{sha(data).hex()}.part").write_bytes(data)
    assert desk.put("north", data) == sha(data)
    assert desk.home.store.has(sha(data).hex())


def test_what_arrived_damaged_is_thrown_away_and_can_be_sent_again(desk: Desk) -> None:
    data = b"0123456789"
    with pytest.raises(RefusedError, match="damaged") as caught:
        put(desk, "north", data, part=b"0123456780")
    assert caught.value.code == "busy"  # the agent tries again by itself
    assert list(desk.home.uploads.iterdir()) == []
    assert not desk.home.store.has(sha(data).hex())
    assert put(desk, "north", data).stored


@pytest.mark.parametrize(
    ("offset", "total_bytes", "part"),
    [(0, 2**40 - 1, b"x"), (0, 5, b"123456"), (2**40 - 1, 10, b"x"), (9, 10, b"xy"), (0, 0, b"x")],
)
def test_more_than_the_task_allows_or_was_announced_is_refused(
    desk: Desk, offset: int, total_bytes: int, part: bytes
) -> None:
    with pytest.raises(RefusedError) as caught:
        put(desk, "north", b"?", offset, total_bytes, part=part)
    assert caught.value.code == "too-large"
    assert list(desk.home.uploads.iterdir()) == []


def test_one_site_cannot_fill_the_disk_with_parts(desk: Desk) -> None:
    for number in range(50):
        put(desk, "north", b"", sha256=sha(b"%d" % number), part=bytes(1000), total_bytes=2000)
    assert len(list(desk.home.uploads.iterdir())) == Uploads.MAX_OPEN_PER_SITE
    for number in range(50):
        desk.ask("south", GetUpload(sha256=sha(b"%d" % number)))  # asking opens one, too
    assert len(list(desk.home.uploads.iterdir())) == 2 * Uploads.MAX_OPEN_PER_SITE


def test_one_site_cannot_fill_the_disk_with_whole_artefacts(desk: Desk) -> None:
    for number in range(Uploads.MAX_STORED_PER_SITE):
        assert put(desk, "north", b"%d" % number).stored
    with pytest.raises(RefusedError, match="in this round already"):
        put(desk, "north", b"one more")
    assert put(desk, "south", b"of another site").stored


def test_when_a_round_is_over_parts_and_unused_artefacts_are_gone(desk: Desk) -> None:
    put(desk, "north", b"stray")
    put(desk, "south", b"", sha256=sha(b"never whole"), part=b"x", total_bytes=100)
    for site in desk.keys:
        desk.answer(site, 1, 1.0)
    desk.average()
    assert desk.round("north").round_number == 2
    assert not desk.home.store.has(sha(b"stray").hex())
    assert list(desk.home.uploads.iterdir()) == []
    for artefact in desk.listed():
        assert len(desk.home.store.read(artefact.sha256)) == artefact.num_bytes  # what is promised is there
    assert put(desk, "north", b"next round").stored


def test_parts_of_two_sites_do_not_mix(desk: Desk) -> None:
    data = b"0123456789"
    put(desk, "north", data, 0, part=b"01234")
    put(desk, "south", data, 0, part=b"XXXXX")
    assert put(desk, "north", data, 5, part=b"56789").stored


def test_a_site_reads_nothing_but_what_the_manifest_lists(desk: Desk) -> None:
    secret = desk.put("south", b"an update of another site")
    with desk.line(desk.keys["north"].curve) as line:
        for name in (secret, sha(b"nothing"), bytes.fromhex(desk.home.task.name.encode().hex().ljust(64, "0"))):
            with pytest.raises(RefusedError, match="not \\(any more\\) in the manifest"):
                line.ask(GetChunk(sha256=name, offset=0, length=10), "other")
        listed = desk.listed()[0]
        with pytest.raises(RefusedError, match=f"has {listed.num_bytes} bytes"):
            line.ask(GetChunk(sha256=bytes.fromhex(listed.sha256), offset=listed.num_bytes, length=1), "other")


def test_a_site_cannot_answer_for_another_one(desk: Desk) -> None:
    assert desk.answer("north", 1) == "counted"  # nothing in a message names a site: the key does
    assert desk.round("south").wanted
    assert desk.round("south").num_answered == 1


@pytest.mark.parametrize("what", ["public-set", "task", "garbage", "other network", "huge weight", "infinite"])
def test_an_artefact_that_is_no_update_is_not_counted_and_the_round_goes_on(desk: Desk, what: str) -> None:
    weights = desk.model()
    name = next(iter(weights))
    if what in ("public-set", "task"):
        update = bytes.fromhex(next(artefact.sha256 for artefact in desk.listed() if artefact.kind == what))
    else:
        wrong: dict[str, Callable[[], bytes]] = {
            "garbage": lambda: b"no tensors",
            "other network": lambda: encode_whole({"w": weights[name]}, "fp32"),
            "huge weight": lambda: encode_whole({**weights, name: weights[name] + np.float32(1e30)}, "fp32"),
            "infinite": lambda: safe.encode({**weights, name: weights[name] + np.float32(np.inf)}, {"form": "fp32"}),
        }
        update = desk.put("north", wrong[what]())
    with pytest.raises(RefusedError) as caught:
        submit(desk, "north", update)
    assert caught.value.code == "bad-artefact"
    assert desk.round("north").wanted
    assert desk.answer("north", 1, 1.0) == "counted"


def test_a_large_artefact_of_ours_is_not_even_read_as_an_answer(tmp_path: Path) -> None:
    public = write_public_set(tmp_path / "public.npz", num_images=60_000)  # noise: 3.8 MB, above what an update may be
    desk = Desk(tmp_path / "centre", task_with(public_set=str(public)))
    desk.join("north")
    desk.join("south")
    desk.join("west")
    image_set = next(artefact for artefact in desk.listed() if artefact.kind == "public-set")
    assert image_set.num_bytes > desk.coordinator._uploads.max_bytes
    with pytest.raises(RefusedError, match="not what a site puts"):
        submit(desk, "north", bytes.fromhex(image_set.sha256))


def test_only_a_hospital_sends_soft_labels_and_only_by_weights_an_update(tmp_path: Path) -> None:
    task = task_with(public_set=str(write_public_set(tmp_path / "public.npz")))
    desk = Desk(tmp_path / "centre", task)
    desk.join("north")
    desk.join("far", participation="distill")
    desk.join("south", "hospital")
    labels = desk.put("south", desk.soft_labels(np.zeros((6, 2), np.float32)), "soft-labels")
    update = desk.put("south", encode_whole(desk.model(), "fp32"))
    for site, sent in (("north", (update, labels)), ("far", (update, None)), ("far", (None, labels))):
        with pytest.raises(RefusedError, match="does not send this"):
            submit(desk, site, *sent)
    with pytest.raises(RefusedError, match="an update is missing"):
        submit(desk, "north", None)
    assert submit(desk, "far", None) == "counted"
    assert submit(desk, "south", update, labels) == "counted"
    with pytest.raises(RefusedError, match="another answer"):
        submit(desk, "south", update, None)


def test_a_message_that_cannot_be_read_is_dropped_and_the_site_still_served(desk: Desk) -> None:
    key = desk.keys["north"].curve.public
    good = to_frames(new_request(GetUpload(sha256=bytes(32))))
    for frames in (
        [b""],
        [b"ayni/1", b"\xff"],
        [b"ayni/9", good[1]],
        [*good, bytes(MAX_PAYLOAD_BYTES + 1)],
        [b"x"] * 9,
    ):
        assert desk.coordinator.handle(key, frames, desk.now_s) is None
    reply = desk.coordinator.handle(key, good, desk.now_s)
    assert reply is not None
    parse_reply(reply)
    with pytest.raises(PeerProtocolError):
        parse_reply(good)


def test_a_disk_that_is_full_is_busy_and_nothing_of_it_counts(desk: Desk) -> None:
    uploads = desk.home.uploads
    for path in uploads.iterdir():
        path.unlink()
    uploads.rmdir()
    uploads.touch()  # no file can be made here: every write fails as on a full disk
    with pytest.raises(RefusedError) as caught:
        put(desk, "north", b"data")
    assert caught.value.code == "busy"
    uploads.unlink()
    uploads.mkdir()
    assert put(desk, "north", b"data").stored
