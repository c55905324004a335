"""Proves that drawing step by step draws what a call draws, and shows at every step what there is."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle
import tiny_text_bundle

from runtime import load
from runtime.class_to_image import ClassToImage
from runtime.errors import RequestError
from runtime.image import to_uint8
from runtime.session import Session
from runtime.text_to_image import TextToImage

TEXT = {"prompt": ["a red circle", "a " * 9, "blue"], "num_images_per_prompt": 2, "batch_size": 2}
CLASSES = {"class_labels": [0, 1, 2, 1], "batch_size": 3}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_text_bundle.write(tmp_path_factory.mktemp("models")), provider="cpu")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_bundle.write(tmp_path_factory.mktemp("models")), provider="cpu")


@pytest.fixture(params=["text", "classes"])
def asked(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """A pipeline, and a request of several batches, of which one of text has prompts of two lengths."""
    return request.getfixturevalue(request.param), TEXT if request.param == "text" else CLASSES


# --- steps ----------------------------------------------------------------------------------------------------------


def test_steps_end_where_a_call_ends(asked: tuple[Any, dict[str, Any]]) -> None:
    pipeline, request = asked
    told: list[tuple[int, int]] = []
    called = pipeline(**request, seed=3, num_inference_steps=4, progress=lambda *rows: told.append(rows))
    steps = list(pipeline.denoise(**request, seed=3, num_inference_steps=4))
    assert [(step.row, step.rows) for step in steps] == told
    result = steps[-1].result()
    assert result.sample.tobytes() == called.sample.tobytes()
    assert result.images.tobytes() == called.images.tobytes()
    assert (result.seeds, result.conditions, result.metadata) == (called.seeds, called.conditions, called.metadata)
    seen = {place: step.sample[k] for step in steps for k, place in enumerate(step.images)}
    assert sorted(seen) == list(range(len(called.images)))
    for place, sample in seen.items():  # the last that was shown of each image
        np.testing.assert_array_equal(sample, called.sample[place])


def test_a_result_is_decoded_once_and_by_the_loop(text: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, run = [], Session.run

    def counting(self: Session, **inputs: Any) -> Any:
        decoded.extend(["latent_sample"] if "latent_sample" in inputs else [])
        return run(self, **inputs)

    monkeypatch.setattr(Session, "run", counting)
    steps = text.denoise("a circle", seed=1, num_inference_steps=3)
    *_, last = itertools.islice(steps, 3)
    assert decoded == []
    assert last.result() is last.result()
    assert list(steps) == []
    *_, step = text.denoise("a circle", seed=1, num_inference_steps=3)
    assert len(decoded) == 2
    assert step.result().images.tobytes() == last.result().images.tobytes()
    assert len(decoded) == 2


def test_a_preview_of_latents_is_the_bundles_map(text: TextToImage) -> None:
    """The tiny decoder is linear, and every latent becomes four pixels of one colour."""
    steps = list(text.denoise("a red circle", seed=3, num_inference_steps=5))
    for step in steps:
        decoded = text.decode(step.pred_original_sample)
        np.testing.assert_array_equal(step.preview, decoded[:, :: tiny_text_bundle.FACTOR, :: tiny_text_bundle.FACTOR])
        assert step.preview is step.preview
    np.testing.assert_allclose(steps[-1].pred_original_sample, steps[-1].sample, atol=1e-5)


def test_a_preview_of_pixels_is_the_predicted_sample(classes: ClassToImage) -> None:
    for step in classes.denoise([0, 1], seed=3, num_inference_steps=3):
        np.testing.assert_array_equal(step.preview, to_uint8(step.pred_original_sample))


def test_a_bundle_without_a_map_has_steps_and_no_preview(tmp_path: Path) -> None:
    folder = tiny_text_bundle.write(tmp_path)
    older = tiny_text_bundle.changed(folder, tmp_path, lambda m: m["latents"].pop("preview"))
    for step in load(older, provider="cpu").denoise("a circle", num_inference_steps=2):
        assert step.preview is None
    assert step.result().images.shape == (1, 8, 12, 3)


def test_an_image_that_stays_as_it_is_has_one_step(asked: tuple[Any, dict[str, Any]]) -> None:
    pipeline, request = asked
    image = np.full((8, 8), 200, np.uint8)
    (step,) = pipeline.denoise(**request, image=image, strength=0, seed=0)
    assert (step.row, step.rows) == (1, 1)
    called = pipeline(**request, image=image, strength=0, seed=0)
    assert step.result().images.tobytes() == called.images.tobytes()
    assert step.images == tuple(range(len(called.images)))


def test_arguments_are_checked_at_once(text: TextToImage, classes: ClassToImage) -> None:
    with pytest.raises(RequestError, match="there is no prompt to draw"):
        text.denoise([])
    with pytest.raises(RequestError, match="label 9 is out of range"):
        classes.denoise(9)


def test_only_the_last_step_has_a_result(classes: ClassToImage) -> None:
    steps = classes.denoise(1, num_inference_steps=3)
    with pytest.raises(RequestError, match="step 1 of 3 has no result; it is there after the last one"):
        next(steps).result()


def test_what_is_looked_at_cannot_be_changed(classes: ClassToImage) -> None:
    step = next(classes.denoise(1, num_inference_steps=3))
    with pytest.raises(ValueError, match="read-only"):
        step.sample[:] = 0


def test_drawings_may_take_turns(text: TextToImage) -> None:
    alone = [text("a circle", seed=seed, num_inference_steps=3).sample.tobytes() for seed in (1, 2)]
    both = [text.denoise("a circle", seed=seed, num_inference_steps=3) for seed in (1, 2)]
    last = list(zip(*both, strict=True))[-1]
    assert [step.result().sample.tobytes() for step in last] == alone


# --- threads --------------------------------------------------------------------------------------------------------


def prompts(k: int) -> dict[str, Any]:
    words = tiny_text_bundle.WORDS
    return {"prompt": " ".join(words[: k + 1]), "negative_prompt": words[k], "seed": k, "num_inference_steps": 4}


def labels(k: int) -> dict[str, Any]:
    return {"class_labels": [k % tiny_bundle.CLASSES, (k + 1) % tiny_bundle.CLASSES], "seed": k, "sampler": "ddpm"}


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(("write", "request_of"), [(tiny_text_bundle.write, prompts), (tiny_bundle.write, labels)])
def test_eight_threads_draw_what_one_draws_from_the_first_moment_on(
    tmp_path: Path, write: Any, request_of: Any, low_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write(tmp_path)
    one = load(bundle, provider="cpu", low_memory=low_memory)
    expected = [one(**request_of(k)) for k in range(8)]
    loaded, begun, load_session = [], threading.Barrier(8), Session.__init__

    def counting(self: Session, *arguments: Any) -> None:
        loaded.append(arguments[1].file.name)
        load_session(self, *arguments)

    monkeypatch.setattr(Session, "__init__", counting)
    shared = load(bundle, provider="cpu", low_memory=low_memory)  # which has loaded nothing yet

    def draw(k: int) -> Any:
        begun.wait()
        if k % 2:
            return shared(**request_of(k))
        *_, last = shared.denoise(**request_of(k))
        return last.result()

    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(draw, range(8)))
    for mine, others in zip(drawn, expected, strict=True):
        assert mine.sample.tobytes() == others.sample.tobytes()
        assert mine.images.tobytes() == others.images.tobytes()
    assert len({each.sample.tobytes() for each in drawn}) == 8
    if not low_memory:
        assert len(loaded) == len(set(loaded))


def test_where_memory_is_short_threads_hold_no_two_of_a_network(tmp_path: Path) -> None:
    networks = load(tiny_text_bundle.write(tmp_path), provider="cpu", low_memory=True).networks
    held = networks.session("unet")
    networks.session("text_encoder")
    assert networks.session("unet") is held
