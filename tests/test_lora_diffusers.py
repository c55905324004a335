"""Proves that merged weights are those that diffusers and PEFT fuse: for every layout that they read, for files that
they wrote themselves, for several LoRAs at once, and for LoHa and LoKr, which PEFT has too."""

from __future__ import annotations

import pytest
import torch
from lora_files import (
    assert_equal_weights,
    checkpoint_file,
    diffusers_pipeline,
    fused_by_diffusers,
    layers,
    random,
    random_lora,
    restored,
    weights_of,
    write_lora,
)
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from random_weights import POCKET
from reference_models import one_thread
from safetensors.torch import save_file

from training.stable_diffusion.checkpoint import load_checkpoint
from training.stable_diffusion.lora import LoraFile, apply_loras

# A layer of every kind: CLIP's, a residual block's, a transformer's, and all convolutions.
SOME = r"layers\.1\.|down_blocks\.1\.(resnets\.0|attentions\.0|downsamplers)|unet\.conv_(in|out)|time_embedding"


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    path = checkpoint_file(tmp_path_factory.mktemp("checkpoint") / "model.safetensors")
    return load_checkpoint(path, config=POCKET)


@pytest.fixture
def model(opened):
    with restored(opened):
        yield opened


def named(weights):
    return {f"{name}.weight": weight for name, weight in weights.items()}


def assert_equals_diffusers(model, files, scales):
    apply_loras(model, [LoraFile(path, scale) for path, scale in zip(files, scales, strict=True)])
    assert_equal_weights(fused_by_diffusers(files, scales), named(layers(model)))


# diffusers reads alphas from the kohya scripts' files only; and of alphas that differ among the attentions of one file
# it takes the commonest for all (PEFT warns that it ignores the others), so that here they are equal.
READ_BY_DIFFUSERS = [
    ("kohya", 3.0),
    ("kohya-te1", None),
    ("diffusers-old", None),
    ("diffusers-new", None),
    ("peft", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "alpha"), READ_BY_DIFFUSERS)
def test_every_layer_in_each_layout(model, tmp_path, layout, alpha):
    path = write_lora(tmp_path / "lora.safetensors", random_lora(layers(model), alpha=alpha), layout)
    assert_equals_diffusers(model, [path], [0.7])


def test_several_at_once_with_scales_of_their_own(model, tmp_path):
    one = write_lora(tmp_path / "one.safetensors", random_lora(layers(model, SOME), rank=2, alpha=1.0), "kohya")
    attentions = layers(model, r"layers\.1\.self_attn|down_blocks\.1\.attentions\.0.*attn")
    two = write_lora(tmp_path / "two.safetensors", random_lora(attentions, alpha=None, seed="two"), "peft")
    assert_equals_diffusers(model, [one, two], [-0.4, 1.3])


@pytest.fixture
def trained():
    """diffusers' pipeline with an adapter of PEFT's on both networks, as if trained; its alphas are not its ranks."""
    pipeline = diffusers_pipeline()
    attention = {"r": 4, "lora_alpha": 6, "init_lora_weights": False}
    pattern = {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": 3}
    torch.manual_seed(0)
    pipeline.unet.add_adapter(
        LoraConfig(target_modules=["to_k", "to_out.0", "conv2"], alpha_pattern=pattern, use_rslora=True, **attention)
    )
    pipeline.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj", "fc1"], **attention))
    return pipeline


@pytest.mark.slow
def test_a_file_that_diffusers_has_saved_with_peft_s_configuration(trained, model, tmp_path):
    networks = {"unet": trained.unet, "text_encoder": trained.text_encoder}
    trained.save_lora_weights(
        tmp_path,
        **{f"{n}_lora_layers": get_peft_model_state_dict(network) for n, network in networks.items()},
        **{f"{n}_lora_adapter_metadata": network.peft_config["default"].to_dict() for n, network in networks.items()},
    )
    assert_equals_diffusers(model, [tmp_path / "pytorch_lora_weights.safetensors"], [0.7])


@pytest.mark.slow
def test_a_file_of_the_unet_alone_that_diffusers_has_saved(trained, model, tmp_path):
    trained.unet.save_lora_adapter(tmp_path)
    apply_loras(model, [LoraFile(tmp_path / "pytorch_lora_weights.safetensors")])
    trained.unet.fuse_lora()
    trained.unet.unload_lora()
    reference = {f"unet.{name}": tensor for name, tensor in trained.unet.state_dict().items()}
    assert_equal_weights(reference, named(layers(model, "^unet")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "use_rslora", "safe", "name"),
    [
        ("unet", True, True, "adapter_model.safetensors"),
        ("text_encoder", False, True, "adapter_model.safetensors"),
        ("text_encoder", False, False, "adapter_model.bin"),
    ],
)
def test_a_folder_that_peft_has_saved(model, tmp_path, network, use_rslora, safe, name):
    pipeline = diffusers_pipeline()
    targets = {"unet": ["to_v", "conv1", "proj_in"], "text_encoder": ["out_proj", "fc2"]}[network]
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=targets, use_rslora=use_rslora, init_lora_weights=False)
    adapted = get_peft_model(getattr(pipeline, network), config)
    adapted.save_pretrained(tmp_path, safe_serialization=safe)
    apply_loras(model, [LoraFile(tmp_path / name)])
    setattr(pipeline, network, adapted.merge_and_unload())
    assert_equal_weights(weights_of(pipeline), named(layers(model)))


# Where both of LoKr's matrices are full, LyCORIS, whose files these are, scales by 1, PEFT by alpha / r: only then are
# the two equal here.
LYCORIS = {
    "LoHa": LoHaConfig(r=3, alpha=2),
    "LoHa with cores": LoHaConfig(r=3, alpha=2, use_effective_conv2d=True),
    "LoKr": LoKrConfig(r=2, alpha=3, decompose_factor=2),
    "LoKr with cores": LoKrConfig(r=2, alpha=3, decompose_factor=2, use_effective_conv2d=True),
    "LoKr of four matrices": LoKrConfig(r=1, alpha=3, decompose_factor=4, decompose_both=True),
    "LoKr of full matrices": LoKrConfig(r=64, alpha=64),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LYCORIS)
def test_loha_and_lokr(model, tmp_path, kind):
    """As PEFT computes them, in files as LyCORIS names them."""
    config = LYCORIS[kind]
    config.target_modules = ["to_k", "proj_in", "conv1", "conv"]
    adapted = get_peft_model(diffusers_pipeline().unet, config)
    tensors = {}
    for name, tensor in get_peft_model_state_dict(adapted).items():
        layer, _, factor = name.rpartition(".")
        stem = "lora_unet_" + layer.removeprefix("base_model.model.").replace(".", "_")
        tensors[f"{stem}.{factor}"] = 0.3 * random(name, *tensor.shape)
        tensors[f"{stem}.alpha"] = torch.tensor(float(config.alpha))
        adapted.get_parameter(f"{name}.default").data = tensors[f"{stem}.{factor}"]
    save_file(tensors, tmp_path / "lycoris.safetensors")
    apply_loras(model, [LoraFile(tmp_path / "lycoris.safetensors")])
    reference = {f"unet.{name}": tensor for name, tensor in adapted.merge_and_unload().state_dict().items()}
    assert_equal_weights(reference, named(layers(model, "^unet")))
