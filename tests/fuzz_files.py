"""Files of every kind that a flag may name, whole and broken, for ``tests/test_fuzz.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny_bundle
import tiny_text_bundle
from PIL import Image
from safetensors.numpy import save_file
from test_image_to_image import BROKEN

from runtime.plan import NoiseSchedule, compile_plan
from training.stable_diffusion.tokenizer import TOKENIZER_FILE

WIDTH, HEIGHT = 12, 8


def write_models(folder: Path) -> None:
    """Bundles by name: ``tiny`` of classes, ``tiny-text`` of texts, and ``tiny-fill``, which fills in."""
    tiny_bundle.write(folder)
    tiny_text_bundle.write(folder)
    tiny_text_bundle.write(folder / "told", told=True).rename(folder / "tiny-fill")


def write_inputs(folder: Path) -> None:
    """All the other files."""
    for write in (write_pictures, write_plans, write_lists, write_words):
        write(folder)


def write_pictures(folder: Path) -> None:
    """Pictures of every mode and format, masks, and what is none."""
    pixels = np.random.default_rng(7).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    colours = Image.fromarray(pixels[..., :3])
    for suffix in ("png", "jpg", "webp", "bmp", "gif"):
        colours.save(folder / f"colours.{suffix}")
    colours.convert("P").save(folder / "palette.png", transparency=3)
    colours.convert("L").save(folder / "grey.png")
    colours.convert("1").save(folder / "bits.png")
    Image.fromarray(pixels).save(folder / "clear.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    colours.resize((1, 1)).save(folder / "one.png")
    colours.resize((40, 2)).save(folder / "wide.png")
    exif = colours.getexif()
    exif[0x0112] = 6  # lying on its side
    colours.save(folder / "turned.jpg", exif=exif)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, WIDTH // 2 :], mask[:4, :3] = 255, 100
    Image.fromarray(mask).save(folder / "mask.png")
    Image.new("L", (WIDTH, HEIGHT)).save(folder / "black.png")
    for name, (data, _) in BROKEN.items():
        (folder / f"{name.replace(' ', '-')}.png").write_bytes(data)


def write_plans(folder: Path) -> None:
    own = NoiseSchedule(tiny_bundle.alphas_cumprod())
    other = NoiseSchedule(np.linspace(0.999, 0.01, 1000))
    plan = compile_plan(own, "dpmpp_2m", 5).to_json()
    texts = {
        "plan": json.dumps(plan),
        "from-image": json.dumps(compile_plan(own, "ddim", 8, strength=0.5).to_json()),
        "other": json.dumps(compile_plan(other, "euler", 5).to_json()),
        "no-plan": "[" * 10_000,
        "half-plan": json.dumps(plan)[:500],
        "wrong-plan": json.dumps(plan | {"timesteps": [1e400, None]}),
    }
    for name, text in texts.items():
        (folder / f"{name}.json").write_text(text)


def write_lists(folder: Path) -> None:
    lines: dict[str, list[Any]] = {
        "prompts.txt": ["# a list", "a red circle", "", "blue (square:1.3) BREAK on white"],
        "labels.txt": ["owl", "1"],
        "prompts.jsonl": [{"prompt": "red", "count": 2, "steps": 3}, {"prompt": "blue", "size": "8x8", "seed": 7}],
        "images.jsonl": [{"prompt": "red", "image": "colours.png", "mask": "mask.png"}, {"prompt": "blue"}],
        "labels.jsonl": [{"label": "all", "steps": 2}, {"label": 1, "variation_seed": 3, "variation_strength": 0.5}],
        "fails.jsonl": [{"prompt": "red", "guidance_scale": 1e300}, {"prompt": "blue"}],
        "lost.jsonl": [{"prompt": "red", "image": "missing.png"}, {"prompt": "blue", "image": "text.png"}],
        "many.jsonl": [{"prompt": "red", "count": 50_000}],
        "wrong.jsonl": [{"prompt": 5}],
        "empty.txt": [],
    }
    for name, asked in lines.items():
        said = [each if isinstance(each, str) else json.dumps(each) for each in asked]
        (folder / name).write_text("\n".join(said))
    (folder / "binary.txt").write_bytes(bytes(range(256)))
    (folder / "bomb.jsonl").write_text('{"prompt": ' * 50_000)


def write_words(folder: Path) -> None:
    """Learned words, in a folder of their own."""
    words = folder / "words"
    words.mkdir()
    save_file({"emb_params": np.array([[3, 5], [-2, 7]], np.float32)}, words / "my-style.safetensors")
    save_file({"<toy>": np.array([[1, 3]], np.float32)}, words / "toy.safetensors")
    save_file({"emb_params": np.zeros((1, 768), np.float32)}, words / "wide.safetensors")
    (words / "broken.pt").write_bytes(b"\x80\x02}q\x00.")


def write_clip_model(folder: Path) -> Path:
    """The tiny bundle of texts, with CLIP's own tokenizer and as many rows in its table."""
    model = tiny_text_bundle.write(folder)
    nodes, _ = tiny_text_bundle.nodes()["text_encoder"]
    table = np.random.default_rng(3).standard_normal((49408, tiny_text_bundle.DIM)).astype(np.float32)
    roles = tiny_text_bundle.INPUTS["text_encoder"], tiny_text_bundle.OUTPUTS["text_encoder"]
    files = {
        "text_encoder.onnx": tiny_text_bundle.model(nodes, *roles, {"table": table}),
        "tokenizer.json": TOKENIZER_FILE.read_bytes(),
    }
    described = {name: tiny_text_bundle.described(name, data) for name, data in files.items()}
    for name, data in files.items():
        (model / name).write_bytes(data)
    text = {
        "max_length": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
        "vocab_size": 49408,
        # The model that comes along has such a list, too.
        "known_words": ["a", "blue", "circle", "green", "on", "red", "square", "white"],
    }

    def change(manifest: dict[str, Any]) -> None:
        manifest["graphs"]["text_encoder"]["fp32"] |= described["text_encoder.onnx"]
        manifest["conditioning"] |= text | {"tokenizer": described["tokenizer.json"]}

    return tiny_text_bundle.changed(model, folder, change)
