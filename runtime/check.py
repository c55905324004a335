"""``python -m runtime check``: replay a bundle's conformance file, so that this machine proves itself.

The file holds inputs, expected outputs and tolerances for every graph, for the noise, for plans and for whole
pictures. Every host, in whatever language, has this command and reads the same file.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as parse_tensors

from runtime.bundle import CONFORMANCE, DEFAULT_MODEL, Bundle, File, TextConditioning, open_bundle
from runtime.engine import PROVIDERS
from runtime.errors import BundleError, DiffusionError
from runtime.loading import make_pipeline
from runtime.networks import Networks
from runtime.noise import mersenne_words, noise_generator, philox_words
from runtime.plan import compile_plan
from runtime.prompt import PromptTokenizer, shortened
from runtime.session import Session, as_inputs, choose_provider
from runtime.verified import hash_file

Array = npt.NDArray[Any]
MAX_CONFORMANCE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Outcome:
    """How one case ended: what it was, the largest difference found, and the largest allowed."""

    case: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=check)
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, help="a bundle's folder or name (default: %(default)s)"
    )
    parser.add_argument("--provider", choices=("auto", *PROVIDERS), default="auto")


def check(arguments: argparse.Namespace) -> int:
    """Verify every hash, replay every case, and print one line for each."""
    bundle = open_bundle(arguments.model)
    provider, why = choose_provider(arguments.provider)
    print(why)
    for file in bundle.files():
        print(check_hash(bundle, file))
    outcomes = replay(bundle, provider)
    for outcome in outcomes:
        verdict = "pass" if outcome.passed else "FAIL"
        print(
            f"{verdict}  {outcome.case}: largest difference {outcome.difference:.3g}, allowed {outcome.tolerance:.3g}"
        )
    failed = sum(not outcome.passed for outcome in outcomes)
    print(f"{bundle.name}: {len(outcomes) - failed} of {len(outcomes)} cases pass")
    return 1 if failed else 0


def check_hash(bundle: Bundle, file: File) -> str:
    """Hash a file again, whatever is remembered of it; returns the line to print.

    Raises:
        BundleError: it is another file than the manifest's.
    """
    path = bundle.path(file)
    if file.sha256 is None:
        return f"----  {file.name}: whoever made the folder gave no SHA-256"
    try:
        actual = hash_file(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from error
    if actual != file.sha256:
        raise BundleError(
            f"{path} does not have the SHA-256 of the manifest; it was altered or damaged: fetch it again"
        )
    return f"pass  {file.name}: SHA-256"


def read_conformance(bundle: Bundle) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """The cases and tensors of a bundle's conformance file.

    Raises:
        BundleError: missing, too large, damaged, or without cases.
    """
    path = bundle.folder / CONFORMANCE
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path} is not there as a plain file; export the bundle again")
    if path.stat().st_size > MAX_CONFORMANCE_BYTES:
        raise BundleError(
            f"{path} has {path.stat().st_size} bytes; a conformance file has at most {MAX_CONFORMANCE_BYTES}"
        )
    try:
        data = path.read_bytes()
        tensors = parse_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        cases = json.loads(header["__metadata__"]["cases"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not a conformance file ({' '.join(str(error).split())})") from error
    if not isinstance(cases, list) or not cases:
        raise BundleError(f"{path} holds no cases")
    return cases, tensors


def replay(bundle: Bundle, provider: str) -> list[Outcome]:
    """Replay every case of the bundle's conformance file.

    Raises:
        BundleError: the file is damaged or speaks of kinds of case that this version does not know.
    """
    cases, tensors = read_conformance(bundle)
    outcomes = []
    for number, case in enumerate(cases):
        try:
            kind = KINDS[case["kind"]]
            outcomes += kind(bundle, provider, case, tensors)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, DiffusionError):
                raise
            raise BundleError(
                f"{bundle.folder / CONFORMANCE}: case {number} is malformed or unknown ({error!r})"
            ) from error
    return outcomes


def largest_difference(mine: Array, expected: Array) -> float:
    """max |mine - expected|; infinite where shapes differ or a value is not a number."""
    if mine.shape != expected.shape:
        return float("inf")
    difference = np.abs(mine.astype(np.float64) - expected.astype(np.float64))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))


def replay_graph(bundle: Bundle, provider: str, case: Mapping[str, Any], tensors: Mapping[str, Array]) -> list[Outcome]:
    session = Session(bundle, bundle.graph(case["graph"], case["variant"]), provider)
    inputs = {name: tensors[tensor] for name, tensor in case["inputs"].items()}
    outputs = session.run(**as_inputs(session, inputs))
    return [
        Outcome(
            f"graph {case['graph']}/{case['variant']} {name}",
            largest_difference(outputs[name], tensors[tensor]),
            float(case["tolerance"]),
        )
        for name, tensor in case["outputs"].items()
    ]


def replay_bits(bundle: Bundle, provider: str, case: Mapping[str, Any], tensors: Mapping[str, Array]) -> list[Outcome]:
    expected, seed = tensors[case["tensor"]], int(case["seed"])
    if case["generator"] == "philox":
        words = philox_words(seed, case["draw"], len(expected))
    else:
        words = mersenne_words(seed, len(expected))
    return [Outcome(f"bits {case['generator']} seed {seed}", largest_difference(words, expected), 0.0)]


def replay_noise(bundle: Bundle, provider: str, case: Mapping[str, Any], tensors: Mapping[str, Array]) -> list[Outcome]:
    expected, seed = tensors[case["tensor"]], int(case["seed"])
    generator = noise_generator(case["generator"], seed)
    for _ in range(case["draw"] + 1):
        noise = generator.draw(expected.shape)
    name = f"noise {case['generator']} seed {seed} draw {case['draw']} of {expected.size}"
    return [Outcome(name, largest_difference(noise, expected), float(case["tolerance"]))]


def replay_plan(bundle: Bundle, provider: str, case: Mapping[str, Any], tensors: Mapping[str, Array]) -> list[Outcome]:
    """Compile the plan anew, from the sampler and options that it names."""
    shipped = bundle.plans[case["plan"]]
    mine = compile_plan(bundle.noise_schedule, shipped.sampler, shipped.num_inference_steps, **shipped.options)
    return [
        Outcome(
            f"plan {case['plan']} {key}",
            largest_difference(getattr(mine, key), tensors[tensor]),
            float(case["tolerance"]),
        )
        for key, tensor in case["tensors"].items()
    ]


def replay_tokens(
    bundle: Bundle, provider: str, case: Mapping[str, Any], tensors: Mapping[str, Array]
) -> list[Outcome]:
    if not isinstance(bundle.conditioning, TextConditioning):
        raise BundleError(f"{bundle.folder / CONFORMANCE} has tokens, but {bundle.name} takes no text")
    with warnings.catch_warnings(action="ignore"):  # a case may be too long, to see where it is cut off
        ids = PromptTokenizer(bundle, bundle.conditioning).ids(case["prompt"])[0]
    return [Outcome(f"tokens {shortened(case['prompt'])!r}", largest_difference(ids, tensors[case["tensor"]]), 0.0)]


def replay_picture(
    bundle: Bundle, provider: str, case: Mapping[str, Any], tensors: Mapping[str, Array]
) -> list[Outcome]:
    pipeline = make_pipeline(bundle, Networks(bundle, provider, low_memory=True), "")
    if isinstance(bundle.conditioning, TextConditioning):
        condition = case["prompt"]
        further = {name: case[name] for name in ("negative_prompt", "width", "height")}
    else:
        condition, further = case["class_labels"], {}
    result = pipeline(
        condition,
        **further,
        plan=bundle.plans[case["plan"]],
        guidance_scale=case["guidance_scale"],
        seed=int(case["seed"]),
        rng=case["generator"],
    )
    name = f"picture {case['plan']} seed {case['seed']}"
    return [
        Outcome(f"{name} sample", largest_difference(result.sample, tensors[case["sample"]]), float(case["tolerance"])),
        Outcome(f"{name} image", largest_difference(result.images, tensors[case["image"]]), 1.0),
    ]


Replay = Callable[[Bundle, str, Mapping[str, Any], Mapping[str, Array]], list[Outcome]]
KINDS: dict[str, Replay] = {
    "graph": replay_graph,
    "bits": replay_bits,
    "noise": replay_noise,
    "plan": replay_plan,
    "tokens": replay_tokens,
    "picture": replay_picture,
}
