"""Can this machine take part? Looked at before anything is trained, each trouble with its remedy."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path

import msgspec
import zmq

from ayni.errors import AyniError, NotAdmittedError, UserError
from ayni.site.training_process import missing_packages
from ayni.task import Task

LEAST_DISK_MB = 500
LEAST_MEMORY_MB = 1500
LARGEST_CLOCK_DIFFERENCE_S = 300.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    what: str
    ok: bool
    found: str
    remedy: str


def examine(home: Path | None) -> list[Finding]:
    """With a site's folder, the line is dialled once and the key tried."""
    place = home if home and home.exists() else Path.cwd()
    findings = [_python(), _encryption(), _disk(place), _memory(), _training_parts()]
    return findings + (_line_key_and_clock(home) if home else [])


def _python() -> Finding:
    bits = 64 if sys.maxsize > 2**32 else 32
    return Finding(
        what="system",
        ok=bits == 64,
        found=f"Python {sys.version_info.major}.{sys.version_info.minor}, {bits} bit",
        remedy="Install a 64-bit operating system: the encrypted line has no 32-bit build.",
    )


def _encryption() -> Finding:
    able = bool(zmq.has("curve"))
    return Finding(
        what="encryption",
        ok=able,
        found="CURVE is there" if able else "this ZeroMQ has no CURVE",
        remedy="Run: pip install --force-reinstall --only-binary :all: pyzmq",
    )


def _disk(place: Path) -> Finding:
    free_mb = shutil.disk_usage(place).free >> 20
    return Finding(
        what="disk",
        ok=free_mb >= LEAST_DISK_MB,
        found=f"{free_mb} MB free at {place}",
        remedy=f"Free some space: {LEAST_DISK_MB} MB are needed, or put the site's folder on another disk.",
    )


def _memory() -> Finding:
    try:
        free_mb = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free_mb = int(line.split()[1]) >> 10
    except (OSError, ValueError):
        return Finding(what="memory", ok=True, found="cannot be read on this system", remedy="")
    return Finding(
        what="memory",
        ok=free_mb >= LEAST_MEMORY_MB,
        found=f"{free_mb} MB available",
        remedy=f"Close other programs: training wants {LEAST_MEMORY_MB} MB.",
    )


def _training_parts() -> Finding:
    missing = [name for name in ("torch", "monai") if importlib.util.find_spec(name) is None]
    return Finding(
        what="training parts",
        ok=not missing,
        found="installed" if not missing else f"missing: {', '.join(missing)}",
        remedy="Run: pip install 'ayni[train]'",
    )


def _parts_of_task(task: Task) -> list[Finding]:
    """Nothing to say where the task's networks need no more than others."""
    missing = missing_packages(task)
    if not missing:
        return []
    remedy = "Run: pip install 'ayni[pretrained]'"
    return [Finding(what="parts for this task", ok=False, found=f"missing: {', '.join(missing)}", remedy=remedy)]


def _line_key_and_clock(home: Path) -> list[Finding]:
    from ayni.site.site import Site

    started_s = time.monotonic()
    try:
        site = Site(home)
        now = site.status(ask=True).round
        assert now is not None
        answered_s, away_s = time.monotonic() - started_s, time.time() - now.now_s
        task = site.task()
    except UserError as error:
        remedy = "Join with `ayni join`, or restore the folder."
        return [Finding(what="site folder", ok=False, found=str(error), remedy=remedy)]
    except NotAdmittedError as error:
        return [
            Finding(what="line", ok=True, found=f"answered in {time.monotonic() - started_s:.1f} s", remedy=""),
            Finding(what="key", ok=False, found=str(error), remedy="Ask the coordinator for a new invitation."),
        ]
    except AyniError as error:
        remedy = "Check the cable or signal, and that the firewall lets this machine dial that address."
        return [Finding(what="line", ok=False, found=str(error), remedy=remedy)]
    return [
        Finding(what="line", ok=True, found=f"answered in {answered_s:.1f} s", remedy=""),
        Finding(what="key", ok=True, found="the coordinator knows this site", remedy=""),
        Finding(
            what="clock",
            ok=abs(away_s) <= LARGEST_CLOCK_DIFFERENCE_S,
            found=f"{abs(away_s):.0f} s {'ahead of' if away_s > 0 else 'behind'} the coordinator's",
            remedy="Set this machine's date and time (for example: timedatectl set-ntp true).",
        ),
        *_parts_of_task(task),
    ]
