"""Learning to read: the text encoder tells from a sentence what its picture shows.

The text encoder of Stable Diffusion has learned before the UNet begins, from pictures and their captions (Radford et
al. 2021, "CLIP"). Here it is known what a picture shows, so that none has to be drawn: what could be read in a picture,
the text encoder tells from the sentence. What a sentence leaves open it cannot know.

It tells it at the places behind the sentence, which have nothing else to say. Each speaks for one quarter of the
picture, the quarters in turn, and tells which: a latent that knows its own quarter finds by cross-attention what is to
be drawn there.

It is what makes pairs possible. From the UNet's gradients alone the text encoder had learned kinds, colours and single
places after 23,000 steps, but drew the same for "a zero to the left of a bag" and "a zero to the right of a bag"; so it
learns both in minutes.

Shapes: B batch, L tokens, D width of the text embeddings, K classes of a head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from training.randomness import array_generator, generator
from training.stable_diffusion.config import StableDiffusionConfig, TextEncoderConfig
from training.stable_diffusion.pocket import checkpoint, tokens
from training.stable_diffusion.pocket.captions import Caption, describe
from training.stable_diffusion.pocket.config import TextTraining, TrainConfig
from training.stable_diffusion.pocket.denoiser import Texts, initialise_texts
from training.stable_diffusion.pocket.reading import (
    ABSENT,
    QUARTER_HEADS,
    QUARTERS,
    Heads,
    classes_of_quarter,
    head_losses,
)
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.world import Scene, draw_scene

PREVIEWED = 256  # sentences of which a sheet shows how they were read
BAR_WIDTH, BAR_HEIGHT, GAP = 400, 12, 4  # pixels
BAR, PAPER = (38, 104, 170), 255


class Reader(Texts):
    """The text encoder with a head for each thing that can be told of a quarter of a scene."""

    def __init__(self, config: StableDiffusionConfig) -> None:
        super().__init__(config)
        self.heads = Heads(config.text_encoder.hidden_size, QUARTER_HEADS)

    def forward(self, input_ids: Tensor, places: Tensor) -> dict[str, Tensor]:
        """(B, L) tokens, and for each sentence the token to read from, (B,) -> logits (B, K) by head."""
        logits: dict[str, Tensor] = self.heads(self.embed(input_ids)[torch.arange(len(places)), places])
        return logits


class TextStage:
    """Learning to read sentences."""

    name = "text"

    def __init__(self, config: TrainConfig, sources: Sources, device: torch.device, folder: Path) -> None:
        self.shares: dict[str, float] = {}
        self.config, self.device, self.optimizer = config, device, config.text.optimizer
        self.inputs = hashlib.sha256(b"sentences").hexdigest()  # it learns from no images
        torch.manual_seed(config.seed)
        self.network = Reader(config.model)
        initialise_texts(self.network)
        self.file = folder / checkpoint.TEXT_NAME

    def sections(self, config: TrainConfig) -> tuple[TextTraining, TextEncoderConfig]:
        """The two parts of a configuration that the stage depends on: its training and its network."""
        return config.text, config.model.text_encoder

    def sentences(self, purpose: str, step: int, size: int) -> tuple[list[Scene], list[Caption]]:
        """Scenes of combinations that are not held out, and what is said of them."""
        draws = array_generator(self.config.seed, purpose, step)
        scenes = [draw_scene(draws) for _ in range(size)]
        return scenes, [describe(scene, draws) for scene in scenes]

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The sum of all heads' cross-entropies, and each of them.

        They read from a place behind the sentence that is drawn by lot.
        """
        scenes, captions = self.sentences("text", step, self.optimizer.batch_size)
        input_ids = tokens.encode([caption.text for caption in captions])
        ends = first_ends(input_ids)
        lots = torch.rand(len(ends), generator=generator(self.config.seed, "text-places", step))
        places = ends + (lots * (input_ids.shape[1] - ends)).long()
        logits = self.network(input_ids.to(self.device), places.to(self.device))
        losses = head_losses(logits, classes_at(scenes, places))
        return torch.stack(list(losses.values())).sum(), {name: loss.item() for name, loss in losses.items()}

    @torch.no_grad()
    def preview(self, average: Reader) -> Tensor:
        """For each head a bar as long as the share of sentences that it reads rightly, of all: uint8 (3, H, W)."""
        scenes, captions = self.sentences("text-preview", 0, PREVIEWED)
        input_ids = tokens.encode([caption.text for caption in captions])
        places = first_ends(input_ids)
        read = average(input_ids.to(self.device), places.to(self.device))
        sheet = torch.full((3, len(QUARTER_HEADS) * (BAR_HEIGHT + GAP), BAR_WIDTH), PAPER, dtype=torch.uint8)
        colour = torch.tensor(BAR, dtype=torch.uint8)[:, None, None]
        classes = classes_at(scenes, places)
        for row, (name, logits) in enumerate(read.items()):
            told = torch.tensor([each[name] for each in classes])
            share = float((logits.argmax(1).cpu() == told)[told != ABSENT].float().mean())
            top = row * (BAR_HEIGHT + GAP)
            sheet[:, top : top + BAR_HEIGHT, : round(share * BAR_WIDTH)] = colour
        return sheet

    def publish(self, average: Reader, metadata: dict[str, str]) -> None:
        """Write the text encoder for the next stage once it has learned all it will."""
        if int(metadata["step"]) == self.optimizer.steps:
            checkpoint.write_text_encoder(self.file, average, metadata)


def first_ends(input_ids: Tensor) -> Tensor:
    """Where sentences end: (B, L) -> the first end token of each, (B,)."""
    return (input_ids == tokens.END).int().argmax(1)


def classes_at(scenes: Sequence[Scene], places: Tensor) -> list[dict[str, int]]:
    """What is true of the quarter that each of B places speaks for, (B,), by head."""
    quarters = (places % len(QUARTERS)).tolist()
    return [classes_of_quarter(scene, quarter) for scene, quarter in zip(scenes, quarters, strict=True)]
