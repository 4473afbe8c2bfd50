"""What the coordinator keeps: artefacts behind fsspec, tables behind SQLAlchemy, a log that only grows."""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, update
from sqlalchemy.exc import DatabaseError

from ayni.errors import IntegrityError, UserError
from ayni.wire.messages import Leave
from ayni_coordinator.by_hand import close_by_hand, extend_by_hand, new_invitation, revoke_site
from ayni_coordinator.database import AuditRow, open_database, transaction
from ayni_coordinator.home import CoordinatorHome, create_home
from ayni_coordinator.store import ArtefactStore
from desk import DEADLINE_S, ENDPOINT, Desk, task_with

DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtefactStore]:
    url = str(tmp_path / "store") if request.param == "folder" else f"memory://ayni-{tmp_path.name}"
    store = ArtefactStore(url)
    yield store
    store.sweep(())


def test_what_is_put_is_there_under_its_hash(store: ArtefactStore) -> None:
    assert not store.has(SHA)
    assert store.put(DATA) == SHA
    assert store.put(DATA) == SHA  # once more is no trouble
    assert store.has(SHA)
    assert bytes(store.read(SHA)) == DATA
    assert store.num_bytes(SHA) == len(DATA)
    assert store.read_part(SHA, 250, 10) == DATA[250:260]
    assert store.read_part(SHA, len(DATA) - 3, 10) == DATA[-3:]


def test_a_local_file_is_taken_over(store: ArtefactStore, tmp_path: Path) -> None:
    path = tmp_path / "arrived"
    path.write_bytes(DATA)
    store.adopt(path, SHA)
    assert bytes(store.read(SHA)) == DATA
    assert not path.exists()


def test_a_store_on_another_disk_takes_files_over(tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems; this machine has no /dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        store, path = ArtefactStore(folder), tmp_path / "arrived"
        path.write_bytes(DATA)
        store.adopt(path, SHA)
        assert bytes(store.read(SHA)) == DATA
        assert not path.exists()


def test_what_is_damaged_or_gone_is_said_and_not_used(tmp_path: Path) -> None:
    store = ArtefactStore(str(tmp_path))
    with pytest.raises(IntegrityError, match="missing"):
        store.read(SHA)
    store.put(DATA)
    (tmp_path / SHA).write_bytes(DATA[:-1])
    with pytest.raises(IntegrityError, match="damaged"):
        store.read(SHA)
    (tmp_path / SHA).write_bytes(b"")
    with pytest.raises(IntegrityError, match="damaged"):
        store.read(SHA)


def test_sweeping_removes_what_nobody_needs(store: ArtefactStore) -> None:
    kept, gone = store.put(b"kept"), store.put(b"gone")
    assert store.sweep({kept}) == 1
    assert store.has(kept)
    assert not store.has(gone)


@pytest.mark.parametrize("url", ["no-such-protocol://x", "/proc/nowhere/store"])
def test_a_store_that_cannot_be_opened_is_the_users_error(url: str) -> None:
    with pytest.raises(UserError, match=r"coordinator\.toml"):
        ArtefactStore(url)


def test_a_round_runs_with_the_store_in_memory_and_the_database_elsewhere(tmp_path: Path) -> None:
    database = tmp_path / "elsewhere.sqlite"
    desk = Desk(tmp_path / "centre", database=f"sqlite:///{database}", store=f"memory://{tmp_path.name}")
    for site in ("north", "south", "west"):
        desk.join(site)
    for site in desk.keys:
        desk.answer(site, 1, 1.0)
    desk.average()
    assert desk.round("north").round_number == 2
    assert not (desk.folder / "store").exists()
    assert not (desk.folder / "coordinator.sqlite").exists()
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM sites").fetchone() == (3,)
    connection.close()
    desk.close()


@pytest.mark.parametrize("url", ["sqlite:////proc/nowhere/x.sqlite", "no-such-database://x", "nonsense", "oracle://x"])
def test_a_database_that_cannot_be_opened_is_the_users_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match=r"coordinator\.toml"):
        open_database(url)


def test_a_file_that_is_no_database_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(UserError, match=r"coordinator\.toml"):
        open_database(f"sqlite:///{tmp_path / 'x.sqlite'}")


def test_the_audit_log_cannot_be_changed_or_shortened(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "centre")
    desk.join("north")
    before = desk.log()
    for statement in (update(AuditRow).values(what="nothing happened"), delete(AuditRow)):
        with pytest.raises(DatabaseError, match="append-only"), transaction(desk.home.engine) as session:
            session.execute(statement)
    with sqlite3.connect(desk.folder / "coordinator.sqlite") as connection:  # past our own code
        for statement_text in ("UPDATE audit SET what = ''", "DELETE FROM audit WHERE id = 1"):
            with pytest.raises(sqlite3.DatabaseError, match="append-only"):
                connection.execute(statement_text)
    connection.close()
    assert desk.log() == before


