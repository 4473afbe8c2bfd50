"""What a network sees of images, by hand and by torch's own mean and variance; in 2D, in 3D, and exported."""

from __future__ import annotations

import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from ayni.learning.batches import Normaliser
from ayni.learning.networks import Network, build_network, load_weights, weights_of
from ayni.learning.statistics import (
    MIN_CASES,
    _moments,
    answer_and_statistics,
    first_convolution,
    gathered,
    statistics_of,
    training_statistics,
)
from ayni.task import Architecture, ImageSettings, ResNetSettings, UNetSettings
from ayni_export.graph import write_out_norms

IMAGE = ImageSettings(height=16, width=24)
SETTINGS: dict[str, Architecture] = {
    "resnet": ResNetSettings(layers=(1, 1, 1, 1), planes=(4, 4, 8, 8), stem_stride=2),
    "unet": UNetSettings(channels=(4, 8), features=6),
    "unet with residual units": UNetSettings(channels=(4, 8), features=6, residual_units=2),
}
NUM_CHANNELS = {"resnet": 1 + 4 + 8, "unet": 1 + 4 + 6, "unet with residual units": 1 + 4 + 6}


def network(name: str) -> Network:
    torch.manual_seed(3)
    return build_network(SETTINGS[name], IMAGE, 2).eval()


def unet_3d() -> Network:
    torch.manual_seed(3)
    unet = UNet(spatial_dims=3, in_channels=1, out_channels=5, channels=(4, 8), strides=(2,), norm="instance")
    return Network(nn.Sequential(unet), 5, 2, seen=(8, 8, 8), dense=True).eval()


def images(num: int, *sides: int, seed: int = 0) -> Tensor:
    return torch.randn(num, 1, *sides, generator=torch.Generator().manual_seed(seed))


class Halves(nn.Module):
    """Two features: the image and twice the image; the convolution adds one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.stem.weight)
        nn.init.ones_(self.stem.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        seen = self.stem(x) - 1
        return torch.cat([seen, 2 * seen], dim=1)


def test_moments_worked_out_by_hand() -> None:
    made = Network(nn.Sequential(Halves()), 2, 1, seen=(8, 8), dense=True)
    x = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    # image 0: mean 3, mean square 14; plus one: mean 4, mean square 21; doubled: mean 6, mean square 56
    expected = [
        [[3, 4, 3, 6], [14, 21, 14, 56]],
        [[1, 2, 1, 2], [1, 4, 1, 4]],
    ]
    found = statistics_of(made, x)
    assert found.tolist() == expected
    # over both images: means 2, 3, 2, 4; mean squares 7.5, 12.5, 7.5, 30
    assert gathered(found).tolist() == [[2, 3, 2, 4], [3.5, 3.5, 3.5, 14]]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_three_places_are_those_of_the_real_forward_pass(name: str) -> None:
    """What hooks see in the pass that diagnoses, by torch's own variance."""
    made, x = network(name), images(7, 16, 24)
    seen: dict[str, Tensor] = {}

    def keep(place: str) -> None:
        module = first_convolution(made) if place == "first" else made.head

        def hook(_: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            seen[place] = result if place == "first" else given[0]

        module.register_forward_hook(hook)

    keep("first")
    keep("head")
    logits = made(x)
    first, head = seen["first"], seen["head"]
    answered, statistics = answer_and_statistics(made, x)
    assert torch.equal(answered, logits)
    assert statistics.shape == (7, 2, NUM_CHANNELS[name])
    means, variances = gathered(statistics)
    for place, part in ((x, slice(0, 1)), (first, slice(1, 5)), (head, slice(5, None))):
        flat = place.detach().transpose(0, 1).flatten(1)
        assert means[part].tolist() == pytest.approx(flat.mean(1).tolist(), abs=1e-5)
        assert variances[part].tolist() == pytest.approx(flat.var(1, unbiased=False).tolist(), rel=1e-3, abs=1e-5)


def test_a_volume_is_as_an_image() -> None:
    made, x = unet_3d(), images(3, 8, 8, 12)
    logits, statistics = answer_and_statistics(made, x)
    assert torch.equal(logits, made(x))
    assert statistics.shape == (3, 2, 1 + 4 + 5)
    assert statistics[:, 0, 0].tolist() == pytest.approx(x.mean(dim=(1, 2, 3, 4)).tolist(), abs=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_image_has_the_same_statistics_alone_and_among_others(name: str) -> None:
    made, x = network(name), images(6, 16, 24)
    together = statistics_of(made, x)
    for number in range(6):
        alone = statistics_of(made, x[number : number + 1])
        assert torch.allclose(alone[0], together[number], atol=1e-5)


def test_the_grouping_of_images_changes_nothing() -> None:
    statistics = statistics_of(network("unet"), images(8, 16, 24))
    backwards = gathered(statistics.flip(0))
    assert torch.allclose(gathered(statistics), backwards, rtol=1e-6)
    doubled = gathered(torch.cat([statistics, statistics]))
    assert torch.allclose(gathered(statistics), doubled, rtol=1e-6)


def test_a_brighter_scanner_is_seen() -> None:
    made, x = network("unet"), images(8, 16, 24)
    with torch.no_grad():
        usual, brighter = gathered(statistics_of(made, x)), gathered(statistics_of(made, x + 1))
    assert float(brighter[0, 0] - usual[0, 0]) == pytest.approx(1.0, abs=1e-5)
    assert float(brighter[1, 0]) == pytest.approx(float(usual[1, 0]), abs=1e-4)


def test_fewer_cases_than_the_minimum_give_none() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (MIN_CASES, 1, 16, 24), dtype=np.uint8))
    normalise, made = Normaliser((0.5,), (0.25,)), network("unet")
    assert training_statistics(made, pixels[1:], normalise) is None
    found = training_statistics(made, pixels, normalise)
    assert found is not None
    scaled = (pixels.double() / 255 - 0.5) / 0.25
    assert float(found[0, 0]) == pytest.approx(float(scaled.mean()), abs=1e-5)
    assert float(found[1, 0]) == pytest.approx(float(scaled.var(unbiased=False)), rel=1e-4)


