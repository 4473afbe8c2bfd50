"""Rounds at a site: which weights travel, what is carried over, and that a cut changes no bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
import torch

from ayni.jobs import Done, Event, Failed, FinishTraining, Progress, TrainAlone
from ayni.learning.batches import Normaliser
from ayni.learning.networks import rounded_to_half, seeded_network, weights_of
from ayni.learning.state import TrainingFolder, read_history, read_state
from ayni.task import FedHelpSettings, Role, TrafficSettings
from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni.tensors.targets import decode_targets
from ayni.tensors.update import decode_update, encode_whole
from ayni.trained_model import TrainedModel
from site_bench import (
    DEMO,
    NUM_PUBLIC,
    TASK,
    TINY,
    Bench,
    done,
    events_of,
    failed,
    kill_in_the_middle,
    part_of,
    replace,
    update,
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("role", ["clinic", "hospital"])
def test_what_an_update_leaves_out_is_owed_and_sent_later(bench: Bench, role: Role) -> None:
    done(bench.round("home", 1, role))
    shapes = {name: value.shape for name, value in bench.start.items()}
    owed: dict[str, Floats] = {name: np.zeros_like(value) for name, value in bench.start.items()}
    for number in (1, 2):
        if number == 2:
            done(bench.round("home", 2, role))
        sent = decode_update(update(bench, "home", number), shapes, bench.start)
        trained, residual = part_of(bench, "home", number), part_of(bench, "home", number, "residual.")
        for name, start in bench.start.items():
            # trained - start + owed before = sent - start + owed after
            np.testing.assert_allclose(
                trained[name] - start + owed[name], sent[name] - start + residual[name], atol=1e-6
            )
        owed = residual


def test_a_hospital_sends_its_proxy_and_never_the_large_network(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(TASK, traffic=TrafficSettings(form="fp32")))
    done(bench.round("home", 1, "hospital"))
    sent = safe.decode(update(bench, "home"))
    assert {name: value.shape for name, value in sent.items()} == {n: v.shape for n, v in bench.start.items()}
    proxy = part_of(bench, "home", 1)
    assert all((sent[name] == proxy[name]).all() for name in sent)
    assert any((sent[name] != bench.start[name]).any() for name in sent)


def test_the_proxy_and_the_clinic_start_each_round_from_the_global_model(tmp_path: Path) -> None:
    slow = msgspec.structs.replace(TASK.training, learning_rate=1e-30)
    bench = Bench(tmp_path, replace(TASK, training=slow, traffic=TrafficSettings(form="fp32")))
    for role in ("clinic", "hospital"):
        for number in (1, 2):
            done(bench.round(role, number, role))
        sent = safe.decode(update(bench, role, 2))
        for name, start in bench.start.items():
            assert np.abs(np.asarray(sent[name], np.float32) - start).max() < 1e-7


def test_the_public_head_stays_at_the_clinic_and_is_kept(bench: Bench) -> None:
    done(bench.round("home", 1))
    first = part_of(bench, "home", 1, "public_head.")
    done(bench.round("home", 2))
    second = part_of(bench, "home", 2, "public_head.")
    assert first["weight"].shape == (3, 8)  # the foundation model's three classes, not the task's two
    difference = np.abs(second["weight"] - first["weight"]).max()
    assert 0 < difference < 0.01  # four more Adam steps of at most .001 each, not a fresh head
    assert not any("public" in name for name in bench.start)


def test_guidance_shapes_the_extractor_and_never_the_diagnosis_head(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    other = Bench(tmp_path / "other", replace(TASK, fedhelp=FedHelpSettings(guidance_weight=0.0)))
    done(bench.round("home"))
    done(other.round("home"))
    helped, unhelped = part_of(bench, "home", 1), part_of(other, "home", 1)
    assert (helped["extractor.stem.weight"] != unhelped["extractor.stem.weight"]).any()


@pytest.mark.parametrize("role", ["clinic", "hospital"])
def test_a_killed_round_goes_on_to_the_same_bytes(tmp_path: Path, role: Role) -> None:
    training = msgspec.structs.replace(TASK.training, steps_per_round=60)
    bench = Bench(tmp_path, replace(TASK, training=training))
    done(bench.round("uncut", 1, role))

    job = bench.round("cut", 1, role)
    kill_in_the_middle(job)
    assert not (bench.folder / "cut" / "update-1").exists()
    checkpoint = read_state(TrainingFolder(bench.folder / "cut").checkpoint("federated"))
    assert checkpoint
    assert 0 < checkpoint.info.step < 60

    first = next(event for event in events_of(job) if isinstance(event, Progress))
    assert first.step > checkpoint.info.step  # it went on, and did not begin again
    assert update(bench, "cut") == update(bench, "uncut")
    assert part_of(bench, "cut", 1, "").keys() == part_of(bench, "uncut", 1, "").keys()
    for name, value in part_of(bench, "cut", 1, "").items():
        np.testing.assert_array_equal(value, part_of(bench, "uncut", 1, "")[name])


def test_a_round_asked_twice_gives_the_same_bytes_without_training_again(bench: Bench) -> None:
    for number in (1, 2):
        last = done(bench.round("home", number))
    first = update(bench, "home", 2)
    (bench.folder / "home" / "update-2").unlink()
    events = events_of(bench.round("home", 2))
    assert update(bench, "home", 2) == first
    assert [type(event) for event in events] == [Done]
    history = read_history(bench.folder / "home/training/history.jsonl")
    assert [line.round for line in history] == [0, 1, 2]
    assert last.scores["validation"].auc == history[2].auc  # what the person at the site is told after each round


def test_only_the_last_state_and_the_one_before_are_kept(bench: Bench) -> None:
    for number in (1, 2, 3):
        done(bench.round("home", number))
    names = sorted(file.name for file in (bench.folder / "home/training").glob("[!.]*"))
    assert names == ["history.jsonl", "state-after-0002.safetensors", "state-after-0003.safetensors"]


def test_a_round_of_the_past_is_refused(bench: Bench) -> None:
    done(bench.round("home", 2))
    answer = failed(bench.round("home", 1))
    assert answer.user_error
    assert "already at round 2" in answer.message


def test_a_global_model_that_is_not_the_promised_one_is_not_trained_on(bench: Bench) -> None:
    answer = failed(bench.round("home", global_digest="0" * 64))
    assert not answer.user_error
    assert "IntegrityError: the global model's digest" in answer.message


def test_targets_of_another_public_set_are_refused(bench: Bench) -> None:
    bench.public_sha256 = "1" * 64
    answer = failed(bench.round("home", guidance=bench.targets("other", ("a", "b"))))
    assert "made for another public set" in answer.message


def test_targets_alone_train_a_clinic_and_no_weights_travel(bench: Bench) -> None:
    context = msgspec.structs.replace(bench.context("home"), participation="distill")
    consensus = bench.targets("consensus", TASK.classes)
    job = bench.round("home", context=context, global_model=[], global_digest="", consensus=consensus, update_out=None)
    done(job)
    without = msgspec.structs.replace(context, home=str(bench.folder / "without"))
    done(msgspec.structs.replace(job, context=without, consensus=None))
    helped, unhelped = part_of(bench, "home", 1), part_of(bench, "without", 1)
    assert (helped["head.weight"] != unhelped["head.weight"]).any()  # the consensus teaches the diagnosis head
    assert not list((bench.folder / "home").glob("update*"))


def test_a_hospital_answers_the_public_set_in_log_probabilities(bench: Bench) -> None:
    out = str(bench.folder / "soft")
    done(bench.round("home", 1, "hospital", soft_labels_out=out))
    answer = decode_targets(Path(out).read_bytes())
    assert answer.info.source == "hospital"
    assert answer.info.classes == TASK.classes
    assert answer.info.image_set == bench.public_sha256
    assert answer.logits_NC.shape == (NUM_PUBLIC, 2)
    assert answer.logits_NC.min() >= -12
    np.testing.assert_allclose(np.exp(answer.logits_NC).sum(axis=1), 1, atol=0.02)  # 8 bits


def test_too_little_memory_is_said_with_a_remedy_and_the_worker_lives_on(bench: Bench) -> None:
    tight = msgspec.structs.replace(bench.context("home"), memory_mb=10)
    answer = failed(bench.round("home", context=tight))
    assert answer.user_error
    assert "this site allows 10" in answer.message
    assert "batch_size" in answer.message
    done(bench.round("home"))


def test_missing_data_are_the_users_error_with_a_next_step(bench: Bench) -> None:
    away = msgspec.structs.replace(bench.context("home"), data=str(bench.folder / "away"))
    answer = failed(bench.round("home", context=away))
    assert answer.user_error
    assert "labels.csv" in answer.message


@pytest.mark.parametrize("role", ["clinic", "hospital"])
def test_the_last_round_gives_a_model_to_export(bench: Bench, role: Role) -> None:
    done(bench.round("home", 1, role))
    finish = FinishTraining(
        context=bench.context("home", role),
        rounds=1,
        global_model=[bench.whole],
        global_digest=safe.digest(bench.start),
    )
    scores = done(finish).scores
    folder = bench.folder / "home/models/federated"
    model = TrainedModel.read(folder)
    assert model.validation == scores["federated"]
    assert model.network == (TASK.networks.large if role == "hospital" else TASK.networks.small)
    assert sum(model.num_train_per_class.values()) + sum(model.num_holdout_per_class.values()) == 60
    assert model.rounds == 1
    assert model.steps == 4 * (2 if role == "clinic" else 1)  # of one round, public ones between at a clinic
    weights = safe.decode((folder / "weights.safetensors").read_bytes())
    assert {name.split(".")[0] for name in weights} == {"extractor", "head"}


def test_a_large_network_is_kept_with_the_statistics_that_it_was_trained_with_whatever_the_data_are_now(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, replace(TASK, fedhelp=FedHelpSettings(large_normalise="own")))
    done(bench.round("home", 1, "hospital"))
    finish = FinishTraining(context=bench.context("home", "hospital"), rounds=1, global_model=[], global_digest="")
    done(finish)
    before = TrainedModel.read(tmp_path / "home/models/federated")
    state = read_state(TrainingFolder(tmp_path / "home").state_after(1))
    assert state is not None
    assert before.pixel_mean == state.info.large_mean != state.info.pixel_mean
    with np.load(tmp_path / "data.npz") as data:
        images, labels = data["images"], data["labels"]
    assert before.pixel_mean == pytest.approx([images.mean() / 255], abs=0.02)  # all but the held-out ones
    np.savez(tmp_path / "data.npz", images=255 - images, labels=labels)
    done(finish)
    after = TrainedModel.read(tmp_path / "home/models/federated")
    assert (after.pixel_mean, after.pixel_std) == (before.pixel_mean, before.pixel_std)


def taught_small_network(bench: Bench) -> dict[str, Floats]:
    """Weights that tell the site's images apart, and see them as all sites do."""
    with np.load(bench.folder / "data.npz") as data, np.load(DEMO) as demo:
        images, labels_N = data["images"], torch.from_numpy(data["labels"].ravel().astype(np.int64))
        normalise = Normaliser.of(demo["val_images"][:NUM_PUBLIC, :, :, None])
    network = seeded_network(TINY, TASK, 1)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(network(normalise(torch.from_numpy(images[:, None]))), labels_N)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return rounded_to_half(weights_of(network))


