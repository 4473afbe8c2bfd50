"""The coordinator's folder: settings, keys, database, store. Made once by `init`, opened by every command."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from sqlalchemy import func, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from ayni.artefacts.files import write_atomic
from ayni.artefacts.manifest import Artefact, ArtefactKind, Manifest
from ayni.errors import UserError
from ayni.invitation import check_endpoint
from ayni.keys import SiteKeys
from ayni.task import Task
from ayni.tensors.image_set import ImageSet
from ayni.tensors.safe import Array, encode
from ayni_coordinator.database import ArtefactRow, ManifestRow, RoundRow, note, open_database, transaction
from ayni_coordinator.guidance.source import check_source
from ayni_coordinator.public_set import load_labelled_public_set, load_public_set
from ayni_coordinator.store import ArtefactStore

CONFIG_FILE = "coordinator.toml"
TASK_FILE = "task.json"
TRUTH_FILE = "public-truth.safetensors"  # of a labelled public set; there until first weights have learnt it
MANIFEST_VALID_S = 90 * 86_400


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`endpoint` is what invitations say, `bind` where the coordinator listens. `{home}` stands for the folder."""

    endpoint: str
    bind: str
    database: str = "sqlite:///{home}/coordinator.sqlite"
    store: str = "{home}/store"

    def to_toml(self) -> bytes:
        """A JSON string is a TOML string, so four lines need no TOML writer."""
        settings = msgspec.structs.asdict(self).items()
        return b"".join(name.encode() + b" = " + msgspec.json.encode(value) + b"\n" for name, value in settings)


@dataclass(frozen=True, slots=True)
class CoordinatorHome:
    folder: Path
    config: Config
    task: Task
    keys: SiteKeys
    engine: Engine
    store: ArtefactStore

    @classmethod
    def open(cls, folder: Path) -> CoordinatorHome:
        folder = folder.resolve()
        try:
            config = msgspec.toml.decode((folder / CONFIG_FILE).read_bytes(), type=Config)
            task = Task.from_json((folder / TASK_FILE).read_bytes())
        except FileNotFoundError:
            told = f"Make one with `ayni coordinator init {folder.name} --task TASK.toml`."
            raise UserError(f"{folder} is not a coordinator's folder. {told}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UserError(f"{folder / CONFIG_FILE}: {error}.") from None
        engine = open_database(config.database.replace("{home}", str(folder)))
        store = ArtefactStore(config.store.replace("{home}", str(folder)))
        return cls(folder, config, task, SiteKeys.load(folder), engine, store)

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"


def create_home(
    folder: Path, task: Task, *, endpoint: str, bind: str, database: str = "", store: str = ""
) -> CoordinatorHome:
    """Everything but the guidance and the teacher. Stands at `folder` whole or not at all.

    What a network sees of a volume at once is fixed here, so that all sites have the same (`image.patch`).
    """
    check_endpoint(endpoint)
    folder = folder.resolve()
    if folder == Path.cwd():
        raise UserError("the folder is made anew, so it cannot be the one that you are in. Name another one.")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is not empty. Choose another folder, or go on there with `ayni coordinator guide {folder}`."
        )
    defaults = Config(endpoint=endpoint, bind=bind or _default_bind(endpoint))
    config = msgspec.structs.replace(defaults, database=database or defaults.database, store=store or defaults.store)
    if task.dual_kd and task.guidance.source != "none":
        raise UserError("with [dual_kd] the centre's teacher teaches all sites. Set guidance.source to none.")
    if task.image.depth and task.guidance.source != "none":
        raise UserError("the foundation models look at pictures, not at volumes. Set guidance.source to none.")
    check_source(task.guidance, task.kind)
    task = _with_patch(task)
    public_set, truth = _public_set(task)
    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        write_atomic(aside / CONFIG_FILE, config.to_toml())
        write_atomic(aside / TASK_FILE, task.to_json())
        if truth is not None:
            write_atomic(aside / TRUTH_FILE, encode({"truth": truth}), mode=0o600)
        SiteKeys.load_or_create(aside)
        home = CoordinatorHome.open(aside)
        _fill(home, public_set, time.time())
        home.engine.dispose()
        aside.replace(folder)  # also over an empty folder
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return CoordinatorHome.open(folder)


def _public_set(task: Task) -> tuple[ImageSet | None, Array | None]:
    """The images, and the truth of the first of them, where the task says that there is one."""
    if not task.public_set:
        return None, None
    if task.public_set_labelled:
        return load_labelled_public_set(Path(task.public_set), task)
    return load_public_set(Path(task.public_set), task), None


