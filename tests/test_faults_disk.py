"""A disk that is full: said in plain words, nothing lost, and the same command goes on when there is room."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from small_federation import AYNI, ENVIRONMENT, Federation

pytestmark = pytest.mark.slow


def train_with_room_for(federation: Federation, file_bytes: int) -> subprocess.CompletedProcess[str]:
    """`ayni train` while no file may grow beyond this: every write fails there, as on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))

    return subprocess.run(
        [*AYNI, "train", federation.folder / "clinic-a", "--data", federation.folder / "clinic-a.npz"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=limit,
    )


def test_a_site_whose_disk_fills_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with Federation(tmp_path, rounds=1, sites=["clinic-a"]) as federation:
        federation.serve()
        federation.join("clinic-a")
        model_bytes = max(path.stat().st_size for path in (federation.centre / "store").iterdir())
        downloading, training = model_bytes // 2, 2 * model_bytes  # an optimiser's state is larger than its model
        for room in (downloading, training):
            full = train_with_room_for(federation, room)
            assert full.returncode in (1, 2), full.stderr
            assert "Traceback" not in full.stderr
            assert "nothing is lost" in full.stderr
        assert federation.train("clinic-a").wait() == 0, federation.log("clinic-a")
        assert federation.digest(1) not in ("", federation.digest(0))
