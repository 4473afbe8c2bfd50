"""Averaging is a pure function of an ordered list of hashes: worked out by hand, the same bits every time."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni.tensors.targets import Targets, TargetsInfo, decode_targets, encode_targets
from ayni.tensors.update import assemble, decode_update, encode_change, encode_whole
from ayni_coordinator.aggregation import RoundInputs, RoundResult, SiteInput, aggregate, check_soft_labels, check_update
from desk import task_with

SHAPES = {"a": (2,), "b": (1,)}
MODEL: dict[str, Floats] = {"a": np.array([1, 2], np.float32), "b": np.array([0], np.float32)}
IMAGE_SET = "5" * 64


class Shelf:
    """Artefacts by hash, as the store has them."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.data[sha256] = data
        return sha256

    def read(self, sha256: str) -> bytes:
        return self.data[sha256]


def model_plus(a0: float, a1: float, b: float) -> dict[str, Floats]:
    return {"a": MODEL["a"] + np.array([a0, a1], np.float32), "b": MODEL["b"] + np.float32(b)}


def labels(*rows: tuple[float, float], image_set: str = IMAGE_SET, source: str = "hospital") -> bytes:
    info = TargetsInfo(
        source=source, image_set=image_set, model_name="m", model_version="1", licence="",  # type: ignore[arg-type]
        classes=("clear", "shadow"), bits=16,
    )  # fmt: skip
    return encode_targets(Targets(info, np.array(rows, np.float32)))


def run(
    updates: Mapping[str, tuple[bytes | None, int]],
    soft_labels: Mapping[str, bytes] | None = None,
    residual: dict[str, Floats] | None = None,
    **task: Any,
) -> RoundResult:
    shelf = Shelf()
    sites = tuple(
        SiteInput(
            site=name,
            update=shelf.put(update) if update else "",
            soft_labels=shelf.put(soft_labels[name]) if soft_labels and name in soft_labels else "",
            num_examples=num_examples,
        )
        for name, (update, num_examples) in updates.items()
    )
    inputs = RoundInputs(
        round_number=2,
        global_sha256=shelf.put(encode_whole(MODEL, "fp32")),
        residual_sha256=shelf.put(safe.encode(residual)) if residual else "",
        image_set=IMAGE_SET,
        sites=sites,
    )
    return aggregate(inputs, task_with(**task), shelf.read)


def values(result: RoundResult) -> list[float]:
    model = safe.decode(result.whole)
    return [round(float(value), 5) for name in ("a", "b") for value in model[name]]


NORTH, SOUTH = encode_whole(model_plus(1, 0, 4), "fp32"), encode_whole(model_plus(3, -2, 0), "fp32")


def test_the_plain_mean_worked_out_by_hand() -> None:
    result = run({"north": (NORTH, 1), "south": (SOUTH, 3)})
    assert values(result) == [3.0, 1.0, 2.0]  # 1 + (1+3)/2, 2 + (0-2)/2, 0 + (4+0)/2
    assert (result.name, result.published) == ("whole", result.whole)


def test_the_mean_by_samples_worked_out_by_hand() -> None:
    result = run({"north": (NORTH, 1), "south": (SOUTH, 3)}, fedhelp={"average": "samples"})
    assert values(result) == [3.5, 0.5, 1.0]  # 1 + (1*1+3*3)/4, 2 + (0-2*3)/4, 0 + (4*1)/4


def test_the_mean_by_roots_worked_out_by_hand() -> None:
    result = run({"north": (NORTH, 1), "south": (SOUTH, 9)}, fedhelp={"average": "root"})
    assert values(result) == [3.5, 0.5, 1.0]  # the roots are 1 and 3: as above


def test_the_mean_of_sparse_changes_worked_out_by_hand() -> None:
    # Each sends its largest change only: north b + 4, south a[0] + 3. Down goes the larger half of the mean change.
    north, _ = encode_change({"a": np.array([1, 0], np.float32), "b": np.array([4], np.float32)}, density=0.3)
    south, _ = encode_change({"a": np.array([3, -2], np.float32), "b": np.array([0], np.float32)}, density=0.3)
    result = run({"north": (north, 1), "south": (south, 1)}, traffic={"form": "sparse", "density_down": 0.3})
    assert values(result) == [1.0, 2.0, 2.0]  # the mean change is a[0] 1.5 and b 2; only b fits
    assert result.name == "change"
    left_out = safe.decode(result.residual)
    assert left_out["a"].tolist() == pytest.approx([1.5, 0.0])
    assert left_out["b"].tolist() == pytest.approx([0.0], abs=1e-6)


def test_what_one_round_leaves_out_is_in_the_next_one() -> None:
    residual = {"a": np.array([1.5, 0], np.float32), "b": np.array([0], np.float32)}
    nothing = encode_whole(MODEL, "fp32")
    result = run({"north": (nothing, 1)}, residual=residual, traffic={"form": "sparse", "density_down": 0.3})
    assert values(result) == [2.5, 2.0, 0.0]


def test_the_sites_end_with_the_very_model_that_the_coordinator_has() -> None:
    update = encode_whole(model_plus(0.1, 1 / 3, 1e-3), "fp32")
    for form in ("fp32", "fp16", "sparse"):
        result = run({"north": (update, 1)}, traffic={"form": form})
        held_by_sites = assemble([encode_whole(MODEL, "fp32"), result.published])
        assert safe.digest(held_by_sites) == result.digest
        assert safe.digest(decode_update(result.whole, SHAPES, None)) == result.digest


