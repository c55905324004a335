"""Proves that LoRA files of every layout add what the formula says, W + scale · alpha / rank · (up @ down), computed
here by other means; that alphas and shapes are read as the tools that write them mean them; that neither the order of
the files nor their layout changes a weight; and that nothing else is touched, the checkpoint's file least of all."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import (
    LAYOUTS,
    assert_equal_weights,
    checkpoint_file,
    kohya,
    layers,
    lora_tensors,
    random,
    random_lora,
    restored,
    write_lora,
)
from random_weights import POCKET
from reference_models import one_thread
from safetensors.torch import save_file

from training.stable_diffusion.checkpoint import load_checkpoint
from training.stable_diffusion.checkpoint.networks import without_weights
from training.stable_diffusion.config import SD15
from training.stable_diffusion.lora import LoraFile, apply_loras
from training.stable_diffusion.lora.names import find_layers, text_encoder_names, unet_names

HALF_A_PLACE = 2**-24  # of a float32: what one rounding may cost
LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2"
ONE_BY_ONE = "unet.mid_block.attentions.0.proj_in"
CONVOLUTION = "unet.mid_block.resnets.0.conv1"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_file(tmp_path_factory.mktemp("checkpoint") / "model.safetensors")


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def opened(checkpoint):
    return load_checkpoint(checkpoint, config=POCKET)


@pytest.fixture
def model(opened):
    with restored(opened):
        yield opened


def expected(weights, *scaled):
    """The formula in float64, for changes and their scales."""
    sums = {name: weight.double() for name, weight in weights.items()}
    for changes, scale in scaled:
        for name, change in changes.items():
            sums[name] = sums[name] + scale * change.difference
    return sums


@pytest.fixture(scope="module")
def merged(opened, tmp_path_factory):
    """A change of every layer, with ranks and alphas of their own, and the weights when the kohya layout is merged."""
    changes = random_lora(layers(opened))
    path = write_lora(tmp_path_factory.mktemp("kohya") / "lora.safetensors", changes)
    with restored(opened) as model:
        apply_loras(model, [LoraFile(path, 0.7)])
        return changes, layers(model)


def test_every_layer_gets_the_weights_of_the_formula(opened, merged):
    changes, weights = merged
    assert_equal_weights(weights, expected(layers(opened), (changes, 0.7)), HALF_A_PLACE)


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"kohya"}))
def test_every_layout_gives_the_same_bits(model, merged, tmp_path, layout):
    changes, weights = merged
    apply_loras(model, [LoraFile(write_lora(tmp_path / "lora.safetensors", changes, layout), 0.7)])
    for name, weight in layers(model).items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("layout", ["diffusers-old", "diffusers-new", "peft"])
@pytest.mark.parametrize("prefix", ["text_encoder.", "base_model.model.", ""])
def test_text_encoders_may_lack_their_inner_name(model, tmp_path, layout, prefix):
    """transformers 5 has dropped it; and a file of one network alone need not name the network."""
    before = layers(model, "^text_encoder")
    changes = random_lora(before)
    tensors = lora_tensors(changes, layout)
    save_file(
        {n.replace("text_encoder.text_model.", prefix): t for n, t in tensors.items()}, tmp_path / "l.safetensors"
    )
    apply_loras(model, [LoraFile(tmp_path / "l.safetensors")])
    assert_equal_weights(layers(model), expected(before, (changes, 1.0)), HALF_A_PLACE)


def test_names_of_the_full_size_model():
    networks = without_weights(SD15)
    found = find_layers({"text_encoder": networks.text_encoder, "unet": networks.unet})
    # As the kohya scripts say in their log: 72 layers of the text encoder, and 192 of the UNet's transformers.
    assert sum(name.startswith("text_encoder.") for name in found) == 72
    assert sum(".attentions." in name for name in found if name.startswith("unet.")) == 192
    names = [
        spelled
        for name in found
        for spelled in (
            unet_names(name.removeprefix("unet."), f"original.{name}")
            if name.startswith("unet.")
            else text_encoder_names(name.removeprefix("text_encoder."))
        )
    ]
    assert len(set(names)) == len(names)


def merged_once(model, tensors, path, scale=1.0):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    apply_loras(model, [LoraFile(path, scale)])
    return layers(model)


@pytest.mark.parametrize(
    ("numbers", "scale"),
    [
        ({"alpha": torch.tensor(2.0)}, 0.5),
        ({"alpha": torch.tensor([6.0])}, 1.5),
        ({"alpha": torch.tensor(2.0, dtype=torch.bfloat16)}, 0.5),
        ({"alpha": torch.tensor(2)}, 0.5),
        ({}, 1.0),
        ({"alpha": torch.tensor(0.0)}, 1.0),
        ({"scale": torch.tensor(0.25)}, 0.25),
        ({"alpha": torch.tensor(2.0), "scale": torch.tensor(3.0)}, 3.0),
    ],
    ids=["number", "vector", "bfloat16", "whole", "missing", "zero", "scale", "scale and alpha"],
)
def test_alpha(model, tmp_path, numbers, scale):
    """alpha / rank; without one, or with 0, as if it were the rank; stable-diffusion.cpp's scale in place of both."""
    before = layers(model, LINEAR)
    changes = random_lora(before, rank=4, alpha=None)
    stem = kohya(LINEAR)[2].removesuffix(".alpha")
    tensors = lora_tensors(changes) | {f"{stem}.{name}": number for name, number in numbers.items()}
    after = merged_once(model, tensors, tmp_path / "lora.safetensors", 0.5)
    assert_equal_weights(after, expected(before, (changes, 0.5 * scale)), HALF_A_PLACE)


