"""What goes into and comes out of a graph of each role, as ``docs/bundle.md`` lists it."""

from __future__ import annotations

from collections.abc import Iterable

from runtime.bundle import Bundle, Latents, TensorSpec, TextConditioning
from runtime.errors import BundleError

Tensors = tuple[TensorSpec, ...]


def signatures(bundle: Bundle) -> dict[str, tuple[Tensors, Tensors]]:
    """Inputs and outputs by role. A size by name stands for any; numbers are those of the manifest."""
    channels = sum(count for _, count in bundle.unet_input)
    if isinstance(bundle.conditioning, TextConditioning) and bundle.latents:
        return text_signatures(bundle.conditioning, bundle.latents, channels)
    height, width = (bundle.pixels.height, bundle.pixels.width) if bundle.pixels else ("height", "width")
    label = TensorSpec("class_labels", "int64", ("batch",))
    return {"unet": unet_signature(channels, channels, (height, width), label)}


def unet_signature(
    channels_in: int, channels_out: int, size: tuple[int | str, int | str], condition: TensorSpec
) -> tuple[Tensors, Tensors]:
    sample = TensorSpec("sample", "float32", ("batch", channels_in, *size))
    timestep = TensorSpec("timestep", "float32", ("batch",))
    return (sample, timestep, condition), (TensorSpec("out_sample", "float32", ("batch", channels_out, *size)),)


def text_signatures(text: TextConditioning, latents: Latents, channels: int) -> dict[str, tuple[Tensors, Tensors]]:
    dim = text.embedding_dim
    image = TensorSpec("sample", "float32", ("batch", 3, "height", "width"))
    encoded = ("batch", "length", dim)
    tokens = TensorSpec("input_ids", "int64", ("batch", "length"))
    learned, skip = TensorSpec("extra_embeddings", "float32", ("extra", dim)), TensorSpec("clip_skip", "int64", ())
    parameters = TensorSpec("latent_parameters", "float32", ("batch", 2 * latents.channels, "h", "w"))
    latent = TensorSpec("latent_sample", "float32", ("batch", latents.channels, "h", "w"))
    states = TensorSpec("encoder_hidden_states", "float32", encoded)
    return {
        "text_encoder": ((tokens, learned, skip), (TensorSpec("last_hidden_state", "float32", encoded),)),
        "unet": unet_signature(channels, latents.channels, ("h", "w"), states),
        "vae_encoder": ((image,), (parameters,)),
        "vae_decoder": ((latent,), (image,)),
    }


def check_graphs(bundle: Bundle, where: str) -> None:
    """Hold the declared inputs and outputs of every graph against its role and against the rest of the manifest.

    Raises:
        BundleError: a role is unknown or has no graph, or a tensor has another name, dtype, rank or size.
    """
    roles = signatures(bundle)
    unknown, missing = bundle.graphs.keys() - roles.keys(), {role for role in roles if not bundle.graphs.get(role)}
    missing.discard("vae_encoder")  # only those who start from an image need it
    if unknown or missing:
        raise BundleError(
            f"{where}: graphs of {bundle.family} are {', '.join(roles)}; "
            f"missing here: {', '.join(sorted(missing)) or 'none'}, unknown: {', '.join(sorted(unknown)) or 'none'}"
        )
    for role, variants in bundle.graphs.items():
        for variant, graph in variants.items():
            for kind, declared, expected in zip(
                ("inputs", "outputs"), (graph.inputs, graph.outputs), roles[role], strict=True
            ):
                if not same_tensors(declared, expected):
                    raise BundleError(
                        f"{where}: graphs: {role}.{variant} must have the {kind} {in_words(expected)}, "
                        f"not {in_words(declared)}"
                    )


def same_tensors(declared: Tensors, expected: Tensors) -> bool:
    """The same names, dtypes and ranks, and the same sizes where both are numbers; in any order."""
    by_name = {spec.name: spec for spec in declared}
    return len(by_name) == len(declared) == len(expected) and all(
        spec.name in by_name and same_tensor(by_name[spec.name], spec) for spec in expected
    )


def same_tensor(declared: TensorSpec, expected: TensorSpec) -> bool:
    if declared.dtype != expected.dtype or len(declared.shape) != len(expected.shape):
        return False
    return all(
        mine == theirs or isinstance(mine, str) or isinstance(theirs, str)
        for mine, theirs in zip(declared.shape, expected.shape, strict=True)
    )


def in_words(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})" for spec in specs) or "(none)"
