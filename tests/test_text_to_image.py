"""Proves the way from prompts to images on networks known in closed form: every number by hand, the same picture
however it is batched and however little memory there is, and one clear line for every bad request."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle
import tiny_text_bundle as tiny
from PIL import Image

from runtime import load
from runtime.errors import BundleError, PromptWarning, RequestError
from runtime.noise import noise_generator
from runtime.session import Session
from runtime.text_to_image import TextToImage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> TextToImage:
    loaded = load(folder, provider="cpu")
    assert isinstance(loaded, TextToImage)
    return loaded


def by_hand(told: float, untold: float, seed: int, guidance: float) -> np.ndarray:
    """Ten steps of DDIM (Song et al. 2021, eq. 12) for the latents of one image, in float64.

    ``told`` and ``untold`` are what the U-Net adds for the prompt and for the negative one.
    """
    abar = tiny.alphas_cumprod()
    x = noise_generator("philox", seed).draw((tiny.CHANNELS, 4, 6)).astype(np.float64)
    timesteps = [99 - 10 * k for k in range(10)]
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        uncond, cond = (x * t / (t + 1) + shift for shift in (untold, told))
        eps = uncond + guidance * (cond - uncond)
        before = 1.0 if following is None else abar[following]
        x0 = (x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
        x = np.sqrt(before) * x0 + np.sqrt(1 - before) * eps
    return x


@pytest.mark.parametrize("clip_skip", [0, 2])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_latents_and_pixels_are_those_computed_by_hand(pipeline: TextToImage, guidance: float, clip_skip: int) -> None:
    result = pipeline("a red circle", negative_prompt="white", guidance_scale=guidance, seed=4, clip_skip=clip_skip)
    latents = by_hand(tiny.shift("a red circle", clip_skip), tiny.shift("white", clip_skip), 4, guidance)
    np.testing.assert_allclose(result.sample[0], latents, rtol=0, atol=1e-5)
    pixels = (latents[:3] / tiny.SCALING_FACTOR).repeat(tiny.FACTOR, 1).repeat(tiny.FACTOR, 2)
    levels = np.clip((pixels + 1) * 127.5, 0, 255).transpose(1, 2, 0)
    assert np.abs(result.images[0] - levels).max() < 0.51
    assert result.images.shape == (1, 8, 12, 3)


def test_images_of_a_prompt_follow_each_other_and_seeds_count_up(pipeline: TextToImage) -> None:
    result = pipeline(["red", "blue"], negative_prompt=["", "a"], num_images_per_prompt=2, seed=7)
    assert [each["prompt"] for each in result.conditions] == ["red", "red", "blue", "blue"]
    assert result.seeds == (7, 8, 9, 10)
    for k, (prompt, negative) in enumerate([("red", ""), ("red", ""), ("blue", "a"), ("blue", "a")]):
        alone = pipeline(prompt, negative_prompt=negative, seed=7 + k)
        assert alone.sample.tobytes() == result.sample[k].tobytes()
        assert alone.images.tobytes() == result.images[k].tobytes()


def test_a_picture_depends_neither_on_its_batch_nor_on_memory(folder: Path, pipeline: TextToImage) -> None:
    prompts = ["red", "blue circle", "", "a green square on white"]
    expected = pipeline(prompts, negative_prompt="blue", seed=3, sampler="dpmpp_2m_sde").sample.tobytes()
    sparing = load(folder, provider="cpu", low_memory=True)
    for drawer in (pipeline, sparing):
        for batch_size in (1, 3, 4):
            options = {"seed": 3, "sampler": "dpmpp_2m_sde", "batch_size": batch_size}
            assert drawer(prompts, negative_prompt="blue", **options).sample.tobytes() == expected


def test_low_memory_holds_one_network_and_takes_the_halves_of_guidance_in_turn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparing = load(folder, provider="cpu", low_memory=True)
    held, rows = set(), []
    run = Session.run

    def watching(self: Session, **inputs: Any) -> Any:
        held.add(tuple(sparing.networks._sessions))
        if "timestep" in inputs:
            rows.append(len(inputs["sample"]))
        return run(self, **inputs)

    monkeypatch.setattr(Session, "run", watching)
    sparing("red", num_inference_steps=3)
    assert held == {("text_encoder",), ("unet",), ("vae_decoder",)}
    assert rows == [1] * 6


@pytest.mark.parametrize("low_memory", [False, True])
def test_threads_share_a_pipeline(folder: Path, low_memory: bool) -> None:
    shared = load(folder, provider="cpu", low_memory=low_memory)

    def draw(seed: int) -> bytes:
        return shared(f"{tiny.WORDS[seed]} circle", seed=seed).sample.tobytes()

    one_after_another = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw, range(8))) == one_after_another
    assert len(set(one_after_another)) == 8


def test_any_size_that_the_latents_allow(pipeline: TextToImage) -> None:
    for width, height in ((2, 2), (2, 40), (26, 14)):
        result = pipeline("red", width=width, height=height, num_inference_steps=2)
        assert result.images.shape == (1, height, width, 3)
        assert result.sample.shape == (1, tiny.CHANNELS, height // 2, width // 2)


def test_a_long_prompt_is_read_to_its_end(pipeline: TextToImage) -> None:
    """Six words are a chunk; the U-Net hears the mean of all that it is told, and of the shorter prompt's padding."""
    with warnings.catch_warnings(action="error"):
        result = pipeline("a red circle on white on a blue square", negative_prompt="red", seed=1, guidance_scale=3)
    told = (tiny.shift("a red circle on white on") + tiny.shift("a blue square")) / 2
    untold = (tiny.shift("red") + tiny.shift("")) / 2
    latents = by_hand(told, untold, 1, 3)
    np.testing.assert_allclose(result.sample[0], latents, rtol=0, atol=1e-5)


