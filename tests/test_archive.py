"""A bundle that came as a zip file is unpacked whole or not at all, and never outside its folder."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from ayni.artefacts.archive import unpack
from ayni.errors import IntegrityError, UserError
from ayni_coordinator.publishing import zip_folder


def test_a_folder_comes_out_as_it_went_in_and_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "in" / "models").mkdir(parents=True)
    (tmp_path / "in" / "models" / "model.onnx").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "in" / "signature.json").write_text("{}")
    (tmp_path / "a.zip").write_bytes(zip_folder(tmp_path / "in"))
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out" / "models" / "model.onnx").read_bytes() == bytes(range(256)) * 100
    assert zip_folder(tmp_path / "out") == zip_folder(tmp_path / "in")


@pytest.mark.parametrize("name", ["../escaped.txt", "/tmp/escaped.txt", "models/../../escaped.txt", "..\\escaped.txt"])
def test_a_name_that_leads_outside_is_refused_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.txt", "good")
        archive.writestr(zipfile.ZipInfo(name), "bad")
    with pytest.raises(IntegrityError, match="not unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_a_damaged_archive_and_a_folder_that_is_there_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(IntegrityError, match="damaged"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there already"):
        unpack(tmp_path / "a.zip", tmp_path / "there")


@pytest.mark.parametrize("fault", ["cut", "encrypted"])
def test_an_entry_that_cannot_be_unpacked_is_a_damaged_archive(tmp_path: Path, fault: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(range(256)) * 4)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    if fault == "cut":
        data[35] = 0xFF  # the first byte of the packed data, behind 30 of the header and 5 of the name: no such block
    else:
        data[6] |= 1  # the flags of the entry
        data[data.index(b"PK\x01\x02") + 8] |= 1  # and of the listing
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
