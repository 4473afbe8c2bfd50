"""A hospital's large network by its own mean and deviation: then it learns as if it were alone, but for its proxy."""

from __future__ import annotations

import pytest

from ayni.learning.batches import Normaliser
from ayni.learning.learners import Alone, Hospital
from ayni.learning.networks import weights_of
from ayni.learning.site_data import own_images
from ayni.task import Kind, Task
from ayni.tensors import safe
from ayni_coordinator.simulation.methods import ayni_labelled_start_own, fedhelp
from ayni_coordinator.simulation.methods.fedhelp import with_settings
from small_setups import small_setup, small_task, squares

COMMON = Normaliser((0.5,), (0.1,))  # unlike that of the squares


def hospital(task: Task, kind: Kind) -> tuple[Hospital, Alone]:
    """The same images and seeds, in a federation and alone."""
    own = own_images(*squares(12, kind, 1), task, "here")
    together = Hospital(own, COMMON, task, "here")
    return together, Alone(own, task, "here", large=True, num_steps=together.num_steps)


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_without_its_proxys_word_the_large_network_learns_bit_for_bit_as_if_it_were_alone(kind: Kind) -> None:
    for setting, alike in (("own", True), ("common", False)):
        task = with_settings(ranking_weight=0.0, large_normalise=setting)(small_task(kind))
        together, alone = hospital(task, kind)
        for number in range(3):
            together.step(number)
            alone.step(number)
        same = safe.digest(weights_of(together.large)) == safe.digest(weights_of(alone.network))
        assert same == alike


def test_the_proxy_sees_images_as_all_sites_do_either_way() -> None:
    """With no word from the large network its first step does not depend on how that sees images."""
    digests = set()
    for setting in ("own", "common"):
        task = with_settings(forward_weight=0.0, large_normalise=setting)(small_task("classification"))
        together, _ = hospital(task, "classification")
        together.step(0)
        digests.add(safe.digest(weights_of(together.small)))
    assert len(digests) == 1


def test_it_diagnoses_and_is_chosen_by_the_statistics_that_it_was_trained_with() -> None:
    setup = small_setup(small_task("classification"), ayni_labelled_start_own.METHOD)
    for site in setup.sites:
        state = fedhelp.init(setup, site)
        if site.role == "hospital":
            found = fedhelp.candidates(setup, state, {})
            assert {one.normalise for one in found} == {site.own.normalise}
            assert site.own.normalise != setup.normalise
