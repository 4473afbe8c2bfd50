"""A public set with labels, by the real commands: what is taught, what is left, what goes out, and a kill."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ayni.learning.head_start import taught_weights
from ayni.learning.networks import initial_weights
from ayni.learning.site_data import public_images
from ayni.task import Task
from ayni.tensors import safe
from ayni.tensors.image_set import ImageSet, ImageSetInfo, decode_image_set, encode_image_set
from ayni.tensors.targets import decode_targets
from ayni.tensors.truth import decode_truth
from ayni.tensors.update import assemble
from ayni_coordinator.database import ArtefactRow, ManifestRow, transaction
from ayni_coordinator.federation import current_round, listed_artefacts
from ayni_coordinator.guiding import add_guidance
from ayni_coordinator.home import TRUTH_FILE, CoordinatorHome
from ayni_coordinator.simulation.collection import Pixels, Truth
from ayni_coordinator.views import audit_lines, federation_view
from small_federation import AYNI, ENVIRONMENT
from small_setups import squares
from small_volumes import SIZE, boxes
from test_cli_commands import run
from test_guidance_outlines_http import GUIDE, endpoint_of_the_guide

STEPS, NUM_TRUE, NUM_IMAGES = 6, 9, 12  # the truth of nine of twelve public images is known
LABELLED = """
public_set_licence = "CC0-1.0"
public_set_labelled = true
fedhelp = { start_steps = 6 }
"""
CLASSIFICATION = (
    LABELLED
    + """
name = "squares"
title = "Bright squares"
classes = ["dark", "bright"]
public_set = "public"
image = { height = 16, width = 16 }
training = { rounds = 1, batch_size = 4 }
[networks]
small = { kind = "resnet", layers = [1, 1, 1, 1], planes = [4, 4, 8, 8], stem_stride = 2 }
large = { kind = "resnet", layers = [1, 1, 1, 1], planes = [4, 4, 8, 8], stem_stride = 2 }
"""
)
SEGMENTATION = (
    LABELLED
    + """
name = "outlines"
title = "Bright squares"
kind = "segmentation"
classes = ["square"]
public_set = "public"
image = { height = 16, width = 16 }
training = { rounds = 1, batch_size = 4 }
[networks]
small = { kind = "unet", channels = [4, 8], features = 4 }
large = { kind = "unet", channels = [4, 8], features = 4 }
"""
)
VOLUMES = (
    LABELLED
    + """
name = "boxes"
title = "Bright boxes"
kind = "segmentation"
classes = ["anterior", "posterior"]
public_set = "public.npz"
image = { depth = 8, height = 16, width = 12, spacing_mm = [2.0, 1.0, 0.5] }
training = { rounds = 1, batch_size = 2 }
[networks]
small = { kind = "unet", channels = [4, 8, 16], features = 4 }
large = { kind = "unet", channels = [4, 8, 16], features = 4 }
"""
)


# A public set as a person lays it out; its images and the truth of the first as they must come to be known


def labelled_folder(folder: Path) -> tuple[Pixels, Truth]:
    """The three images without a label stand first in the file, and follow last."""
    pixels_NHWC, labels_N = squares(NUM_IMAGES, "classification", 6)
    folder.mkdir()
    for number, image in enumerate(pixels_NHWC):
        Image.fromarray(image[..., 0]).save(folder / f"{number}.png")
    lines = [f"{number}.png,{('dark', 'bright')[labels_N[number]]}" for number in range(NUM_TRUE)]
    without = [f"{number}.png," for number in range(NUM_TRUE, NUM_IMAGES)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *without, *lines]) + "\n")
    return pixels_NHWC, labels_N[:NUM_TRUE]


def outlined_folder(folder: Path) -> tuple[Pixels, Truth]:
    """The three images without a mask come first by their names, and follow last."""
    pixels_NHWC, masks_NSHW = squares(NUM_IMAGES, "segmentation", 6)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number, (image, mask) in enumerate(zip(pixels_NHWC, masks_NSHW, strict=True)):
        name = f"{'b' if number < NUM_TRUE else 'a'}{number:02}.png"
        Image.fromarray(image[..., 0]).save(folder / "images" / name)
        if number < NUM_TRUE:
            Image.fromarray(mask[0]).save(folder / "masks" / name)
    return pixels_NHWC, masks_NSHW[:NUM_TRUE]


def volumes_file(folder: Path) -> tuple[Pixels, Truth]:
    pixels_NDHWC, masks_NSDHW = boxes(4, 3)
    np.savez(
        folder.with_suffix(".npz"), images=pixels_NDHWC[:3], masks=masks_NSDHW[:3], unlabelled_images=pixels_NDHWC[3:]
    )
    assert pixels_NDHWC.shape[1:-1] == SIZE
    return pixels_NDHWC, masks_NSDHW[:3]


LayOut = Callable[[Path], tuple[Pixels, Truth]]
SETS: dict[str, tuple[str, LayOut]] = {
    "labels": (CLASSIFICATION, labelled_folder),
    "masks": (SEGMENTATION, outlined_folder),
    "volumes": (VOLUMES, volumes_file),
}


# Commands, and what they left


def init(home: Path, task: str, *changes: str) -> str:
    """`ayni coordinator init`; the task's file, and its public set, lie beside the home."""
    path = home.parent / "task.toml"
    path.write_text(task)
    done = run("coordinator", "init", home, "--task", path, *(word for change in changes for word in ("--set", change)))
    assert done.code == 0, done.err
    return done.out


