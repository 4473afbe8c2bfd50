"""The three graphs in ONNX Runtime against torch and against each other.

A 2D U-Net, a 3D U-Net, a classifier and one on frozen layers, both precisions. Networks with random weights, experts
that differ in every tensor and in how they normalise. E = 3 experts.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from torch import Tensor

from ayni.errors import IntegrityError
from ayni.learning.networks import Network, build_network
from ayni.learning.statistics import statistics_of
from ayni.task import (
    Architecture,
    ImageSettings,
    PretrainedSettings,
    ResNetSettings,
    Task,
    TrainingSettings,
    UNetSettings,
)
from ayni_export.graph import DiagnosisGraph, parity_images, to_onnx
from ayni_export.routed.answers import MEAN, STD, with_normalisation
from ayni_export.routed.constants import fold_constants
from ayni_export.routed.fold import folded
from ayni_export.routed.graph import gradient_graph, plain_graph, routed_graph
from ayni_export.routed.layers import layers_of
from ayni_export.routed.losses import WEIGHTS, terms_of, total
from ayni_export.routed.mixing import mixed, stacked
from ayni_export.routed.parity import check_forward, check_gradient
from ayni_export.routed.refine import refined, shared
from ayni_export.routed.views import View, view
from ayni_export.runtime import open_session, planes
from trained_home import trained_model

IMAGE, VOLUME = ImageSettings(height=16, width=24), ImageSettings(depth=8, height=12, width=10)
TEMPERATURE, NUM_EXPERTS = 1.5, 3
KINDS: dict[str, tuple[Architecture, ImageSettings]] = {
    "segmentation": (UNetSettings(channels=(4, 8), features=4), IMAGE),
    "volumes": (UNetSettings(channels=(4, 8), features=4), VOLUME),
    "classification": (
        ResNetSettings(layers=(1, 1, 1, 1), planes=(4, 4, 8, 8), stem_stride=2, max_pool=True),
        IMAGE,
    ),
    "few images": (PretrainedSettings(blocks=4, planes=(8,)), IMAGE),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@dataclass(frozen=True)
class Made:
    network: Network
    experts: list[dict[str, Tensor]]  # with how each one normalises
    stack: dict[str, Tensor]
    plain: bytes
    routed: bytes
    gradient: bytes

    @property
    def arrays(self) -> dict[str, Any]:
        return {name: tensor.numpy() for name, tensor in self.stack.items()}


@functools.cache
def made(kind: str) -> Made:
    """The U-Nets' experts in single precision, the classifier's in half."""
    torch.manual_seed(0)
    network, image = new_network(kind).eval(), KINDS[kind][1]
    precision = torch.float32 if network.dense else torch.float16
    experts = []
    for i in range(NUM_EXPERTS):
        weights = {name: v + 0.1 * torch.randn(v.shape) for name, v in network.state_dict().items()}
        expert = with_normalisation(weights, [0.3 + 0.1 * i], [0.2 + 0.05 * i])
        experts.append({name: tensor.to(precision).float() for name, tensor in expert.items()})
    stack = {name: tensor.to(precision) for name, tensor in stacked(experts).items()}
    return Made(
        network,
        experts,
        stack,
        plain_graph(network, experts[0], image, temperature=TEMPERATURE),
        routed_graph(network, stack, image, temperature=TEMPERATURE),
        gradient_graph(network, stack, image, view=view_of(kind)),
    )


def new_network(kind: str) -> Network:
    return build_network(*KINDS[kind], 2)


def view_of(kind: str, seed: int = 0) -> View:
    return view(seed, num_axes=len(KINDS[kind][1].size), mirror=kind == "volumes")


def loss_weights(kind: str) -> dict[str, float]:
    return WEIGHTS["segmentation" if made(kind).network.dense else "classification"]


def pixels(kind: str, num_images: int = 5) -> Any:
    return parity_images(1, *KINDS[kind][1].size)[:num_images]


def by_torch(kind: str, weights: dict[str, Tensor], images: Any) -> tuple[Tensor, Tensor]:
    """Logits and statistics, by the network alone, without any of our mixing or normalising."""
    network = made(kind).network
    network.load_state_dict({name: v for name, v in weights.items() if name not in (MEAN, STD)})
    with torch.no_grad():
        x = (torch.from_numpy(images).float() / 255 - weights[MEAN].item()) / weights[STD].item()
        return network(x), statistics_of(network, x)


def ask(graph: bytes, weights: dict[str, Any], images: Any, **inputs: Any) -> list[Any]:
    session, _ = open_session(graph, weights, device="cpu")
    return list(session.run(None, {"pixels": images, **inputs}))


def random_routing(kind: str) -> Any:
    num_layers = len(layers_of(made(kind).stack))
    return np.random.default_rng(1).dirichlet(np.ones(NUM_EXPERTS), num_layers).astype(np.float32)


@every_kind
@pytest.mark.parametrize("expert", range(NUM_EXPERTS))
def test_a_one_hot_routing_is_that_expert_in_onnx_runtime_too(kind: str, expert: int) -> None:
    m = made(kind)
    one_hot = np.repeat(np.eye(NUM_EXPERTS, dtype=np.float32)[[expert]], len(layers_of(m.stack)), axis=0)
    logits, statistics = by_torch(kind, m.experts[expert], pixels(kind))
    alone = ask(m.plain, {name: v.numpy() for name, v in m.experts[expert].items()}, pixels(kind))
    through_routing = ask(m.routed, m.arrays, pixels(kind), routing=one_hot)
    through_fold = ask(m.plain, folded(m.arrays, one_hot, layers_of(m.stack)), pixels(kind))
    for found in (alone, through_routing, through_fold):
        np.testing.assert_allclose(found[0], logits, rtol=1e-5, atol=1e-5)
        probabilities = torch.sigmoid(logits / 1.5) if m.network.dense else torch.softmax(logits / 1.5, dim=1)
        np.testing.assert_allclose(found[1], probabilities, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[2], statistics, rtol=1e-4, atol=1e-5)
    assert np.array_equal(alone[0], through_fold[0])  # bit for bit


@every_kind
def test_folded_routed_and_torch_agree_on_any_routing(kind: str) -> None:
    m, routing_LE = made(kind), random_routing(kind)
    layers = layers_of(m.stack)
    logits, _ = by_torch(kind, mixed(m.stack, torch.from_numpy(routing_LE), layers), pixels(kind))
    plain = ask(m.plain, folded(m.arrays, routing_LE, layers), pixels(kind))
    routed = ask(m.routed, m.arrays, pixels(kind), routing=routing_LE)
    np.testing.assert_allclose(plain[0], logits, atol=1e-5)
    np.testing.assert_allclose(routed[0], logits, atol=1e-5)
    soup = np.full_like(routing_LE, 1 / NUM_EXPERTS)
    assert np.abs(ask(m.routed, m.arrays, pixels(kind), routing=soup)[0] - routed[0]).max() > 0.01  # the routing counts


@every_kind
def test_equal_weights_are_the_arithmetic_soup_in_onnx_runtime_too(kind: str) -> None:
    m, layers = made(kind), layers_of(made(kind).stack)
    equal = np.full((len(layers), NUM_EXPERTS), 1 / NUM_EXPERTS, np.float32)
    soup = {name: torch.stack([e[name].double() for e in m.experts]).mean(dim=0).float() for name in m.experts[0]}
    logits, _ = by_torch(kind, soup, pixels(kind))
    np.testing.assert_allclose(ask(m.routed, m.arrays, pixels(kind), routing=equal)[0], logits, atol=1e-5)
    np.testing.assert_allclose(ask(m.plain, folded(m.arrays, equal, layers), pixels(kind))[0], logits, atol=1e-5)


@every_kind
def test_no_steps_are_the_start_model_and_one_step_is_another(kind: str) -> None:
    m, layers = made(kind), layers_of(made(kind).stack)
    session, _ = open_session(m.gradient, m.arrays, device="cpu")
    term_weights = np.array(list(loss_weights(kind).values()), np.float32)

    def gradient(image_hwK: Any, logits_LE: Any) -> tuple[float, Any]:
        given = {"pixels": planes(image_hwK[np.newaxis]), "routing_logits": logits_LE, "term_weights": term_weights}
        loss, slope_LE = session.run(["loss", "gradient"], given)
        return float(loss), slope_LE

    def logits_of(routing_LE: Any) -> Any:
        return ask(m.plain, folded(m.arrays, routing_LE, layers), pixels(kind))[0]

    start_E = np.array([0.2, 0.5, 0.3], np.float32)
    seen = list(np.moveaxis(pixels(kind, 4)[3:], 1, -1))
    unmoved_LE, _ = refined(seen, start_E, gradient, len(layers), num_steps=0)
    moved_LE, refinement = refined(seen, start_E, gradient, len(layers), num_steps=1)
    assert np.array_equal(logits_of(unmoved_LE), logits_of(shared(start_E, len(layers))))
    assert refinement.num_steps == 1
    assert np.abs(logits_of(moved_LE) - logits_of(unmoved_LE)).max() > 1e-3


@every_kind
def test_an_image_alone_and_in_a_stream_gets_one_answer(kind: str) -> None:
    m, routing_LE = made(kind), random_routing(kind)
    session, _ = open_session(m.routed, m.arrays, device="cpu")
    together = session.run(None, {"pixels": pixels(kind), "routing": routing_LE})
    for i in (3, 0, 4, 3):
        alone = session.run(None, {"pixels": pixels(kind)[i : i + 1], "routing": routing_LE})
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], all_of_them[i], rtol=1e-5, atol=1e-5)


@every_kind
def test_the_gradient_is_torchs_and_that_of_finite_differences(kind: str) -> None:
    """By the network alone in double precision: autograd in torch, and a small step to either side."""
    m, layers = made(kind), layers_of(made(kind).stack)
    network, second = new_network(kind).eval().double(), view_of(kind)
    stack = {name: tensor.double() for name, tensor in m.stack.items()}
    image = torch.from_numpy(pixels(kind, 4)[3:4]).double() / 255

    def terms_at(logits_LE: Tensor, image: Tensor = image) -> dict[str, Tensor]:
        weights = mixed(stack, torch.softmax(logits_LE, dim=1), layers)
        x = (image - weights.pop(MEAN)) / weights.pop(STD)
        one, other = (torch.func.functional_call(network, weights, (seen,)) for seen in (x, second.of(x)))
        return terms_of(one, second.back(other))

    def loss(logits_LE: Tensor) -> Tensor:
        return total(terms_at(logits_LE), loss_weights(kind))

    logits_LE = torch.log(torch.from_numpy(random_routing(kind))).double()
    exact_LE = torch.func.grad(loss)(logits_LE)
    term_weights = np.array(list(loss_weights(kind).values()), np.float32)
    value, terms, found_LE = ask(
        m.gradient, m.arrays, pixels(kind, 4)[3:4], routing_logits=logits_LE.float().numpy(), term_weights=term_weights
    )
    largest = exact_LE.abs().max().item()
    assert largest > 1e-3
    np.testing.assert_allclose(found_LE, exact_LE, rtol=0, atol=1e-4 * largest)
    assert value == pytest.approx(loss(logits_LE).item(), abs=1e-5)
    assert value == pytest.approx(float(terms @ term_weights), abs=1e-6)
    in_a_batch = terms_at(logits_LE, image.repeat_interleave(3, dim=0))  # no term grows with the batch
    np.testing.assert_allclose(terms, [term.item() for term in in_a_batch.values()], atol=1e-5)
    steepest = exact_LE.abs().argmax().item()
    step_LE = torch.zeros_like(logits_LE).flatten().index_fill(0, torch.tensor(steepest), 1e-5).reshape(logits_LE.shape)
    slope = (loss(logits_LE + step_LE) - loss(logits_LE - step_LE)).item() / 2e-5
    assert found_LE.flatten()[steepest] == pytest.approx(slope, rel=1e-3)


@every_kind
def test_the_weight_of_a_term_is_an_input(kind: str) -> None:
    m = made(kind)
    inputs = {"routing_logits": np.zeros((len(layers_of(m.stack)), NUM_EXPERTS), np.float32)}
    num_terms = len(loss_weights(kind))
    parts = [
        ask(m.gradient, m.arrays, pixels(kind, 4)[3:4], term_weights=row, **inputs)
        for row in np.eye(num_terms, dtype=np.float32)
    ]
    for i, (value, terms, _) in enumerate(parts):
        assert value == terms[i] != 0
    weights = np.linspace(1, 2, num_terms).astype(np.float32)
    whole = ask(m.gradient, m.arrays, pixels(kind, 4)[3:4], term_weights=weights, **inputs)
    summed = sum(weight * part[2] for weight, part in zip(weights, parts, strict=True))
    np.testing.assert_allclose(whole[2], summed, atol=1e-6)


@every_kind
def test_the_gate_passes_what_agrees_and_says_how_closely(kind: str) -> None:
    m, image = made(kind), KINDS[kind][1]
    parity = check_forward(m.network, m.stack, image, temperature=TEMPERATURE, plain=m.plain, routed=m.routed)
    assert parity.num_images == (5 if kind == "volumes" else 16)
    assert 0 < parity.logits < 1e-5
    assert check_gradient(m.network, m.stack, image, view=view_of(kind), gradient=m.gradient) < 1e-4


def test_the_gate_stops_what_differs() -> None:
    """Another second view gives another gradient; another slope of an activation, other logits."""
    m = made("segmentation")
    with pytest.raises(IntegrityError, match="differ from torch's"):
        check_gradient(m.network, m.stack, IMAGE, view=view(1), gradient=m.gradient)
    other = new_network("segmentation")
    other.extractor.act = torch.nn.LeakyReLU(0.2)
    with pytest.raises(IntegrityError, match="logits of mixed experts"):
        check_forward(other, m.stack, IMAGE, temperature=TEMPERATURE, plain=m.plain)


def test_experts_that_are_very_sure_pass_and_still_no_other_answer_does() -> None:
    """Logits a hundred times as large differ a hundred times as much: 32 bits round in proportion."""
    m = made("segmentation")
    sure = {**m.stack, **{name: m.stack[name] * 100 for name in ("head.weight", "head.bias")}}
    parity = check_forward(m.network, sure, IMAGE, temperature=TEMPERATURE, plain=m.plain, routed=m.routed)
    assert 0 < parity.logits < 1e-4
    other = new_network("segmentation")
    other.extractor.act = torch.nn.LeakyReLU(0.101)  # a hundredth of the slope
    with pytest.raises(IntegrityError, match="logits of mixed experts"):
        check_forward(other, sure, IMAGE, temperature=TEMPERATURE, plain=m.plain)


def test_the_gate_stops_what_is_not_a_number() -> None:
    m = made("segmentation")
    stack = {**m.stack, "head.bias": torch.full_like(m.stack["head.bias"], torch.nan)}
    with pytest.raises(IntegrityError, match="differ from torch's by inf"):
        check_forward(m.network, stack, IMAGE, temperature=TEMPERATURE, plain=m.plain)
    with pytest.raises(IntegrityError, match="differ from torch's by inf"):
        check_gradient(m.network, stack, IMAGE, view=view(0), gradient=m.gradient)


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_a_folded_network_runs_the_operators_of_a_model_of_its_own(kind: str, tmp_path: Path) -> None:
    """What it costs is a benchmark; that nothing is added can be counted, once the runtime has optimised both."""
    m, (network, image) = made(kind), KINDS[kind]
    plain = plain_graph(m.network, m.experts[0], image, temperature=TEMPERATURE, statistics=False)
    weights = {name: tensor.numpy() for name, tensor in m.experts[0].items()}
    task = Task(
        name="shapes",
        title="Shapes",
        kind="segmentation" if m.network.dense else "classification",
        classes=("disc", "bar"),
        image=image,
        training=TrainingSettings(rounds=1),
    )
    model = trained_model(task=task, network=network, pixel_mean=(0.3,), pixel_std=(0.2,), temperature=TEMPERATURE)
    own = to_onnx(DiagnosisGraph(m.network, model), model, opset=20)
    assert operators(plain, weights, tmp_path / "plain.onnx") == operators(own, {}, tmp_path / "own.onnx")


def operators(graph: bytes, weights: dict[str, Any], place: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(place)
    options.log_severity_level = 4
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(place), load_external_data=False).graph.node)


def test_what_is_always_the_same_is_worked_out_once() -> None:
    """sizes = cast(concat(2, 3)); y = reshape(x, sizes): two nodes go, and so does one of two equal constants."""
    helper = onnx.helper
    two, three = (helper.make_tensor(name, onnx.TensorProto.INT32, [1], [n]) for name, n in (("two", 2), ("three", 3)))
    again = helper.make_tensor("again", onnx.TensorProto.INT64, [2], [2, 3])
    nodes = [
        helper.make_node("Concat", ["two", "three"], ["both"], axis=0),
        helper.make_node("Cast", ["both"], ["sizes"], to=onnx.TensorProto.INT64),
        helper.make_node("Reshape", ["x", "sizes"], ["once"]),
        helper.make_node("Reshape", ["once", "again"], ["y"]),
        helper.make_node("RandomNormal", [], ["noise"], shape=[2]),
    ]
    x, y, noise = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [6]), ("y", [2, 3]), ("noise", [2]))
    )
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y, noise], [two, three, again]))
    fold_constants(proto)
    assert [node.op_type for node in proto.graph.node] == ["Reshape", "Reshape", "RandomNormal"]
    (only,) = proto.graph.initializer
    assert onnx.numpy_helper.to_array(only).tolist() == [2, 3]
    (found, _) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": np.arange(6, dtype=np.float32)})
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


@every_kind
def test_no_graph_holds_a_weight_or_a_word_of_where_it_was_made(kind: str) -> None:
    """But for those of frozen layers, which are no expert's."""
    m = made(kind)
    frozen = sum(tensor.nbytes for tensor in m.network.buffers())
    for graph, most_bytes in ((m.plain, 64 << 10), (m.routed, 64 << 10), (m.gradient, 2 << 20)):
        assert len(graph) < most_bytes + frozen
        proto = onnx.ModelProto.FromString(graph)
        outside = {t.name for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
        assert outside == set(m.stack)
        assert not {value.name for value in proto.graph.input} & outside
        for path in (b"/home", b"/work", b"site-packages", b".py"):
            assert path not in graph


def test_a_network_whose_gradient_has_no_graph_is_refused_in_words() -> None:
    network = new_network("segmentation")
    network.extractor.act = torch.nn.Sequential(torch.nn.LeakyReLU(0.1), torch.nn.Conv2d(4, 4, 3, padding=1, groups=2))
    stack = stacked([with_normalisation(network.state_dict(), [0.5], [0.2])] * 2)
    with pytest.raises(IntegrityError, match="exact gradient has no graph"):
        gradient_graph(network, stack, IMAGE, view=view(0))
