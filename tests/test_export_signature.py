"""A bundle is used exactly as it was signed, or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from ayni.errors import AyniError, UserError
from ayni.keys import Certificate, SiteKeys, fingerprint
from ayni_export.bundle import BundleError, read_bundle, sign_files, verify_certificate
from trained_home import exported_bundle, trained_home

NAMES = ["LICENSE", "configs/metadata.json", "docs/model_card.md", "models/model.onnx"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_bundle(), tmp_path / "bundle"))


def files_of(bundle: Path) -> dict[str, bytes]:
    return {name: (bundle / name).read_bytes() for name in NAMES}


def test_a_bundle_names_its_signer(bundle: Path) -> None:
    key = SiteKeys.load(trained_home()).signing_public
    opened = read_bundle(bundle)
    assert (opened.signing_key, opened.signer, opened.signer_checked) == (key, fingerprint(key), False)
    for spelling in (fingerprint(key), fingerprint(key).upper().replace("-", " ")):
        assert read_bundle(bundle, signer=spelling).signer_checked


@pytest.mark.parametrize("name", NAMES)
def test_one_changed_bit_is_noticed_in_every_file(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is not what was signed"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_noticed(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        read_bundle(bundle)


def test_a_file_that_was_not_signed_is_noticed(bundle: Path) -> None:
    (bundle / "models/other.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"models/other\.onnx, which was not signed"):
        read_bundle(bundle)


def test_a_link_out_of_the_bundle_is_not_followed(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "LICENSE", tmp_path / "elsewhere")
    (bundle / "LICENSE").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="does not belong"):
        read_bundle(bundle)


def test_hashes_that_were_mended_without_the_key_are_noticed(bundle: Path) -> None:
    (bundle / "docs/model_card.md").write_text("Safe for everything.")
    forged = json.loads(sign_files(files_of(bundle), Ed25519PrivateKey.generate(), None))
    signature = json.loads((bundle / "signature.json").read_bytes())
    signature["files"] = forged["files"]
    (bundle / "signature.json").write_text(json.dumps(signature))
    with pytest.raises(BundleError, match="signature of the bundle"):
        read_bundle(bundle)


def test_a_bundle_that_somebody_else_signed_is_refused_by_its_fingerprint(bundle: Path) -> None:
    wanted = read_bundle(bundle).signer
    other = Ed25519PrivateKey.generate()
    (bundle / "signature.json").write_bytes(sign_files(files_of(bundle), other, None))
    assert read_bundle(bundle).signing_key == other.public_key().public_bytes_raw()
    with pytest.raises(BundleError, match="by telephone"):
        read_bundle(bundle, signer=wanted)


def test_a_folder_without_a_signature_is_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="is not a bundle"):
            read_bundle(folder)


def test_the_coordinator_vouches_for_the_signer_by_a_certificate(bundle: Path) -> None:
    site, coordinator = SiteKeys.load(trained_home()), Ed25519PrivateKey.generate()
    public = coordinator.public_key().public_bytes_raw()
    with pytest.raises(BundleError, match="no certificate"):
        verify_certificate(read_bundle(bundle), public)

    def certified(name: str, key: bytes) -> None:
        certificate = Certificate(site=name, role="clinic", task="pneumonia", signing_key=key, issued_s=1)
        signed = sign_files(files_of(bundle), site.signing, certificate.signed_by(coordinator))
        (bundle / "signature.json").write_bytes(signed)

    certified("north-clinic", site.signing_public)
    assert verify_certificate(read_bundle(bundle), public).site == "north-clinic"
    with pytest.raises(BundleError, match="not signed by the key"):
        verify_certificate(read_bundle(bundle), Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    certified("south-clinic", site.signing_public)
    with pytest.raises(BundleError, match="not one of site 'north-clinic'"):
        verify_certificate(read_bundle(bundle), public)
    certified("north-clinic", public)
    with pytest.raises(BundleError, match="not one of site 'north-clinic'"):
        verify_certificate(read_bundle(bundle), public)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*NAMES[:3], "signature.json"]),
    st.binary(max_size=40),
    st.floats(0, 1),
    st.booleans(),
)
def test_no_damage_raises_anything_but_our_errors(name: str, noise: bytes, where: float, keep: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(shutil.copytree(exported_bundle(), Path(folder) / "bundle"))
        data = (bundle / name).read_bytes()
        at = int(where * len(data))
        changed = data[:at] + noise + data[at + len(noise) * keep :]
        (bundle / name).write_bytes(changed)
        try:
            opened = read_bundle(bundle)
        except AyniError:
            return
        assert opened.info == read_bundle(exported_bundle()).info