@pytest.mark.parametrize(
    ("takes", "knows", "large"), [("best", True, False), ("best", False, True), ("large", True, True)]
)
def test_a_hospital_takes_the_common_network_where_it_is_better_and_the_task_says_so(
    tmp_path: Path, takes: Literal["best", "large"], knows: bool, large: bool
) -> None:
    """Its own large network has taken four steps, and knows hardly anything; one that knows the opposite is worse."""
    bench = Bench(tmp_path, replace(TASK, fedhelp=FedHelpSettings(large_normalise="own", hospital_takes=takes)))
    done(bench.round("home", 1, "hospital"))
    weights = taught_small_network(bench)
    if not knows:
        weights |= {name: -weights[name] for name in ("head.weight", "head.bias")}
    whole = bench.write("taught", encode_whole(weights, "fp16"))
    finish = FinishTraining(
        context=bench.context("home", "hospital"), rounds=1, global_model=[whole], global_digest=safe.digest(weights)
    )
    scores = done(finish).scores["federated"]
    model = TrainedModel.read(tmp_path / "home/models/federated")
    state = read_state(TrainingFolder(tmp_path / "home").state_after(1))
    assert state is not None
    seen_by = state.info.large_mean if large else state.info.pixel_mean
    assert (model.network, model.pixel_mean) == (TASK.networks.large if large else TINY, seen_by)
    assert model.chosen.startswith("the large network" if large else "the global model of round 1: AUC")
    stored = safe.decode((tmp_path / "home/models/federated/weights.safetensors").read_bytes())
    assert (
        safe.digest({name: np.asarray(one, np.float32) for name, one in stored.items()}) == safe.digest(weights)
    ) != large
    assert (scores.auc > 0.9) != large


