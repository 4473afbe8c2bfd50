"""A site: join with one invitation, train together, leave. Dials, works and hangs up.

    site = Site.join(invitation_string, "clinic-home")
    site.train("my-images")

The site's folder is all that it needs; everything here can be killed at any point and called again.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ayni.artefacts.archive import unpack
from ayni.artefacts.files import write_atomic
from ayni.artefacts.lock import folder_lock
from ayni.errors import DataError, LineError, MissingExtraError, NotAdmittedError, PeerProtocolError, UserError
from ayni.invitation import Invitation
from ayni.jobs import Evaluate, TrainAlone
from ayni.keys import CERTIFICATE_FILE, KEY_FOLDER, CurveKeys, SiteKeys, fingerprint
from ayni.site import sharing
from ayni.site.agent import Agent, Watcher
from ayni.site.reuse import check_earlier, take_over
from ayni.site.state import SETTINGS_FILE, SiteSettings, SiteState, read_settings, write_settings
from ayni.site.training_process import TrainingProcess, missing_packages, require_training_parts
from ayni.task import Participation, Task
from ayni.trained_model import MODEL_FILE, MODEL_KINDS, Scores, TrainedModel
from ayni.wire.connection import Dial
from ayni.wire.curve import curve_dial
from ayni.wire.line import Line
from ayni.wire.messages import Join, Joined, Leave, ReplyBody, RoundIs

DialWith = Callable[[CurveKeys], Dial]
REGISTER_S = 1.0  # a coordinator reads its register twice a second
ALREADY_TRAINING = "another `ayni train` runs for this site"


class Silent:
    """A watcher that shows nothing."""

    def note(self, text: str) -> None:
        pass

    def progress(self, what: str, done: int, total: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """What this folder knows, without dialling, and the federation's state if it was asked."""

    settings: SiteSettings
    outcomes: dict[int, str]
    traffic: dict[str, tuple[int, int]]
    models: dict[str, TrainedModel]
    expert: sharing.Sharing
    round: RoundIs | None


NAME_DATA = "Name a folder with labels.csv, or with images and masks, or a .npz file."


