"""Proves that files which are no LoRAs for the model, or damaged ones, get one clear line, and that the model is then
as it was, even if other files were good."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from lora_files import checkpoint_file, kohya, layers, lora_tensors, random_lora, write_lora
from random_weights import POCKET
from reference_models import one_thread
from safetensors.torch import save_file

from training.stable_diffusion.checkpoint import CheckpointError, load_checkpoint
from training.stable_diffusion.lora import LoraFile, apply_loras

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONVOLUTION = "unet.mid_block.resnets.0.conv1"
DOWN, UP, ALPHA = kohya(LAYER)
STEM = ALPHA.removesuffix(".alpha")


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = checkpoint_file(tmp_path_factory.mktemp("checkpoint") / "model.safetensors")
    return load_checkpoint(path, config=POCKET)


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    return write_lora(path, random_lora(layers(model, "mid_block")))


@pytest.fixture
def tensors(model):
    return lora_tensors(random_lora(layers(model, f"^{LAYER}$|^{CONVOLUTION}$"), rank=4))


def refusal(model, *loras: LoraFile) -> str:
    """The message; the model must keep every weight, in its place."""
    before = layers(model)
    numbers = {name: weight.clone() for name, weight in before.items()}
    with pytest.raises(CheckpointError) as raised:
        apply_loras(model, loras)
    for name, weight in layers(model).items():
        assert weight is before[name]
        assert torch.equal(weight, numbers[name])
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def refusal_of(model, good, tmp_path, tensors, metadata=None) -> str:
    path = tmp_path / "bad.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    message = refusal(model, LoraFile(good), LoraFile(path))
    assert str(path) in message
    return message


def test_names_of_no_layer_are_one_error_that_lists_a_few_and_counts_the_rest(model, good, tmp_path, tensors):
    strange = {f"lora_unet_down_blocks_{i}_strange.lora_down.weight": torch.ones(2, 2) for i in range(7, 12)}
    message = refusal_of(model, good, tmp_path, tensors | strange)
    assert "does not fit this model: 5 unknown (lora_unet_down_blocks_10_strange.lora_down.weight; " in message
    assert " and 2 more); a LoRA's tensors must each belong to a layer of the UNet or the text encoder" in message


@pytest.mark.parametrize(
    "name",
    [
        f"{STEM}.weight",
        f"{STEM}.lora_down",
        "lora_unet_conv.in.lora_down.weight",
        "lora_te_text_model_embeddings_token_embedding.lora_down.weight",
        "unet.conv_norm_out.lora_A.weight",
        "vae.decoder.conv_in.lora_A.weight",
        "line\nbreak \x1b[31m" + "x" * 5000,
    ],
)
def test_names_that_mean_nothing(model, good, tmp_path, tensors, name):
    assert "1 unknown (" in refusal_of(model, good, tmp_path, tensors | {name: torch.ones(2, 2)})


def test_the_same_layer_under_two_names(model, good, tmp_path, tensors):
    twice = {f"{LAYER}.lora_A.weight": tensors[DOWN].clone()}
    assert f"holds down of {LAYER} twice" in refusal_of(model, good, tmp_path, tensors | twice)


def without(name):
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


def with_tensor(name, tensor):
    return lambda tensors: tensors | {name: tensor}


WIDTH = POCKET.unet.levels[-1].channels
PROBLEMS = {
    "up without down": (without(DOWN), f"1 incomplete ({LAYER}: only up)"),
    "down without up": (without(UP), f"1 incomplete ({LAYER}: only down)"),
    "alpha alone": (lambda t: {ALPHA: t[ALPHA]}, f"1 incomplete ({LAYER}: only alpha)"),
    "half a LoHa": (
        lambda t: {f"{STEM}.hada_w1_a": torch.ones(WIDTH, 2)},
        f"1 incomplete ({LAYER}: only hada_w1_a)",
    ),
    "rank 0": (
        lambda t: t | {DOWN: torch.ones(0, 32), UP: torch.ones(WIDTH, 0)},
        f"1 of rank 0 ({LAYER}: down [0, 32] and up [{WIDTH}, 0])",
    ),
    "two ranks": (with_tensor(UP, torch.ones(WIDTH, 3)), f"up, float32 [{WIDTH}, 3], for a weight of [{WIDTH}, 32]"),
    "rank 1 is not spread": (with_tensor(UP, torch.ones(WIDTH, 1)), f"1 misshapen ({LAYER}: up, float32 [{WIDTH}, 1]"),
    "another width": (with_tensor(DOWN, torch.ones(4, 31)), "down, float32 [4, 31], for a weight of"),
    "on its side": (with_tensor(UP, torch.ones(4, WIDTH)), f"up, float32 [4, {WIDTH}], for a weight of"),
    "a kernel for a linear layer": (with_tensor(DOWN, torch.ones(4, 32, 3, 3)), "down, float32 [4, 32, 3, 3]"),
    "another kernel": (
        with_tensor(kohya(CONVOLUTION)[0], torch.ones(4, WIDTH, 5, 5)),
        f"1 misshapen ({CONVOLUTION}: down, float32 [4, {WIDTH}, 5, 5], for a weight of [{WIDTH}, {WIDTH}, 3, 3])",
    ),
    "no matrix": (with_tensor(DOWN, torch.ones(4)), f"1 misshapen ({LAYER}: down, float32 [4])"),
    "a number": (with_tensor(DOWN, torch.tensor(1.0)), "down, float32 []"),
    "whole numbers": (with_tensor(UP, torch.ones(WIDTH, 4, dtype=torch.int8)), f"up, int8 [{WIDTH}, 4]"),
    "many alphas": (with_tensor(ALPHA, torch.ones(4)), f"1 misshapen ({LAYER}: alpha, float32 [4])"),
    "no alpha": (with_tensor(ALPHA, torch.ones(0)), "alpha, float32 [0]"),
    "alpha NaN": (with_tensor(ALPHA, torch.tensor(math.nan)), f"1 not finite ({LAYER}: alpha)"),
    "scale infinite": (with_tensor(f"{STEM}.scale", torch.tensor(math.inf)), f"1 not finite ({LAYER}: scale)"),
    "infinite": (with_tensor(DOWN, torch.full((4, 32), math.inf)), f"1 not finite ({LAYER}: down)"),
    "NaN in half precision": (
        with_tensor(UP, torch.full((WIDTH, 4), math.nan, dtype=torch.float16)),
        f"1 not finite ({LAYER}: up)",
    ),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_tensors_that_cannot_be_merged(model, good, tmp_path, tensors, kind):
    change, expected = PROBLEMS[kind]
    message = refusal_of(model, good, tmp_path, change(tensors))
    assert "bad.safetensors cannot be merged: " in message
    assert expected in message


LOKR = {
    "does not divide": {"lokr_w1": torch.ones(5, 2), "lokr_w2": torch.ones(9, 16)},
    "does not fill": {"lokr_w1": torch.ones(4, 2), "lokr_w2": torch.ones(WIDTH // 4, 15)},
    "nothing": {"lokr_w1": torch.ones(0, 0), "lokr_w2": torch.ones(0, 0)},
    "spread": {"lokr_w1": torch.ones(4, 2), "lokr_w2_a": torch.ones(WIDTH // 4, 1), "lokr_w2_b": torch.ones(2, 16)},
    "core": {
        "lokr_w1": torch.ones(4, 2),
        "lokr_t2": torch.ones(2, 2, 3, 3),
        "lokr_w2_a": torch.ones(2, WIDTH // 4),
        "lokr_w2_b": torch.ones(2, 16),
    },
}


@pytest.mark.parametrize("kind", LOKR)
def test_lokr_that_does_not_fit(model, good, tmp_path, kind):
    factors = {f"{STEM}.{name}": tensor for name, tensor in LOKR[kind].items()}
    assert f"1 misshapen ({LAYER}: lokr_" in refusal_of(model, good, tmp_path, factors)


def test_all_problems_of_a_file_are_one_line(model, good, tmp_path):
    tensors = lora_tensors(random_lora(layers(model, "attentions.*attn1.to_"), rank=2))
    ups = [name for name in tensors if name.endswith("up.weight")]
    for name in ups[:5]:
        del tensors[name]
    for name in ups[5:]:
        tensors[name] = tensors[name] * math.nan
    message = refusal_of(model, good, tmp_path, tensors)
    assert "5 incomplete (" in message
    assert f" and 2 more), {len(ups) - 5} not finite (" in message


# Tensors of files that the web has for other models, and what is said of them.
OTHERS = {
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": "is a LoRA for Stable Diffusion XL",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": "is a LoRA for Stable Diffusion XL",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_k.alpha": "is a LoRA for Stable Diffusion 3",
    "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": "is a LoRA for Flux or another transformer",
    "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "is a LoRA for Flux or another transformer",
    "lora_prior_unet_down_blocks_0_0_channelwise_0.alpha": "is a LoRA for Stable Cascade",
    "unet.down_blocks.0.motion_modules.0.proj_in.lora_A.weight": "is a LoRA for AnimateDiff's motion modules",
    "lora_controlnet": "is a Control-LoRA",
    "model.diffusion_model.out.0.weight": "is a checkpoint and no LoRA",
    "emb_params": "is an embedding (textual inversion) and no LoRA",
    "<a-cat>": "is an embedding (textual inversion) and no LoRA",
    f"{STEM}.dora_scale": f"holds DoRA ({STEM}.dora_scale), not supported; LoRA, LoCon, LoHa and LoKr are",
    f"{LAYER}.lora_magnitude_vector": "holds DoRA",
    f"{LAYER}.lora_magnitude_vector.default.weight": "holds DoRA",
    f"{STEM}.oft_blocks": "holds OFT",
    f"{STEM}.oft_diag": "holds OFT",
    f"{STEM}.on_input": "holds (IA)^3",
    f"{STEM}.a1.weight": "holds GLoRA",
    "lora_unet_conv_norm_out.w_norm": "holds changes of whole weights, norms or biases",
    f"{STEM}.diff": "holds changes of whole weights, norms or biases",
    f"{STEM}.diff_b": "holds changes of whole weights, norms or biases",
    f"{LAYER}.lora_B.bias": "holds changes of whole weights, norms or biases",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_else_a_file_is(model, good, tmp_path, tensors, name):
    assert OTHERS[name] in refusal_of(model, good, tmp_path, tensors | {name: torch.ones(2, 2)})


@pytest.mark.parametrize("name", [DOWN, f"{LAYER}.lora_A.weight", f"{LAYER}.lora.down.weight", f"{STEM}.hada_w1_b"])
@pytest.mark.parametrize(("width", "what"), [(1024, "Stable Diffusion 2"), (2048, "Stable Diffusion XL")])
def test_other_models_by_the_width_of_their_text(model, good, tmp_path, name, width, what):
    assert f"is a LoRA for {what};" in refusal_of(model, good, tmp_path, {name: torch.ones(4, width)})


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_scales_that_are_no_numbers(model, good, scale):
    message = refusal(model, LoraFile(good), LoraFile(good, scale))
    assert f"good.safetensors is {scale}; it must be a finite number, such as 0.8" in message


def test_sums_that_overflow(model, good):
    message = refusal(model, LoraFile(good, 1e39))
    assert ".weight overflow; choose smaller scales" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "its lora_adapter_metadata is not JSON"),
        ("[" * 100_000, "its lora_adapter_metadata is not JSON"),
        ("[]", "its lora_adapter_metadata is not a JSON object"),
        ({"unet.lora_alpha": "4"}, "lora_alpha is '4'; a number above 0"),
        ({"unet.lora_alpha": math.nan}, "lora_alpha is nan; a number above 0"),
        ({"use_dora": True}, "use_dora is True; False, a LoRA without PEFT's variants such as DoRA, is needed"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; 'LORA'"),
        ({"use_rslora": 1}, "use_rslora is 1; true or false"),
        ({"alpha_pattern": [1]}, "alpha_pattern is not a JSON object"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern has '(a+)+$'; only names of layers are supported"),
        ({"alpha_pattern": {"to_k": None}}, "to_k is None; a number above 0"),
    ],
)
def test_settings_that_cannot_be_meant(model, good, tmp_path, tensors, settings, message):
    text = settings if isinstance(settings, str) else json.dumps(settings)
    del tensors[ALPHA]
    assert message in refusal_of(model, good, tmp_path, tensors, {"lora_adapter_metadata": text})


def test_files_that_are_not_there_or_no_files_of_tensors(model, good, tmp_path):
    assert "does not exist" in refusal(model, LoraFile(good), LoraFile(tmp_path / "gone.safetensors"))
    assert "does not exist" in refusal(model, LoraFile(good), LoraFile(tmp_path))
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html></html>")
    assert "is text and no safetensors file" in refusal(model, LoraFile(good), LoraFile(tmp_path / "page.safetensors"))
    (tmp_path / "half.safetensors").write_bytes(good.read_bytes()[:-1])
    assert "cut short or damaged" in refusal(model, LoraFile(good), LoraFile(tmp_path / "half.safetensors"))
    save_file({}, tmp_path / "empty.safetensors")
    assert "holds no tensors" in refusal(model, LoraFile(tmp_path / "empty.safetensors"))


def test_pickles_are_not_run_nor_believed(model, good, tmp_path, tensors):
    torch.save({"weights": tensors, "trained_by": copy.deepcopy}, tmp_path / "code.pt")
    assert "asks for more than weights" in refusal(model, LoraFile(good), LoraFile(tmp_path / "code.pt"))
    huge = torch.ones(1).expand(10**9, 32)  # one number that claims to be 32 billion
    torch.save(tensors | {DOWN: huge, UP: torch.ones(1).expand(WIDTH, 10**9)}, tmp_path / "huge.pt")
    assert "misshapen" in refusal(model, LoraFile(good), LoraFile(tmp_path / "huge.pt"))
    torch.save(tensors | {DOWN: tensors[DOWN].to_sparse()}, tmp_path / "sparse.pt")
    refusal(model, LoraFile(good), LoraFile(tmp_path / "sparse.pt"))
