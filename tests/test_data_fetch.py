"""Public data sets arrive whole and verified or not at all: from a real HTTPS server, and from mirror folders."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ayni.data.catalogue import CATALOGUE, DataSet, list_digest
from ayni.data.fetch import fetch, is_fetched
from ayni.errors import DataError, IntegrityError, LineError, UserError
from https_server import Publisher, make_certificate, serving

CONTENT = bytes(range(256)) * 1000
FOLDER_FILES = {"images/a.png": b"one", "images/b.png": b"three", "masks/a.png": b"", "sites.csv": b"id,site\n"}


def data_set(url: str = "", content: bytes = CONTENT) -> DataSet:
    return DataSet(
        name="small", title="t", target="small.npz", sha256=hashlib.sha256(content).hexdigest(),
        num_bytes=len(content), licence="l", citation="c", page="https://example.org", url=url,
    )  # fmt: skip


def folder_set() -> DataSet:
    digest = list_digest((path, hashlib.sha256(data).hexdigest()) for path, data in FOLDER_FILES.items())
    return DataSet(
        name="pairs", title="t", target="pairs", sha256=digest, num_bytes=16, num_files=4,
        licence="l", citation="c", page="https://example.org",
    )  # fmt: skip


def write_folder(folder: Path) -> Path:
    for path, data in FOLDER_FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def what_is_in(folder: Path) -> dict[str, bytes]:
    """All files but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def publisher() -> Publisher:
    return Publisher(CONTENT)


