"""An experiment: which methods are compared on which tasks, with which seeds. Read from a TOML file."""

from __future__ import annotations

import importlib.util
import pkgutil
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ayni.errors import UserError
from ayni.task import Name, Task
from ayni.task_file import read_task

METHODS = "ayni_coordinator.simulation.methods"
Seed = Annotated[int, Meta(ge=0, lt=2**31)]
Setting = bool | int | float | str
ByTask = dict[str, dict[str, dict[str, Setting]]]  # settings of methods, by task


class _Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings are closed: a mistyped name is an error, not a silent default."""


class LeaveOut(_Settings, frozen=True, kw_only=True, omit_defaults=True):
    """Groups of sites that are left out in turn: `method` federates the others, each of which then takes `steps` from
    the global model as an expert, and the group's images are one unseen site's (`num_labelled` of them with labels).
    `seeds` are in place of the experiment's."""

    groups: Annotated[tuple[str, ...], Meta(min_length=1)]
    method: str = "fedhelp_no_guidance"
    steps: Annotated[int, Meta(ge=1, le=100_000)] = 64
    num_labelled: Annotated[int, Meta(ge=4, le=1000)] = 8
    seeds: tuple[Seed, ...] = ()


class PersonalSweep(_Settings, frozen=True, kw_only=True):
    """Personal models of the federation of `method`, one of the FedHelp family: running means with these `decays`, the
    global model after one epoch, and after `steps`, on a site's own images."""

    decays: Annotated[tuple[Annotated[float, Meta(ge=0, le=1)], ...], Meta(min_length=1)]
    method: str = "fedhelp_no_guidance"
    steps: Annotated[int, Meta(ge=1, le=100_000)] = 64


class TaskEntry(_Settings, frozen=True, kw_only=True, omit_defaults=True):
    """One task: `task` is a task file, from the experiment's folder; `data` is a data set's name below the data folder.

    `public` and `sites` say which images are public and how the others are dealt out (collection.py); `crop` cuts a
    square of so many pixels out of each image's middle, before it is scaled; `settings` are per method; `leave_out`
    says which groups are left out to be unseen, `personal` which personal models are compared. `repository` are the
    labelled images that a teacher at the centre learns from; `methods` are in place of the experiment's, and `seeds`
    too, but for what is left out and for personal models.
    """

    task: str
    data: Name
    crop: Annotated[int, Meta(ge=0, le=8192)] = 0
    public: dict[str, Any] = {}
    sites: dict[str, Any] = {}
    settings: dict[str, dict[str, Setting]] = {}
    leave_out: LeaveOut | None = None
    personal: PersonalSweep | None = None
    repository: dict[str, Any] = {}
    methods: tuple[str, ...] = ()
    seeds: tuple[Seed, ...] = ()


class Tuning(_Settings, frozen=True, kw_only=True):
    """Which values of one setting of each method `ayni simulate --tune` tries on each task, with a seed of its own:
    judged on images that the sites hold out of training, never on test images."""

    values: Annotated[dict[str, dict[str, Annotated[tuple[int | float, ...], Meta(min_length=2)]]], Meta(min_length=1)]
    seed: Seed = 0


class ExperimentFile(_Settings, frozen=True, kw_only=True):
    """The whole TOML file. `tuned` is what `--tune` found, a file in the experiment's folder: settings by task and
    method, unless a task's own entry says otherwise."""

    methods: Annotated[tuple[str, ...], Meta(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1)]
    tasks: Annotated[tuple[TaskEntry, ...], Meta(min_length=1)]
    tuning: Tuning | None = None
    tuned: str = ""


@dataclass(frozen=True, slots=True)
class TaskPart:
    """An experiment's entry with its task file read. `told` is what that file says, without defaults and comments;
    `methods` are the entry's or the experiment's."""

    entry: TaskEntry
    task: Task
    told: dict[str, Any]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Experiment:
    """What an experiment file says, with its task files read and all names checked."""

    path: Path
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    parts: tuple[TaskPart, ...]
    tuning: Tuning | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Their names, in the file's order."""
        return tuple(part.task.name for part in self.parts)


def known_methods() -> tuple[str, ...]:
    """One module in `methods` per method, but for names with an underscore in front. Imports none of them, no torch."""
    spec = importlib.util.find_spec(METHODS)
    folders = spec.submodule_search_locations if spec else None
    return tuple(sorted(found.name for found in pkgutil.iter_modules(folders or []) if not found.name.startswith("_")))


