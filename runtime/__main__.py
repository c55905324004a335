"""``python -m runtime``: draw pictures, check a bundle, examine this machine.

    python -m runtime --model mnist-paper --label 7 -o seven.png
    python -m runtime check BUNDLE
    python -m runtime plan --model BUNDLE --sampler ddim --steps 20 --json
    python -m runtime benchmark BUNDLE
    python -m runtime doctor

Every error that a caller can mend is one line on standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from runtime import benchmark, check, draw
from runtime.arguments import ArgumentParser
from runtime.bundle import DEFAULT_MODEL, open_bundle
from runtime.engine import examine
from runtime.errors import DiffusionError
from runtime.pipeline import plan_for
from runtime.plan import SAMPLERS

INTERRUPTED = 130
COLUMN_NAMES = ("x_i", "x_i-1", "x_i-2", "x_i-3", "o_i", "o_i-1", "o_i-2", "o_i-3", "z_i")


def doctor(arguments: argparse.Namespace) -> int:
    """Say what ONNX Runtime is here and what is wrong with it."""
    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.name:<{width}}  {finding.value}")
        if finding.problem:
            print(f"{'':<{width}}  problem: {finding.problem}")
    return (
        2
        if any(finding.problem and (finding.name == "wheel" or finding.value == "none") for finding in findings)
        else 0
    )


def plan(arguments: argparse.Namespace) -> int:
    """Print a compiled plan: a table to look at, or JSON."""
    bundle = open_bundle(arguments.model)
    compiled = plan_for(bundle, arguments.sampler, arguments.steps, **draw.sampler_arguments(arguments))
    if arguments.json:
        print(json.dumps(compiled.to_json()))
        return 0
    used = [column for column in range(len(COLUMN_NAMES)) if compiled.weights[:, column].any()]
    print("row  timestep  signal  noise " + "".join(f"{COLUMN_NAMES[column]:>10}" for column in used))
    for i in range(len(compiled)):
        signal, noise = compiled.signal_scales[i], compiled.noise_scales[i]
        weights = "".join(f"{weight:10.5f}" for weight in compiled.weights[i, used])
        print(f"{i:3}  {compiled.timesteps[i]:8g}  {signal:.4f}  {noise:.4f}{weights}")
    return 0


def parser() -> ArgumentParser:
    main = ArgumentParser(prog="python -m runtime", description="Run exported diffusion models without PyTorch.")
    commands = main.add_subparsers(dest="command", required=True, metavar="draw | check | plan | benchmark | doctor")
    draw.add_arguments(commands.add_parser("draw", help="draw pictures; may be left out"))
    check.add_arguments(commands.add_parser("check", help="replay a bundle's conformance file on this machine"))
    benchmark.add_arguments(commands.add_parser("benchmark", help="images per second, against other programs in turn"))
    planner = commands.add_parser("plan", help="print a sampler's table")
    planner.add_argument("--model", default=DEFAULT_MODEL, help="bundle whose noise levels are used")
    planner.add_argument("--sampler", help=f"{', '.join(sorted(SAMPLERS))}, or another of its names")
    planner.add_argument("--steps", type=int)
    planner.add_argument("--json", action="store_true", help="the whole plan, for a host in another language")
    draw.add_sampler_arguments(planner)
    planner.set_defaults(run=plan)
    commands.add_parser("doctor", help="which ONNX Runtime is here, and what is wrong with it").set_defaults(run=doctor)
    return main


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    commands = ("draw", "check", "plan", "benchmark", "doctor", "-h", "--help")
    if words and words[0] not in commands:
        words = ["draw", *words]
    parsed = parser().parse_args(words)
    try:
        status: int = parsed.run(parsed)
        return status
    except DiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        print("error: there is not enough memory for this; ask for fewer images, or a smaller batch", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; no file is half-written", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
