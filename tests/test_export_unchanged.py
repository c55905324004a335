"""Proves that a checkpoint, VAE or LoRA which is replaced or rewritten while it is exported is one clear error, so that
a bundle never states the hash of other weights than its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_files import write_folder
from random_weights import random_state
from safetensors.torch import load_file, save_file
from text_samples import CONFIG, write_checkpoint, write_tokenizer

from export.errors import ExportError
from export.sd15 import export_sd15
from export.unchanged import check_unchanged, fingerprints
from training.stable_diffusion.lora import LoraFile

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def rewrite(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [replace, rewrite, os.remove])
def test_a_change_is_seen(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = write_folder(tmp_path / "model", CONFIG, random_state(CONFIG))
    single = write_checkpoint(tmp_path / "model.safetensors")
    for path in (single, folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "vae" / "config.json"):
        before = fingerprints(single, folder)
        check_unchanged(before)
        change(path)
        with pytest.raises(ExportError, match=rf"{path} was changed while it was exported"):
            check_unchanged(before)


def test_what_is_not_read_may_change(tmp_path: Path) -> None:
    (tmp_path / "log.txt").touch()
    before = fingerprints(tmp_path)
    (tmp_path / "log.txt").write_text("step 7\n")
    check_unchanged(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "vae.safetensors", "style.safetensors"])
def test_an_export_of_it_is_an_error(tmp_path: Path, name: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "model.safetensors")
    tensors = load_file(checkpoint)
    vae, lora = tmp_path / "vae.safetensors", tmp_path / "style.safetensors"
    save_file({key: tensor for key, tensor in tensors.items() if key.startswith("first_stage_model.")}, vae)
    weight = tensors["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"]
    save_file({f"{LAYER}.lora_down.weight": weight[:1], f"{LAYER}.lora_up.weight": weight[:, :1].contiguous()}, lora)
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    before = sorted(tmp_path.iterdir())
    said: list[str] = []

    def change_once(line: str) -> None:
        if not said:
            replace(tmp_path / name)
        said.append(line)

    options = {"vae": vae, "loras": [LoraFile(lora)], "config": CONFIG, "tokenizer": tokenizer}
    with pytest.raises(ExportError, match=rf"{name} was changed while it was exported"):
        export_sd15(checkpoint, tmp_path / "small", report=change_once, **options)
    assert said[0].startswith("model.safetensors: read in ")
    assert sorted(tmp_path.iterdir()) == before