SHAPES = {
    "a linear layer's as those of a 1 x 1 convolution": (LINEAR, lambda t: t[:, :, None, None]),
    "a 1 x 1 convolution's as matrices": (ONE_BY_ONE, lambda t: t[:, :, 0, 0]),
    "a 3 x 3 convolution's as matrices": (CONVOLUTION, lambda t: t.flatten(1)),
}


@pytest.mark.parametrize("form", SHAPES)
def test_factors_in_other_shapes(model, tmp_path, form):
    name, reshape = SHAPES[form]
    before = layers(model, f"^{name}$")
    changes = random_lora(before)
    tensors = {n: reshape(t) if t.ndim else t for n, t in lora_tensors(changes).items()}
    after = merged_once(model, tensors, tmp_path / "lora.safetensors")
    assert_equal_weights(after, expected(before, (changes, 1.0)), HALF_A_PLACE)


def test_locon_with_a_core(model, tmp_path):
    """Down to the rank by 1 x 1, a 3 x 3 within it, up by 1 x 1: the kernel that three convolutions in a row make."""
    weight = layers(model, f"^{CONVOLUTION}$")[CONVOLUTION]
    r, out, inputs = 3, *weight.shape[:2]
    down, mid, up = random("d", r, inputs, 1, 1), random("m", r, r, 3, 3), random("u", out, r, 1, 1)
    names = kohya(CONVOLUTION)
    tensors = {names[0]: down, names[1]: up, names[0].replace("down", "mid"): mid, names[2]: torch.tensor(1.5)}
    difference = torch.einsum("op,pqhw,qi->oihw", up[:, :, 0, 0].double(), mid.double(), down[:, :, 0, 0].double())
    after = merged_once(model, tensors, tmp_path / "lora.safetensors", 0.2)
    assert_equal_weights(after, {CONVOLUTION: weight.double() + 0.2 * 1.5 / r * difference}, HALF_A_PLACE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_merged_as_exactly(model, tmp_path, dtype):
    before = layers(model, "mid_block")
    changes = random_lora(before)
    tensors = {name: tensor.to(dtype) for name, tensor in lora_tensors(changes).items()}
    after = merged_once(model, tensors, tmp_path / "lora.safetensors")
    stored = {
        name: type(change)(change.down.to(dtype), change.up.to(dtype), change.alpha) for name, change in changes.items()
    }
    assert_equal_weights(after, expected(before, (stored, 1.0)), HALF_A_PLACE)


@pytest.mark.parametrize(("ending", "nested"), [(".pt", False), (".bin", False), (".ckpt", True)])
def test_pickled_files(model, tmp_path, ending, nested):
    before = layers(model, "mid_block")
    changes = random_lora(before)
    tensors = lora_tensors(changes)
    path = tmp_path / f"lora{ending}"
    torch.save({"state_dict": tensors} if nested else tensors, path)
    apply_loras(model, [LoraFile(path)])
    assert_equal_weights(layers(model), expected(before, (changes, 1.0)), HALF_A_PLACE)


@pytest.fixture(scope="module")
def three(opened, tmp_path_factory):
    """Three LoRAs of different ranks, layouts and layers, some of which all of them change."""
    weights = layers(opened, "mid_block|layers.0|down_blocks.0.resnets")
    folder = tmp_path_factory.mktemp("three")
    found = []
    for i, layout in enumerate(("kohya", "peft", "diffusers-old")):
        changes = random_lora(dict(itertools.islice(weights.items(), i, None, i + 1)), seed=layout)
        found.append((write_lora(folder / f"{layout}.safetensors", changes, layout), changes))
    return found


@settings(max_examples=10, deadline=None)
@given(
    order=st.permutations(range(3)),
    scales=st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=3, max_size=3),
)
def test_the_order_of_files_does_not_matter(opened, three, order, scales):
    """Nor does rounding: a sum of three differs from the exact one by no more than a single rounding."""
    files = [LoraFile(path, scale) for (path, _), scale in zip(three, scales, strict=True)]
    sums = expected(layers(opened), *((changes, lora.scale) for (_, changes), lora in zip(three, files, strict=True)))
    for given_order in (range(3), order):
        with restored(opened) as model:
            apply_loras(model, [files[i] for i in given_order])
            assert_equal_weights(layers(model), sums, HALF_A_PLACE)