class Site:
    """One site's folder. `dial` replaces the encrypted line in simulations."""

    def __init__(self, home: Path | str, *, watcher: Watcher | None = None, dial: DialWith | None = None) -> None:
        self.home = Path(home).resolve()
        self.settings = read_settings(self.home)
        self.keys = SiteKeys.load(self.home)
        self._watcher: Watcher = watcher or Silent()
        self._dial_with = dial or _curve_to(self.settings.endpoint, self.settings.coordinator_key)

    # Joining and leaving

    @classmethod
    def join(
        cls,
        invitation: Invitation | str,
        home: Path | str,
        *,
        participation: Participation = "weights",
        earlier: Path | str | None = None,
        watcher: Watcher | None = None,
        dial: DialWith | None = None,
    ) -> Site:
        """Use an invitation. If the answer is lost, the same call again is answered again. What lies in `earlier`, a
        folder that joined this federation before, is not fetched again.

        Raises NotAdmittedError if the invitation was used, has expired or was withdrawn; UserError if `home` has
        joined already.
        """
        invitation = invitation if isinstance(invitation, Invitation) else Invitation.from_string(invitation)
        home = Path(home).resolve()
        if (home / SETTINGS_FILE).exists():
            raise UserError(
                f"{home} has joined already. `ayni status {home}` says how it stands. To join anew choose a new "
                f"folder, with --reuse {home}."
            )
        if home.exists() and any(home.iterdir()) and not (home / KEY_FOLDER).exists():  # keys: joining was cut short
            raise UserError(f"{home} is not empty. Choose a new folder for the site.")
        if earlier:
            check_earlier(Path(earlier))
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        home.chmod(0o700)  # models and copies of images lie here: nobody else's business on a shared machine
        keys = SiteKeys.load_or_create(home)
        dial_with = dial or _curve_to(invitation.endpoint, invitation.coordinator_key)
        asked = Join(curve_key=keys.curve.public, signing_key=keys.signing_public, participation=participation)
        state = SiteState(home)
        try:
            reply = _ask_to_join(dial_with(invitation.keys), asked, state, invitation.expires_s)
        except NotAdmittedError as error:
            if invitation.expires_s < time.time():
                day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(invitation.expires_s))
                raise NotAdmittedError(
                    f"the invitation expired on {day}. Ask the coordinator for a new one."
                ) from error
            raise
        finally:
            state.close()
        if not isinstance(reply, Joined):
            raise PeerProtocolError("the coordinator did not answer the request to join")
        if earlier:
            take_over(Path(earlier), home)
        write_atomic(home / KEY_FOLDER / CERTIFICATE_FILE, reply.certificate)
        settings = SiteSettings(
            endpoint=invitation.endpoint,
            coordinator_key=invitation.coordinator_key,
            coordinator_signing_key=reply.coordinator_signing_key,
            site=reply.site,
            role=reply.role,
            task=reply.task,
            participation=participation,
        )
        write_settings(home, settings)
        return cls(home, watcher=watcher, dial=dial)

    def leave(self) -> None:
        """Go for good. The folder and its models stay; the key is no longer admitted."""
        with SiteState(self.home) as state, self._line(state) as line:
            before = state.traffic()
            try:
                line.ask(Leave(), "leaving")
            except NotAdmittedError:
                if state.traffic() == before:  # never let in; else the reply was lost, and the key is out as wished
                    raise
        sharing.forget(self.home)

    # Consent

    def share_expert(self) -> sharing.SharedExpert:
        """Agree that this site's personal model is an expert in the coordinator's later bundles, and send it.

        With it go means and variances of few channels over the site's training images, if there are enough of these.
        This is the only call by which a personal model leaves its site. Raises UserError if there is none yet.
        """
        sharing.check_shareable(self.home, self.settings.participation)
        with (
            folder_lock(self.home, ALREADY_TRAINING),
            SiteState(self.home) as state,
            self._line(state) as line,
            self._training_process() as process,
        ):
            return sharing.share(self.home, self._agent(state), line, process, self._watcher)

    def revoke_expert(self) -> None:
        """Take that consent back for all later bundles."""
        with folder_lock(self.home, ALREADY_TRAINING), SiteState(self.home) as state, self._line(state) as line:
            sharing.revoke(self.home, line)

    # Training

    def train(
        self, data: Path | str | Any, *, num_threads: int | None = None, memory_mb: int | None = None
    ) -> TrainedModel:
        """Take part until the federation has finished; returns the model for diagnosis.

        `data` is a folder with labels.csv, a .npz file, or a torch Dataset of (image, label). A line that is down is
        tried again until it is back; killing this and calling it again goes on where it stopped.
        """
        with folder_lock(self.home, ALREADY_TRAINING), SiteState(self.home) as state:
            require_training_parts()
            self._remember(data, num_threads, memory_mb)
            self._require_parts_of_task(state)
            with self._training_process() as process:
                return self._agent(state).take_part(process)

    def train_alone(
        self, data: Path | str | Any | None = None, *, num_threads: int | None = None, memory_mb: int | None = None
    ) -> TrainedModel:
        """The same network with the same budget of steps without the federation: what was taking part worth?"""
        with folder_lock(self.home, ALREADY_TRAINING), SiteState(self.home) as state:
            require_training_parts()
            self._remember(data, num_threads, memory_mb)
            agent = self._agent(state)
            context = agent.context(agent.known_or_fetched_manifest())
            with self._training_process() as process:
                process.run(TrainAlone(context=context), self._watcher.progress)
        return TrainedModel.read(self.home / "models" / "alone")

    def evaluate(self, data: Path | str, *, split: str = "test") -> dict[str, Scores]:
        """Score this site's models ("federated", "personal", "alone") on labelled images that were not trained on."""
        if not (self.home / "models").is_dir():
            raise UserError(f"there is no trained model in {self.home}. Run `ayni train` first.")
        with SiteState(self.home) as state, self._training_process() as process:
            agent = self._agent(state)
            context = agent.context(agent.known_or_fetched_manifest())
            job = Evaluate(context=context, data=str(Path(data).resolve()), split=split)
            return process.run(job, self._watcher.progress).scores

    def fetch_bundle(self, name: str, folder: Path | str) -> None:
        """Get a diagnosis bundle that the coordinator publishes; `ayni diagnose` verifies it again before each use."""
        with SiteState(self.home) as state:
            unpack(self._agent(state).fetch_bundle(name), Path(folder).resolve())

    # How it stands

    def status(self, *, ask: bool = False) -> SiteStatus:
        """With `ask`, the coordinator is dialled; without, only what this folder knows."""
        with SiteState(self.home) as state:
            now = None
            if ask:
                with self._line(state) as line:
                    now = self._agent(state).ask_round(line)
            folders = [self.home / "models" / kind for kind in MODEL_KINDS]
            models = {folder.name: TrainedModel.read(folder) for folder in folders if (folder / MODEL_FILE).exists()}
            return SiteStatus(self.settings, state.outcomes(), state.traffic(), models, sharing.sharing(self.home), now)

    def task(self) -> Task:
        """The federation's task; fetched if it has not been yet."""
        with SiteState(self.home) as state:
            return self._agent(state).known_or_fetched_task()

    @property
    def coordinator_fingerprint(self) -> str:
        """What to read to the coordinator over the telephone, to be sure of each other."""
        return fingerprint(self.settings.coordinator_signing_key)

    # Parts

    def _remember(self, data: Path | str | Any | None, num_threads: int | None, memory_mb: int | None) -> None:
        """Keep the data's place and the budget in the folder, so that a restart needs no arguments."""
        changed = msgspec.structs.replace(
            self.settings,
            data=self._data_path(data),
            num_threads=num_threads if num_threads is not None else self.settings.num_threads,
            memory_mb=memory_mb if memory_mb is not None else self.settings.memory_mb,
        )
        if changed != self.settings:
            write_settings(self.home, changed)
            self.settings = changed

    def _data_path(self, data: Path | str | Any | None) -> str:
        if data is None and self.settings.data:
            return self.settings.data
        if data is None:
            raise UserError(f"which images? {NAME_DATA}")
        if isinstance(data, Path | str):
            path = Path(data).resolve()
            if not path.exists():
                raise UserError(f"there are no data at {path}. {NAME_DATA}")
            try:
                _check_at_once(path)
            except DataError:
                if not self._may_be_unlabelled():
                    raise
                _check_at_once(path, unlabelled=True)
            return str(path)
        from ayni.data.dataset import store_dataset  # a torch Dataset: written out for the training process

        path = self.home / "data" / "dataset.npz"
        task = self.task()
        structures = task.classes if task.kind == "segmentation" else None
        store_dataset(data, path, task.image, structures=structures)
        return str(path)

    def _may_be_unlabelled(self) -> bool:
        """Whether the task learns from images without labels too; if it cannot be asked for now, training will say."""
        try:
            return self.task().dual_kd is not None
        except LineError:
            return True

    def _require_parts_of_task(self, state: SiteState) -> None:
        """Raises MissingExtraError now, where the folder knows the task, and not when the first round opens."""
        task = self._agent(state).known_task()
        if task and missing_packages(task):
            raise MissingExtraError("Training for this task", "pretrained")

    def _agent(self, state: SiteState) -> Agent:
        return Agent(self.home, self.settings, state, lambda: self._line(state), self._watcher)

    def _line(self, state: SiteState) -> Line:
        return Line(self._dial_with(self.keys.curve), state.meter)

    def _training_process(self) -> TrainingProcess:
        return TrainingProcess(self.home / "training" / "training.log", num_threads=self.settings.num_threads)