def test_every_step_is_in_the_log_in_words(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "centre", task_with(training={"rounds": 2}))
    for site in ("north", "south", "west"):
        desk.join(site)
    desk.answer("north", 1)
    extend_by_hand(desk.folder, 600)
    close_by_hand(desk.folder)
    desk.pass_time(1)
    desk.average()
    desk.answer("south", 1)
    revoke_site(desk.folder, "south")
    desk.pass_time(1)
    desk.keys.pop("south")
    desk.answer("north", 2)
    desk.ask("west", Leave())
    desk.keys.pop("west")
    desk.pass_time(DEADLINE_S + 1)
    desk.answer("north", 2)
    new_invitation(desk.folder, "east", "hospital", 3600)
    close_by_hand(desk.folder)
    desk.pass_time(1)
    desk.average()
    expected = [
        "coordinator: the federation 'shadows' was set up",
        "coordinator: invited clinic 'north', valid for 1.0 hours",
        "north: joined as clinic, takes part by weights, signing key",
        "coordinator: invited clinic 'south'",
        "south: joined",
        "coordinator: invited clinic 'west'",
        "west: joined",
        "coordinator: round 1 of 2 is open",
        "north: answered round 1 after 1.0 s of training",
        "coordinator: round 1 has 10 more minutes by hand",
        "coordinator: round 1 is to be closed by hand",
        "coordinator: round 1 closed with 1 answers; without south, west",
        "coordinator: round 1 published as manifest 2, model",
        "coordinator: round 2 of 2 is open",
        "south: answered round 1 too late; not used",
        "coordinator: site 'south' is revoked; its key is no longer admitted",
        "north: answered round 2",
        "west: site 'west' is left; its key is no longer admitted",
        "coordinator: round 2: deadline passed with 1 of 2 answers needed; extended",
        "coordinator: invited hospital 'east'",
        "coordinator: round 2 is to be closed by hand",
        "coordinator: round 2 closed with 1 answers",
        "coordinator: round 2 published as manifest 3, model",
        "coordinator: finished after 2 rounds",
    ]
    log = desk.log()
    assert len(log) == len(expected)
    for line, start in zip(log, expected, strict=True):
        assert line.startswith(start)
    desk.close()


def test_a_home_that_could_not_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        create_home(tmp_path / "full", task_with(), endpoint=ENDPOINT, bind=ENDPOINT)
    with pytest.raises(UserError, match="no public set"):
        create_home(tmp_path / "new", task_with(public_set="/nowhere"), endpoint=ENDPOINT, bind=ENDPOINT)
    with pytest.raises(UserError, match="looks like"):
        create_home(tmp_path / "new", task_with(), endpoint="here", bind=ENDPOINT)
    for options in ({"database": "nonsense"}, {"store": "no-such-protocol://x"}):
        with pytest.raises(UserError):
            create_home(tmp_path / "new", task_with(), endpoint=ENDPOINT, bind=ENDPOINT, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_database_that_holds_a_federation_is_not_used_for_a_second_one(tmp_path: Path) -> None:
    options = {"database": f"sqlite:///{tmp_path / 'shared.sqlite'}"}
    create_home(tmp_path / "first", task_with(), endpoint=ENDPOINT, bind=ENDPOINT, **options)
    with pytest.raises(UserError, match="holds a federation already"):
        create_home(tmp_path / "second", task_with(), endpoint=ENDPOINT, bind=ENDPOINT, **options)
    assert not (tmp_path / "second").exists()


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="that you are in"):
        create_home(Path("."), task_with(), endpoint=ENDPOINT, bind=ENDPOINT)


def test_a_folder_that_is_no_coordinators_or_is_damaged_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ayni coordinator init"):
        CoordinatorHome.open(tmp_path)
    create_home(tmp_path / "centre", task_with(), endpoint=ENDPOINT, bind=ENDPOINT)
    for name in ("coordinator.toml", "task.json"):
        path = tmp_path / "centre" / name
        good = path.read_bytes()
        for bad in (b"", b"\xff\xfe", b"x = 1\n", b"{"):
            path.write_bytes(bad)
            with pytest.raises(UserError):
                CoordinatorHome.open(tmp_path / "centre")
        path.write_bytes(good)
    CoordinatorHome.open(tmp_path / "centre")
