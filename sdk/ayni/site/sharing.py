"""A site's consent: its personal model goes to the coordinator as an expert when the site says so, and only then.

HOME/outbox/expert.safetensors is on its way; HOME/shared-expert.safetensors is what the coordinator has, byte for byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from ayni.artefacts.files import flush_folder, sha256_file
from ayni.errors import PeerProtocolError, RefusedError, UserError
from ayni.jobs import MakeExpert
from ayni.site.agent import Agent, Watcher
from ayni.site.training_process import TrainingProcess
from ayni.trained_model import MODEL_FILE
from ayni.wire.line import Line, upload
from ayni.wire.messages import ExpertIs, ShareExpert

ON_ITS_WAY, SHARED = Path("outbox") / "expert.safetensors", Path("shared-expert.safetensors")
Sharing = Literal["no", "on its way", "shared"]


class SharedExpert(msgspec.Struct, frozen=True, kw_only=True):
    """What left the site: `num_bytes`, with statistics of `num_channels` over `num_cases` training images (or none);
    and that on `num_held_out` images the expert has a `home_gain` over the global model (`ExpertInfo`)."""

    sha256: str
    num_bytes: int
    num_train: int
    num_cases: int
    num_channels: int
    num_held_out: int
    home_gain: float


def sharing(home: Path) -> Sharing:
    """As far as this folder knows. "on its way": bytes may have left, and nobody said that they were taken."""
    if (home / ON_ITS_WAY).exists():
        return "on its way"
    return "shared" if (home / SHARED).exists() else "no"


def check_shareable(home: Path, participation: str) -> None:
    """Raises UserError where there is nothing to share."""
    if participation != "weights":
        raise UserError("a site that takes part by targets alone has no model that could be mixed with the others'.")
    if not (home / "models" / "personal" / MODEL_FILE).exists():
        raise UserError(
            f"there is no personal model in {home}. The task must have [personal], and `ayni train` must have finished."
        )


def share(home: Path, agent: Agent, line: Line, process: TrainingProcess, watcher: Watcher) -> SharedExpert:
    """Make the expert, send it, and say that it may be used. Doing it again sends nothing twice."""
    now = agent.ask_round(line)
    manifest = agent.sync(line, now.manifest_version)
    line.hang_up()
    path, chain = home / ON_ITS_WAY, manifest.model_chain()
    made = home / "training" / path.name  # nothing is on its way before it is whole
    watcher.progress("making the expert", 0, 1)
    process.run(
        MakeExpert(
            context=agent.context(manifest),
            global_model=[str(agent.path_of(artefact)) for artefact in chain],
            global_digest=chain[-1].digest.hex() if chain else "",
            expert_out=str(made),
        ),
        watcher.progress,
    )
    path.parent.mkdir(exist_ok=True)
    made.replace(path)
    flush_folder(path.parent)
    sha256 = bytes.fromhex(sha256_file(path))
    try:
        _hand_over(line, path, sha256, watcher)
    except RefusedError as error:
        if error.code in ("not-allowed", "bad-artefact", "too-large"):  # it was thrown away there
            path.unlink()
        raise
    path.replace(home / SHARED)
    flush_folder(home)
    return told(home / SHARED)


def _hand_over(line: Line, path: Path, sha256: bytes, watcher: Watcher) -> None:
    try:
        _say(line, sha256)  # it may be there already: an answer was lost, or the command was given twice
    except RefusedError as error:
        if error.code != "unknown-artefact":
            raise
        upload(line, "expert", path, lambda done, total: watcher.progress("sending the expert", done, total))
        _say(line, sha256)


def revoke(home: Path, line: Line) -> None:
    """Later bundles are made without it; bundles that were made before are not called back."""
    _say(line, None)
    forget(home)


def forget(home: Path) -> None:
    for name in (ON_ITS_WAY, SHARED):
        (home / name).unlink(missing_ok=True)


def told(path: Path) -> SharedExpert:
    """What the bytes say of themselves."""
    from ayni.tensors.expert import decode_expert

    data = path.read_bytes()
    expert = decode_expert(data)
    return SharedExpert(
        sha256=sha256_file(path),
        num_bytes=len(data),
        num_train=expert.info.num_train,
        num_cases=expert.info.num_cases,
        num_channels=0 if expert.statistics_2F is None else expert.statistics_2F.shape[1],
        num_held_out=expert.info.num_held_out,
        home_gain=expert.info.home_gain,
    )


def _say(line: Line, expert: bytes | None) -> None:
    reply, _ = line.ask(ShareExpert(expert=expert), "control")
    if not isinstance(reply, ExpertIs) or reply.expert != expert:
        raise PeerProtocolError("the coordinator did not acknowledge what this site shares")
