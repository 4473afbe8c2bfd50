"""Mean features per class: what FedProto and FedTGP send. Of a segmentation, inside and outside of each structure.

B = images, F = features, K = classes (or 2 S sides of S structures), H x W = pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ayni.learning.networks import Network
from ayni.task import Task
from ayni.tensors import safe
from ayni_coordinator.simulation.method import Setup, SimulatedSite

ANSWER_BATCH = 64


@dataclass(frozen=True, slots=True)
class Prototypes:
    """`means_KF`; a class of which there is no example has the count 0, and means nothing."""

    means_KF: Tensor
    count_K: Tensor

    def encode(self) -> bytes:
        return safe.encode({"means": self.means_KF.numpy(), "count": self.count_K.numpy()})

    @classmethod
    def decode(cls, data: bytes) -> Prototypes:
        tensors = safe.decode(data)
        means, count = (torch.from_numpy(np.array(tensors[name], np.float32)) for name in ("means", "count"))
        return cls(means, count)


def num_prototypes(task: Task) -> int:
    return len(task.classes) * (2 if task.kind == "segmentation" else 1)


def belongs(truth: Tensor, task: Task) -> Tensor:
    """How much each example is of each class: [B, K], or [B, K, H, W] with inside and outside of each structure."""
    if truth.ndim == 1:
        return functional.one_hot(truth, len(task.classes)).float()
    inside_BSHW = truth.float()
    return torch.stack([inside_BSHW, 1 - inside_BSHW], dim=2).flatten(1, 2)


def site_prototypes(setup: Setup, site: SimulatedSite, network: Network) -> Prototypes:
    """Over all of the site's training images, as they are."""
    num_classes = num_prototypes(setup.task)
    sums_KF, count_K = torch.zeros(num_classes, network.num_features), torch.zeros(num_classes)
    for start in range(0, site.num_examples, ANSWER_BATCH):
        part = slice(start, start + ANSWER_BATCH)
        with torch.no_grad():
            features = network.features(setup.normalise(site.own.train_NCHW[part]))
        shares = belongs(site.own.train_truth[part], setup.task)
        sums_KF += torch.einsum("bk...,bf...->kf", shares, features)
        count_K += shares.transpose(0, 1).flatten(1).sum(dim=1)
    return Prototypes(sums_KF / count_K.clamp_min(1)[:, None], count_K)


def mean_prototypes(several: Sequence[Prototypes]) -> Prototypes:
    """Each class's mean over the sites that have it, by the number of their examples (FedProto, equation 6).

    >>> one = Prototypes(torch.tensor([[0.0]]), torch.tensor([1.0]))
    >>> mean_prototypes([one, Prototypes(torch.tensor([[4.0]]), torch.tensor([3.0]))]).means_KF.tolist()
    [[3.0]]
    """
    count_K = torch.stack([one.count_K for one in several]).sum(dim=0)
    sums_KF = torch.stack([one.means_KF * one.count_K[:, None] for one in several]).sum(dim=0)
    return Prototypes(sums_KF / count_K.clamp_min(1)[:, None], count_K)


def pull(features: Tensor, truth: Tensor, prototypes: Prototypes, task: Task) -> Tensor:
    """Mean squared distance between features and their class's prototype (FedProto, equation 8).

    Of a segmentation: each pixel's, for each structure the side that it is on; a mean over structures.
    """
    of_class = (1, -1, *[1] * (features.ndim - 2))
    shares = belongs(truth, task) * (prototypes.count_K > 0).view(of_class)
    num_structures = len(task.classes) if task.kind == "segmentation" else 1
    square = features.pow(2).sum(dim=1, keepdim=True)
    product = torch.einsum("bf...,kf->bk...", features, prototypes.means_KF)
    own_K = prototypes.means_KF.pow(2).sum(dim=1).view(of_class)
    distances = (square - 2 * product + own_K) * shares / features.shape[1]
    return distances.sum(dim=1).mean() / num_structures
