"""Every method on small squares: what travels, what stays, and what is averaged, by hand."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from ayni.errors import UserError
from ayni.learning.networks import Network, weights_of
from ayni.tensors import safe
from ayni.tensors.update import encode_whole
from ayni_coordinator.simulation.averaging import GlobalModel, norm_names
from ayni_coordinator.simulation.experiment import known_methods
from ayni_coordinator.simulation.method import Setup
from ayni_coordinator.simulation.methods import ayni_labelled_start_tuned, fedavg, fedkd, fedtgp, fml
from ayni_coordinator.simulation.prototypes import Prototypes, mean_prototypes, pull, site_prototypes
from ayni_coordinator.simulation.run import Outcome, chosen_by_holdout, method_named, run_rounds
from ayni_coordinator.simulation.training import small_network
from small_setups import NUM_PUBLIC, SITES, small_setup, small_task

KINDS = ["classification", "segmentation"]
ONE_SIZE = {
    *("fedavg", "ayni_head_start_fedavg", "ayni_labelled_start_fedavg", "fedprox", "fedbn"),
    *("mean_teacher", "fixmatch", "pseudo_label"),
    *(name for name in known_methods() if method_named(name).taught),
}
SILENT = {"local", "ayni_head_start_alone", "ayni_labelled_start_alone", "ayni_targets"}  # there a clinic sends nothing
WITHOUT_WEIGHTS = {*SILENT, "pooled", "fedmd", "fedproto", "fedtgp"}


def run(name: str, setup: Setup) -> dict[str, Outcome]:
    return run_rounds(method_named(name), setup, lambda done, num_steps: None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", known_methods())
def test_every_method_gives_every_site_a_network_and_the_same_bits_again(name: str, kind: str) -> None:
    digests = []
    for _ in range(2):
        setup = small_setup(small_task(kind), method_named(name))  # type: ignore[arg-type]
        outcomes = run(name, setup)
        assert list(outcomes) == list(SITES)
        chosen = [chosen_by_holdout(outcomes[site.name].candidates, site, setup) for site in setup.sites]
        x_BCHW = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        for one in chosen:
            shape = (2, 2) if kind == "classification" else (2, 1, 16, 16)
            assert one.network.eval()(x_BCHW).shape == shape
        digests.append([safe.digest(weights_of(one.network)) for one in chosen])
        digests.append([f"{o.bytes_up} {o.bytes_down}" for o in outcomes.values()])
        travels = [o.bytes_up for o in outcomes.values()]
        assert (min(travels) > 0) == (name not in SILENT)
    assert digests[0] == digests[2]
    assert digests[1] == digests[3]


def test_the_power_by_which_sites_count_is_a_setting_and_only_three_are_known() -> None:
    """Sites send 1 less than the model, as much, and 2 more: numpy's weighted mean is what each power makes."""
    setup = small_setup(small_task("classification", form="fp32"), ayni_labelled_start_tuned.METHOD)
    numbers = [site.num_examples for site in setup.sites]
    changes = np.array([-1.0, 0.0, 2.0, 2.0])
    model, broadcast = ayni_labelled_start_tuned.METHOD.open(setup)
    first = {name: np.asarray(tensor, np.float32) for name, tensor in safe.decode(broadcast.to_all["model"]).items()}
    messages = {
        site.name: {"model": encode_whole({name: tensor + change for name, tensor in first.items()}, "fp32")}
        for site, change in zip(setup.sites, changes.astype(np.float32), strict=True)
    }
    for power in (0.0, 0.5, 1.0):
        told = dataclasses.replace(setup, settings={"power": power})
        after, _ = ayni_labelled_start_tuned.METHOD.aggregate(told, model, messages, 1)
        mean = float(np.average(changes, weights=np.array(numbers) ** power))
        for name, tensor in safe.decode(after.store.read(after.whole)).items():
            expected = np.asarray(first[name] + mean, np.float64)
            np.testing.assert_allclose(np.asarray(tensor, np.float64), expected, atol=1e-5)
    told = dataclasses.replace(setup, settings={"power": 2.0})
    with pytest.raises(UserError, match=r"the setting power is 2; it must be one of 0, 0\.5, 1"):
        ayni_labelled_start_tuned.METHOD.aggregate(told, model, messages, 1)