def test_a_file_given_twice_is_added_twice(model, three):
    path, changes = three[0]
    before = layers(model)
    apply_loras(model, [LoraFile(path, 0.5), LoraFile(path, 0.25)])
    assert_equal_weights(layers(model), expected(before, (changes, 0.75)), HALF_A_PLACE)


def places(model):
    """Where each tensor of a model lies."""
    return {
        f"{network}.{name}": tensor.data_ptr()
        for network in ("text_encoder", "unet", "vae")
        for name, tensor in getattr(model, network).state_dict().items()
    }


def test_nothing_else_is_touched(checkpoint, three):
    model = load_checkpoint(checkpoint, config=POCKET)
    bytes_before = checkpoint.read_bytes()
    before = places(model)
    path, changes = three[1]
    apply_loras(model, [LoraFile(path)])
    after = places(model)
    assert {name for name in before if before[name] != after[name]} == {f"{name}.weight" for name in changes}
    assert checkpoint.read_bytes() == bytes_before
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())
    assert {weight.dtype for weight in layers(model).values()} == {torch.float32}


def test_what_is_written_down(model, three):
    files = [LoraFile(path, scale) for (path, _), scale in zip(three, (1.0, 0.8, -0.5), strict=True)]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path, _ in three]
    assert apply_loras(model, files) == [
        {"source": "kohya.safetensors", "sha256": digests[0], "scale": 1.0},
        {"source": "peft.safetensors", "sha256": digests[1], "scale": 0.8},
        {"source": "diffusers-old.safetensors", "sha256": digests[2], "scale": -0.5},
    ]
    assert apply_loras(model, []) == []