def _check_at_once(data: Path, *, unlabelled: bool = False) -> None:
    """A plain mistake is said now, and not when the first round opens, which may be tomorrow."""
    from ayni.data.folder import LABELS_FILE, read_labels
    from ayni.data.pairs import MASKS, check_complete, find_pairs

    if (data / MASKS).is_dir() and not (data / LABELS_FILE).exists():
        check_complete(data, find_pairs(data), unlabelled=unlabelled)
    elif data.is_dir() and ((data / LABELS_FILE).exists() or not (data / "dataset.npz").exists()):
        read_labels(data, unlabelled=unlabelled)
    elif data.is_file() and not zipfile.is_zipfile(data):
        raise UserError(f"{data} is no .npz file. {NAME_DATA}")


def _ask_to_join(dial: Dial, asked: Join, state: SiteState, expires_s: int) -> ReplyBody:
    try:
        with Line(dial, state.meter) as line:
            return line.ask(asked, "join")[0]
    except NotAdmittedError:
        if expires_s < time.time():
            raise
    time.sleep(REGISTER_S)  # the invitation may be younger than what the coordinator has read
    with Line(dial, state.meter) as line:
        return line.ask(asked, "join")[0]


def _curve_to(endpoint: str, server_key: bytes) -> DialWith:
    return lambda keys: curve_dial(endpoint, server_key, keys)
