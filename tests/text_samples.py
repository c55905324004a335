"""A small text-to-image model for the tests of export and of the runtime: a checkpoint, a tokenizer, and a bundle.

``python tests/text_samples.py FOLDER`` exports what lies in a folder, in a process of its own.
"""

from __future__ import annotations

import atexit
import json
import shutil
import string
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from checkpoint_files import original_layout
from random_weights import SMALLEST, random_state
from safetensors.torch import save_file

from export.sd15 import export_sd15
from training.stable_diffusion.config import StableDiffusionConfig
from training.stable_diffusion.tokenizer import TOKENIZER_FILE

CHARACTERS = string.ascii_lowercase + string.digits + ",.!"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = {
    token: number for number, token in enumerate([*CHARACTERS, *(c + "</w>" for c in CHARACTERS), BEGIN, END])
}
CONFIG = replace(SMALLEST, text_encoder=replace(SMALLEST.text_encoder, vocab_size=len(VOCABULARY)))


def write_tokenizer(path: Path) -> Path:
    """CLIP's tokenizer without a merge: a token for each letter, and none for what is not in ``CHARACTERS``."""
    settings = json.loads(TOKENIZER_FILE.read_bytes())
    settings["model"] |= {"vocab": VOCABULARY, "merges": []}
    settings["added_tokens"] = [token | {"id": VOCABULARY[token["content"]]} for token in settings["added_tokens"]]
    settings["post_processor"] |= {"cls": [BEGIN, VOCABULARY[BEGIN]], "sep": [END, VOCABULARY[END]]}
    path.write_text(json.dumps(settings))
    return path


def write_checkpoint(path: Path, config: StableDiffusionConfig = CONFIG) -> Path:
    """A single file in the published layout, with random weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(original_layout(config, random_state(config)), path)
    return path


def export(folder: Path) -> Path:
    """The bundle ``pocket`` of the ``model.safetensors`` and ``tokenizer.json`` beside it."""
    checkpoint, tokenizer = folder / "model.safetensors", folder / "tokenizer.json"
    export_sd15(
        checkpoint, folder / "pocket", config=CONFIG, tokenizer=tokenizer, licence="none", report=lambda _: None
    )
    return folder / "pocket"


@cache
def sample_bundle() -> Path:
    """A bundle, beside what it was made of, made once for all tests; copy it before you change it."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_checkpoint(folder / "model.safetensors")
    write_tokenizer(folder / "tokenizer.json")
    return export(folder)


if __name__ == "__main__":
    export(Path(sys.argv[1]))