def listed(folder: Path) -> tuple[Task, dict[str, bytes], int]:
    """The task, every artefact of the manifest by its kind, and the manifest's version."""
    home = CoordinatorHome.open(folder)
    with transaction(home.engine) as session:
        rows: list[ArtefactRow] = listed_artefacts(session)
        (manifest,) = session.query(ManifestRow).all()
        found = {row.kind: bytes(home.store.read(row.sha256)) for row in rows}
        assert len(found) == len(rows)
        assert current_round(session).digest == safe.digest(assemble([found["model"]]))
        task, version = home.task, manifest.version
    home.engine.dispose()
    return task, found, version


def in_memory(task: Task, pixels: Pixels, truth: Truth, name: str = "public") -> tuple[bytes, dict[str, safe.Floats]]:
    """The artefact of the images alone, and what their truth teaches."""
    artefact = encode_image_set(ImageSet(ImageSetInfo(name=name, licence="CC0-1.0", shape=pixels.shape), pixels))
    images = public_images(pixels, hashlib.sha256(artefact).hexdigest(), task, None, None, truth=truth)
    return artefact, taught_weights(images, task, STEPS)


def files_with(folder: Path, data: bytes) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and data in path.read_bytes()}


@pytest.mark.parametrize("which", SETS)
def test_init_publishes_first_weights_that_truth_has_taught_and_keeps_no_truth(which: str, tmp_path: Path) -> None:
    toml, lay_out = SETS[which]
    pixels, truth = lay_out(tmp_path / "public")
    told = init(tmp_path / "centre", toml)
    assert "First weights have learnt for 6 steps; manifest 2." in told
    task, artefacts, version = listed(tmp_path / "centre")
    assert version == 2
    public_set, weights = in_memory(task, pixels, truth)
    first = assemble([artefacts["model"]])
    assert safe.digest(first) == safe.digest(weights)
    assert safe.digest(first) != safe.digest(initial_weights(task))
    assert set(artefacts) == {"task", "public-set", "model"}
    assert artefacts["public-set"] == public_set  # the images, and nothing besides
    for artefact in artefacts.values():
        assert str(tmp_path).encode() not in artefact
    assert Task.from_json(artefacts["task"]).public_set == ""
    assert not {path.name for path in (tmp_path / "centre").iterdir()} & {TRUTH_FILE, "start-checkpoint.safetensors"}
    assert files_with(tmp_path / "centre", truth.tobytes()) == set()


