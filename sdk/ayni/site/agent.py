"""The agent of one site: dials, fetches what is new, lets the training process work, delivers, hangs up.

It holds no torch. Everything that matters is in the site's folder before it is said to anybody, so that it can be
killed anywhere and started again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ayni.artefacts.files import sha256_file
from ayni.artefacts.manifest import Artefact, Manifest, verified_manifest
from ayni.errors import DamagedError, LineError, NotAdmittedError, PeerProtocolError, RefusedError, UserError
from ayni.jobs import FinishTraining, SiteContext, TrainRound
from ayni.site.state import Answer, SiteSettings, SiteState
from ayni.site.training_process import TrainingProcess
from ayni.task import Task
from ayni.trained_model import TrainedModel
from ayni.wire.line import Line, download, upload
from ayni.wire.messages import GetManifest, GetRound, ManifestIs, RoundIs, Submit, Submitted, UploadKind

LONGEST_WAIT_S = 300.0  # between attempts while the line is down
PASSING_REFUSALS = {"busy", "unknown-artefact"}  # the manifest moved on, or an upload was swept: ask anew
NO_TASK = "the coordinator's manifest lists no task"
KEEP_LINE_S = 5.0  # hang up when nothing is to be said for longer


class Watcher(Protocol):
    """Is told what happens. `progress` may come often."""

    def note(self, text: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...


class Agent:
    """One site at work. `open_line` makes a line that dials when it is first used."""

    def __init__(
        self, home: Path, settings: SiteSettings, state: SiteState, open_line: Callable[[], Line], watcher: Watcher
    ) -> None:
        self._home, self._settings, self._state = home, settings, state
        self._open_line, self._watcher = open_line, watcher

    def take_part(self, process: TrainingProcess) -> TrainedModel:
        """Train round after round until the federation has finished. A line that is down is tried again for ever."""
        attempt = 0
        while True:
            try:
                with self._open_line() as line:
                    while (model := self._step(line, process)) is None:
                        attempt = 0
                    return model
            except (LineError, DamagedError, RefusedError) as error:
                if isinstance(error, RefusedError) and error.code not in PASSING_REFUSALS:
                    raise
                attempt += 1
                wait_s = min(LONGEST_WAIT_S, 2.0**attempt) * random.uniform(0.5, 1.0)
                self._watcher.note(f"{error} Trying again in {wait_s:.0f} s; nothing is lost.")
                self._state.flush_traffic()
                time.sleep(wait_s)

    def _step(self, line: Line, process: TrainingProcess) -> TrainedModel | None:
        """Whatever is to be done next: deliver, finish, train a round, or wait."""
        for answer in self._state.pending_answers():
            self._deliver(line, answer)
        now = self.ask_round(line)
        if now.phase == "finished":
            manifest = self.sync(line, now.manifest_version)
            line.hang_up()
            return self._finish(manifest, process, now.num_rounds)
        if now.wanted and not self._state.has_answer(now.round_number):
            manifest = self.sync(line, now.manifest_version)
            line.hang_up()
            self._train_round(manifest, process, now)
            return None
        self._watcher.progress(_waiting_for(now), now.num_answered, now.num_sites)
        if now.retry_after_s > KEEP_LINE_S:
            self._watcher.note(f"{_waiting_for(now)}; asking again in {now.retry_after_s:.0f} s")
        if now.retry_after_s > KEEP_LINE_S:
            line.hang_up()
        self._state.flush_traffic(every_s=KEEP_LINE_S)
        time.sleep(now.retry_after_s * random.uniform(0.8, 1.2))
        return None

    def _train_round(self, manifest: Manifest, process: TrainingProcess, now: RoundIs) -> None:
        number, outbox = now.round_number, self._home / "outbox"
        outbox.mkdir(exist_ok=True)
        weights = self._settings.participation == "weights"
        chain = manifest.model_chain() if weights else ()
        update = outbox / f"update-{number:04d}.safetensors"
        soft_labels = outbox / f"soft-labels-{number:04d}.safetensors"
        needed = self._needed(manifest)
        public_set = next((str(self.path_of(a)) for a in needed if a.kind == "public-set"), None)
        targets = {a.name: str(self.path_of(a)) for a in needed if a.kind == "targets"}
        answers = self._settings.role == "hospital" and public_set is not None
        done = process.run(
            TrainRound(
                context=self.context(manifest),
                round_number=number,
                global_model=[str(self.path_of(artefact)) for artefact in chain],
                global_digest=chain[-1].digest.hex() if chain else "",
                public_set=public_set,
                guidance=targets.get("guidance"),
                consensus=targets.get("consensus"),
                update_out=str(update) if weights else None,
                soft_labels_out=str(soft_labels) if answers else None,
                teacher=self._teacher(manifest),
                labels=targets.get("labels"),
            ),
            self._watcher.progress,
        )
        answer = Answer(
            round_number=number,
            update=update.name if weights else "",
            soft_labels=soft_labels.name if answers else "",
            num_examples=done.num_examples,
            train_s=done.train_s,
        )
        self._state.put_answer(answer)
        held_out = done.scores.get("validation")
        figure = f", held-out {held_out.main_name} {held_out.main:.3f}" if held_out else ""
        self._watcher.note(f"round {number} of {now.num_rounds} trained in {done.train_s:.0f} s{figure}")

    def _deliver(self, line: Line, answer: Answer) -> None:
        """Send a trained round, until it is acknowledged. A round that has closed costs no upload."""
        now = self.ask_round(line)
        still_open = now.phase == "open" and now.round_number == answer.round_number

        def sending(done: int, total: int) -> None:
            self._watcher.progress("sending (kB)", done // 1000, total // 1000)

        def send(kind: UploadKind, name: str) -> bytes | None:
            path = self._home / "outbox" / name
            if name and still_open:
                return upload(line, kind, path, sending)
            return bytes.fromhex(sha256_file(path)) if name else None

        try:
            outcome = self._submit(line, answer, send)
        except (RefusedError, FileNotFoundError) as error:
            if isinstance(error, NotAdmittedError) or getattr(error, "code", "") in PASSING_REFUSALS:
                raise
            outcome = "refused"  # it would be refused for ever: the next round must not wait for it
            self._watcher.note(f"round {answer.round_number}: the answer is not used: {error}")
        self._state.acknowledge(answer.round_number, outcome)
        for name in (answer.update, answer.soft_labels):
            if name:
                (self._home / "outbox" / name).unlink(missing_ok=True)
        if outcome == "late":
            self._watcher.note(f"round {answer.round_number} had closed before this answer came; it is not used")

    def _submit(self, line: Line, answer: Answer, send: Callable[[UploadKind, str], bytes | None]) -> str:
        reply, _ = line.ask(
            Submit(
                round_number=answer.round_number,
                update=send("update", answer.update),
                soft_labels=send("soft-labels", answer.soft_labels),
                num_examples=answer.num_examples,
                train_s=answer.train_s,
            ),
            "control",
        )
        if not isinstance(reply, Submitted):
            raise PeerProtocolError("the coordinator did not acknowledge the answer")
        return reply.outcome

    def _finish(self, manifest: Manifest, process: TrainingProcess, rounds: int) -> TrainedModel:
        chain = manifest.model_chain() if self._settings.participation == "weights" else ()
        process.run(
            FinishTraining(
                context=self.context(manifest),
                rounds=rounds,
                global_model=[str(self.path_of(artefact)) for artefact in chain],
                global_digest=chain[-1].digest.hex() if chain else "",
                teacher=self._teacher(manifest),
            ),
            self._watcher.progress,
        )
        return TrainedModel.read(self._home / "models" / "federated")

    def ask_round(self, line: Line) -> RoundIs:
        reply, _ = line.ask(GetRound(), "control")
        if not isinstance(reply, RoundIs):
            raise PeerProtocolError("the coordinator did not say how the round stands")
        return reply

    def sync(self, line: Line, version: int) -> Manifest:
        """Bring manifest and artefacts up to date; what is no longer listed is removed."""
        manifest = self._newest_manifest(line, version)
        while missing := [artefact for artefact in self._needed(manifest) if not self.path_of(artefact).exists()]:
            self._fetch(line, missing[0])  # with the task it becomes known what else is needed
        kept = {self.path_of(artefact).name for artefact in manifest.artefacts}
        for path in (self._home / "artefacts").iterdir():
            if path.name.removesuffix(".part") not in kept:
                path.unlink()
        return manifest

    def _newest_manifest(self, line: Line, version: int) -> Manifest:
        manifest = self._state.manifest(self._settings.coordinator_signing_key)
        if manifest is None or manifest.version != version:
            reply, signed = line.ask(GetManifest(have_version=manifest.version if manifest else 0), "manifest")
            if not isinstance(reply, ManifestIs):
                raise PeerProtocolError("the coordinator did not send its manifest")
            if signed:
                manifest = verified_manifest(signed, self._settings.coordinator_signing_key, known=manifest)
                self._state.store_manifest(signed)
        if manifest is None:
            raise PeerProtocolError("the coordinator has no manifest")
        if manifest.expires_s < time.time():
            self._watcher.note("the coordinator's manifest has expired; going on. Is this machine's clock right?")
        return manifest

    def fetch_bundle(self, name: str) -> Path:
        """The newest bundle of this name as the coordinator published it: a verified zip file in the folder."""
        with self._open_line() as line:
            manifest = self._newest_manifest(line, self.ask_round(line).manifest_version)
            artefact = manifest.latest("bundle", name)
            if artefact is None:
                known = ", ".join(sorted(a.name for a in manifest.artefacts if a.kind == "bundle")) or "none"
                raise UserError(f"the coordinator publishes no bundle {name!r}; it has: {known}.")
            if not self.path_of(artefact).exists():
                self._fetch(line, artefact)
            return self.path_of(artefact)

    def _fetch(self, line: Line, artefact: Artefact) -> None:
        def show(done: int, total: int) -> None:
            self._watcher.progress(f"receiving {artefact.kind} (kB)", done // 1000, total // 1000)

        download(line, artefact.sha256, artefact.num_bytes, self.path_of(artefact), artefact.kind, show)

    def _needed(self, manifest: Manifest) -> list[Artefact]:
        """A site that takes part by targets alone never fetches weights; only a clinic is taught by targets. Where a
        teacher's network teaches (`dual_kd`), all sites fetch it, once, and nothing of the public set."""
        listed, by_targets = manifest.latest("task"), self._settings.participation == "distill"
        task = self._task(listed) if listed and self.path_of(listed).exists() else None
        weights = () if by_targets else manifest.model_chain()
        if task and task.dual_kd:
            found = [listed, *weights, manifest.latest("teacher")]
            return [artefact for artefact in found if artefact]
        found = [listed, manifest.latest("public-set"), *weights]
        if self._settings.role == "clinic":
            found += [manifest.latest("targets", "guidance"), manifest.latest("targets", "labels")]
            learns_consensus = by_targets or (task and task.fedhelp.consensus_weight > 0)
            found.append(manifest.latest("targets", "consensus") if learns_consensus else None)
        return [artefact for artefact in found if artefact]

    def _teacher(self, manifest: Manifest) -> str | None:
        """Where the teacher lies, if the task has one."""
        return next((str(self.path_of(a)) for a in self._needed(manifest) if a.kind == "teacher"), None)

    def path_of(self, artefact: Artefact) -> Path:
        return self._home / "artefacts" / artefact.sha256.hex()

    def _task(self, artefact: Artefact) -> Task:
        return Task.from_json(self.path_of(artefact).read_bytes())

    def context(self, manifest: Manifest) -> SiteContext:
        task = manifest.latest("task")
        if task is None:
            raise PeerProtocolError(NO_TASK)
        return SiteContext(
            home=str(self._home),
            task_path=str(self.path_of(task)),
            site=self._settings.site,
            role=self._settings.role,
            participation=self._settings.participation,
            data=self._settings.data,
            num_threads=self._settings.num_threads,
            memory_mb=self._settings.memory_mb,
        )

    def known_or_fetched_task(self) -> Task:
        """The federation's task. Nothing else is fetched for it: a teacher may be large, and the line bad."""
        known = self.known_task()
        if known:
            return known
        with self._open_line() as line:
            listed = self._newest_manifest(line, self.ask_round(line).manifest_version).latest("task")
            if listed is None:
                raise PeerProtocolError(NO_TASK)
            if not self.path_of(listed).exists():
                self._fetch(line, listed)
        return self._task(listed)

    def known_task(self) -> Task | None:
        """None if the folder does not hold it yet."""
        manifest = self._state.manifest(self._settings.coordinator_signing_key)
        listed = manifest.latest("task") if manifest else None
        return self._task(listed) if listed and self.path_of(listed).exists() else None

    def known_or_fetched_manifest(self) -> Manifest:
        """The manifest with its artefacts: the one in the folder if it is complete, else a new one."""
        manifest = self._state.manifest(self._settings.coordinator_signing_key)
        if manifest and all(self.path_of(artefact).exists() for artefact in self._needed(manifest)):
            return manifest
        with self._open_line() as line:
            return self.sync(line, self.ask_round(line).manifest_version)


def _waiting_for(now: RoundIs) -> str:
    match now.phase:
        case "waiting":
            joined = "1 site has joined" if now.num_sites == 1 else f"{now.num_sites} sites have joined"
            return f"waiting for the federation to start; {joined}"
        case "closed":
            return f"round {now.round_number} is being averaged"
        case _:
            return f"round {now.round_number}: waiting for the other sites"
