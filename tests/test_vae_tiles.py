"""Proves that an image decoded or encoded in tiles is the one decoded whole, as far as the network's reach allows.

Most networks here are convolutions made by hand, so that what tiles may change is known. What they change in the real
decoder, whose normalisations see a tile only, is measured at full size with random weights.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_bundle
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from runtime.bundle import File, TensorSpec, open_bundle
from runtime.errors import RequestError
from runtime.session import Session
from runtime.vae import Tiling, decode, encode, spans, weighted_spans

FACTOR, SCALE = 8, 0.18215
SMALL = Tiling(tile=8, overlap=2)
RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((3, 4, 3, 3)).astype(np.float32)
POINTWISE = RNG.standard_normal((8, 3, FACTOR, FACTOR)).astype(np.float32)
Shape = tuple[int | str, ...]


def session(folder: Path, source: tuple[str, Shape], result: tuple[str, Shape], nodes: list[onnx.NodeProto]) -> Session:
    values = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)] for name, shape in (source, result)]
    weights = {"kernel": KERNEL, "pointwise": POINTWISE, "scales": np.array([1, 1, FACTOR, FACTOR], np.float32)}
    used = {name for node in nodes for name in node.input}
    initializers = [numpy_helper.from_array(weights[name], name) for name in weights if name in used]
    graph = helper.make_graph(nodes, "vae", *values, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "vae.onnx")
    return opened(folder, ["vae.onnx"], source, result, threads=1)


def opened(
    folder: Path, names: list[str], source: tuple[str, Shape], result: tuple[str, Shape], threads: int | None = None
) -> Session:
    """A graph, and the files its weights lie in, as a session of a bundle."""
    bundle = dataclasses.replace(open_bundle(tiny_bundle.write(folder)), folder=folder)
    file, *external_data = (File(name, (folder / name).stat().st_size, None) for name in names)
    variant = dataclasses.replace(
        bundle.graph("unet"),
        file=file,
        external_data=tuple(external_data),
        inputs=(TensorSpec(source[0], "float32", source[1]),),
        outputs=(TensorSpec(result[0], "float32", result[1]),),
    )
    return Session(bundle, variant, threads=threads)


LATENTS: tuple[str, Shape] = ("latent_sample", ("batch", 4, "h", "w"))
PIXELS: tuple[str, Shape] = ("sample", ("batch", 3, "height", "width"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A 3x3 convolution with zero padding on the latents, then eight pixels for each: it sees one latent further."""
    nodes = [
        helper.make_node("Conv", ["latent_sample", "kernel"], ["mixed"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["mixed", "", "scales"], ["sample"], mode="nearest"),
    ]
    return session(tmp_path_factory.mktemp("decoder"), LATENTS, PIXELS, nodes)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A convolution over the eight by eight pixels of each latent: it sees no further, so that tiles change nothing."""
    nodes = [helper.make_node("Conv", ["sample", "pointwise"], ["latent_parameters"], strides=[FACTOR, FACTOR])]
    parameters: tuple[str, Shape] = ("latent_parameters", ("batch", 8, "h", "w"))
    return session(tmp_path_factory.mktemp("encoder"), PIXELS, parameters, nodes)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


SIZES = [(8, 8), (9, 8), (65, 63), (1, 40), (40, 1), (23, 100), (16, 17)]


@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_the_encoder_are_the_whole(encoder: Session, size: tuple[int, int]) -> None:
    image = noise(3, size[0] * FACTOR, size[1] * FACTOR)
    whole = encode(encoder, image, SCALE, FACTOR)
    assert whole.shape == (4, *size)
    assert whole.dtype == np.float32
    mean = encoder.run(sample=image[None])["latent_parameters"][0, :4]
    np.testing.assert_array_equal(whole, mean * np.float32(SCALE))
    np.testing.assert_allclose(encode(encoder, image, SCALE, FACTOR, SMALL), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_the_decoder_are_the_whole_but_where_they_see_an_edge(decoder: Session, size: tuple[int, int]) -> None:
    """A tile is wrong in its outermost latent, and there it weighs 0.043 at most: 3 t² - 2 t³ at 1/8 of the overlap."""
    latents = noise(4, *size)
    whole = decode(decoder, latents, SCALE, FACTOR)
    assert whole.shape == (3, size[0] * FACTOR, size[1] * FACTOR)
    assert whole.dtype == np.float32
    tiling = Tiling(tile=32, overlap=8)
    off = np.abs(decode(decoder, latents, SCALE, FACTOR, tiling) - whole)
    assert off.max() < 0.05 * np.abs(whole).max()
    edges = [{edge for begin, end in spans(side, tiling) for edge in (begin, end - 1)} - {0, side - 1} for side in size]
    rows, columns = (
        np.isin(np.arange(side * FACTOR) // FACTOR, list(edge)) for side, edge in zip(size, edges, strict=True)
    )
    untouched = off[:, ~rows][:, :, ~columns]
    assert untouched.size == 0 or untouched.max() < 1e-5 * np.abs(whole).max()


def test_what_is_no_larger_than_a_tile_is_decoded_whole(decoder: Session) -> None:
    latents = noise(4, 64, 64)
    whole = decode(decoder, latents, SCALE, FACTOR)
    np.testing.assert_array_equal(decode(decoder, latents, SCALE, FACTOR, Tiling()), whole)
    np.testing.assert_array_equal(decode(decoder, latents[None], SCALE, FACTOR), whole)


def test_images_of_odd_sizes_are_refused(encoder: Session) -> None:
    with pytest.raises(RequestError, match="the image is 20x16; both sides must be multiples of 8"):
        encode(encoder, noise(3, 16, 20), SCALE, FACTOR)


def test_another_factor_is_refused(decoder: Session) -> None:
    for tiles in (None, SMALL):
        with pytest.raises(RequestError, match=r"where .* was due; the model's factor"):
            decode(decoder, noise(4, 16, 16), SCALE, 4, tiles)


@pytest.mark.parametrize("overlap", [-1, 0, 33])
def test_overlaps_that_cannot_be_blended_are_refused(overlap: int) -> None:
    with pytest.raises(RequestError, match="it must be 1 to half a tile, 32"):
        Tiling(64, overlap)


tilings = st.integers(4, 80).flatmap(lambda tile: st.builds(Tiling, st.just(tile), st.integers(1, tile // 2)))


@given(st.integers(1, 600), tilings)
def test_tiles_cover_every_size_and_are_as_few_and_as_large_as_they_can(size: int, tiling: Tiling) -> None:
    found = spans(size, tiling)
    assert found[0][0] == 0
    assert found[-1][1] == size
    assert {end - begin for begin, end in found} == {min(size, tiling.tile)}
    assert all(before[1] - after[0] >= tiling.overlap for before, after in itertools.pairwise(found))
    assert len(found) == 1 or len(found) == -(-(size - tiling.overlap) // (tiling.tile - tiling.overlap))


@given(st.integers(1, 300), tilings, st.sampled_from([1, 2, 8]))
def test_weights_add_up_to_one(size: int, tiling: Tiling, pixels: int) -> None:
    total = np.zeros(size * pixels)
    for begin, end, weights in weighted_spans(size, tiling, pixels):
        assert (weights >= 0).all()
        total[begin * pixels : end * pixels] += weights
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)


def test_one_tile_fades_into_the_next_without_a_corner() -> None:
    """The weights' slope begins and ends near zero, so that a difference between tiles shows no edge."""
    (_, first_end, weights), (second_begin, _, _) = weighted_spans(112, Tiling(64, 16), 8)
    assert first_end - second_begin == 16
    slope = -np.diff(weights.astype(np.float64)[second_begin * 8 - 1 :])
    assert (slope >= 0).all()
    assert max(slope[0], slope[-1]) < 0.06 * slope.max()
    assert slope.max() < 1.6 / (16 * 8)


def latents_like_pictures(size: int) -> np.ndarray:
    """Latents with a 1/f spectrum, float32 (4, size, size), of the scale that the sampler leaves: what differs most
    from place to place, so that normalising over a tile differs most from normalising over all."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    frequency[0, 0] = 1 / size
    field = np.fft.ifft2(np.fft.fft2(RNG.standard_normal((4, size, size))) / frequency).real
    scaled = (field - field.mean((1, 2), keepdims=True)) / field.std((1, 2), keepdims=True)
    return scaled.astype(np.float32)


@pytest.mark.full
def test_the_full_size_decoder_shows_no_seam(tmp_path: Path) -> None:
    """What tiles change is no steeper where they meet than elsewhere, and small beside the picture's own gradient."""
    import random_weights
    from torch import device

    from export.sd15_graphs import Decode, vae_decoder_spec
    from export.trace import trace
    from training.stable_diffusion.config import SD15
    from training.stable_diffusion.vae import AutoencoderKL

    with device("meta"):
        vae = AutoencoderKL(SD15.vae)
    weights = {name: random_weights.random_tensor(f"vae.{name}", each.shape) for name, each in vae.state_dict().items()}
    vae.load_state_dict(weights, assign=True)
    traced = trace(vae_decoder_spec(Decode(vae), SD15), tmp_path / "vae.onnx")
    names = [traced.path.name, *([traced.external_data.name] if traced.external_data else [])]
    session = opened(tmp_path, names, LATENTS, PIXELS)

    latents, tiling = latents_like_pictures(64), Tiling(tile=40, overlap=10)
    whole = decode(session, latents, SCALE, FACTOR)
    off = decode(session, latents, SCALE, FACTOR, tiling) - whole
    (_, left_end), (right_begin, _) = spans(64, tiling)
    seam = np.zeros(64 * FACTOR, bool)
    seam[right_begin * FACTOR - 1 : left_end * FACTOR] = True
    columns = np.abs(np.diff(off, axis=2)).mean((0, 1))
    own = np.abs(np.diff(whole, axis=2)).mean()
    print(
        f"pixels' deviation {whole.std():.3f}, error {np.sqrt(np.mean(off**2)):.4f} (root mean square), its gradient "
        f"in seams {columns[seam[1:]].mean():.4f}, at its worst column {columns[seam[1:]].max():.4f}, elsewhere "
        f"{columns[~seam[1:]].mean():.4f}, of the picture {own:.4f}"
    )
    assert columns[seam[1:]].mean() < 1.2 * columns[~seam[1:]].mean()
    assert columns[seam[1:]].max() < 1.5 * columns[~seam[1:]].mean()
    assert columns.mean() < 0.2 * own
    assert np.sqrt(np.mean(off**2)) < 0.25 * whole.std()
