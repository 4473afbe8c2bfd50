"""`ayni data ...` as it is called: what it prints, where, and what it ends with."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ayni import cli
from ayni.data.catalogue import CATALOGUE, DataSet
from https_server import Publisher, make_certificate, serving

CONTENT = b"pixels" * 10_000


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; nobody answers a question; the catalogue has one more data set, `small`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setitem(CATALOGUE, "small", small_set("https://127.0.0.1:1/small.npz"))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "small.npz").write_bytes(CONTENT)
    return tmp_path


def small_set(url: str) -> DataSet:
    return DataSet(
        name="small", title="six letters", target="small.npz", sha256=hashlib.sha256(CONTENT).hexdigest(),
        num_bytes=len(CONTENT), licence="CC BY 4.0", citation="Doe J (2020)", page="https://example.org/small", url=url,
    )  # fmt: skip


def run(*arguments: object) -> Result:
    """`ayni data ARGUMENTS` in this process; whatever is not an exit is a traceback, and fails the test."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["ayni", "data", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    assert "Traceback" not in err.getvalue()
    return Result(code, out.getvalue(), err.getvalue())


def test_the_list_says_every_name_with_its_size_and_licence() -> None:
    listed = run("list")
    assert listed.code == 0
    for name, entry in CATALOGUE.items():
        assert f"{name}: " in listed.out
        assert entry.licence in listed.out
    assert "from a mirror only" in listed.out
    assert {entry["name"] for entry in json.loads(run("list", "--json").out)} == set(CATALOGUE)


def test_size_hash_licence_and_citation_are_shown_before_anything_is_fetched(place: Path) -> None:
    result = run("fetch", "small", "--from", "mirror")
    assert (result.code, result.out.strip()) == (1, "")  # the question's last blank goes there
    for told in ("six letters", "60.00 kB", small_set("").sha256, "CC BY 4.0", "Doe J (2020)", "example.org/small"):
        assert told in result.err
    assert "Get it under this licence?" in result.err
    assert not (place / "data").exists()


def test_a_yes_fetches_it_to_the_folder_data_and_once_is_enough(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    result = run("fetch", "small", "--from", "mirror")
    assert (result.code, result.out.lstrip()) == (0, "data/small.npz: whole and verified\n")
    assert (place / "data" / "small.npz").read_bytes() == CONTENT
    shutil.rmtree(place / "mirror")
    again = run("fetch", "small")
    assert (again.code, again.out, again.err) == (0, "data/small.npz: is there already, and whole\n", "")


def test_json_is_json_and_stands_alone_on_standard_output(place: Path) -> None:
    result = run("fetch", "small", "--from", "mirror", "--out", "elsewhere", "--yes", "--json")
    assert json.loads(result.out) == {
        "name": "small", "path": "elsewhere/small.npz", "sha256": small_set("").sha256, "licence": "CC BY 4.0",
    }  # fmt: skip
    assert "Doe J (2020)" in result.err


def test_it_comes_from_its_publisher_over_https(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = make_certificate(place)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    publisher = Publisher(CONTENT)
    publisher.cut_after = [10_000, 0]
    with serving(publisher, certificate) as address:
        monkeypatch.setitem(CATALOGUE, "small", small_set(f"{address}/small.npz"))
        cut = run("fetch", "small", "--yes")
        assert cut.code == 5
        assert "10000 of 60000 bytes are kept. The same command goes on there." in cut.err
        assert run("fetch", "small", "--yes").code == 0
    assert (place / "data" / "small.npz").read_bytes() == CONTENT
    assert publisher.asked[-1][1] == "bytes=10000-"


@pytest.mark.parametrize(
    ("code", "told", "command"),
    [
        (2, "there is no data set 'lungs' in the catalogue. It has: adrenalmnist3d, ", "fetch lungs --yes"),
        (2, "Give --from a folder that holds nuclei", "fetch nuclei --yes"),
        (2, "https://bbbc.broadinstitute.org/BBBC038", "fetch nuclei --yes"),
        (2, "there is no folder nuclei in mirror", "fetch nuclei --yes --from mirror"),
        (2, "there is no folder nowhere", "fetch small --yes --from nowhere"),
        (2, "is there and is not small as the catalogue knows it", "fetch small --yes --from mirror --out other"),
        (2, "mirror/small.npz is not small", "fetch small --yes --from changed"),
        (5, "did not arrive", "fetch small --yes"),
        (2, "Missing argument", "fetch"),
    ],
)
def test_a_mistake_is_said_in_a_sentence_or_two(place: Path, code: int, told: str, command: str) -> None:
    (place / "other").mkdir()
    (place / "other" / "small.npz").write_bytes(b"mine")
    (place / "changed" / "mirror").mkdir(parents=True)
    (place / "changed" / "mirror" / "small.npz").write_bytes(CONTENT[::-1])
    result = run(*command.split())
    assert result.code == code
    assert told in " ".join(result.err.replace("│", "").split())
    assert result.out == ""
    assert (place / "other" / "small.npz").read_bytes() == b"mine"
    assert not (place / "data" / "small.npz").exists()


def test_the_check_of_images_with_masks_says_values_and_what_is_missing(place: Path) -> None:
    for kind in ("images", "masks"):
        (place / "scans" / kind).mkdir(parents=True)
        for number in range(12):
            pixels = np.full((4, 5), number if kind == "images" else 0, np.uint8)
            pixels[0] = 1  # of the masks a quarter
            Image.fromarray(pixels).save(place / "scans" / kind / f"{number}.png")
    good = run("check", "scans")
    assert good.code == 0
    assert "scans: 12 images with a mask that can be read\n  sizes: 5 x 4, grey: 12\n" in good.out
    assert "  mask value: 1 in 12 images, where it takes 25.0% of the area\n" in good.out
    assert good.out.endswith("  usable for training\n")
    (place / "scans" / "masks" / "3.png").unlink()
    bad = run("check", "scans")
    assert bad.code == 2
    assert "  image without a mask: 3.png\n" in bad.out
    assert "NOT usable" in bad.out
    told = json.loads(run("check", "scans", "--json").out)
    assert (told["num_images"], told["images_without_mask"]) == (11, ["3.png"])
    assert told["mask_values"] == {"1": {"num_images": 11, "mean_share": 0.25}}


def test_of_many_sizes_ten_are_shown(place: Path) -> None:
    (place / "labels.csv").write_text("file,label\n" + "".join(f"{n}.npy,{n % 2}\n" for n in range(1, 15)))
    for n in range(1, 15):
        np.save(place / f"{n}.npy", np.full((1, n), n, np.uint8))
    assert ", and 4 more sizes\n" in run("check", ".").out
