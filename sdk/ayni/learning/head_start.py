"""First weights that the centre has taught: the small network learns, on public images, what the foundation model said
of them, before anything is sent. First weights travel anyway, so it costs a site no byte and no step."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

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
    """The small network of `initial_weights` on the public images, taught by the full answers of the foundation model.

    A model that outlines as many structures as the task teaches the head that diagnoses; any other a head of its own,
    which is left behind: its classes are not the task's. The running mean of the weights is what counts. Raises
    UserError if the foundation model has said nothing.
    """

    def __init__(self, public: PublicImages, task: Task, num_steps: int) -> None:
        if public.guidance is None:
            raise UserError("fedhelp.start_steps needs a foundation model. Set guidance.source in the task.")
        self.task, self.public, self.num_steps, self.guidance = task, public, num_steps, public.guidance
        self.objective = objective_of(task.kind)
        self.network = seeded_network(task.small_network, task, task.seed)
        load_weights(self.network, initial_weights(task))
        self.average = averaged(self.network, num_steps)
        self.head = self.network.head
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {"network": self.network, "average": self.average}
        self.optimisers: list[torch.optim.Optimizer] = [adam(self.network, task.training)]
        if task.kind == "classification" or self.guidance.shape[1] != len(task.classes):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(task.seed, CENTRE, "public head"))
                self.head = self.network.new_head(self.guidance.shape[1])
            self.optimisers.append(adam(self.head, task.training))
            self.parts |= {"head": self.head, "head_adam": self.optimisers[-1]}
        self.parts |= {"network_adam": self.optimisers[0]}
        seed = seed_of(task.seed, CENTRE, "public")
        self.batches = Batches(public.pixels_PCHW, public.normalise, task.training, seed=seed, patch=task.image.patch)

    def step(self, number: int) -> dict[str, float]:
        batch = self.batches.at(number)
        answer = self.head(self.network.features(batch.x_BCHW))
        temperature = self.task.fedhelp.temperature
        loss = self.objective.distil(answer, batch.of(self.guidance), temperature=temperature)
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
    answers = hashlib.sha256(learner.guidance.numpy().tobytes()).hexdigest()
    decides = ["head start", public.sha256, public.normalise, answers]
    run_at_centre(learner, task, decides, public.normalise, num_steps, checkpoint=checkpoint, tell=tell)
    return rounded_to_half(weights_of(learner.average.module))
