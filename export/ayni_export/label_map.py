"""A label map as a NIfTI file that lies exactly on the volume it was made of. Needs nibabel."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from ayni.data.nifti import HEADER_BYTES
from ayni.data.volumes import Volume, plane_to_file
from ayni_export.volume_answer import Labels

# what a NIfTI header says of where the voxels lie; names, dates and notes of the file are not taken over
GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
LABEL_INTENT, SCANNER = 1002, 1
NOTE_BYTES = 79


def nifti_of(labels_DHW: Labels, volume: Volume, path: Path, names: tuple[str, ...]) -> bytes:
    """The packed bytes; the same labels give the same bytes. `path`: the NIfTI file that the volume was read from, or a
    folder of DICOM slices."""
    import nibabel

    labels_XYZ = np.asarray(plane_to_file(labels_DHW.astype(np.float32), volume), labels_DHW.dtype)
    if volume.source == "NIfTI":
        source = _header(path)
        image = (nibabel.Nifti1Image if source.sizeof_hdr == 348 else nibabel.Nifti2Image)(labels_XYZ, None)
        for field in GEOMETRY:
            image.header[field] = source[field]
        image.header["pixdim"][4:] = 1  # there is no fourth axis
    else:
        image = nibabel.Nifti1Image(labels_XYZ, volume.affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(volume.affine, SCANNER)
        image.set_sform(volume.affine, SCANNER)
    image.header.set_data_dtype(labels_XYZ.dtype)
    image.header["intent_code"] = LABEL_INTENT
    image.header["descrip"] = _note(names)
    return gzip.compress(image.to_bytes(), mtime=0)


def _header(path: Path) -> Any:
    import nibabel

    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if is_packed else path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    kind = nibabel.Nifti1Header if start[344:348] == b"n+1\0" else nibabel.Nifti2Header
    return kind(binaryblock=start[: kind.sizeof_hdr], check=True)


def _note(names: tuple[str, ...]) -> bytes:
    """
    >>> _note(("head", "body"))
    b'Ayni, not for primary diagnosis: 1 head, 2 body'
    """
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(names, start=1))
    return f"Ayni, not for primary diagnosis: {numbered}".encode("ascii", "replace")[:NOTE_BYTES]