def test_a_site_that_joined_late_and_missed_a_round_claims_only_what_it_trained(bench: Bench) -> None:
    done(bench.round("home", 2))
    done(bench.round("home", 4, guidance=None))
    done(bench.round("home", 4, guidance=None))  # asked again, as after a cut: it counts once
    whole = {"global_model": [bench.whole], "global_digest": safe.digest(bench.start)}
    done(FinishTraining(context=bench.context("home"), rounds=5, **whole))  # type: ignore[arg-type]
    model = TrainedModel.read(bench.folder / "home/models/federated")
    assert (model.rounds, model.steps) == (2, 2 * 4 + 4)  # the public steps were only in the first
    done(FinishTraining(context=bench.context("new"), rounds=5, **whole))  # type: ignore[arg-type]
    model = TrainedModel.read(bench.folder / "new/models/federated")
    assert (model.rounds, model.steps) == (0, 0)
    assert model.chosen.startswith("the global model of round 5")


def test_training_alone_goes_on_after_a_cut_to_the_same_model(bench: Bench) -> None:
    class CutError(Exception):
        pass

    def cut_at(step_count: int) -> Callable[[Event], None]:
        seen: list[Event] = []

        def tell(event: Event) -> None:
            seen.append(event)
            if len(seen) == step_count:
                raise CutError

        return tell

    from ayni.learning import steps
    from ayni.learning.finish import train_alone

    done(TrainAlone(context=bench.context("uncut")))
    every = steps.CHECKPOINT_EVERY_S
    steps.CHECKPOINT_EVERY_S = 0.0
    try:
        with pytest.raises(CutError):
            train_alone(TrainAlone(context=bench.context("cut")), cut_at(2))
    finally:
        steps.CHECKPOINT_EVERY_S = every
    assert TrainingFolder(bench.folder / "cut").checkpoint("alone").exists()
    done(TrainAlone(context=bench.context("cut")))
    weights = [(bench.folder / home / "models/alone/weights.safetensors").read_bytes() for home in ("cut", "uncut")]
    assert weights[0] == weights[1]
    lines = [read_history(bench.folder / home / "training/history-alone.jsonl") for home in ("cut", "uncut")]
    assert lines[0] == lines[1]
    assert [line.round for line in lines[0]] == [0, 1, 2, 3]


