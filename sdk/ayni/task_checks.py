"""Whether classes, images, networks and losses of a task fit each other: what the types of its settings do not tell."""

from __future__ import annotations

from ayni.errors import UserError
from ayni.task import Architecture, ImageSettings, PretrainedSettings, Task, UNetSettings


def check_kind(task: Task) -> None:
    """Whether classes, networks and losses fit the kind of the task; raises UserError."""
    architectures = (task.small_network, task.large_network, task.teacher_network)
    _check_image(task.image)
    if task.dual_kd and task.dual_kd.feature_weight > 0:
        _check_bottleneck(task.small_network, task.teacher_network)
    if task.kind == "classification":
        if len(task.classes) < 2:
            raise UserError("classification needs at least two classes (a finding and its absence, say).")
        if task.fedhelp.ranking_top_k >= len(task.classes):
            raise UserError(
                f"fedhelp.ranking_top_k is {task.fedhelp.ranking_top_k}; it must be below {len(task.classes)}, "
                "the number of classes."
            )
        if task.image.patch:
            raise UserError("image.patch is for segmentation: a class is told from the whole volume.")
        if any(isinstance(one, UNetSettings) for one in architectures):
            raise UserError(
                'classification takes networks of the kinds "resnet" and "efficientnet-lite0"; a "unet" is for '
                "segmentation."
            )
        if task.image.depth and any(isinstance(one, PretrainedSettings) for one in architectures):
            raise UserError('"efficientnet-lite0" has learnt from photographs: for volumes take a "resnet".')
        return
    for one in architectures:
        if not isinstance(one, UNetSettings):
            raise UserError('segmentation takes networks of the kind "unet"; others are for classification.')
        if any(side % one.smallest_step for side in task.image.seen):
            what = "patches" if task.image.patch else "images"
            raise UserError(
                f"a U-Net of {len(one.channels)} levels takes {what} whose sides are multiples of "
                f"{one.smallest_step}; these are {' x '.join(map(str, task.image.seen[::-1]))}."
            )


def _check_image(image: ImageSettings) -> None:
    if image.depth and image.channels != 1:
        raise UserError("volumes are grey: image.channels is 1.")
    if not image.depth and (image.spacing_mm or image.patch):
        raise UserError("image.spacing_mm and image.patch are for volumes: give image.depth too.")
    if image.patch and any(part > side for part, side in zip(image.patch, image.size, strict=True)):
        raise UserError(f"image.patch is {list(image.patch)}; it must lie within the volume, {list(image.size)}.")


def _check_bottleneck(student: Architecture, teacher: Architecture) -> None:
    """Feature distillation compares channel by channel."""
    of_student, of_teacher = student.bottleneck, teacher.bottleneck
    if of_student != of_teacher:
        raise UserError(
            f"dual_kd compares the deepest features of teacher and student, and they have {of_teacher[0]} and "
            f"{of_student[0]} channels at 1/{of_teacher[1]} and 1/{of_student[1]} of the size. Give both networks "
            "the same depth and last width, or set dual_kd.feature_weight to 0."
        )