def read_experiment(path: Path, methods: Sequence[str] | None = None) -> Experiment:
    """Raises UserError, early, for whatever is wrong in the file or in a task file. `methods`: those that there are."""
    try:
        file = msgspec.convert(tomllib.loads(path.read_text()), ExperimentFile)
    except (msgspec.MsgspecError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise UserError(f"{path} is no experiment file: {error}. examples/evidence/evidence.toml shows one.") from None
    known = known_methods() if methods is None else methods
    settings_for = [name for entry in file.tasks for name in entry.settings]
    studies = [study.method for entry in file.tasks for study in (entry.leave_out, entry.personal) if study]
    of_tasks = [name for entry in file.tasks for name in entry.methods]
    tuned, tried = _tuned(path, file), _tried(path, file)
    settings_for += [name for found in tuned.values() for name in found]
    for name in [*file.methods, *of_tasks, *settings_for, *studies, *tried]:
        if name not in known:
            raise UserError(f"{path}: there is no method {name!r}. Methods are {', '.join(known)}.")
    parts = tuple(_part(path, entry, entry.methods or file.methods, tuned) for entry in file.tasks)
    if unknown := sorted(set(tuned) - {part.task.name for part in parts}):
        raise UserError(f"{path}: {file.tuned} has settings for the task {unknown[0]!r}, which the experiment has not.")
    for methods_there, seeds in [(file.methods, file.seeds), *((entry.methods, entry.seeds) for entry in file.tasks)]:
        _check_distinct(path, "method", methods_there)
        _check_distinct(path, "seed", seeds)
    for study in (entry.leave_out for entry in file.tasks):
        _check_distinct(path, "seed", study.seeds if study else ())
    _check_distinct(path, "task named", [part.task.name for part in parts])
    methods_in_order = tuple(dict.fromkeys((*file.methods, *of_tasks)))
    return Experiment(path, methods_in_order, file.seeds, parts, file.tuning)


def _tuned(path: Path, file: ExperimentFile) -> ByTask:
    if not file.tuned:
        return {}
    try:
        return msgspec.toml.decode((path.parent / file.tuned).read_bytes(), type=ByTask)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: {file.tuned} is not what `ayni simulate --tune` writes: {error}.") from None


def _tried(path: Path, file: ExperimentFile) -> list[str]:
    """The methods that are tuned; one setting each."""
    values = file.tuning.values if file.tuning else {}
    for method, settings in values.items():
        if len(settings) != 1:
            raise UserError(
                f"{path}: tuning tries one setting of a method, {method} has {', '.join(settings) or 'none'}."
            )
    return list(values)


def check_data(data: Path, parts: Iterable[TaskPart]) -> None:
    """Raises UserError if a data set's folder or file (NAME, NAME.npz) is not below the data folder."""
    for part in parts:
        name = part.entry.data
        if not (data / name).exists() and not (data / f"{name}.npz").exists():
            raise UserError(
                f"task {part.task.name!r} needs the data {name!r}, and there is no {data / name}. "
                f"`ayni data fetch {name} --from SOURCE` brings it; --data says in which folder data are."
            )


def _part(path: Path, entry: TaskEntry, methods: tuple[str, ...], tuned: ByTask) -> TaskPart:
    file = path.parent / entry.task
    task = read_task(file)
    if task.fedhelp.start_steps:
        raise UserError(
            f"{file}: in an experiment a method says who teaches first weights (ayni_head_start, ayni_labelled_start). "
            "Leave fedhelp.start_steps out."
        )
    found = tuned.get(task.name, {})
    settings = {name: {**found.get(name, {}), **entry.settings.get(name, {})} for name in {**found, **entry.settings}}
    entry = msgspec.structs.replace(entry, settings=settings)
    groups = {site.get("group", "") for site in entry.sites.values() if isinstance(site, dict)}
    for group in entry.leave_out.groups if entry.leave_out else ():
        if group not in groups or group in entry.sites:
            raise UserError(
                f"{path}: task {task.name!r} leaves out the group {group!r}; it must be a group of its sites (they "
                f"have {', '.join(sorted(filter(None, groups))) or 'none'}), and no site's name."
            )
    return TaskPart(entry, task, tomllib.loads(file.read_text()), methods)


def _check_distinct(path: Path, what: str, values: Sequence[str | int]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{path}: {what} {value!r} is there {values.count(value)} times; once is enough.")
