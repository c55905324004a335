"""What made a picture, in the words of the web interfaces, which read and show the PNG text chunk ``parameters``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runtime.samplers import KNOWN_AS

HASH_DIGITS, EMBEDDING_HASH_DIGITS = 10, 12
UPSCALERS = {"latents": "Latent", "pixels": "Lanczos"}


def parameters(metadata: Mapping[str, Any]) -> str | None:
    """The text for one picture of a prompt; None for others, and for frames between two pictures, of
    which these interfaces know nothing.

    Args:
        metadata: as ``Result.metadata_of`` has it.
    """
    if "prompt" not in metadata or "share" in metadata:
        return None
    options = metadata["options"]
    strength = options.get("strength", metadata.get("upscale_strength"))
    facts = {
        "Steps": metadata["num_inference_steps"],
        "Sampler": KNOWN_AS.get(metadata["sampler"], metadata["sampler"]),
        "Schedule type": str(options["sigma_spacing"]).capitalize() if options.get("sigma_spacing") else None,
        "CFG scale": metadata["guidance_scale"],
        "Seed": metadata["seed"],
        "Size": f"{metadata['width']}x{metadata['height']}",
        "Model hash": (metadata["bundle_sha256"] or "")[:HASH_DIGITS] or None,
        "Model": metadata["bundle"],
        "Clip skip": metadata["clip_skip"] + 1 if metadata["clip_skip"] else None,  # they count the last layer, too
        "Variation seed": metadata.get("variation_seed"),
        "Variation seed strength": metadata.get("variation_strength"),
        "Denoising strength": strength,
        "Hires upscale": metadata.get("upscale"),
        "Hires steps": metadata.get("upscale_steps"),
        "Hires upscaler": UPSCALERS.get(metadata.get("upscale_by", "")),
        "TI hashes": embedding_hashes(metadata),
    }
    lines = [metadata["prompt"]]
    if metadata["negative_prompt"]:
        lines.append(f"Negative prompt: {metadata['negative_prompt']}")
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items() if value is not None))
    return "\n".join(lines)


def embedding_hashes(metadata: Mapping[str, Any]) -> str | None:
    """Learned words with the begin of their files' SHA-256, in quotes, since there are commas within; None if none."""
    told = [f"{each['name']}: {each['sha256'][:EMBEDDING_HASH_DIGITS]}" for each in metadata.get("embeddings", ())]
    return json.dumps(", ".join(told), ensure_ascii=False) if told else None