@pytest.fixture
def url(
    publisher: Publisher, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The server's certificate is trusted as a hospital's own is: by the variable that OpenSSL reads."""
    certificate = make_certificate(tmp_path_factory.mktemp("certificate"))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(publisher, certificate) as address:
        yield f"{address}/small.npz?download=1"


def test_a_file_comes_from_its_publisher_and_says_how_far_it_is(tmp_path: Path, url: str) -> None:
    told: list[tuple[int, int]] = []
    path = fetch(data_set(url), tmp_path / "data", on_progress=lambda done, total: told.append((done, total)))
    assert path == tmp_path / "data" / "small.npz"
    assert what_is_in(tmp_path / "data") == {"small.npz": CONTENT}
    assert told == sorted(told)
    assert told[-1] == (256_000, 256_000)


def test_what_is_there_and_identical_is_not_asked_for_again(tmp_path: Path, url: str, publisher: Publisher) -> None:
    fetch(data_set(url), tmp_path)
    assert is_fetched(data_set(url), tmp_path)
    fetch(data_set(url), tmp_path)
    assert len(publisher.asked) == 1


def test_a_line_that_breaks_goes_on_where_it_was(tmp_path: Path, url: str, publisher: Publisher) -> None:
    publisher.cut_after = [100_000, 50_000]
    fetch(data_set(url), tmp_path)
    assert [asked for _, asked in publisher.asked] == ["", "bytes=100000-", "bytes=150000-"]
    assert what_is_in(tmp_path) == {"small.npz": CONTENT}


def test_a_line_that_is_down_keeps_what_came_for_the_next_call(tmp_path: Path, url: str, publisher: Publisher) -> None:
    publisher.cut_after = [100_000, 0]
    with pytest.raises(LineError, match="100000 of 256000 bytes are kept"):
        fetch(data_set(url), tmp_path)
    assert not (tmp_path / "small.npz").exists()
    fetch(data_set(url), tmp_path)
    assert publisher.asked[-1][1] == "bytes=100000-"
    assert what_is_in(tmp_path) == {"small.npz": CONTENT}


def test_a_server_that_knows_no_ranges_sends_all_again(tmp_path: Path, url: str, publisher: Publisher) -> None:
    publisher.knows_ranges = False
    publisher.cut_after = [100_000]
    fetch(data_set(url), tmp_path)
    assert what_is_in(tmp_path) == {"small.npz": CONTENT}


def test_an_old_part_of_another_file_is_thrown_away_and_all_comes_anew(
    tmp_path: Path, url: str, publisher: Publisher
) -> None:
    (tmp_path / ".small.npz.part").write_bytes(b"x" * 1000)
    fetch(data_set(url), tmp_path)
    assert [asked for _, asked in publisher.asked] == ["bytes=1000-", ""]
    assert what_is_in(tmp_path) == {"small.npz": CONTENT}


def test_a_part_that_is_too_long_is_thrown_away(tmp_path: Path, url: str, publisher: Publisher) -> None:
    (tmp_path / ".small.npz.part").write_bytes(CONTENT + b"x")
    fetch(data_set(url), tmp_path)
    assert what_is_in(tmp_path) == {"small.npz": CONTENT}


@pytest.mark.parametrize("tells_length", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1] + b"!", "its SHA-256 is"),
        (CONTENT + b"more", "it is another file now|is longer than the 256000 bytes"),
    ],
)
def test_another_file_than_the_catalogues_is_not_kept(
    tmp_path: Path, url: str, publisher: Publisher, content: bytes, message: str, tells_length: bool
) -> None:
    publisher.content, publisher.tells_length = content, tells_length
    with pytest.raises(IntegrityError, match=message):
        fetch(data_set(url), tmp_path)
    assert set(what_is_in(tmp_path).values()) <= {b""}
    publisher.content = CONTENT
    fetch(data_set(url), tmp_path)
    assert what_is_in(tmp_path) == {"small.npz": CONTENT}


def test_a_publishers_file_that_ends_before_our_part_is_another_file(
    tmp_path: Path, url: str, publisher: Publisher
) -> None:
    (tmp_path / ".small.npz.part").write_bytes(CONTENT[:1000])
    publisher.content = CONTENT[:500]
    with pytest.raises(IntegrityError, match="has 500 bytes and the catalogue says 256000"):
        fetch(data_set(url), tmp_path)
    assert [asked for _, asked in publisher.asked] == ["bytes=1000-", ""]


@pytest.mark.parametrize("status", [403, 404, 429, 500])
def test_a_publisher_that_says_no_is_quoted(tmp_path: Path, url: str, publisher: Publisher, status: int) -> None:
    publisher.status = status
    with pytest.raises(LineError, match=f"the publisher answered {status}"):
        fetch(data_set(url), tmp_path)
    assert what_is_in(tmp_path) == {}


def test_a_redirect_is_followed_to_https_alone(tmp_path: Path, url: str, publisher: Publisher) -> None:
    publisher.redirect_to = "/moved"
    fetch(data_set(url), tmp_path / "a")
    assert publisher.asked[-1][0] == "/moved"
    for elsewhere in (url.replace("https", "http"), "file:///etc/passwd", "ftp://127.0.0.1/x"):
        publisher.redirect_to = elsewhere
        with pytest.raises((UserError, LineError), match=r"is not https|is not allowed"):
            fetch(data_set(url), tmp_path / "b")
    assert what_is_in(tmp_path / "b") == {}


def test_plain_http_and_an_unknown_certificate_are_not_trusted(
    tmp_path: Path, url: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(publisher, None) as plain, pytest.raises(UserError, match="is not https"):
        fetch(data_set(f"{plain}/small.npz"), tmp_path)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(LineError, match="certificate verify failed"):
        fetch(data_set(url), tmp_path)
    assert publisher.asked == []


def test_a_publisher_that_cannot_be_reached_is_a_line_that_is_down(tmp_path: Path, url: str) -> None:
    with pytest.raises(LineError, match="refused"):
        fetch(data_set("https://127.0.0.1:1/small.npz"), tmp_path)


@pytest.mark.parametrize("place", ["small.npz", "medmnist/small.npz"])
def test_a_file_comes_from_a_mirror_at_its_top_or_one_level_down(tmp_path: Path, place: str) -> None:
    (tmp_path / "mirror" / place).parent.mkdir(parents=True)
    (tmp_path / "mirror" / place).write_bytes(CONTENT)
    assert fetch(data_set(), tmp_path / "data", tmp_path / "mirror").read_bytes() == CONTENT
    assert what_is_in(tmp_path / "data") == {"small.npz": CONTENT}


@pytest.mark.parametrize("place", ["pairs", "shared/pairs"])
def test_a_folder_comes_from_a_mirror_with_all_its_files(tmp_path: Path, place: str) -> None:
    write_folder(tmp_path / "mirror" / place)
    (tmp_path / "mirror" / place / ".DS_Store").write_bytes(b"not of the data set")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".pairs.part").mkdir()
    (tmp_path / "data" / ".pairs.part" / "left over").write_bytes(b"after a kill")
    assert fetch(folder_set(), tmp_path / "data", tmp_path / "mirror") == tmp_path / "data" / "pairs"
    assert what_is_in(tmp_path / "data") == {f"pairs/{path}": data for path, data in FOLDER_FILES.items()}
    assert is_fetched(folder_set(), tmp_path / "data")


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("masks/a.png", None, "it has 3 files instead of 4"),
        ("masks/b.png", b"", "it has 5 files instead of 4"),
        ("masks/a.png", b"x", "it has 17 bytes instead of 16"),
        ("images/a.png", b"two", "its SHA-256 is"),
    ],
)
def test_a_folder_that_differs_in_one_file_is_neither_taken_nor_overwritten(
    tmp_path: Path, path: str, data: bytes | None, message: str
) -> None:
    for name in ("mirror", "data"):
        changed = write_folder(tmp_path / name / "pairs") / path
        if data is None:
            changed.unlink()
        else:
            changed.write_bytes(data)
    with pytest.raises(DataError, match=f"mirror/pairs is not pairs as the catalogue knows it: {message}"):
        fetch(folder_set(), tmp_path / "new", tmp_path / "mirror")
    assert what_is_in(tmp_path / "new") == {}
    before = what_is_in(tmp_path / "data")
    write_folder(tmp_path / "good" / "pairs")
    with pytest.raises(UserError, match=f"data/pairs is there and is not pairs .*{message}.*Move it away"):
        fetch(folder_set(), tmp_path / "data", tmp_path / "good")
    assert what_is_in(tmp_path / "data") == before


def test_a_data_set_without_a_mirror_or_a_url_says_where_its_publisher_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"published at https://example\.org\. Give --from a folder that holds pairs"):
        fetch(folder_set(), tmp_path)
    (tmp_path / "mirror").mkdir()
    with pytest.raises(DataError, match=r"there is no folder pairs in .*mirror, nor one level below"):
        fetch(folder_set(), tmp_path, tmp_path / "mirror")
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        fetch(folder_set(), tmp_path, tmp_path / "nowhere")
    (tmp_path / "mirror" / "pairs").write_bytes(b"a file")
    with pytest.raises(DataError, match="there is no folder pairs"):
        fetch(folder_set(), tmp_path, tmp_path / "mirror")


def test_a_disk_that_is_too_small_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    huge = msgspec.structs.replace(data_set("https://127.0.0.1:1/x"), num_bytes=1 << 60)
    with pytest.raises(UserError, match="Make room"):
        fetch(huge, tmp_path)


def test_the_catalogue_is_complete() -> None:
    assert set(CATALOGUE) >= {
        "pneumoniamnist", "breastmnist", "adrenalmnist3d", "skin_lesion", "lung_xray", "nuclei", "hippocampus"
    }  # fmt: skip
    for name, entry in CATALOGUE.items():
        assert entry.name == name
        assert entry.target in (name, f"{name}.npz")
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.url == "" or entry.url.startswith("https://")
        assert entry.url or entry.is_folder
        assert min(entry.num_bytes, entry.num_files) > 0
        assert all((entry.licence, entry.citation, entry.page, entry.title))


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_the_true_data_are_what_the_catalogue_says(tmp_path: Path, name: str) -> None:
    mirror = os.environ.get("AYNI_MIRROR")
    if not mirror:
        pytest.skip("AYNI_MIRROR names no folder that holds the true data sets")
    fetch(CATALOGUE[name], tmp_path, Path(mirror))
    assert is_fetched(CATALOGUE[name], tmp_path)


def test_fetching_loads_none_of_the_heavy_parts() -> None:
    code = "import sys, ayni.data.fetch, ayni.cli_data; print({'numpy', 'torch', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