def test_the_same_list_gives_the_same_bits() -> None:
    for form in ("fp32", "fp16", "sparse"):
        first, second = (run({"n": (NORTH, 1), "s": (SOUTH, 3)}, traffic={"form": form}) for _ in range(2))
        assert first == second


def test_without_weights_the_model_stays() -> None:
    both = {"a": labels((0, 0)), "b": labels((0, 0))}
    result = run({"a": (None, 1), "b": (None, 1)}, both)
    assert values(result) == [1.0, 2.0, 0.0]
    assert result.published == b""
    assert result.consensus is not None


def test_the_consensus_is_the_mean_of_the_probabilities() -> None:
    # Softmax of (ln 3, 0) is (3/4, 1/4); of (0, ln 9) is (1/10, 9/10). Their mean is (0.425, 0.575).
    both = {"a": labels((np.log(3), 0)), "b": labels((0, np.log(9)))}
    result = run({"a": (NORTH, 1), "b": (NORTH, 1)}, both)
    assert result.consensus is not None
    targets = decode_targets(result.consensus)
    odds = np.exp(targets.logits_NC[0, 0] - targets.logits_NC[0, 1])
    assert odds == pytest.approx(0.425 / 0.575, rel=1e-3)
    assert (targets.info.source, targets.info.model_version) == ("consensus", "round 2")


def test_a_consensus_of_fewer_than_the_minimum_cohort_is_not_published() -> None:
    one = {"a": labels((1, 0))}
    assert run({"a": (NORTH, 1), "b": (NORTH, 1)}, one).consensus is None
    assert run({"a": (NORTH, 1), "b": (NORTH, 1)}, one, round={"min_cohort": 1}).consensus is not None


def test_an_update_in_another_form_or_of_another_network_is_stopped_at_the_door() -> None:
    sparse, _ = encode_change(MODEL, density=0.5)
    check_update(NORTH, SHAPES, "fp32")
    check_update(encode_whole(MODEL, "fp16"), SHAPES, "fp16")
    check_update(sparse, SHAPES, "sparse")
    wrong = [
        (sparse, SHAPES, "fp32"),
        (NORTH, SHAPES, "sparse"),
        (NORTH, SHAPES, "fp16"),
        (NORTH, {"a": (2,)}, "fp32"),
        (NORTH, {"a": (2,), "b": (2,)}, "fp32"),
        (encode_whole(model_plus(1e30, 0, 0), "fp32"), SHAPES, "fp32"),
        (safe.encode(MODEL), SHAPES, "fp32"),
        (b"", SHAPES, "fp32"),
    ]
    for data, shapes, form in wrong:
        with pytest.raises(IntegrityError):
            check_update(data, shapes, form)


def test_soft_labels_of_another_set_or_source_are_stopped_at_the_door() -> None:
    task = task_with()
    check_soft_labels(labels((0, 1), (1, 0)), task, IMAGE_SET, 2)
    wrong = [
        labels((0, 1)),
        labels((0, 1), (1, 0), image_set="6" * 64),
        labels((0, 1), (1, 0), source="consensus"),
        NORTH,
        b"",
    ]
    for data in wrong:
        with pytest.raises(IntegrityError):
            check_soft_labels(data, task, IMAGE_SET, 2)
    with pytest.raises(IntegrityError):
        check_soft_labels(labels((0, 1), (1, 0)), task_with(classes=("x", "y")), IMAGE_SET, 2)


PEAK = """
import hashlib, json, sys
import numpy as np
import resource
from desk import task_with
from ayni.tensors.update import encode_whole
from ayni_coordinator.aggregation import RoundInputs, SiteInput, aggregate

NUM_VALUES, files = 2_000_000, {}

def put(data):
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{sys.argv[1]}/{sha256}"
    with open(path, "wb") as file:
        file.write(data)
    return sha256

def read(sha256):
    with open(f"{sys.argv[1]}/{sha256}", "rb") as file:
        return file.read()

def one(seed):
    return put(encode_whole({"w": np.random.default_rng(seed).normal(size=NUM_VALUES).astype(np.float32)}, "fp32"))

start = one(0)
for num_sites in (3, 12):
    sites = tuple(
        SiteInput(site=f"s{n:02}", update=one(n + 1), soft_labels="", num_examples=1) for n in range(num_sites)
    )
    inputs = RoundInputs(round_number=1, global_sha256=start, residual_sha256="", image_set="", sites=sites)
    aggregate(inputs, task_with(), read)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""


def test_memory_does_not_grow_with_the_number_of_sites(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
    )
    peak_of_three, peak_of_twelve = (json.loads(line) for line in run.stdout.split())
    assert peak_of_twelve - peak_of_three < 2 * 8_000_000  # an update of two million values has 8 MB


def test_inputs_come_out_of_the_database_as_they_went_in() -> None:
    site = SiteInput(site="n", update="0" * 64, soft_labels="", num_examples=3)
    inputs = RoundInputs(round_number=1, global_sha256="1" * 64, residual_sha256="", image_set="", sites=(site,))
    assert msgspec.json.decode(msgspec.json.encode(inputs), type=RoundInputs) == inputs