def test_weights_scale_what_the_u_net_is_told(pipeline: TextToImage) -> None:
    states = tiny.TABLE[tiny.ids("a red circle")].astype(np.float64)
    weights = np.array([1, 1, 1.5, 1 / 1.1, 1, 1, 1, 1])[:, None]
    states = states * weights * states.mean() / (states * weights).mean()
    (group,) = pipeline.encode([{"prompt": "a (red:1.5) [circle]", "negative_prompt": ""}], 0)
    np.testing.assert_allclose(group.conditioning.cond["encoder_hidden_states"][0], states, rtol=1e-6)


def test_long_prompts_beside_short_ones_change_nothing(pipeline: TextToImage) -> None:
    prompts = ["red", "a red circle on white on a blue square", "blue BREAK square", "green", "a (blue:2) circle"]
    rows = []
    together = pipeline(prompts, seed=5, batch_size=2, progress=lambda done, total: rows.append((done, total)))
    for k, prompt in enumerate(prompts):
        alone = pipeline(prompt, seed=5 + k)
        assert alone.sample.tobytes() == together.sample[k].tobytes()
    steps = pipeline.bundle.defaults.num_inference_steps
    assert rows == [(done, 3 * steps) for done in range(1, 3 * steps + 1)]  # of three and of two images, two at a time


def test_without_guidance_the_negative_prompt_is_not_heard(pipeline: TextToImage) -> None:
    plain = pipeline("red", seed=1, guidance_scale=1)
    told = pipeline("red", negative_prompt="a red circle on white on a blue square", seed=1, guidance_scale=1)
    assert told.sample.tobytes() == plain.sample.tobytes()


def test_a_model_without_an_encoder_of_images_says_so_at_once(folder: Path, tmp_path: Path) -> None:
    bare = tiny.changed(folder, tmp_path, lambda manifest: manifest["graphs"].pop("vae_encoder"))
    with pytest.raises(RequestError, match="has no encoder of images; leave the image out"):
        load(bare, provider="cpu")("red", image=np.zeros((8, 8, 3), np.uint8))


def test_a_prompt_without_end_says_what_was_cut_off(pipeline: TextToImage) -> None:
    with pytest.warns(PromptWarning, match="200 tokens in 34 chunks, of which 192 in 32 ") as said:
        cut = pipeline("red " * 192 + "blue " * 8, seed=1)
    assert len(said) == 1
    assert cut.sample.tobytes() == pipeline("red " * 192, seed=1).sample.tobytes()


