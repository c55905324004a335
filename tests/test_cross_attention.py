"""Proves that what is recorded of the UNet's attention is what it looks at: values weighed by it give what the layers
put out, recording changes nothing, and weights and means are those worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from random_weights import POCKET, random_tensor

from training.stable_diffusion.cross_attention import AttentionMap, mean_attention, record_cross_attention
from training.stable_diffusion.layers import attention_weights
from training.stable_diffusion.unet import UNet2DConditionModel

BATCH, HEIGHT, WIDTH, LENGTH = 2, 8, 12, 5


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        model = UNet2DConditionModel(POCKET.unet)
    state = {name: random_tensor(f"unet.{name}", wanted.shape) for name, wanted in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(BATCH, POCKET.unet.in_channels, HEIGHT, WIDTH, generator=generator)
    text = torch.randn(BATCH, LENGTH, POCKET.unet.cross_attention_dim, generator=generator)
    return sample, torch.tensor([0.0, 500.0]), text


def test_values_weighed_by_the_maps_are_what_the_layers_put_out(unet, inputs) -> None:
    """A second way to the same numbers: the fused attention never shows its weights."""
    seen = {}
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.register_forward_hook(lambda module, given, output, name=name: seen.update({name: output}))
    with record_cross_attention(unet) as maps:
        unet(*inputs)
    text = inputs[2]
    assert len(maps) == len(seen) > 4
    for each in maps:
        layer = unet.get_submodule(f"{each.layer}.attn2")
        heads = layer.num_heads
        values = layer.to_v(text).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, L, C / heads)
        looked = each.weights.flatten(2, 3) @ values  # (B, heads, N, C / heads)
        expected = layer.to_out(looked.transpose(1, 2).flatten(-2))
        torch.testing.assert_close(seen[f"{each.layer}.attn2"], expected, rtol=0, atol=2e-5)


def test_maps_have_the_size_of_their_level_and_sum_to_one(unet, inputs) -> None:
    with record_cross_attention(unet) as maps:
        unet(*inputs)
    sizes = {each.layer.partition(".attentions")[0]: tuple(each.weights.shape) for each in maps}
    heads = POCKET.unet.num_attention_heads
    assert sizes == {  # the middle block is as coarse as the third level, which has no attention
        "down_blocks.0": (BATCH, heads, 8, 12, LENGTH),
        "down_blocks.1": (BATCH, heads, 4, 6, LENGTH),
        "mid_block": (BATCH, heads, 2, 3, LENGTH),
        "up_blocks.1": (BATCH, heads, 4, 6, LENGTH),
        "up_blocks.2": (BATCH, heads, 8, 12, LENGTH),
    }
    for each in maps:
        torch.testing.assert_close(each.weights.sum(-1), torch.ones_like(each.weights[..., 0]))


def test_recording_changes_nothing_and_ends(unet, inputs) -> None:
    before = unet(*inputs)
    with record_cross_attention(unet) as maps:
        during = unet(*inputs)
        unet(*inputs)
    assert torch.equal(before, during)
    recorded = len(maps)
    unet(*inputs)
    assert len(maps) == recorded
    assert [each.layer for each in maps[: recorded // 2]] == [each.layer for each in maps[recorded // 2 :]]


def test_recording_ends_when_the_network_fails(unet, inputs) -> None:
    sample, timestep, text = inputs
    with pytest.raises(RuntimeError), record_cross_attention(unet) as maps:
        unet(sample, timestep, text[..., :3])
    recorded = len(maps)
    unet(*inputs)
    assert len(maps) == recorded


def test_weights_by_hand() -> None:
    """Two heads of width 1: the first sees keys 0 and ln 3, the second two equal ones."""
    query = torch.tensor([[[1.0, 7.0]]])
    key = torch.tensor([[[0.0, 2.0], [math.log(3), 2.0]]])
    expected = torch.tensor([[[[0.25, 0.75]], [[0.5, 0.5]]]])
    torch.testing.assert_close(attention_weights(query, key, num_heads=2), expected)


def test_the_mean_is_over_layers_and_heads() -> None:
    """A fine map all on token 0, and a coarse one of two heads, one all on token 0, one all on token 1: 3/4 and 1/4."""
    fine = torch.tensor([1.0, 0.0]).expand(1, 1, 4, 4, 2)
    coarse = torch.eye(2).reshape(1, 2, 1, 1, 2).expand(1, 2, 2, 2, 2)
    mean = mean_attention([AttentionMap("fine", fine), AttentionMap("coarse", coarse)], (4, 4))
    expected = torch.tensor([0.75, 0.25]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    torch.testing.assert_close(mean, expected)
