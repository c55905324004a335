"""Tools have written the names of tensors differently over the years; here they are brought to one spelling."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from training.errors import CheckpointError

Spellings = tuple[tuple[re.Pattern[str], str], ...]

# In single files: a nested state dict that was flattened, the VAE under its short name, CLIP without its inner name.
ORIGINAL: Spellings = (
    (re.compile(r"^state_dict\."), ""),
    (re.compile(r"^vae\."), "first_stage_model."),
    (
        re.compile(r"^cond_stage_model\.transformer\.(?=(embeddings|encoder|final_layer_norm)\.)"),
        "cond_stage_model.transformer.text_model.",
    ),
)

# In diffusers' folders: CLIP without its inner name, as transformers 5 saves it, and the attention of old VAEs.
DIFFUSERS: Spellings = (
    (re.compile(r"^text_encoder\.(?=(embeddings|encoder|final_layer_norm)\.)"), "text_encoder.text_model."),
    (re.compile(r"(?<=\.mid_block\.attentions\.0\.)query\."), "to_q."),
    (re.compile(r"(?<=\.mid_block\.attentions\.0\.)key\."), "to_k."),
    (re.compile(r"(?<=\.mid_block\.attentions\.0\.)value\."), "to_v."),
    (re.compile(r"(?<=\.mid_block\.attentions\.0\.)proj_attn\."), "to_out.0."),
)

# Tensors that are no weights of the three networks: the noise schedule, which the configuration has exactly; what only
# training used; and parts of CLIP and of samplers that were saved along.
IGNORED = re.compile(
    r"betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|logvar|lvlb_weights|scale_factor"
    r"|denoiser\.(log_)?sigmas|model_ema\.(decay|num_updates)|embedding_manager\..*|first_stage_model\.loss\..*"
    r"|first_stage_model\.model_ema\..*|cond_stage_model\.(transformer\.)?(logit_scale|text_projection(\.weight)?)"
    r"|(cond_stage_model\.transformer|text_encoder)\.text_model\.embeddings\.position_ids"
)


def respell(source: Path, tensors: dict[str, Tensor], spellings: Spellings) -> dict[str, Tensor]:
    """Tensors under their proper names, without those that do not matter.

    Raises:
        CheckpointError: two names mean the same tensor.
    """
    proper: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        spelled = name
        for pattern, replacement in spellings:
            spelled = pattern.sub(replacement, spelled)
        if spelled in proper:
            raise CheckpointError(f"{source} holds {spelled} twice, under different names")
        if not IGNORED.fullmatch(spelled):
            proper[spelled] = tensor
    return proper