def _with_patch(task: Task) -> Task:
    """Raises UserError if no patch fits the memory that the task allows."""
    from ayni.learning.memory import chosen_patch  # torch: only here, never while serving

    if not task.image.depth or task.image.patch:
        return task
    return msgspec.structs.replace(task, image=msgspec.structs.replace(task.image, patch=chosen_patch(task)))


def _default_bind(endpoint: str) -> str:
    """Where to listen so that sites reach `endpoint`: loopback stays loopback, a name or address means every interface.

    >>> _default_bind("tcp://ayni.example.org:7700"), _default_bind("tcp://localhost:7700")
    ('tcp://0.0.0.0:7700', 'tcp://127.0.0.1:7700')
    """
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if host.startswith("127.") or host == "[::1]":
        return endpoint
    return f"tcp://{'127.0.0.1' if host == 'localhost' else '[::]' if '[' in host else '0.0.0.0'}:{port}"


def _fill(home: CoordinatorHome, public_set: ImageSet | None, now_s: float) -> None:
    """Round 0: the task, the public set and the first weights, signed and listed."""
    from ayni.learning.networks import initial_weights  # torch: only here, never while serving
    from ayni.tensors import safe
    from ayni.tensors.image_set import encode_image_set
    from ayni.tensors.update import encode_whole

    task, endpoint = home.task, home.config.endpoint
    weights = initial_weights(task)
    with transaction(home.engine) as session:
        if session.get(RoundRow, 0):
            raise UserError("this database holds a federation already. Name another database.")
        if not home.store.is_empty():
            raise UserError(
                "the artefact store is not empty. Name a folder of its own for it: what is old there is swept."
            )
        add_artefact(home, session, "task", "task", 0, home.task.for_sites().to_json())
        if public_set:
            add_artefact(home, session, "public-set", public_set.info.name, 0, encode_image_set(public_set))
        first = encode_whole(weights, "fp32" if task.traffic.form == "fp32" else "fp16")
        add_artefact(home, session, "model", "whole", 0, first, digest=safe.digest(weights))
        session.add(
            RoundRow(
                number=0, state="published", opened_s=now_s, deadline_s=now_s, published_s=now_s,
                global_sha256=home.store.put(encode_whole(weights, "fp32")), digest=safe.digest(weights),
            )
        )  # fmt: skip
        note(session, now_s, "coordinator", f"the federation {task.name!r} was set up at {endpoint}, seed {task.seed}")
        publish(home, session, now_s)


def add_artefact(
    home: CoordinatorHome,
    session: Session,
    kind: ArtefactKind,
    name: str,
    round_number: int,
    data: bytes,
    *,
    digest: str = "",
) -> str:
    """The blob first, then its row: a row never promises what is not on the disk."""
    sha256 = home.store.put(data)
    list_artefact(session, kind, name, round_number, sha256, len(data), digest=digest)
    return sha256


def list_artefact(
    session: Session, kind: ArtefactKind, name: str, round_number: int, sha256: str, num_bytes: int, *, digest: str = ""
) -> None:
    """A row for a blob that is in the store."""
    session.add(
        ArtefactRow(kind=kind, name=name, round_number=round_number, sha256=sha256, num_bytes=num_bytes, digest=digest)
    )


def publish(home: CoordinatorHome, session: Session, now_s: float) -> int:
    """Sign the list of artefacts as it is now, under the next version."""
    session.flush()
    version = (session.scalar(select(func.max(ManifestRow.version))) or 0) + 1
    rows = session.scalars(select(ArtefactRow).order_by(ArtefactRow.id)).all()
    artefacts = tuple(
        Artefact(
            row.kind,  # type: ignore[arg-type]
            row.name,
            row.round_number,
            bytes.fromhex(row.sha256),
            row.num_bytes,
            bytes.fromhex(row.digest),
        )
        for row in rows
    )
    manifest = Manifest(
        version=version, issued_s=int(now_s), expires_s=int(now_s) + MANIFEST_VALID_S, artefacts=artefacts
    )
    session.add(ManifestRow(version=version, signed=manifest.signed_by(home.keys.signing)))
    session.query(ManifestRow).filter(ManifestRow.version < version).delete()
    return version


def find_artefact(session: Session, kind: ArtefactKind, name: str | None = None) -> ArtefactRow | None:
    """The newest of its kind."""
    query = select(ArtefactRow).where(ArtefactRow.kind == kind).order_by(ArtefactRow.id.desc())
    return session.scalars(query.where(ArtefactRow.name == name) if name else query).first()
