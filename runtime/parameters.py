"""What made a picture, in the words of the web interfaces, which read and show the PNG text chunk ``parameters``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.samplers import KNOWN_AS

HASH_DIGITS = 10


def parameters(metadata: Mapping[str, Any]) -> str | None:
    """The text for one picture of a prompt; None for others, of which these interfaces know nothing.

    Args:
        metadata: as ``Result.metadata_of`` has it.
    """
    if "prompt" not in metadata:
        return None
    options = metadata["options"]
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
        "Denoising strength": options.get("strength"),
    }
    lines = [metadata["prompt"]]
    if metadata["negative_prompt"]:
        lines.append(f"Negative prompt: {metadata['negative_prompt']}")
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items() if value is not None))
    return "\n".join(lines)
