"""A federation of real processes on loopback, small enough for a test: one hospital, two clinics, two short rounds."""

from __future__ import annotations

import copy
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ayni.site.state import SETTINGS_FILE
from ayni.task import ImageSettings, Role
from ayni_coordinator.by_hand import new_invitation
from ayni_coordinator.database import RoundRow, transaction
from ayni_coordinator.home import CONFIG_FILE, CoordinatorHome, create_home
from desk import task_with

TESTS = Path(__file__).parent
XRAYS = TESTS.parent / "coordinator/ayni_coordinator/demo/pneumoniamnist.npz"
SITES: dict[str, Role] = {"hospital": "hospital", "clinic-a": "clinic", "clinic-b": "clinic"}
NUM_IMAGES = 60  # at each site
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
AYNI = [sys.executable, "-m", "ayni.cli"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def write_xrays(path: Path, start: int) -> None:
    with np.load(XRAYS) as archive:
        part = slice(start, start + NUM_IMAGES)
        np.savez(path, train_images=archive["train_images"][part], train_labels=archive["train_labels"][part])


class Federation:
    """Makes the coordinator's folder and the sites' data; every process that it starts ends with the `with`."""

    def __init__(
        self,
        folder: Path,
        *,
        rounds: int = 2,
        sites: Iterable[str] = SITES,
        write_data: Callable[[Path, int], None] = write_xrays,
        **changes: Any,
    ) -> None:
        """`changes` are settings of the task; `write_data` writes a site's images, the first of them by its number."""
        self.folder, self.centre = folder, folder / "centre"
        self._running: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)
        sites = list(sites)
        with np.load(XRAYS) as archive:
            np.savez(folder / "public.npz", images=archive["val_images"][:24])
        task = task_with(
            public_set=str(folder / "public.npz"),
            image=ImageSettings(height=28, width=28),
            training={"rounds": rounds, "steps_per_round": 3, "batch_size": 16},
            traffic={"form": "sparse"},
            round={"quorum": len(sites), "wait_for_sites": len(sites), "deadline_s": 60.0, "min_cohort": 1},
            **changes,
        )
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        create_home(self.centre, task, endpoint=self.endpoint, bind=self.endpoint).engine.dispose()
        for number, site in enumerate(sites):
            write_data(folder / f"{site}.npz", number * NUM_IMAGES)

    def copied(self, folder: Path) -> Federation:
        """All of it as it is now, in another folder and at another port. Nothing may be running."""
        twin = copy.copy(self)
        twin.folder, twin.centre, twin._running = folder, folder / "centre", []
        shutil.copytree(self.folder, folder)
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        for path in (twin.centre / CONFIG_FILE, *(folder / site / SETTINGS_FILE for site in SITES)):
            path.write_text(path.read_text().replace(self.endpoint, endpoint))
        twin.endpoint = endpoint
        return twin

    # Processes

    def start(self, *command: str | Path, log: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{log}.log").open("ab") as output:
            process = subprocess.Popen(
                [str(part) for part in command], stdout=output, stderr=output, env=ENVIRONMENT, cwd=TESTS
            )
        self._running.append(process)
        return process

    def serve(self) -> subprocess.Popen[bytes]:
        return self.start(*AYNI, "coordinator", "serve", self.centre, log="serve")

    def serve_until(self, point: str) -> subprocess.Popen[bytes]:
        """A coordinator that kills itself with SIGKILL at this point (`dying_coordinator.py`)."""
        return self.start(sys.executable, TESTS / "dying_coordinator.py", self.centre, point, log="serve")

    def join(self, site: str) -> None:
        """The coordinator must be serving."""
        invitation = new_invitation(self.centre, site, SITES[site], 3600).to_string()
        assert self.start(*AYNI, "join", invitation, self.folder / site, log=site).wait() == 0, self.log(site)

    def train(self, site: str) -> subprocess.Popen[bytes]:
        return self.start(*AYNI, "train", self.folder / site, "--data", self.folder / f"{site}.npz", log=site)

    def train_until(self, site: str, point: str) -> subprocess.Popen[bytes]:
        """A site's agent that kills itself with SIGKILL at this point (`dying_site.py`)."""
        home, data = self.folder / site, self.folder / f"{site}.npz"
        return self.start(sys.executable, TESTS / "dying_site.py", home, data, point, log=site)

    # What came out

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def digest(self, round_number: int) -> str:
        home = CoordinatorHome.open(self.centre)
        with transaction(home.engine) as session:
            row = session.get(RoundRow, round_number)
        home.engine.dispose()
        return row.digest if row else ""

    def model(self, site: str) -> bytes:
        return (self.folder / site / "models" / "federated" / "weights.safetensors").read_bytes()

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._running:
            process.kill()
            process.wait()
