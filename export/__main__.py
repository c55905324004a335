"""``python -m export``: make bundles of trained weights, and check them.

    python -m export ddpm CHECKPOINT --out models_onnx/NAME
    python -m export check BUNDLE

Every error that a caller can mend is one line on standard error and exit status 2, and nothing is written.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from export.errors import ExportError
from runtime.errors import DiffusionError
from training.arguments import ArgumentParser
from training.errors import TrainingError

INTERRUPTED = 130


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


positive.__name__ = "positive number"  # argparse puts it into its message


def parser() -> ArgumentParser:
    main = ArgumentParser(prog="python -m export", description="Make ONNX bundles of trained weights, and check them.")
    commands = main.add_subparsers(dest="command", required=True)
    ddpm = commands.add_parser("ddpm", help="export a checkpoint of: python -m training ddpm")
    ddpm.add_argument("checkpoint", type=Path, help="model.safetensors of a training run")
    ddpm.add_argument("--out", type=Path, required=True, help="the bundle's folder; its name becomes the bundle's name")
    ddpm.add_argument("--licence", default="Apache-2.0", help="of the weights (default: %(default)s)")
    ddpm.add_argument(
        "--accept-parity",
        type=positive,
        metavar="X",
        help="accept differences from PyTorch up to X, and say so in the manifest",
    )
    check = commands.add_parser("check", help="repeat a bundle's parity with PyTorch; needs no checkpoint")
    check.add_argument("bundle", type=Path)
    return main


def run(arguments: argparse.Namespace) -> None:
    """Run one command. It is imported only now, so that --help need not wait for torch."""
    if arguments.command == "ddpm":
        from export.ddpm import export_ddpm

        export_ddpm(arguments.checkpoint, arguments.out, arguments.licence, arguments.accept_parity)
    else:
        from export.check import check_bundle

        check_bundle(arguments.bundle)


def main(arguments: list[str] | None = None) -> int:
    parsed = parser().parse_args(arguments)
    try:
        run(parsed)
    except (ExportError, TrainingError, DiffusionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed; run: pip install 'diffusion-anywhere[export,cpu]'", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