def test_nothing_but_events_reaches_stdout_and_a_bad_line_is_answered(bench: Bench) -> None:
    data = b'{"type":"no such job"}\n' + msgspec.json.encode(bench.round("home")) + b"\n"
    events: list[Event] = []
    with subprocess.Popen(
        [sys.executable, "-m", "ayni.learning.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write(data)
        worker.stdin.flush()
        while not events or not isinstance(events[-1], Done):
            events.append(msgspec.json.decode(worker.stdout.readline(), type=Event))
        worker.stdin.close()
        assert worker.wait() == 0
    assert isinstance(events[0], Failed)
    assert isinstance(events[-1], Done)
    assert all(isinstance(event, Progress) for event in events[1:-1])


def test_training_ends_with_the_agent_that_asked_for_it(tmp_path: Path) -> None:
    training = msgspec.structs.replace(TASK.training, steps_per_round=1_000_000)
    bench = Bench(tmp_path, replace(TASK, training=training))
    command = [sys.executable, "-m", "ayni.learning.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        assert worker.stdin
        assert worker.stdout
        assert worker.stderr
        worker.stdin.write(msgspec.json.encode(bench.round("home")) + b"\n")
        worker.stdin.flush()
        worker.stdout.readline()
        worker.stdout.close()
        assert b"Traceback" not in worker.stderr.read()  # returns when the process has ended
