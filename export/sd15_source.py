"""Opening a Stable Diffusion 1.x checkpoint for export: its networks, its tokenizer, and where all of it came from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from export.bundle import exporter_versions
from export.errors import ExportError
from export.tokenizer import TextTokenizer, find_tokenizer
from export.unchanged import Fingerprint, check_unchanged, fingerprints
from training import configuration
from training.checkpoint import one_line
from training.errors import CheckpointError
from training.stable_diffusion.checkpoint import StableDiffusion, load_checkpoint
from training.stable_diffusion.checkpoint.load import files_sha256
from training.stable_diffusion.config import SD15, StableDiffusionConfig
from training.stable_diffusion.lora import LoraFile, apply_loras
from training.stable_diffusion.pocket.checkpoint import CONFIG_KEY, KNOWN_WORDS_KEY, MODEL
from training.stable_diffusion.pocket.config import IMAGE_SIZE

LATENT_SIDE = 64  # that of Stable Diffusion 1.5's training; a checkpoint does not say
COLOURS = 3  # channels of pictures


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported, ready to be traced.

    Attributes:
        model: the networks, with all LoRAs merged.
        tokenizer: of its prompts.
        provenance: the manifest's.
        known_words: of a model of a small world, or None.
        image_size: pixels a side of the pictures that it was trained with.
        files: what the checkpoint, VAE and LoRAs were read from, as they were before; the weights lie in them still.
    """

    model: StableDiffusion
    tokenizer: TextTokenizer
    provenance: dict[str, Any]
    known_words: tuple[str, ...] | None
    image_size: int
    files: Mapping[Path, Fingerprint]


def open_source(
    checkpoint: str | Path,
    *,
    vae: Path | None,
    loras: Sequence[LoraFile],
    use_ema: bool,
    prediction_type: str | None,
    zero_terminal_snr: bool,
    config: StableDiffusionConfig | None,
    tokenizer: Path | None,
    licence: str,
) -> Source:
    """Read everything; the arguments are those of ``export.sd15.export_sd15``, which says what they raise."""
    files = fingerprints(Path(checkpoint), *([vae] if vae else []), *(lora.path for lora in loras))
    stated, known_words = stated_by(Path(checkpoint))
    model = load_checkpoint(
        checkpoint,
        use_ema=use_ema,
        vae=vae,
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        config=config or stated or SD15,
    )
    for name in ("in_channels", "out_channels"):
        if getattr(model.config.vae, name) != COLOURS:
            raise ExportError(
                f"{checkpoint}: the VAE's {name} is {getattr(model.config.vae, name)}; pictures have {COLOURS} channels"
            )
    merged = apply_loras(model, loras) if loras else []
    folder = model.provenance.files[0].parents[1] if model.provenance.layout == "diffusers-folder" else None
    source = Source(
        model=model,
        tokenizer=find_tokenizer(folder, tokenizer, model.config.text_encoder),
        provenance=describe_provenance(model, vae, merged, licence),
        known_words=known_words,
        image_size=LATENT_SIDE * model.config.vae.factor if stated is None else IMAGE_SIZE,
        files=files,
    )
    check_unchanged(files)
    return source


def stated_by(path: Path) -> tuple[StableDiffusionConfig | None, tuple[str, ...] | None]:
    """Sizes and known words that a single file of this project's own training states; None where a file does not.

    Raises:
        CheckpointError: it states them, but not legibly.
    """
    if path.suffix != ".safetensors":
        return None, None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return None, None  # load_checkpoint says what is wrong with it
    if metadata.get("format") != MODEL.format:
        return None, None
    try:
        words = json.loads(metadata[KNOWN_WORDS_KEY])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{KNOWN_WORDS_KEY} is no list of words")
        return configuration.from_json(StableDiffusionConfig, metadata[CONFIG_KEY]), tuple(words)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} does not state its own sizes: {one_line(error)}") from error


def describe_provenance(
    model: StableDiffusion, vae: Path | None, loras: Sequence[dict[str, Any]], licence: str
) -> dict[str, Any]:
    """The manifest's ``provenance``: whose weights, and what was done to them."""
    provenance = model.provenance
    own = provenance.files[: len(provenance.files) - len(provenance.vae_files)]
    training = {
        "config": dataclasses.asdict(model.config),
        "layout": provenance.layout,
        "use_ema": provenance.use_ema,
        "vae": None if vae is None else {"source": vae.resolve().name, "sha256": files_sha256(provenance.vae_files)},
        "loras": list(loras),
    }
    return {
        "source": provenance.source,
        "sha256": files_sha256(own),
        "licence": licence,
        "training": training,
        "exporter": exporter_versions(),
    }
