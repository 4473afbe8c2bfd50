"""A bundle is used exactly as it was signed, or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from ayni.errors import AyniError, UserError
from ayni.keys import Certificate, SiteKeys, fingerprint
from ayni_export.bundle import read_bundle
from ayni_export.export import export_model
from ayni_export.signature import BundleError, Vouched, sign_files
from trained_home import COORDINATOR, exported_bundle, trained_home

NAMES = ["LICENSE", "configs/metadata.json", "docs/model_card.md", "models/model.onnx"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_bundle(), tmp_path / "bundle"))


def files_of(bundle: Path) -> dict[str, bytes]:
    return {name: (bundle / name).read_bytes() for name in NAMES}


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def vouched(
    key: bytes,
    *,
    site: str = "north-clinic",
    task: str = "pneumonia",
    signed_by: Ed25519PrivateKey = COORDINATOR,
    coordinator: Ed25519PrivateKey = COORDINATOR,
) -> Vouched:
    certificate = Certificate(site=site, role="clinic", task=task, signing_key=key, issued_s=1).signed_by(signed_by)
    return Vouched(coordinator_key=public(coordinator).hex(), certificate=certificate.hex())


def sign_again(bundle: Path, key: Ed25519PrivateKey, word: Vouched | None) -> None:
    (bundle / "signature.json").write_bytes(sign_files(files_of(bundle), key, word))


def test_a_bundle_names_its_signer_and_the_coordinator_that_vouches_for_it(bundle: Path) -> None:
    key = SiteKeys.load(trained_home()).signing_public
    signer = read_bundle(bundle).signer
    assert (signer.signing_key, signer.fingerprint, signer.compared) == (key, fingerprint(key), "")
    assert (signer.coordinator_key, signer.coordinator) == (public(COORDINATOR), fingerprint(public(COORDINATOR)))
    assert signer.certificate is not None
    assert signer.certificate.site == "north-clinic"


def test_a_signer_is_accepted_by_its_own_fingerprint_or_by_its_coordinators(bundle: Path) -> None:
    site = fingerprint(SiteKeys.load(trained_home()).signing_public)
    for spelling in (site, site.upper().replace("-", " ")):
        assert read_bundle(bundle, signer=spelling).signer.compared == "site"
    coordinator = fingerprint(public(COORDINATOR))
    assert read_bundle(bundle, signer=coordinator).signer.compared == "coordinator"


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


def test_a_bundle_that_somebody_else_signed_is_refused_by_either_fingerprint(bundle: Path) -> None:
    known = read_bundle(bundle).signer
    stranger, own_coordinator = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    for word in (None, vouched(public(stranger), signed_by=own_coordinator, coordinator=own_coordinator)):
        sign_again(bundle, stranger, word)
        assert read_bundle(bundle).signer.signing_key == public(stranger)  # it is well made, by somebody
        for wanted in (known.fingerprint, known.coordinator):
            with pytest.raises(BundleError, match="by telephone"):
                read_bundle(bundle, signer=wanted)


def test_a_bundle_without_a_certificate_is_read_and_names_no_coordinator(bundle: Path) -> None:
    sign_again(bundle, SiteKeys.load(trained_home()).signing, None)
    signer = read_bundle(bundle).signer
    assert (signer.certificate, signer.coordinator_key, signer.coordinator) == (None, None, "")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"signed_by": Ed25519PrivateKey.generate()}, "not of that coordinator"),
        ({"key": bytes(32)}, "is for the key 6668-7aad-f862-bd77-6c8f"),
        ({"site": "south-clinic"}, "for site 'south-clinic' in task 'pneumonia'"),
        ({"task": "skin"}, "for site 'north-clinic' in task 'skin'"),
    ],
)
def test_a_wrong_certificate_is_refused(bundle: Path, wrong: dict[str, Any], reason: str) -> None:
    site = SiteKeys.load(trained_home())
    word = vouched(**{"key": site.signing_public, **wrong})
    sign_again(bundle, site.signing, word)
    with pytest.raises(BundleError, match=reason):
        read_bundle(bundle)
    with pytest.raises(BundleError, match=reason):  # nor is such a bundle made
        export_model(trained_home() / "models/federated", bundle / "new", signing_key=site.signing, vouched=word)
    assert not (bundle / "new").exists()


@pytest.mark.parametrize("damage", [{"certificate": "00"}, {"certificate": "xy"}, {"coordinator_key": "00"}])
def test_a_damaged_certificate_is_refused(bundle: Path, damage: dict[str, str]) -> None:
    signature = json.loads((bundle / "signature.json").read_bytes())
    signature["vouched"].update(damage)
    (bundle / "signature.json").write_text(json.dumps(signature))
    with pytest.raises(BundleError, match="certificate of the site's key is damaged"):
        read_bundle(bundle)


def test_a_folder_without_a_signature_is_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="is not a bundle"):
            read_bundle(folder)


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
