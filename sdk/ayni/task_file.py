"""A task from its TOML file, with what a person changes on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ayni.errors import UserError
from ayni.task import Task
from ayni.task_checks import check_kind


def read_task(path: Path, changes: Sequence[str] = ()) -> Task:
    """Read a task from a TOML file; relative paths start at its folder (`public_set`, a `guidance.model` without "://").

    `changes` are settings in place of the file's, each like "traffic.form=fp32". Raises UserError.
    """
    try:
        settings = tomllib.loads(path.read_text())
        for change in changes:
            _set(settings, change)
        task = msgspec.convert(settings, Task)
    except FileNotFoundError:
        raise UserError(
            f"there is no task file {path}. `ayni coordinator example FOLDER` writes one to start from."
        ) from None
    except (msgspec.MsgspecError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise UserError(
            f"{path}: {error}. `ayni coordinator example FOLDER` writes a file with every setting."
        ) from None
    _check_sense(task, path)
    guidance = task.guidance
    if guidance.model and "://" not in guidance.model:
        model = str((path.parent / guidance.model).resolve())  # an absolute path stays as it is
        task = msgspec.structs.replace(task, guidance=msgspec.structs.replace(guidance, model=model))
    if task.public_set:
        task = msgspec.structs.replace(task, public_set=str((path.parent / task.public_set).resolve()))
    return task


def _set(settings: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals:
        raise UserError(f"{change!r} changes no setting; it looks like training.rounds=5.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a word without quotes
    *sections, last = name.strip().split(".")
    for section in sections:
        inner = settings.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"{change!r}: {section!r} has no settings of its own.")
        settings = inner
    settings[last] = value


def _check_sense(task: Task, path: Path) -> None:
    """What the types do not tell: settings that would stop a federation after it has begun."""
    try:
        check_kind(task)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if task.guidance.source != "none" and not task.public_set:
        raise UserError(f"{path}: guidance needs a public_set: the foundation model sees nothing else.")
    if task.public_set_labelled and not task.public_set:
        raise UserError(f"{path}: public_set_labelled needs a public_set, whose labels they are.")
    if task.fedhelp.label_weight and not task.public_set_labelled:
        raise UserError(f"{path}: fedhelp.label_weight needs labels. Set public_set_labelled, or label_weight to 0.")
    if task.public_set_labelled and not task.fedhelp.start_steps and not task.fedhelp.label_weight:
        raise UserError(
            f"{path}: labels of the public set teach the first weights, or clinics in the rounds. Set "
            "fedhelp.start_steps or fedhelp.label_weight, or public_set_labelled to false."
        )
    if task.fedhelp.hospital_takes == "best" and task.dual_kd:
        raise UserError(f"{path}: with [dual_kd] nobody trains a large network. Set fedhelp.hospital_takes to large.")
    if task.fedhelp.label_weight and task.dual_kd:
        raise UserError(f"{path}: with [dual_kd] no public set travels. Set fedhelp.label_weight to 0.")
    if task.fedhelp.start_steps and task.dual_kd:
        raise UserError(f"{path}: with [dual_kd] its teacher teaches the first weights. Set dual_kd.start_steps.")
    if task.fedhelp.start_steps and task.guidance.source == "none" and not task.public_set_labelled:
        raise UserError(
            f"{path}: fedhelp.start_steps lets a foundation model, or labels of the public set, teach the first "
            "weights. Set guidance.source or public_set_labelled, or start_steps to 0."
        )
