"""`ayni demo`: a coordinator, two hospitals and four clinics as processes on loopback, from invitation to diagnosis."""

from __future__ import annotations

import io
import os
import platform
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
from PIL import Image

from ayni.data.images import Pixels
from ayni.errors import UserError
from ayni.learning.state import read_history
from ayni.task import Task
from ayni.task_file import read_task
from ayni.tensors import safe
from ayni.tensors.targets import decode_targets
from ayni.terminal import TerminalWatcher
from ayni.trained_model import TrainedModel
from ayni_coordinator.database import transaction
from ayni_coordinator.demo.processes import Processes
from ayni_coordinator.demo.report import write_report
from ayni_coordinator.demo.results import Curve, DemoResults, Metrics, ReportExtras, Sample, SiteResult, Step
from ayni_coordinator.demo.split import DATA_CREDIT, SHARES, TASK_FILE, DemoData, deal_out
from ayni_coordinator.federation import current_round
from ayni_coordinator.guidance.answers import AnswerStore
from ayni_coordinator.guidance.ask import ANSWERS_FILE
from ayni_coordinator.home import CoordinatorHome, find_artefact
from ayni_coordinator.views import federation_view
from ayni_export.bundle import read_bundle
from ayni_export.diagnose import Diagnosis, diagnose
from ayni_export.heat_map import enlarged, heat, overlay

MARKER_FILE = ".ayni-demo"  # so that a second run may replace the first, and nothing else
# Nobody is left behind, so that the same seed gives the same figures whatever else the machine is doing.
EVERY_SITE = (f"round.wait_for_sites={len(SHARES)}", f"round.quorum={len(SHARES)}", "round.deadline_s=600")
DIAGNOSING_SITE = "clinic-d"  # the smallest: it has the most to gain


def run_demo(out: Path, *, seed: int, changes: Sequence[str]) -> None:
    """Writes report.html, results.json, details.json and every party's folder below `out`."""
    out = out.resolve()
    changes = [*EVERY_SITE, f"seed={seed}", *changes]
    task = read_task(TASK_FILE, changes)
    _make_room(out)
    with ExitStack() as stack:
        watcher = stack.enter_context(TerminalWatcher())
        processes = stack.enter_context(Processes(out / "logs"))
        demo = _Demo(out, task, changes, processes, watcher)
        demo.tell_story()
    told = f"{out / 'report.html'} is the page to read, {out / 'results.json'} has the figures."
    print(f"Done in {demo.wall_s:.0f} s. {told}")