def test_a_small_world_names_the_words_it_does_not_know(folder: Path, tmp_path: Path) -> None:
    bundle = tiny.changed(folder, tmp_path, lambda m: m["conditioning"].update(known_words=["red", "circle"]))
    with pytest.warns(UserWarning, match="^'a', 'elephant' are not in this model's world; it knows: red, circle"):
        load(bundle, provider="cpu")("A red elephant", num_inference_steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "there is no prompt to draw"),
        ({"prompt": [7]}, "a prompt must be a string, not int"),
        ({"prompt": [["red"]]}, "a prompt must be a string, not list"),
        ({"prompt": None}, "a prompt must be a string, not NoneType"),
        ({"prompt": 5}, "a prompt must be a string, not int"),
        ({"prompt": b"red"}, "a prompt must be a string, not bytes"),
        ({"negative_prompt": 5}, "a prompt must be a string, not int"),
        ({"negative_prompt": [None]}, "a prompt must be a string, not NoneType"),
        ({"prompt": "bad \udcff byte"}, "the prompt is not text: character 5 is '\\udcff'"),
        ({"prompt": "a" * 1_000_001}, "the prompt has 1000001 characters; at most 1000000 are read"),
        ({"negative_prompt": ["a", "b"]}, "1 prompts have 2 negative prompts; give one, or as many"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"prompt": ["a", "b"], "num_images_per_prompt": 2**30}, f"the number of images is {2**31}; it must be a"),
        ({"width": 0}, "width is 0; it must be a whole number from 2 to 16384"),
        ({"height": -8}, "height is -8; it must be a whole number from 2"),
        ({"width": 7}, "width is 7; tiny-text draws multiples of 2: 6"),
        ({"width": 10**9}, "width is 1000000000; it must be a whole number from 2 to 16384"),
        ({"width": 8.0}, "width is 8.0; it must be a whole number"),
        ({"height": "8"}, "height is '8'; it must be a whole number"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it must be a whole number of at least 1"),
        ({"clip_skip": 4}, "clip_skip is 4; it must be a whole number from 0 to 3"),
        ({"clip_skip": -1}, "clip_skip is -1"),
        ({"strength": 0.5}, "strength 0.5 says how much of an image changes; give one"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_bad_requests_name_the_value_and_what_is_allowed(
    pipeline: TextToImage, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as error:
        pipeline(**{"prompt": "red", **arguments})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_negative_prompt_is_the_empty_one(pipeline: TextToImage) -> None:
    expected = pipeline(["red", "blue"], negative_prompt="", seed=1)
    for negative in (None, ["", ""]):
        assert pipeline(["red", "blue"], negative_prompt=negative, seed=1).sample.tobytes() == expected.sample.tobytes()
    assert {each["negative_prompt"] for each in pipeline("red", negative_prompt=None).conditions} == {""}


@pytest.mark.parametrize("threads", ["2", 0, -1, 1.5, True, 10**6])
def test_threads_are_a_number(folder: Path, threads: Any) -> None:
    with pytest.raises(RequestError, match=r"threads is .*; it must be a whole number from 1 to 1024"):
        load(folder, "cpu", threads=threads)


@pytest.mark.parametrize("columns", [0, -1, 2.0, "2"])
def test_columns_of_a_sheet_are_a_number(pipeline: TextToImage, tmp_path: Path, columns: Any) -> None:
    result = pipeline("red", num_inference_steps=1)
    with pytest.raises(RequestError, match=r"columns is .*; it must be a whole number of at least 1"):
        result.save_grid(tmp_path / "out.png", columns)
    assert list(tmp_path.iterdir()) == []


def test_files_carry_what_made_them(pipeline: TextToImage, tmp_path: Path) -> None:
    result = pipeline("a red circle", negative_prompt="blue", num_images_per_prompt=2, seed=9, clip_skip=1)
    for k, path in enumerate(result.save(tmp_path / "out.png")):
        with Image.open(path) as picture:
            made = json.loads(picture.info["diffusion-anywhere"])
        keys = ("prompt", "negative_prompt", "seed", "width", "height", "clip_skip")
        assert [made[key] for key in keys] == ["a red circle", "blue", 9 + k, 12, 8, 1]
        again = pipeline(made["prompt"], negative_prompt=made["negative_prompt"], seed=made["seed"], clip_skip=1)
        assert again.images[0].tobytes() == result.images[k].tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["conditioning"].update(clip_skip=4), "clip_skip is 4; it must be a whole number from 0 to 3"),
        (lambda m: m["conditioning"].update(eos_token_id=11), "eos_token_id is 11"),
        (lambda m: m["conditioning"].update(embedding_dim=3), "text_encoder.fp32 must have the inputs"),
        (lambda m: m["conditioning"].update(known_words=[]), "known_words must be null or a list of strings"),
        (lambda m: m["conditioning"]["tokenizer"].update(file="../t"), "must be a plain name"),
        (lambda m: m["conditioning"]["tokenizer"].update(size=1), "where the manifest says 1"),
        (
            lambda m: m["latents"].update(channels=5, preview=None),
            "unet_input has 4 channels of sample where the model has 5",
        ),
        (lambda m: m["graphs"].pop("vae_decoder"), "missing here: vae_decoder, unknown: none"),
        (lambda m: m["graphs"].update(magic=m["graphs"]["unet"]), "missing here: none, unknown: magic"),
        (lambda m: m["graphs"]["vae_decoder"]["fp32"]["outputs"][0].update(shape=["b", 4, "h", "w"]), "not sample"),
        (lambda m: m.update(family="class-conditional-ddpm"), "does not go with this conditioning"),
    ],
)
def test_a_wrong_manifest_is_one_clear_line(folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(BundleError) as error:
        load(tiny.changed(folder, tmp_path, change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bundle_without_an_encoder_of_images_draws(folder: Path, tmp_path: Path) -> None:
    bundle = tiny.changed(folder, tmp_path, lambda m: m["graphs"].pop("vae_encoder"))
    assert len(load(bundle, provider="cpu")("red", num_inference_steps=1).images) == 1


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00\xff" * 200, b"[" * 100_000])
def test_a_file_that_is_no_tokenizer_is_named(folder: Path, tmp_path: Path, damage: bytes) -> None:
    described = tiny.described("tokenizer.json", damage)
    bundle = tiny.changed(folder, tmp_path, lambda m: m["conditioning"].update(tokenizer=described))
    (bundle / "tokenizer.json").write_bytes(damage)
    if not damage:
        with pytest.raises(BundleError, match="size is 0"):
            load(bundle)
        return
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer of the tokenizers library"):
        load(bundle, provider="cpu")("red")


def test_an_altered_tokenizer_is_noticed(folder: Path, tmp_path: Path) -> None:
    bundle = tiny.changed(folder, tmp_path, lambda m: None)
    path = bundle / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"circle", b"cIrcle"))
    with pytest.raises(BundleError, match="does not have the SHA-256 of the manifest"):
        load(bundle, provider="cpu")("red")


def test_a_tokenizer_with_more_words_than_the_text_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    larger = tiny.tokenizer().replace(b'"red":4', b'"red":40')
    described = tiny.described("tokenizer.json", larger)
    bundle = tiny.changed(folder, tmp_path, lambda m: m["conditioning"].update(tokenizer=described))
    (bundle / "tokenizer.json").write_bytes(larger)
    with pytest.raises(BundleError, match="gives id 40, but vocab_size is 11"):
        load(bundle, provider="cpu")("red")


def test_variants_are_known_by_name(folder: Path) -> None:
    assert len(load(folder, provider="cpu", variant="fp32")("red", num_inference_steps=1).images) == 1
    with pytest.raises(RequestError, match="variant 'fp61' is unknown; tiny-text has fp32"):
        load(folder, provider="cpu", variant="fp61")


def test_a_graph_for_other_providers_is_not_run(folder: Path, tmp_path: Path) -> None:
    def use(providers: list[str]) -> Any:
        return lambda manifest: manifest["graphs"]["unet"]["fp32"].update(providers=providers)

    elsewhere = tiny.changed(folder, tmp_path, use(["CUDAExecutionProvider"]))
    with pytest.raises(BundleError, match=r"unet\.onnx is for CUDAExecutionProvider, not for CPUExecutionProvider"):
        load(elsewhere, provider="cpu")("red", num_inference_steps=1)
    here = tiny.changed(folder, elsewhere, use(["CUDAExecutionProvider", "CPUExecutionProvider"]))
    assert len(load(here, provider="cpu")("red", num_inference_steps=1).images) == 1


def test_both_kinds_of_bundle_are_pipelines(folder: Path, tmp_path: Path) -> None:
    classes = load(tiny_bundle.write(tmp_path), provider="cpu")
    with pytest.raises(RequestError, match="tiny draws 8x8 pixels only, not 16x8"):
        classes(0, width=16)
    assert classes(0, width=8, height=8).images.shape == (1, 8, 8, 1)
