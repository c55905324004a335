"""What a file is instead of a LoRA for Stable Diffusion 1.x, or holds beside one, as far as its names tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from training.errors import CheckpointError
from training.stable_diffusion.checkpoint.contents import MODELS_BY_TEXT_WIDTH

OTHERS = (
    (r"^(lora_te2_|text_encoder_2\.)", "is a LoRA for Stable Diffusion XL"),
    (r"^(lora_te3_|text_encoder_3\.)|joint_blocks", "is a LoRA for Stable Diffusion 3"),
    (r"^(lora_)?transformer[._]|(double|single)_blocks", "is a LoRA for Flux or another transformer"),
    (r"^lora_prior_", "is a LoRA for Stable Cascade"),
    (r"\.motion_modules\.", "is a LoRA for AnimateDiff's motion modules"),
    (r"^lora_controlnet$", "is a Control-LoRA"),
    (r"^(model\.diffusion_model|cond_stage_model|first_stage_model)\.", "is a checkpoint and no LoRA"),
    (r"^emb_params$|^<[^>]*>$", "is an embedding (textual inversion) and no LoRA"),
)
# What adds no difference of factors to a weight, or changes more than the weights of linear layers and convolutions.
UNSUPPORTED = (
    (r"\.(dora_scale|lora_magnitude_vector(\.\w+)*)$", "DoRA"),
    (r"\.(oft_\w+|boft_\w+|oft_R(\.\w+)*|rescale)$", "OFT"),
    (r"\.(on_input|ia3_l(\.\w+)*)$", "(IA)^3"),
    (r"\.[ab][12]\.weight$", "GLoRA"),
    (
        r"\.([wb]_norm|diff|diff_b|set_weight|lora_(B|up|down)(\.default)?\.bias)$",
        "changes of whole weights, norms or biases",
    ),
)

# The factors whose second size is the width of the text embeddings.
LOOKING_AT_TEXT = re.compile(r"attn2[._](processor[._])?to_k[._](lora[._](down|A)(\.\w+)?\.weight|hada_w1_b)$")


def refuse_others(path: Path, tensors: Mapping[str, Tensor], width: int) -> None:
    """Say what a file is, if it is for another model or of another kind.

    Args:
        path: the file, for messages.
        tensors: what is in it.
        width: of the text embeddings that the UNet looks at.

    Raises:
        CheckpointError: it is.
    """
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    for pattern, what in OTHERS:
        if any(re.search(pattern, name) for name in tensors):
            raise CheckpointError(f"{path} {what}; only LoRAs for Stable Diffusion 1.x are supported")
    widths = {tensor.shape[1] for n, tensor in tensors.items() if tensor.ndim > 1 and LOOKING_AT_TEXT.search(n)}
    for other in sorted((widths & MODELS_BY_TEXT_WIDTH.keys()) - {width}):
        model = MODELS_BY_TEXT_WIDTH[other]
        raise CheckpointError(f"{path} is a LoRA for {model}; only LoRAs for Stable Diffusion 1.x are supported")
    for pattern, what in UNSUPPORTED:
        name = next((name for name in tensors if re.search(pattern, name)), None)
        if name is not None:
            raise CheckpointError(f"{path} holds {what} ({shown(name)}), not supported; LoRA, LoCon, LoHa and LoKr are")


def shown(name: str) -> str:
    """A stranger's name for a tensor, fit for a line."""
    return ascii(name)[1:-1][:120]
