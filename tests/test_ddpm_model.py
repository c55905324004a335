"""Proves the U-Net: shapes, how time and class enter it, and that a label counts as itself, a dropped one as none."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from training.ddpm.model import ClassConditionalUNet, ResidualConvBlock, UNetConfig, sinusoidal_embedding

DIGITS = UNetConfig(in_channels=1, image_size=28, features=8, num_classes=10)
COLOURS = UNetConfig(in_channels=3, image_size=32, features=16, num_classes=7)


def network(config: UNetConfig = DIGITS) -> ClassConditionalUNet:
    """A network with random weights whose batch normalisations know the data, as after training."""
    torch.manual_seed(0)
    model = ClassConditionalUNet(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what is seen, which is one batch
    with torch.no_grad():
        model(*inputs(config, batch=16, seed=2))
    return model.eval()


def inputs(config: UNetConfig = DIGITS, batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, config.in_channels, config.image_size, config.image_size, generator=draws)
    return sample, torch.rand(batch, generator=draws) * 400, torch.arange(batch) % config.num_classes


@pytest.mark.parametrize("config", [DIGITS, COLOURS, UNetConfig(1, 4, 8, 1)], ids=["28x28x1", "32x32x3", "4x4x1"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_prediction_has_the_shape_of_the_sample(config: UNetConfig, batch: int) -> None:
    sample, timestep, labels = inputs(config, batch)
    with torch.no_grad():
        predicted = network(config)(sample, timestep, labels)
    assert predicted.shape == sample.shape
    assert predicted.dtype == torch.float32
    assert predicted.isfinite().all()


def test_the_size_of_the_papers_network() -> None:
    """A checkpoint's size and its export's depend on this; a change of the architecture must be meant."""
    with torch.device("meta"):
        model = ClassConditionalUNet(UNetConfig(features=64))
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_662_401


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other() -> None:
    model, (sample, timestep, labels) = network(), inputs()
    together = model(sample, timestep, labels)
    for i in range(len(sample)):
        alone = model(sample[i : i + 1], timestep[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=5e-6)  # of about 1


def contexts(model: ClassConditionalUNet, labels: Tensor) -> list[Tensor]:
    """What the two class embeddings are given for these labels."""
    seen: list[Tensor] = []
    embeddings = (model.class_embedding1, model.class_embedding2)
    hooks = [each.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for each in embeddings]
    sample, timestep, _ = inputs(batch=len(labels))
    model(sample, timestep, labels)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_a_label_is_plus_one_in_its_place_and_the_null_class_is_all_zeros() -> None:
    """The published ancestor's mask made kept labels -1 and dropped ones 0."""
    expected = torch.cat([torch.eye(10), torch.zeros(1, 10)])
    seen = contexts(network(), torch.arange(11))
    assert len(seen) == 2
    for context in seen:
        assert torch.equal(context, expected)


@torch.no_grad()
def test_the_null_class_is_the_network_without_its_class_weights() -> None:
    model, (sample, timestep, labels) = network(), inputs()
    blind = copy.deepcopy(model)
    for embedding in (blind.class_embedding1, blind.class_embedding2):
        embedding[0].weight.zero_()
    torch.testing.assert_close(model(sample, timestep, torch.full_like(labels, 10)), blind(sample, timestep, labels))
    assert (model(sample, timestep, labels) - blind(sample, timestep, labels)).abs().max() > 1e-3


@torch.no_grad()
def test_what_is_learned_about_a_class_changes_that_class_alone() -> None:
    model, (sample, timestep, _) = network(), inputs(batch=11)
    labels = torch.arange(11)
    before = model(sample, timestep, labels)
    for embedding in (model.class_embedding1, model.class_embedding2):
        embedding[0].weight[:, 4] += 1
    changed = (model(sample, timestep, labels) - before).abs().amax(dim=(1, 2, 3))
    assert changed[4] > 1e-3
    assert float(changed.sum() - changed[4]) == 0


@torch.no_grad()
def test_time_enters_continuously_and_fractions_count() -> None:
    model = network()
    sample, _, labels = inputs(batch=1)

    def at(t: float) -> Tensor:
        answer: Tensor = model(sample, torch.tensor([t]), labels)
        return answer

    def distance(t: float, other: float) -> float:
        return float((at(t) - at(other)).abs().max())

    assert distance(10, 10.5) > 1e-4
    assert distance(10, 10.5) + distance(10.5, 11) < 1.5 * distance(10, 11)  # 10.5 lies between its neighbours
    assert distance(10, 10.001) < 0.01 * distance(10, 11)


def test_the_sinusoidal_embedding_is_the_published_one() -> None:
    """Vaswani et al. 2017, section 3.5, with cosines first, in plain floats."""
    timesteps, dim = [0.0, 1.0, 37.25, 399.0], 16
    frequencies = [10_000 ** (-i / (dim // 2)) for i in range(dim // 2)]
    expected = [[math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies] for t in timesteps]
    torch.testing.assert_close(
        sinusoidal_embedding(torch.tensor(timesteps), dim), torch.tensor(expected), atol=5e-5, rtol=0
    )


def test_a_residual_block_adds_its_first_half_and_keeps_the_scale() -> None:
    torch.manual_seed(0)
    plain, residual = ResidualConvBlock(2, 4), ResidualConvBlock(2, 4, residual=True)
    residual.load_state_dict(plain.state_dict())
    sample = torch.randn(8, 2, 6, 6)
    expected = (plain.conv1(sample) + plain(sample)) / math.sqrt(2)
    torch.testing.assert_close(residual(sample), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 30}, "image_size 30 must be a multiple of 4"),
        ({"image_size": 0}, "image_size 0"),
        ({"features": 12}, "features 12 must be a multiple of 8, up to 1024"),
        ({"features": 0}, "features 0"),
        ({"features": 80_000}, "features 80000"),
        ({"in_channels": 0}, "in_channels 0 and num_classes 10 must be at least 1"),
        ({"num_classes": 0}, "num_classes 0"),
    ],
)
def test_bad_sizes_are_refused_by_name(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**fields)