@pytest.mark.parametrize("which", SETS)
def test_labels_travel_if_the_task_says_so(which: str, tmp_path: Path) -> None:
    """With no foundation model and fresh first weights."""
    toml, lay_out = SETS[which]
    _, truth = lay_out(tmp_path / "public")
    told = init(tmp_path / "centre", toml, "fedhelp.start_steps=0", "fedhelp.label_weight=1.0")
    assert f"The labels of {len(truth)} public images travel to the clinics; manifest 2." in " ".join(told.split())
    task, artefacts, _ = listed(tmp_path / "centre")
    assert set(artefacts) == {"task", "public-set", "model", "targets"}
    found = decode_truth(artefacts["targets"])
    assert np.array_equal(found.values, truth)
    assert found.info.image_set == hashlib.sha256(artefacts["public-set"]).hexdigest()
    assert safe.digest(assemble([artefacts["model"]])) == safe.digest(initial_weights(task))
    assert not (tmp_path / "centre" / TRUTH_FILE).exists()


def test_without_labels_first_weights_are_random(tmp_path: Path) -> None:
    labelled_folder(tmp_path / "public")
    init(tmp_path / "centre", CLASSIFICATION, "public_set_labelled=false", "fedhelp.start_steps=0")
    task, artefacts, version = listed(tmp_path / "centre")
    assert version == 1
    assert safe.digest(assemble([artefacts["model"]])) == safe.digest(initial_weights(task))