@pytest.mark.parametrize("name", sorted(set(known_methods()) - WITHOUT_WEIGHTS))
def test_at_a_hospital_the_large_network_stays_and_diagnoses_wherever_the_method_has_one(name: str) -> None:
    setup = small_setup(small_task("classification"), method_named(name))
    outcomes = run(name, setup)
    num_large = sum(1 for _ in outcomes["c-hospital"].candidates[0].network.parameters())
    num_small = sum(1 for _ in outcomes["a-clinic"].candidates[-1].network.parameters())
    assert (num_large > num_small) == (name not in ONE_SIZE)


def test_fedavg_is_the_mean_of_what_the_sites_trained_by_the_number_of_their_images() -> None:
    method = method_named("fedavg")
    setup = small_setup(small_task("classification", form="fp32", rounds=1), method)
    server, broadcast = method.open(setup)
    states = {site.name: method.init(setup, site) for site in setup.sites}
    sent = {site.name: method.site_step(setup, states[site.name], broadcast.to_all, 1) for site in setup.sites}
    after, _ = method.aggregate(setup, server, sent, 1)
    assert isinstance(after, GlobalModel)
    mean = safe.decode(after.store.read(after.whole))
    trained = [weights_of(state.network) for state in states.values()]
    num_images = [8, 10, 16, 12]  # of 10, 12, 20 and 16, a fifth of each class is held out: 2, 2, 4 and 4
    assert [site.num_examples for site in setup.sites] == num_images
    for name, tensor in mean.items():
        expected = sum(num * weights[name] for num, weights in zip(num_images, trained, strict=True)) / 46
        assert np.allclose(tensor, expected, atol=1e-6)


def test_fedbn_keeps_the_normalisation_at_its_site() -> None:
    method, setup = method_named("fedbn"), small_setup(small_task("classification", form="fp32"))
    _, broadcast = method.open(setup)
    state = method.init(setup, setup.sites[0])
    norms = norm_names(state.network)
    assert norms
    assert not norms & set(safe.decode(broadcast.to_all["model"]))
    sent = method.site_step(setup, state, broadcast.to_all, 1)
    assert set(safe.decode(sent["model"])) | norms == set(weights_of(state.network))


def test_fedprox_pulls_back_by_the_square_of_the_distance() -> None:
    setup = small_setup(small_task("classification"))
    network = small_network(setup)
    moved = copy.deepcopy(network)
    assert isinstance(moved.head, nn.Linear)
    with torch.no_grad():
        moved.head.bias.add_(2.0)  # two classes: 2 * 2**2
    assert fedavg._distance(moved, network).item() == pytest.approx(8.0)
    free = run("fedavg", small_setup(small_task("classification", form="fp32"), method_named("fedavg")))
    settings = {"mu": 1e3}
    held_setup = small_setup(small_task("classification", form="fp32"), method_named("fedprox"))
    held_setup = Setup(held_setup.task, held_setup.sites, held_setup.public, settings)
    held = run("fedprox", held_setup)
    start = small_network(setup)

    def far(outcomes: dict[str, Outcome]) -> float:
        network = outcomes["a-clinic"].candidates[1].network
        assert isinstance(network, Network)
        return fedavg._distance(network, start).item()

    assert far(held) < far(free)


def test_prototypes_are_means_of_features_by_hand() -> None:
    one = Prototypes(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0]))
    two = Prototypes(torch.tensor([[5.0, 2.0], [4.0, 4.0]]), torch.tensor([3.0, 2.0]))
    mean = mean_prototypes([one, two])
    assert mean.means_KF.tolist() == [[4.0, 2.0], [4.0, 4.0]]  # (1 + 3 * 5) / 4; a class that one site lacks
    assert mean.count_K.tolist() == [4.0, 2.0]
    task = small_task("classification")
    features_BF = torch.tensor([[4.0, 0.0], [4.0, 4.0]])
    assert pull(features_BF, torch.tensor([0, 1]), mean, task).item() == pytest.approx(1.0)  # (4 / 2 + 0) / 2


def test_prototypes_of_masks_are_the_means_inside_and_outside() -> None:
    setup = small_setup(small_task("segmentation"))
    site = setup.sites[0]
    network = small_network(setup).eval()
    with torch.no_grad():
        features_NFHW = network.features(setup.normalise(site.own.train_NCHW))
    inside = site.own.train_truth[:, 0].bool()
    expected = torch.stack([features_NFHW.movedim(1, 3)[where].mean(dim=0) for where in (inside, ~inside)])
    found = site_prototypes(setup, site, network)
    assert torch.allclose(found.means_KF, expected, atol=1e-4)
    assert found.count_K.tolist() == [float(inside.sum()), float((~inside).sum())]
    onto_itself = Prototypes(found.means_KF * 0, found.count_K)
    assert pull(features_NFHW, site.own.train_truth, onto_itself, setup.task).item() == pytest.approx(
        features_NFHW.pow(2).mean().item(), rel=1e-4
    )