def test_of_volumes_that_are_not_seen_at_once_the_middle_counts() -> None:
    """8 x 8 x 8 of 8 x 10 x 13 voxels, from row 1 and column 2; the others are bright, and must not count."""
    pixels = np.full((MIN_CASES, 1, 8, 10, 13), 255, np.uint8)
    middle = np.random.default_rng(0).integers(0, 100, (MIN_CASES, 1, 8, 8, 8), dtype=np.uint8)
    pixels[:, :, :, 1:9, 2:10] = middle
    found = training_statistics(unet_3d(), torch.from_numpy(pixels), Normaliser((0.5,), (0.25,)))
    assert found is not None
    scaled = (middle.astype(np.float64) / 255 - 0.5) / 0.25
    assert float(found[0, 0]) == pytest.approx(scaled.mean(), abs=1e-5)
    assert float(found[1, 0]) == pytest.approx(scaled.var(), rel=1e-4)


def test_of_a_hundred_thousand_voxels_onnx_runtime_says_what_torch_says() -> None:
    """It adds up one by one; over a whole volume that lost digits. Flat and bright: each sum is far from each voxel."""
    x = torch.full((1, 1, 48, 64, 48), 2.7)

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _moments(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        program = torch.onnx.export(Seen(), (x,), dynamo=True, opset_version=20)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    exact = float(np.float32(2.7))
    assert found[0, :, 0].tolist() == pytest.approx([exact, exact**2], rel=1e-5)


@pytest.mark.parametrize("name", [*SETTINGS, "3d"])
def test_it_exports_and_other_weights_can_be_put_in(name: str) -> None:
    """What the routed bundle needs: functional_call, and ONNX Runtime's figures equal to torch's."""
    made = unet_3d() if name == "3d" else network(name)
    x = images(2, 8, 8, 12) if name == "3d" else images(2, 16, 24)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = made

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return answer_and_statistics(self.network, x)

    both = write_out_norms(Both()).eval()
    logits, statistics = both(x)
    halved = {key: value / 2 for key, value in both.state_dict().items()}
    put_in = torch.func.functional_call(both, halved, (x,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        program = torch.onnx.export(both, (x,), dynamo=True, output_names=["logits", "statistics"], opset_version=20)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(["logits", "statistics"], {session.get_inputs()[0].name: x.numpy()})
    assert np.abs(found[0] - logits.detach().numpy()).max() < 1e-4
    assert np.abs(found[1] - statistics.detach().numpy()).max() < 1e-4
    load_weights(made, {key: value * np.float32(0.5) for key, value in weights_of(made).items()})
    assert torch.allclose(put_in[1], both(x)[1], atol=1e-6)
