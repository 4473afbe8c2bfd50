"""First weights that the centre has taught: the small network learns, on public images, their labels and what the
foundation model said of them, before anything is sent. First weights travel anyway, so it costs a site no byte and no
step."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from ayni.errors import UserError
from ayni.learning.batches import Batches, seed_of
from ayni.learning.learners import adam, averaged, descend, learning_rate_at
from ayni.learning.networks import initial_weights, load_weights, rounded_to_half, seeded_network, weights_of
from ayni.learning.objective import objective_of
from ayni.learning.site_data import PublicImages
from ayni.learning.steps import Tell, run_at_centre
from ayni.task import Task
from ayni.tensors.safe import Floats

CENTRE = "centre"  # in place of a site's name, in seeds


class HeadStart:
    """The small network of `initial_weights` on the public images, taught by the truth of those that have one, and by
    the full answers of the foundation model, if there is one: a batch of each in every step.

    Truth teaches the head that diagnoses. So does a model that outlines as many structures as the task, where there is
    no truth; any other teaches a head of its own, which is left behind: its classes are not the task's. The running
    mean of the weights is what counts. Raises UserError if there is neither truth nor answer.
    """

    def __init__(self, public: PublicImages, task: Task, num_steps: int) -> None:
        if public.guidance is None and public.truth is None:
            raise UserError(
                "fedhelp.start_steps needs a foundation model or labels of the public set. Set guidance.source or "
                "public_set_labelled in the task."
            )
        self.task, self.num_steps, self.objective = task, num_steps, objective_of(task.kind)
        pixels_PCHW, guidance = public.pixels_PCHW, public.guidance
        num_labelled = 0 if public.truth is None else len(public.truth)
        same_head = guidance is not None and task.kind == "segmentation" and guidance.shape[1] == len(task.classes)
        first_answer = num_labelled if same_head else 0
        self.truth = public.truth if num_labelled else None
        self.guidance = guidance[first_answer:] if guidance is not None and len(guidance) > first_answer else None
        self.network = seeded_network(task.small_network, task, task.seed)
        load_weights(self.network, initial_weights(task))
        self.average = averaged(self.network, num_steps)
        self.head = self.network.head
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {"network": self.network, "average": self.average}
        self.optimisers: list[torch.optim.Optimizer] = [adam(self.network, task.training)]
        if self.guidance is not None and not same_head:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(task.seed, CENTRE, "public head"))
                self.head = self.network.new_head(self.guidance.shape[1])
            self.optimisers.append(adam(self.head, task.training))
            self.parts |= {"head": self.head, "head_adam": self.optimisers[-1]}
        self.parts |= {"network_adam": self.optimisers[0]}

        def batches(pixels_NCHW: Tensor, what: str) -> Batches:
            seed = seed_of(task.seed, CENTRE, what)
            return Batches(pixels_NCHW, public.normalise, task.training, seed=seed, patch=task.image.patch)

        self.labelled_batches = batches(pixels_PCHW[:num_labelled], "labelled")
        self.answered_batches = batches(pixels_PCHW[first_answer:], "public")

    def step(self, number: int) -> dict[str, float]:
        losses = []
        if self.truth is not None:
            batch = self.labelled_batches.at(number)
            losses.append(self.objective.supervised(self.network(batch.x_BCHW), batch.of(self.truth)))
        if self.guidance is not None:
            batch = self.answered_batches.at(number)
            answer, temperature = self.head(self.network.features(batch.x_BCHW)), self.task.fedhelp.temperature
            losses.append(self.objective.distil(answer, batch.of(self.guidance), temperature=temperature))
        loss = torch.stack(losses).sum()
        value = descend(loss, learning_rate_at(number, self.num_steps, self.task.training), *self.optimisers)
        self.average.update_parameters(self.network)
        return {"public": value}


def taught_weights(
    public: PublicImages,
    task: Task,
    num_steps: int,
    *,
    checkpoint: Path | None = None,
    tell: Tell = lambda progress: None,
) -> dict[str, Floats]:
    """The small network that round 1 starts from; half precision holds its values exactly, as those of
    `initial_weights`. With a place for a `checkpoint`, what was killed goes on to the same bits."""
    learner = HeadStart(public, task, num_steps)
    taught = [
        hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in (public.truth, public.guidance) if one is not None
    ]
    decides = ["head start", public.sha256, public.normalise, *taught]
    run_at_centre(learner, task, decides, public.normalise, num_steps, checkpoint=checkpoint, tell=tell)
    return rounded_to_half(weights_of(learner.average.module))