def test_the_example_in_the_guide_teaches(tmp_path: Path) -> None:
    """As a reader would, with fewer steps: the guide's own script and task file."""
    text = GUIDE.read_text()
    (script,) = re.findall(r"```python\n(# squares\.py.*?)```", text, re.DOTALL)
    (toml,) = re.findall(r'```toml\n(name = "squares".*?)```', text, re.DOTALL)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    told = init(tmp_path / "centre", toml, "fedhelp.start_steps=2")
    assert "First weights have learnt for 2 steps; manifest 2." in told
    public_set = decode_image_set(listed(tmp_path / "centre")[1]["public-set"])
    assert public_set.info.shape == (40, 32, 32, 1)
    assert (public_set.pixels_NHWC[:, 10, 10, 0] == 220).tolist() == [False, True] * 20  # the order of labels.csv


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's folder that a process of its own made, without a cut."""
    folder = tmp_path_factory.mktemp("uncut")
    labelled_folder(folder / "public")
    (folder / "task.toml").write_text(CLASSIFICATION)
    command = [*AYNI, "coordinator", "init", str(folder / "centre"), "--task", str(folder / "task.toml")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "centre"


def test_a_second_guide_does_nothing_and_says_so(taught: Path) -> None:
    before = listed(taught), audit_lines(taught)
    done = run("coordinator", "guide", taught)
    assert done.code == 0
    assert done.out == "The labels of the public images have been used already; nothing was done.\n"
    assert (listed(taught), audit_lines(taught)) == before


KILLED_AT = """
import os, sys
from ayni import cli, terminal
from ayni.learning import steps
steps.CHECKPOINT_EVERY_S = steps.PROGRESS_EVERY_S = 0.0
die_at = ("training first weights", int(sys.argv.pop(1)))
terminal.TerminalWatcher.progress = lambda self, what, done, total: (what, done) == die_at and os.kill(os.getpid(), 9)
cli.main()
"""


def test_kill_9_while_it_learns_is_told_by_serve_and_mended_by_guide(taught: Path, tmp_path: Path) -> None:
    """The command itself is killed, at its fourth step, when the third is kept."""
    _, truth = labelled_folder(tmp_path / "public")
    (tmp_path / "task.toml").write_text(CLASSIFICATION)
    centre = tmp_path / "centre"
    command = ["4", "coordinator", "init", str(centre), "--task", str(tmp_path / "task.toml")]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT, *command], env=ENVIRONMENT, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert files_with(centre, truth.tobytes()) == {TRUTH_FILE}  # at the centre it is kept, and nowhere else
    served = subprocess.run(
        [*AYNI, "coordinator", "serve", str(centre)],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert served.returncode == 2
    assert "the labels of the public images have not been used yet" in served.stderr
    assert f"ayni coordinator guide {centre}" in " ".join(served.stderr.split())
    # labels that were lost before they have taught are missed, and not taken for done
    (centre / TRUTH_FILE).rename(tmp_path / "lost")
    lost = run("coordinator", "guide", centre)
    assert (lost.code, "labels of the public set, is gone" in lost.err) == (2, True)
    assert "have not been used" in federation_view(centre).to_do
    (tmp_path / "lost").rename(centre / TRUTH_FILE)
    steps: list[int] = []
    home = CoordinatorHome.open(centre)
    add_guidance(home, lambda what, done, total: steps.append(done))
    home.engine.dispose()
    assert (steps[0], steps[-1]) == (4, STEPS)  # it went on, and did not begin again
    _, mended, version = listed(centre)
    _, uncut, _ = listed(taught)
    assert (mended, version) == (uncut, 2)
    assert not (centre / TRUTH_FILE).exists()
    # killed when all was listed and the labels not yet removed: it can be served, and `guide` tidies up
    (centre / TRUTH_FILE).write_bytes(safe.encode({"truth": truth}))
    assert not federation_view(centre).to_do
    again = run("coordinator", "guide", centre)
    assert (again.code, "already" in again.out, listed(centre)[2]) == (0, True, 2)
    assert not (centre / TRUTH_FILE).exists()


def test_truth_and_a_foundation_model_teach_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model outlines two structures, the task one: so it has a head of its own, beside that of the masks."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    pixels, truth = outlined_folder(tmp_path / "public")
    with endpoint_of_the_guide() as url:
        told = init(tmp_path / "centre", SEGMENTATION, "guidance.source=http", f"guidance.model={url}")
    assert f"answered once on {NUM_IMAGES} public images; first weights have learnt for 6 steps; manifest 2" in told
    task, artefacts, version = listed(tmp_path / "centre")
    assert (set(artefacts), version) == ({"task", "public-set", "model", "targets"}, 2)
    sha256 = hashlib.sha256(artefacts["public-set"]).hexdigest()
    guidance = decode_targets(artefacts["targets"])
    images = public_images(pixels, sha256, task, guidance, None, truth=truth)
    first = safe.digest(assemble([artefacts["model"]]))
    assert first == safe.digest(taught_weights(images, task, STEPS))
    by_answers = public_images(pixels, sha256, task, guidance, None)
    for others in (in_memory(task, pixels, truth)[1], taught_weights(by_answers, task, STEPS)):
        assert first != safe.digest(others)
    # killed when all was listed and the truth not yet removed: `guide` tidies up
    (tmp_path / "centre" / TRUTH_FILE).write_bytes(safe.encode({"truth": truth}))
    done = run("coordinator", "guide", tmp_path / "centre")
    assert (done.code, "nothing was asked" in done.out) == (0, True)
    assert not (tmp_path / "centre" / TRUTH_FILE).exists()
    assert listed(tmp_path / "centre")[2] == 2


def no_labels_file(public: Path) -> None:
    labelled_folder(public)
    (public / "labels.csv").unlink()


def another_class(public: Path) -> None:
    labelled_folder(public)
    path = public / "labels.csv"
    path.write_text(path.read_text().replace("4.png,dark", "4.png,shiny"))


def one_class(public: Path) -> None:
    labelled_folder(public)
    path = public / "labels.csv"
    path.write_text(path.read_text().replace(",bright", ",dark"))


def no_mask(public: Path) -> None:
    outlined_folder(public)
    for mask in (public / "masks").iterdir():
        mask.unlink()


@pytest.mark.parametrize(
    ("toml", "lay_out", "words"),
    [
        (CLASSIFICATION, no_labels_file, "there is no labels.csv in"),
        (CLASSIFICATION, another_class, "labels.csv: 4.png has the label 'shiny'; this task has ['dark', 'bright']"),
        (CLASSIFICATION, one_class, "are of one class only. Add images of the others: dark, bright"),
        (SEGMENTATION, no_mask, "no image has a mask"),
        (SEGMENTATION, lambda public: None, "there are no data at"),
    ],
    ids=["no labels.csv", "unknown class", "one class", "no mask", "nothing there"],
)
def test_truth_that_cannot_teach_is_one_sentence_and_leaves_nothing(
    toml: str, lay_out: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    lay_out(tmp_path / "public")
    (tmp_path / "task.toml").write_text(toml)
    before = {path.name for path in tmp_path.iterdir()}
    done = run("coordinator", "init", tmp_path / "centre", "--task", tmp_path / "task.toml")
    assert (done.code, done.out) == (2, "")
    assert words in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert {path.name for path in tmp_path.iterdir()} == before