def test_trained_prototypes_come_apart_by_the_margin() -> None:
    centres = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert fedtgp.margin_of(centres, 100.0) == pytest.approx(5.0)
    assert fedtgp.margin_of(centres, 2.0) == 2.0
    own, classes = centres.clone(), torch.tensor([0, 1])
    assert fedtgp.contrast(centres, own, classes, 0.0).item() == pytest.approx(np.log1p(np.exp(-5.0)), abs=1e-5)
    assert fedtgp.contrast(centres, own, classes, 5.0).item() == pytest.approx(np.log(2.0), abs=1e-5)


def test_low_rank_changes_keep_the_asked_share_of_their_energy() -> None:
    change = {"w": np.diag([3.0, 1.0, 0.1, 0.1, 0.1, 0.1]).astype(np.float32), "b": np.ones(3, np.float32)}
    shapes = {name: tensor.shape for name, tensor in change.items()}
    seen = fedkd.decode_low_rank(fedkd.encode_low_rank(change, 0.85), shapes)  # 9 / 10.04 is more than .85
    assert np.allclose(seen["w"], np.diag([3.0, 0, 0, 0, 0, 0]), atol=1e-6)
    assert np.array_equal(seen["b"], change["b"])
    exact = fedkd.decode_low_rank(fedkd.encode_low_rank(change, 1.0), shapes)
    assert np.allclose(exact["w"], change["w"], atol=1e-6)


def test_fml_teaches_both_ways_by_hand() -> None:
    setup = small_setup(small_task("classification"))
    own, meme = torch.tensor([[0.0, 0.0]], requires_grad=True), torch.tensor([[0.0, np.log(3.0)]], requires_grad=True)
    loss = fml.mutual_loss(own, meme, torch.tensor([1]), 0.25, setup)
    log = np.log
    labels = log(2) + log(4 / 3)  # the right class has 1/2 and 3/4
    forth = 0.25 * log(0.5) + 0.75 * log(1.5)  # KL of (1/4, 3/4) from (1/2, 1/2)
    back = 0.5 * log(2) + 0.5 * log(2 / 3)
    assert loss.item() == pytest.approx(0.75 * labels + 0.25 * (forth + back), abs=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    assert own.grad[0, 1].item() == pytest.approx(0.75 * (0.5 - 1) + 0.25 * (0.5 - 0.75), abs=1e-5)  # no more crosses


def test_fedkd_divides_the_distillation_by_the_doubt() -> None:
    setup = small_setup(small_task("classification"))
    mentor = torch.tensor([[0.0, 0.0]], requires_grad=True)
    mentee = torch.tensor([[0.0, np.log(3.0)]])
    loss = fedkd.adaptive_loss(mentor, mentee, torch.tensor([1]), setup)
    log = np.log
    own = log(2) + log(4 / 3)
    mutual = 0.25 * log(0.5) + 0.75 * log(1.5) + 0.5 * log(2) + 0.5 * log(2 / 3)
    assert loss.item() == pytest.approx(own + mutual / own, abs=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert mentor.grad is not None
    assert mentor.grad[0, 1].item() == pytest.approx((0.5 - 1) + (0.5 - 0.75) / own, abs=1e-5)  # the doubt is a number


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fedmd", {}),
        ("ayni_mean", {"teaching": 0.0}),
        ("ayni_pair", {"own_teaching": 0.0}),
        ("fedproto", {"pull": 0.0}),
    ],
)
def test_from_round_two_on_a_clinic_learns_from_what_came_down(name: str, changes: dict[str, float]) -> None:
    """Each method's own term changes what a clinic ends with; without it (or with other answers) it ends elsewhere."""
    method = method_named(name)
    setup = small_setup(small_task("classification"), method)
    with_it = run(name, setup)["a-clinic"].candidates[-1].network
    if changes:
        other = Setup(setup.task, setup.sites, setup.public, {**setup.settings, **changes})
        without = run(name, other)["a-clinic"].candidates[-1].network
    else:
        alone = Setup(setup.task, setup.sites[:1], setup.public, setup.settings)  # a mean of its own answers only
        without = run(name, alone)["a-clinic"].candidates[-1].network
    assert safe.digest(weights_of(with_it)) != safe.digest(weights_of(without))


