"""Every public image is asked once, ever; the answers become targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ayni.errors import IntegrityError, LineError, UserError
from ayni.task import GuidanceSettings
from ayni.tensors.image_set import ImageSet, ImageSetInfo
from ayni.tensors.targets import Targets, decode_targets, encode_targets
from ayni_coordinator.guidance.answers import AnswerStore
from ayni_coordinator.guidance.ask import ask_once, image_digest, most_used_classes
from ayni_coordinator.guidance.source import Logits, Pixels, TryLaterError

SHA = "ab" * 32


@dataclass
class Brightness:
    """A model of three classes whose logits are the first pixel, its negative and zero; `failures` come first."""

    version: str = "1"
    batch_size: int = 4
    classes: tuple[str, ...] = ("bright", "dark", "grey")
    name: str = "brightness"
    licence: str = "CC0-1.0"
    failures: list[Exception] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def answer(self, pixels_BHWC: Pixels) -> Logits:
        self.batches.append(len(pixels_BHWC))
        if self.failures:
            raise self.failures.pop(0)
        first_B = pixels_BHWC[:, 0, 0, 0].astype(np.float32)
        return np.stack([first_B, -first_B, 0 * first_B], axis=1)


def image_set(*first_pixels: int) -> ImageSet:
    pixels = np.zeros((len(first_pixels), 8, 8, 1), np.uint8)
    pixels[:, 0, 0, 0] = first_pixels
    return ImageSet(ImageSetInfo(name="public", licence="CC0-1.0", shape=pixels.shape), pixels)


def ask(home: Path, images: ImageSet, source: Brightness, **changes: object) -> tuple[Targets, int]:
    """The targets, and how many images were ever asked from this home."""
    settings = GuidanceSettings(source="http", **changes)  # type: ignore[arg-type]
    pauses: list[float] = []
    with AnswerStore(home / "answers.sqlite") as answers:
        targets = ask_once(images, SHA, source, settings, answers, lambda done, total: None, pause=pauses.append)
        return targets, answers.num_asked()


def test_each_image_is_asked_once_in_batches_and_equal_images_only_once(tmp_path: Path) -> None:
    source = Brightness()
    targets, num_asked = ask(tmp_path, image_set(1, 2, 1, 3, 4, 5, 2, 6), source)
    assert source.batches == [4, 2]  # 1 2 3 4, 5 6
    assert num_asked == 6
    assert targets.logits_NC[:, 0].tolist() == [1, 2, 1, 3, 4, 5, 2, 6]  # in the order of the set
    assert (targets.info.source, targets.info.image_set, targets.info.model_name) == ("foundation", SHA, "brightness")


def test_a_second_run_and_a_second_set_ask_nothing_that_is_known(tmp_path: Path) -> None:
    ask(tmp_path, image_set(1, 2, 3), Brightness())
    again, more = Brightness(), Brightness()
    assert ask(tmp_path, image_set(1, 2, 3), again)[1] == 3
    assert again.batches == []
    targets, num_asked = ask(tmp_path, image_set(3, 9, 1), more)
    assert more.batches == [1]  # only 9 is new
    assert num_asked == 4
    assert targets.logits_NC[:, 0].tolist() == [3, 9, 1]


def test_another_version_of_the_model_is_another_model(tmp_path: Path) -> None:
    ask(tmp_path, image_set(1, 2), Brightness(version="1"))
    assert ask(tmp_path, image_set(1, 2), Brightness(version="2"))[1] == 4


def test_a_model_that_changed_its_classes_but_not_its_version_is_refused(tmp_path: Path) -> None:
    ask(tmp_path, image_set(1), Brightness())
    with pytest.raises(UserError, match="needs a new version"):
        ask(tmp_path, image_set(1), Brightness(classes=("a", "b", "c")))


def test_the_cap_refuses_the_whole_set_before_the_first_question(tmp_path: Path) -> None:
    source = Brightness()
    with pytest.raises(UserError, match="max_calls allows 2"):
        ask(tmp_path, image_set(1, 2, 3), source, max_calls=2)
    assert source.batches == []
    assert ask(tmp_path, image_set(1, 2, 3), source, max_calls=3)[1] == 3
    with pytest.raises(UserError, match="3 have been"):
        ask(tmp_path, image_set(4), source, max_calls=3)


def test_a_refusal_at_the_door_does_not_count_and_a_lost_answer_does(tmp_path: Path) -> None:
    refused, lost = TryLaterError("busy", answered_perhaps=False), TryLaterError("cut", answered_perhaps=True)
    source = Brightness(failures=[refused, lost])
    assert ask(tmp_path, image_set(1, 2, 3), source)[1] == 6  # 3 lost, 3 answered
    assert source.batches == [3, 3, 3]


def test_retries_cannot_break_the_cap(tmp_path: Path) -> None:
    source = Brightness(failures=[TryLaterError("cut", answered_perhaps=True)])
    with pytest.raises(UserError, match="max_calls allows 5"):
        ask(tmp_path, image_set(1, 2, 3), source, max_calls=5)


def test_a_source_that_stays_away_ends_with_what_was_answered_kept(tmp_path: Path) -> None:
    class FailsLater(Brightness):
        def answer(self, pixels_BHWC: Pixels) -> Logits:
            if len(self.batches) >= 1:
                self.batches.append(len(pixels_BHWC))
                raise TryLaterError("no route", answered_perhaps=False)
            return super().answer(pixels_BHWC)

    broken, mended = FailsLater(), Brightness()
    with pytest.raises(LineError, match=r"no route.*not asked twice"):
        ask(tmp_path, image_set(1, 2, 3, 4, 5), broken)
    assert broken.batches == [4] + [1] * 6  # one answer, then six attempts
    ask(tmp_path, image_set(1, 2, 3, 4, 5), mended)
    assert mended.batches == [1]


def test_a_pause_that_the_source_asks_for_is_kept_and_a_long_one_ends_the_run(tmp_path: Path) -> None:
    pauses: list[float] = []
    wait = [TryLaterError("busy", answered_perhaps=False, after_s=after_s) for after_s in (7.0, 3600.0)]
    source = Brightness(failures=list(wait))
    with AnswerStore(tmp_path / "a.sqlite") as answers, pytest.raises(LineError, match="in 3600 s, as it asks"):
        ask_once(image_set(1), SHA, source, GuidanceSettings(), answers, lambda *_: None, pause=pauses.append)
    assert pauses == [7.0]


def test_the_classes_that_are_used_most_are_kept_in_the_models_order() -> None:
    # softmax of (ln 6, ln 1, ln 3) = .6 .1 .3, of (ln 1, ln 1, ln 8) = .1 .1 .8: means .35 .1 .55
    logits = np.log(np.array([[6, 1, 3], [1, 1, 8]], np.float32))
    assert most_used_classes(logits, 2).tolist() == [0, 2]
    assert most_used_classes(logits, 1).tolist() == [2]
    assert most_used_classes(logits, 9).tolist() == [0, 1, 2]


def test_targets_keep_only_max_classes_and_survive_encoding(tmp_path: Path) -> None:
    targets, _ = ask(tmp_path, image_set(10, 255), Brightness(), max_classes=2, bits=16)
    assert targets.info.classes == ("bright", "grey")  # dark has the lowest logits
    decoded = decode_targets(encode_targets(targets))
    assert decoded.logits_NC.tolist() == [[10, 0], [255, 0]]


def test_an_image_is_named_by_its_pixels_and_its_shape() -> None:
    flat = np.zeros((2, 8, 1), np.uint8)
    assert image_digest(flat) != image_digest(flat.reshape(4, 4, 1))
    assert image_digest(flat) == image_digest(flat.copy())


def test_a_store_that_another_process_holds_is_a_users_error(tmp_path: Path) -> None:
    with (
        AnswerStore(tmp_path / "answers.sqlite"),
        pytest.raises(UserError, match="another `ayni` asking"),
    ):
        AnswerStore(tmp_path / "answers.sqlite", wait_s=0.0)


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"this is no database, whatever it was before" * 100)
    with pytest.raises(IntegrityError, match="is damaged"):
        AnswerStore(tmp_path / "answers.sqlite")
