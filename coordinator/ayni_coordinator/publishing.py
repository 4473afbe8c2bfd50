"""A diagnosis bundle as an artefact: one zip file of the folder, made the same way every time."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path

from ayni_coordinator.database import ArtefactRow, note, transaction
from ayni_coordinator.home import CoordinatorHome, add_artefact, publish
from ayni_export.bundle import read_bundle


def zip_folder(folder: Path) -> bytes:
    """Files in the order of their names with one fixed date: the same folder gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def publish_bundle(folder: Path, bundle: Path, name: str) -> str:
    """Verify the bundle, then list it in the next manifest in place of the one of this name."""
    read_bundle(bundle)
    home, data = CoordinatorHome.open(folder), zip_folder(bundle)
    with transaction(home.engine) as session:
        session.query(ArtefactRow).filter(ArtefactRow.kind == "bundle", ArtefactRow.name == name).delete()
        add_artefact(home, session, "bundle", name, 0, data)
        version = publish(home, session, time.time())
        note(session, time.time(), "coordinator", f"published the bundle {name!r} in manifest {version}")
    return f"Bundle {name!r} ({len(data)} bytes) is in manifest {version}. Get it: `ayni fetch HOME {name} FOLDER`."
