"""Personal models (IOP-FL): the running mean by hand, never a start of training, whole after a cut, chosen fairly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from ayni.jobs import Evaluate, FinishTraining
from ayni.learning.fine_tune import RATE
from ayni.learning.networks import build_network, weights_of
from ayni.learning.personal import personal_after
from ayni.learning.state import TrainingFolder
from ayni.task import PersonalSettings, Role, TrainingSettings
from ayni.tensors import safe
from ayni.tensors.safe import Array, Floats
from ayni.trained_model import TrainedModel
from site_bench import TASK, TINY, Bench, done, kill_in_the_middle, part_of, replace, update


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def personal_task(decay: float = 0.25, **changes: Any) -> Any:
    return replace(TASK, personal=PersonalSettings(decay=decay), **changes)


def finished(bench: Bench, home: str, role: Role = "clinic") -> dict[str, Any]:
    weights = {"global_model": [bench.whole], "global_digest": safe.digest(bench.start)}
    return done(FinishTraining(context=bench.context(home, role), rounds=3, **weights)).scores  # type: ignore[arg-type]


def test_three_rounds_worked_out_by_hand() -> None:
    # decay .25: p1 = w1 = 4; p2 = .25 * 4 + .75 * 8 = 7; p3 = .25 * 7 + .75 * 0 = 1.75
    p: dict[str, Array] = {}
    seen = []
    for w in (4.0, 8.0, 0.0):
        p = personal_after(p, {"w": floats(w)}, 0.25)
        seen.append(p["w"].tolist())
    assert seen == [[4.0], [7.0], [1.75]]


def test_the_ends_of_the_range_are_the_last_and_the_first_network() -> None:
    random = np.random.default_rng(0)
    rounds = [{"w": random.normal(size=50).astype(np.float32)} for _ in range(3)]
    for decay, expected in ((0.0, rounds[-1]), (1.0, rounds[0])):
        p: dict[str, Array] = {}
        for trained in rounds:
            p = personal_after(p, trained, decay)
        assert p["w"].tobytes() == expected["w"].tobytes()
        assert p["w"].dtype == np.float32


def test_what_counts_is_taken_over_and_not_averaged() -> None:
    """Batch normalisation counts its batches: a mean of 100 and 200 is no count."""
    norm = nn.BatchNorm1d(2)
    first = {name: tensor.numpy().copy() for name, tensor in norm.state_dict().items()}
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 201
    second = {name: tensor.numpy().copy() for name, tensor in norm.state_dict().items()}
    p = personal_after(personal_after({}, first, 0.5), second, 0.5)
    assert p["num_batches_tracked"].dtype == np.int64
    assert int(p["num_batches_tracked"]) == 201


def test_what_is_kept_does_not_follow_the_live_network() -> None:
    network = build_network(TINY, TASK.image, 2)
    live = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}  # views
    first = personal_after({}, live, 0.5)
    before = {name: array.copy() for name, array in first.items()}
    second = personal_after(first, live, 0.0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    for kept in (first, second):
        assert all(kept[name].tobytes() == before[name].tobytes() for name in kept)
        assert not any(np.shares_memory(kept[name], live[name]) for name in kept)


@pytest.mark.parametrize("role", ["clinic", "hospital"])
def test_the_mean_of_real_rounds_and_nothing_else_changes(tmp_path: Path, role: Role) -> None:
    """What is sent and what is trained has the same bytes with a personal model and without."""
    bench, plain = Bench(tmp_path / "with", personal_task()), Bench(tmp_path / "without")
    expected: dict[str, Any] = {}
    for number in (1, 2, 3):
        done(bench.round("home", number, role))
        done(plain.round("home", number, role))
        assert update(bench, "home", number) == update(plain, "home", number)
        trained = part_of(bench, "home", number)
        without = part_of(plain, "home", number, "")
        assert not any(name.startswith("personal") for name in without)
        for name, array in part_of(bench, "home", number, "").items():
            if not name.startswith("personal."):
                np.testing.assert_array_equal(array, without[name])
        expected = {
            name: w.astype(np.float64) if number == 1 else 0.25 * expected[name] + 0.75 * w.astype(np.float64)
            for name, w in trained.items()
        }
        found = part_of(bench, "home", number, "personal.")
        assert found.keys() == trained.keys()
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name], atol=1e-7)
    assert any((found[name] != trained[name]).any() for name in found)


@pytest.mark.parametrize("role", ["clinic", "hospital"])
def test_a_killed_second_round_gives_the_same_personal_model(tmp_path: Path, role: Role) -> None:
    training = msgspec.structs.replace(TASK.training, steps_per_round=60)
    bench = Bench(tmp_path, personal_task(training=training))
    for home in ("uncut", "cut"):
        done(bench.round(home, 1, role))
    done(bench.round("uncut", 2, role))
    job = bench.round("cut", 2, role)
    kill_in_the_middle(job)
    assert TrainingFolder(bench.folder / "cut").rounds() == [1]
    done(job)
    done(job)  # and asked once more, as after a cut before the outbox: not averaged twice
    cut, uncut = part_of(bench, "cut", 2, ""), part_of(bench, "uncut", 2, "")
    assert any(name.startswith("personal.") for name in cut)
    assert cut.keys() == uncut.keys()
    for name, array in cut.items():
        np.testing.assert_array_equal(array, uncut[name])


@pytest.mark.parametrize("role", ["clinic", "hospital"])
def test_it_is_kept_evaluated_and_chosen_by_the_rule_for_all(tmp_path: Path, role: Role) -> None:
    bench = Bench(tmp_path, personal_task())
    for number in (1, 2):
        done(bench.round("home", number, role))
    scores = finished(bench, "home", role)
    assert set(scores) == {"federated", "personal"}
    folder = bench.folder / "home/models"
    federated, personal = TrainedModel.read(folder / "federated"), TrainedModel.read(folder / "personal")
    assert personal.network == TASK.networks.small  # a hospital's too: it is its proxy's
    assert federated.network == (TASK.networks.large if role == "hospital" else TASK.networks.small)
    assert ("personal model" in federated.chosen) == (role == "clinic")
    assert personal.validation == scores["personal"]
    assert (personal.kind, personal.rounds) == ("personal", 2)
    weights = safe.decode((folder / "personal/weights.safetensors").read_bytes())
    expected = part_of(bench, "home", 2, "personal.")
    assert {name: array.tobytes() for name, array in weights.items()} == {n: a.tobytes() for n, a in expected.items()}
    job = Evaluate(context=bench.context("home", role), data=str(bench.folder / "data.npz"), split="train")
    assert set(done(job).scores) == {"federated", "personal"}


def test_a_clinic_diagnoses_with_its_personal_model_where_that_is_clearly_best(tmp_path: Path) -> None:
    """A global model that says nothing, and a last network that was spoilt: only the personal one knows anything."""
    training = TrainingSettings(rounds=1, steps_per_round=60, learning_rate=5e-3, holdout_fraction=0.5)
    bench = Bench(tmp_path, personal_task(training=training))
    images = np.random.default_rng(0).integers(0, 90, (60, 28, 28), dtype=np.uint8)
    images[::2, 9:19, 9:19] = 220  # every second one has a square
    np.savez(bench.folder / "data.npz", images=images, labels=np.arange(60) % 2)
    done(bench.round("home", 1))
    path = TrainingFolder(bench.folder / "home").state_after(1)
    data = path.read_bytes()
    tensors = {
        name: np.zeros_like(array) if name.startswith("small.head") else array
        for name, array in safe.decode(data).items()
    }
    path.write_bytes(safe.encode(tensors, safe.read_metadata(data)))
    silent = build_network(TINY, TASK.image, 2)
    nn.init.zeros_(silent.head.weight)  # type: ignore[arg-type]
    bench.start = weights_of(silent)
    bench.whole = bench.write("global", safe.encode(bench.start, {"form": "fp32"}))
    finished(bench, "home")
    model = TrainedModel.read(bench.folder / "home/models/federated")
    assert model.chosen.startswith("this site's personal model: AUC")
    chosen = safe.decode((bench.folder / "home/models/federated/weights.safetensors").read_bytes())
    assert chosen["head.weight"].tolist() == part_of(bench, "home", 1, "personal.")["head.weight"].tolist()


@pytest.mark.parametrize("role", ["clinic", "hospital"])
def test_fine_tuned_it_starts_from_the_global_model_and_leaves_it_as_it_is(tmp_path: Path, role: Role) -> None:
    settings = PersonalSettings(kind="fine-tune", steps=3)
    bench = Bench(tmp_path, replace(TASK, personal=settings))
    done(bench.round("home", 1, role))
    assert not part_of(bench, "home", 1, "personal.")  # nothing is kept from round to round
    scores = finished(bench, "home", role)
    assert set(scores) == {"federated", "personal"}
    weights = safe.decode((bench.folder / "home/models/personal/weights.safetensors").read_bytes())
    moved = {
        name: float(np.abs(np.asarray(array, np.float32) - bench.start[name]).max()) for name, array in weights.items()
    }
    # three steps of Adam move no weight by much more than three times the rate, and the head's all by something
    assert 0 < moved["head.weight"] < 4 * RATE
    assert max(moved.values()) < 4 * RATE
    model = TrainedModel.read(bench.folder / "home/models/personal")
    assert model.network == TASK.networks.small


def test_without_the_setting_there_is_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    done(bench.round("home", 1))
    assert set(finished(bench, "home")) == {"federated"}
    assert not (bench.folder / "home/models/personal").exists()
