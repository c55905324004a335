"""Proves that learned words tell the U-Net what diffusers tells it: a text encoder of random weights is exported once,
and diffusers loads the same files into the network that was exported."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import checkpoint_files
import numpy as np
import pytest
import random_weights
import reference_models
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from export.sd15 import export_sd15
from runtime import load
from runtime.text_to_image import TextToImage
from training.stable_diffusion.config import SD15, StableDiffusionConfig
from training.stable_diffusion.tokenizer import TOKENIZER_FILE

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # of the largest number
SIZE = random_weights.POCKET.text_encoder.hidden_size
# The smallest networks around a text encoder of three layers that knows CLIP's vocabulary.
CONFIG = replace(
    random_weights.SMALLEST,
    text_encoder=replace(random_weights.POCKET.text_encoder, vocab_size=SD15.text_encoder.vocab_size),
    unet=replace(random_weights.SMALLEST.unet, cross_attention_dim=SIZE),
)


@dataclass(frozen=True)
class Model:
    """A bundle, and the weights it was exported from."""

    bundle: Path
    config: StableDiffusionConfig
    state: dict[str, Tensor]

    def diffusers(self) -> Any:
        """A pipeline of its own for every test, since loading a word changes it."""
        begin, end = "<|startoftext|>", "<|endoftext|>"
        special = {"bos_token": begin, "eos_token": end, "pad_token": end, "unk_token": end}
        parts = {role: reference_models.part(self.state, role) for role in ("text_encoder", "unet", "vae")}
        return StableDiffusionPipeline(
            vae=reference_models.reference_vae(self.config.vae, parts["vae"]),
            text_encoder=reference_models.reference_text_encoder(self.config.text_encoder, parts["text_encoder"]),
            tokenizer=CLIPTokenizer(tokenizer_file=str(TOKENIZER_FILE), model_max_length=77, **special),
            unet=reference_models.reference_unet(self.config.unet, parts["unet"]),
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("learned")
    state = random_weights.random_state(CONFIG)
    save_file(checkpoint_files.original_layout(CONFIG, state), folder / "small.safetensors")
    with reference_models.one_thread():
        export_sd15(folder / "small.safetensors", folder / "bundle", config=CONFIG)
        yield Model(folder / "bundle", CONFIG, state)


def vectors(count: int, seed: int) -> Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed)) / 2


def web_interface(tensor: Tensor, name: str) -> dict[str, Any]:
    held = nn.ParameterDict({"*": nn.Parameter(tensor)})
    return {"string_to_token": {"*": 265}, "string_to_param": held, "name": name, "step": 9}


WRITERS: dict[str, Callable[[Path], Path]] = {}


def writer(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    WRITERS[write.__name__] = write
    return write


@writer
def safetensors(folder: Path) -> Path:
    save_file({"<cat-toy>": vectors(1, 1)}, folder / "learned_embeds.safetensors")
    return folder / "learned_embeds.safetensors"


@writer
def one_vector(folder: Path) -> Path:
    torch.save({"<cat-toy>": vectors(1, 1)[0]}, folder / "learned_embeds.bin")
    return folder / "learned_embeds.bin"


@writer
def several_vectors_before_1_6(folder: Path) -> Path:
    torch.save({"<cat-toy>": vectors(4, 1)}, folder / "x.bin", _use_new_zipfile_serialization=False)
    return folder / "x.bin"


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_word_of_diffusers(model: Model, tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    assert_the_same(model, path, None, "<cat-toy>", path)


@pytest.mark.parametrize("count", [1, 4])
def test_a_word_of_the_web_interfaces(model: Model, tmp_path: Path, count: int) -> None:
    """diffusers calls it by the name inside, as loading by torch alone allows; the web interfaces by the file's."""
    plain = {"string_to_param": {"*": vectors(count, 2)}, "string_to_token": {"*": 265}, "name": "charturnerv2"}
    torch.save(plain, tmp_path / "for-diffusers.pt")
    torch.save(web_interface(vectors(count, 2), "charturnerv2"), tmp_path / "charturnerv2.pt")
    assert_the_same(model, tmp_path / "for-diffusers.pt", "charturnerv2", "charturnerv2", tmp_path / "charturnerv2.pt")


def assert_the_same(model: Model, theirs: Path, token: str | None, name: str, ours: Path) -> None:
    prompt, negative = f"a photo of a {name} on a backpack, {name}!", f"blurry {name}"
    pipeline = model.diffusers()
    pipeline.load_textual_inversion(str(theirs), token=token)
    with torch.no_grad():
        expected = [each.numpy()[0] for each in pipeline.encode_prompt(prompt, "cpu", 1, True, negative)]
    learned = load(model.bundle, "cpu", threads=1, embeddings=ours)
    assert isinstance(learned, TextToImage)
    (group,) = learned.encode(learned.conditions(prompt, negative), 0)
    told = [each["encoder_hidden_states"][0] for each in (group.conditioning.cond, group.conditioning.uncond)]
    bare = load(model.bundle, "cpu", threads=1)
    assert isinstance(bare, TextToImage)
    with warnings.catch_warnings(action="ignore"):  # that <cat-toy> is read as text
        (without,) = bare.encode(bare.conditions(prompt, negative), 0)
    for mine, other in zip(told, expected, strict=True):
        scale = np.abs(other).max()
        difference = np.abs(mine - other).max() / scale
        print(f"{ours.name}: of states up to {scale:.3g} they differ by {difference:.1e} of that")
        assert difference <= TOLERANCE
    plain = without.conditioning.cond["encoder_hidden_states"][0]
    assert np.abs(plain - expected[0]).max() > 0.01 * np.abs(expected[0]).max()  # the word is heard
