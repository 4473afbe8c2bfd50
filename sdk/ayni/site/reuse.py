"""Joining anew with what an earlier folder has fetched: an artefact's name is its hash, so it need not come again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ayni.artefacts.files import flush_folder, sha256_file
from ayni.errors import UserError

ARTEFACTS = "artefacts"
_NAME = re.compile(r"[0-9a-f]{64}")


def check_earlier(earlier: Path) -> None:
    """Raises UserError if this is not a folder that a site has fetched into."""
    if not (earlier / ARTEFACTS).is_dir():
        raise UserError(f"{earlier} holds nothing that a site has fetched. Name the folder that joined before.")


def take_over(earlier: Path, home: Path) -> int:
    """Copy every whole artefact; returns how many. A damaged one is left out, and fetched anew when it is needed."""
    folder, taken = home / ARTEFACTS, 0
    folder.mkdir(exist_ok=True)
    for path in sorted((earlier / ARTEFACTS).iterdir()):
        if not _NAME.fullmatch(path.name):
            continue
        aside = folder / f"{path.name}.part"
        shutil.copyfile(path, aside)
        if sha256_file(aside) == path.name:
            aside.replace(folder / path.name)
            taken += 1
        else:
            aside.unlink()
    flush_folder(folder)
    return taken