def _make_room(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER_FILE).exists():
            raise UserError(f"{out} is not empty and holds no earlier demo. Choose another folder with --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER_FILE).touch()


class _Demo:
    """The story in order; each part is timed and told."""

    def __init__(
        self, out: Path, task: Task, changes: Sequence[str], processes: Processes, watcher: TerminalWatcher
    ) -> None:
        self._out, self._task, self._changes = out, task, changes
        self._processes, self._watcher = processes, watcher
        self._started_s = time.monotonic()
        self._steps: list[Step] = []
        self._centre, self._sites = out / "centre", out / "sites"

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self._started_s

    def tell_story(self) -> None:
        data = self._set_up()
        self._invite_and_join()
        self._learn_together(data)
        self._learn_alone(data)
        scores = self._score(data)
        samples = self._export_and_diagnose(data)
        results = DemoResults(
            task=self._task.name,
            seed=self._task.seed,
            rounds=self._task.training.rounds,
            wall_s=round(self.wall_s, 1),
            sites=[self._result(name, data, scores[name]) for name in SHARES],
        )
        write_report(results, self._extras(data, samples), self._out)

    def _step(self, title: str, text: str, started_s: float) -> None:
        step = Step(title=title, text=text, start_s=started_s, wall_s=self.wall_s - started_s)
        self._steps.append(step)
        self._watcher.note(f"[{step.start_s:5.0f} s] {title}: {text} ({step.wall_s:.0f} s)")

    def _set_up(self) -> DemoData:
        started_s = self.wall_s
        self._watcher.progress("dealing out images, asking the foundation model", 0, 1)
        data = deal_out(self._out / "data", seed=self._task.seed, classes=self._task.classes)
        with socket.socket() as free:  # a port that nobody else has at this moment
            free.bind(("127.0.0.1", 0))
            endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        settings: list[str | Path] = ["--task", TASK_FILE, "--endpoint", endpoint, "--set", f"public_set={data.public}"]
        for change in self._changes:
            settings += ["--set", change]
        self._processes.run("coordinator-init", "coordinator", "init", self._centre, *settings)
        self._processes.start("coordinator", "coordinator", "serve", self._centre)
        told = f"a coordinator stands; the foundation model answered once on {data.num_public} public images"
        self._step("Set up", told, started_s)
        return data

    def _invite_and_join(self) -> None:
        started_s = self.wall_s
        for number, (name, (role, _)) in enumerate(SHARES.items()):
            self._watcher.progress("invitations", number, len(SHARES))
            said = self._processes.run(f"invite-{name}", "coordinator", "invite", self._centre, name, "--role", role)
            self._processes.run(f"join-{name}", "join", said.strip(), self._sites / name)
        self._step("Invite and join", "two hospitals and four clinics joined with one string each", started_s)

    def _learn_together(self, data: DemoData) -> None:
        started_s = self.wall_s
        for name in SHARES:
            self._processes.start(f"train-{name}", "train", self._sites / name, "--data", data.sites[name])

        def watch() -> None:
            now = federation_view(self._centre)
            done = now.round_number - (0 if now.phase == "finished" else 1)
            self._watcher.progress("learning together, rounds", max(done, 0), now.num_rounds)

        self._processes.wait([f"train-{name}" for name in SHARES], watch)
        self._processes.stop("coordinator")
        rounds = self._task.training.rounds
        self._step("Learn together", f"{rounds} rounds of FedHelp over encrypted ZeroMQ", started_s)

    def _learn_alone(self, data: DemoData) -> None:
        started_s = self.wall_s
        self._each("train-alone", "learning alone, to compare", ["--alone", "--data"], data.sites)
        self._step("Learn alone", "the same networks with the same number of steps, each site by itself", started_s)

    def _score(self, data: DemoData) -> dict[str, dict[str, Metrics]]:
        started_s = self.wall_s
        said = self._each("evaluate", "scoring on the official test images", [], dict.fromkeys(SHARES, data.test))
        scores = {name: msgspec.json.decode(text, type=dict[str, dict[str, float]]) for name, text in said.items()}
        num_test = sum(data.num_test_per_class.values())
        self._step("Score", f"both networks of every site on {num_test} test images that nobody trained on", started_s)
        return {
            name: {kind: Metrics(auc=s["auc"], balanced_accuracy=s["balanced_accuracy"]) for kind, s in kinds.items()}
            for name, kinds in scores.items()
        }

    def _each(self, name: str, what: str, flags: list[str], given: dict[str, Path]) -> dict[str, str]:
        """One command per site, the longest first: `ayni train --alone --data D HOME`, `ayni evaluate HOME D`."""
        finished: list[str] = []

        def on_done(job: str) -> None:
            finished.append(job)
            self._watcher.progress(what, len(finished), len(given))

        command = "train" if "--alone" in flags else "evaluate"
        self._watcher.progress(what, 0, len(given))
        jobs: list[tuple[str, list[str | Path]]] = [
            (f"{name}-{site}", [command, self._sites / site, "--json", *flags, path]) for site, path in given.items()
        ]
        outputs = self._processes.run_all(jobs, on_done)
        return {site: outputs[f"{name}-{site}"] for site in given}

    def _export_and_diagnose(self, data: DemoData) -> list[Sample]:
        started_s = self.wall_s
        self._watcher.progress("exporting a model, diagnosing test images", 0, 1)
        bundle = self._out / "bundle"
        paths = [sample.path for sample in data.samples]
        self._processes.run("export", "export", self._sites / DIAGNOSING_SITE, bundle)
        self._processes.run("diagnose", "diagnose", bundle, *paths, "--out", self._out / "diagnosis")
        answers = diagnose(read_bundle(bundle), paths)
        samples = []
        for sample, answer in zip(data.samples, answers, strict=True):
            assert isinstance(answer, Diagnosis)
            shown = enlarged(answer.shown_HWK)
            heated = overlay(shown, heat(answer.falls_hw))
            probabilities = dict(zip(answer.classes, map(float, answer.probabilities_C), strict=True))
            samples.append(
                Sample(
                    site=DIAGNOSING_SITE,
                    image=sample.path.name,
                    picture=_png(shown),
                    heat_map=_png(heated),
                    probabilities=probabilities,
                    truth=sample.truth,
                )
            )
        told = f"{DIAGNOSING_SITE}'s model as a signed ONNX bundle; {len(paths)} test images diagnosed without torch"
        self._step("Export and diagnose", told, started_s)
        return samples

    def _traffic(self, name: str) -> dict[str, dict[str, int]]:
        said = self._processes.run(f"status-{name}", "status", self._sites / name, "--json")
        status = msgspec.json.decode(said)
        traffic: dict[str, dict[str, int]] = status["traffic"]
        return traffic

    def _result(self, name: str, data: DemoData, scores: dict[str, Metrics]) -> SiteResult:
        traffic = self._traffic(name).values()
        return SiteResult(
            name=name,
            role=SHARES[name][0],
            num_train=data.num_train[name],
            bytes_up=sum(purpose["bytes_up"] for purpose in traffic),
            bytes_down=sum(purpose["bytes_down"] for purpose in traffic),
            local=scores["alone"],
            federated=scores["federated"],
        )

    def _extras(self, data: DemoData, samples: list[Sample]) -> ReportExtras:
        home = CoordinatorHome.open(self._centre)
        with transaction(home.engine) as session:
            model, guidance = find_artefact(session, "model"), find_artefact(session, "targets", "guidance")
        assert model is not None
        told = decode_targets(home.store.read(guidance.sha256)).info if guidance else None
        with AnswerStore(home.folder / ANSWERS_FILE) as answers:
            num_asked = answers.num_asked()
        return ReportExtras(
            title=self._task.title,
            num_weights=_num_weights(home),
            num_public=data.num_public,
            num_test_per_class=data.num_test_per_class,
            data_credit=DATA_CREDIT,
            guidance=f"{told.model_name}, {told.model_version}" if told else "",
            guidance_calls=num_asked,
            curves=[self._curve(name, data) for name in SHARES],
            steps=self._steps,
            samples=samples,
            bytes_by_purpose={
                name: {key: sum(both.values()) for key, both in self._traffic(name).items()} for name in SHARES
            },
            versions={name: version(name) for name in ("ayni", "torch", "monai", "onnxruntime", "pyzmq")},
            machine=f"{os.cpu_count()} processor cores, {platform.system()} {platform.machine()}, no GPU",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _curve(self, name: str, data: DemoData) -> Curve:
        folder = self._sites / name / "training"
        histories = [
            {line.round: line for line in read_history(folder / file)}
            for file in ("history.jsonl", "history-alone.jsonl")
        ]
        federated, alone = (
            [lines[number].auc if number in lines else None for number in range(self._task.training.rounds + 1)]
            for lines in histories
        )
        home = self._sites / name / "models" / "federated"
        return Curve(
            site=name, num_holdout=TrainedModel.read(home).validation.num_images, federated=federated, alone=alone
        )


def _png(pixels_HWK: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWK.squeeze()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _num_weights(home: CoordinatorHome) -> int:
    """How many numbers the network has that travels."""
    with transaction(home.engine) as session:
        whole = home.store.read(current_round(session).global_sha256)
    return sum(tensor.size for tensor in safe.decode(whole).values())
