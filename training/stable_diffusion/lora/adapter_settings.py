"""The alphas that are written beside the factors, not among them: PEFT's configuration of an adapter.

diffusers keeps it in the metadata of a ``.safetensors`` file; PEFT in ``adapter_config.json`` beside its own.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from training.checkpoint import one_line
from training.errors import CheckpointError
from training.stable_diffusion.checkpoint.settings import Settings

METADATA_KEY = "lora_adapter_metadata"
PEFT_STEM = "adapter_model"
PEFT_CONFIG = "adapter_config.json"
NETWORKS = ("text_encoder", "unet")
IMPLEMENTED: dict[str, Any] = {"bias": "none", "fan_in_fan_out": False, "peft_type": "LORA", "use_dora": False}


@dataclass(frozen=True)
class AdapterSettings:
    """What a configuration says of one network's layers.

    Attributes:
        alpha: the alpha of every layer that ``alphas`` does not name; None where nothing is said.
        alphas: the ends of layers' names, each with its alpha.
        use_rslora: the scale is alpha / sqrt(rank), not alpha / rank (Kalajdzievski 2023, equation 3).
    """

    alpha: float | None = None
    alphas: tuple[tuple[str, float], ...] = ()
    use_rslora: bool = False

    def scale(self, layer: str, rank: int) -> float:
        """What the product of a layer's factors is multiplied by; 1 where nothing is said."""
        alpha = next((alpha for end, alpha in self.alphas if f".{layer}".endswith(f".{end}")), self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_adapter_settings(path: Path) -> dict[str, AdapterSettings]:
    """What the configuration of a LoRA file, whose tensors have been read, says of each network.

    Raises:
        CheckpointError: it is damaged, or asks for what is not implemented.
    """
    config = path.with_name(PEFT_CONFIG)
    if path.stem == PEFT_STEM and config.is_file():
        settings = adapter_settings(Settings.read(config))
        return dict.fromkeys(NETWORKS, settings)
    values = metadata(path)
    return {network: adapter_settings(Settings(path, of_network(network, values))) for network in NETWORKS}


def metadata(path: Path) -> dict[str, Any]:
    """What diffusers has written into a file's metadata, if anything.

    Raises:
        CheckpointError: it is no JSON object.
    """
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    try:
        values = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its {METADATA_KEY} is not JSON ({one_line(error)})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: its {METADATA_KEY} is not a JSON object")
    return values


def of_network(network: str, values: dict[str, Any]) -> dict[str, Any]:
    """A network's own settings, which have its name before theirs unless the file is for one network alone."""
    if not any(name.startswith(tuple(f"{network}." for network in NETWORKS)) for name in values):
        return values
    return {n.removeprefix(f"{network}."): value for n, value in values.items() if n.startswith(f"{network}.")}


def adapter_settings(settings: Settings) -> AdapterSettings:
    settings.require(IMPLEMENTED, "a LoRA without PEFT's variants such as DoRA")
    pattern = settings.values.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{settings.path}: alpha_pattern is not a JSON object")
    alphas = Settings(settings.path, {layer_end(settings.path, name): alpha for name, alpha in pattern.items()})
    return AdapterSettings(
        alpha=settings.number("lora_alpha", 1.0) if "lora_alpha" in settings.values else None,
        alphas=tuple((end, alphas.number(end, 1.0)) for end in alphas.values),
        use_rslora=settings.flag("use_rslora", False),
    )


def layer_end(path: Path, pattern: str) -> str:
    """The end of a layer's name, from a pattern. PEFT reads patterns as regular expressions, but writes only names.

    Raises:
        CheckpointError: it is an expression. A stranger's are not run.
    """
    name = pattern.removeprefix("^")
    if not name.replace(".", "").replace("_", "").isalnum():
        raise CheckpointError(f"{path}: alpha_pattern has {ascii(pattern)[:100]}; only names of layers are supported")
    return name