def test_a_pair_answers_with_the_mean_of_two_networks_and_the_own_one_never_travels() -> None:
    method = method_named("ayni_pair")
    setup = small_setup(small_task("classification", form="fp32"), method)
    both, mean, own, _ = (one.network.eval() for one in run("ayni_pair", setup)["a-clinic"].candidates)
    x_BCHW = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(both(x_BCHW), (mean(x_BCHW) + own(x_BCHW)) / 2, atol=1e-6)
    _, broadcast = method.open(setup)
    state = method.init(setup, setup.sites[0])
    sent = method.site_step(setup, state, broadcast.to("clinic"), 1)
    travelling = safe.decode(sent["model"])
    assert safe.digest(travelling) == safe.digest(weights_of(state.network))
    assert safe.digest(travelling) != safe.digest(weights_of(state.own))


def test_methods_without_weights_move_answers_or_prototypes_only() -> None:
    setup = small_setup(small_task("classification"), method_named("fedmd"))
    outcomes = run("fedmd", setup)
    assert all(outcome.bytes_up < 2 * (1000 + NUM_PUBLIC * 2 * 5) for outcome in outcomes.values())
    setup = small_setup(small_task("classification"), method_named("fedproto"))
    assert all(outcome.bytes_up < 2 * 400 for outcome in run("fedproto", setup).values())


@pytest.mark.parametrize("name", [name for name in known_methods() if name != "pooled"])
def test_every_method_takes_the_same_number_of_steps_with_the_network_that_diagnoses(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = small_setup(small_task("classification"), method_named(name))
    steps: dict[int, int] = {}
    adam_step = torch.optim.Adam.step

    def counting(optimiser: torch.optim.Adam, *args: object) -> object:
        for weight in optimiser.param_groups[0]["params"]:
            steps[weight.data_ptr()] = steps.get(weight.data_ptr(), 0) + 1
        return adam_step(optimiser, *args)

    method_named(name).open(setup)  # what the centre trains beforehand is kept, and not counted
    monkeypatch.setattr(torch.optim.Adam, "step", counting)
    outcomes = run(name, setup)
    for site, one_step in (("a-clinic", 2), ("c-hospital", 1)):
        taken = [
            steps.get(next(candidate.network.parameters()).data_ptr(), 0) for candidate in outcomes[site].candidates
        ]
        assert max(taken) == one_step * 2 * 2, site  # two rounds of two


@pytest.mark.parametrize("name", ["fml", "fedkd"])
def test_networks_that_teach_each_other_start_apart(name: str) -> None:
    setup = small_setup(small_task("classification"), method_named(name))
    for site in setup.sites:
        state = method_named(name).init(setup, site)
        own, travels = state.trainer.modules
        first = [next(network.parameters()).flatten()[:8].tolist() for network in (own, travels)]
        assert first[0] != first[1]


def test_a_hospital_of_a_segmentation_sends_its_proxy_and_a_clinic_keeps_its_public_head() -> None:
    method = method_named("fedhelp")
    setup = small_setup(small_task("segmentation", form="fp32"), method)
    _, broadcast = method.open(setup)
    hospital, clinic = method.init(setup, setup.sites[2]), method.init(setup, setup.sites[0])
    small = {name: tensor.shape for name, tensor in weights_of(small_network(setup)).items()}
    for state in (hospital, clinic):
        sent = method.site_step(setup, state, broadcast.to_all, 1)
        assert {name: tensor.shape for name, tensor in safe.decode(sent["model"]).items()} == small
    head = clinic.learner.public_head
    before = head.weight.detach().clone()
    method.site_step(setup, clinic, broadcast.to_all, 2)
    assert clinic.learner.public_head is head
    assert not torch.equal(head.weight, before)  # it goes on learning where it was


def test_the_ablations_leave_out_what_they_name() -> None:
    task = small_task("classification")
    changed = {name: method_named(name).change_task(task).fedhelp for name in known_methods() if "fedhelp" in name}
    assert changed["fedhelp_no_guidance"].guidance_weight == 0
    assert changed["fedhelp_no_backward"].ranking_weight == 0
    assert changed["fedhelp_full_kl_backward"].backward == "full-kl"
    assert changed["fedhelp_full_kl_backward"].ranking_weight == changed["fedhelp"].ranking_weight
    assert method_named("fedhelp_out_of_domain").public == "out-of-domain"
    assert method_named("fedhelp").change_task(task).fedhelp.guidance_weight == 1
