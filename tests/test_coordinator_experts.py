"""What the coordinator takes as an expert, from whom, and what is left of it when it is taken back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ayni.errors import RefusedError
from ayni.task import PersonalSettings
from ayni.tensors.expert import Expert, ExpertInfo, encode_expert
from ayni.tensors.safe import Floats
from ayni.tensors.update import encode_whole
from ayni.wire.messages import ExpertIs, ShareExpert
from ayni_coordinator import experts, federation
from ayni_coordinator.database import transaction
from desk import Desk, task_with

PERSONAL = PersonalSettings(decay=0.1)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "centre", task_with(personal=PERSONAL, round={"quorum": 1, "wait_for_sites": 9}))
    for site in ("north", "south"):
        desk.join(site)
    desk.join("far", "clinic", "distill")
    yield desk
    desk.close()


def expert(desk: Desk, site: str = "north", *, add: float = 0.25, weights: Any = None, **changes: Any) -> Expert:
    with transaction(desk.home.engine) as session:
        digest = federation.current_round(session).digest
    settings: dict[str, Any] = {
        "site": site, "task": "shadows", "rounds": 3, "decay": 0.1, "num_train": 40, "pixel_mean": (0.5,),
        "pixel_std": (0.25,), "reference_digest": digest, "num_cases": 40,
    }  # fmt: skip
    made = {name: tensor + np.float32(add) for name, tensor in desk.model().items()} if weights is None else weights
    statistics: Floats | None = np.ones((2, 5), np.float32)
    info = ExpertInfo(**{**settings, **changes})
    return Expert(info, made, statistics if info.num_cases else None)


def share(desk: Desk, site: str, data: bytes) -> bytes:
    sha256 = desk.put(site, data, "expert")
    reply = desk.ask(site, ShareExpert(expert=sha256))
    assert isinstance(reply, ExpertIs)
    assert reply.expert == sha256
    return sha256


def folder(desk: Desk) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (desk.folder / "experts").glob("*")}


def shared(desk: Desk) -> list[str]:
    with transaction(desk.home.engine) as session:
        return list(experts.shared_by(session))


def test_an_expert_lies_in_one_place_alone_and_a_newer_one_takes_its_place(desk: Desk) -> None:
    first, second = encode_expert(expert(desk)), encode_expert(expert(desk, add=0.5), "fp16")
    sha256 = share(desk, "north", first)
    assert folder(desk) == {"north.expert": first}
    assert not desk.home.store.has(sha256.hex())
    share(desk, "north", second)
    share(desk, "south", encode_expert(expert(desk, "south")))
    assert folder(desk)["north.expert"] == second
    assert sorted(folder(desk)) == ["north.expert", "south.expert"]
    assert shared(desk) == ["north", "south"]
    assert sum("north: agreed to be an expert" in line for line in desk.log()) == 2


def test_an_expert_without_statistics_is_one(desk: Desk) -> None:
    share(desk, "north", encode_expert(expert(desk, num_cases=0, reference_digest="")))
    assert shared(desk) == ["north"]
    assert "no statistics" in desk.log()[-1]


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("'south'", {"site": "south"}),  # in another's name
        ("of the task 'other'", {"task": "other"}),
        ("normalisation", {"pixel_mean": (0.5, 0.5), "pixel_std": (0.2, 0.2)}),
        ("number of rounds", {"rounds": 4}),  # of three
        ("older global model", {"reference_digest": "0" * 64}),
        ("tensor names differ", {"weights": {"w": np.ones(3, np.float32)}}),
    ],
)
def test_what_does_not_fit_is_refused_and_thrown_away(desk: Desk, words: str, changes: dict[str, Any]) -> None:
    data = encode_expert(expert(desk, **changes))
    with pytest.raises(RefusedError, match=words) as refused:
        share(desk, "north", data)
    assert refused.value.code == "bad-artefact"
    assert not desk.home.store.has(hashlib.sha256(data).hexdigest())
    assert folder(desk) == {}
    assert shared(desk) == []
    assert desk.round("north").phase == "waiting"  # and the service goes on


def test_bytes_that_are_no_expert_are_refused(desk: Desk) -> None:
    good = encode_expert(expert(desk))
    for data in (b"hello", good[:-1], encode_whole(desk.model(), "fp32")):
        with pytest.raises(RefusedError, match="was not taken"):
            share(desk, "north", data)
    assert folder(desk) == {}


def test_what_the_federation_needs_is_not_thrown_away_by_naming_it(desk: Desk) -> None:
    with transaction(desk.home.engine) as session:
        model = federation.current_round(session).global_sha256
    with pytest.raises(RefusedError):
        desk.ask("north", ShareExpert(expert=bytes.fromhex(model)))
    assert desk.home.store.has(model)


def test_what_was_not_put_is_asked_for(desk: Desk) -> None:
    with pytest.raises(RefusedError) as refused:
        desk.ask("north", ShareExpert(expert=bytes(32)))
    assert refused.value.code == "unknown-artefact"


def test_a_site_without_weights_and_a_task_without_personal_models_share_nothing(desk: Desk, tmp_path: Path) -> None:
    plain = Desk(tmp_path / "plain" / "centre", task_with(round={"quorum": 1, "wait_for_sites": 9}))
    plain.join("north")
    for where, site in ((desk, "far"), (plain, "north")):
        with pytest.raises(RefusedError, match="no personal model") as refused:
            share(where, site, encode_expert(expert(where, site)))
        assert refused.value.code == "not-allowed"
        assert folder(where) == {}
    plain.close()


def test_no_site_is_the_global_model(desk: Desk) -> None:
    desk.join("global")
    with pytest.raises(RefusedError, match="no personal model"):
        share(desk, "global", encode_expert(expert(desk, "global")))


def test_taking_back_is_harmless_at_any_time(desk: Desk) -> None:
    nothing = ShareExpert(expert=None)
    lines = desk.log()
    assert desk.ask("north", nothing) == ExpertIs(expert=None)
    assert desk.log() == lines
    share(desk, "north", encode_expert(expert(desk)))
    share(desk, "south", encode_expert(expert(desk, "south")))
    for _ in range(2):
        assert desk.ask("north", nothing) == ExpertIs(expert=None)
        assert sorted(folder(desk)) == ["south.expert"]  # one's own, and nobody else's
    assert shared(desk) == ["south"]
    assert sum("no expert any more" in line for line in desk.log()) == 1


def test_a_restart_keeps_what_was_agreed_and_removes_what_was_not(desk: Desk) -> None:
    """A kill between the file and its row leaves a file that no row speaks of."""
    data = encode_expert(expert(desk))
    share(desk, "north", data)
    (desk.folder / "experts" / "south.expert").write_bytes(encode_expert(expert(desk, "south")))
    again = desk.restarted()
    assert folder(again) == {"north.expert": data}
    assert shared(again) == ["north"]
    again.close()


def test_a_lost_file_can_be_shared_again(desk: Desk) -> None:
    data = encode_expert(expert(desk))
    share(desk, "north", data)
    (desk.folder / "experts" / "north.expert").unlink()
    share(desk, "north", data)
    assert folder(desk) == {"north.expert": data}


def test_an_older_database_gets_the_new_table(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "centre", task_with(personal=PERSONAL))
    desk.join("north")
    with desk.home.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE experts")
    again = desk.restarted()
    share(again, "north", encode_expert(expert(again)))
    assert shared(again) == ["north"]
    again.close()


def test_personal_settings_are_closed_and_bounded() -> None:
    for text in (b'{"decay": 1.5}', b'{"decay": -0.1}', b'{"kind": "other"}', b'{"speed": 1}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=PersonalSettings)
