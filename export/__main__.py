"""``python -m export``: make bundles of trained weights, and check them.

    python -m export ddpm CHECKPOINT --out models_onnx/NAME
    python -m export sd15 CHECKPOINT --out models_onnx/NAME [--precision fp16] [--vae FILE] [--lora FILE:0.8 ...]
    python -m export check BUNDLE
    python -m export checkpoint BUNDLE --out FILE.safetensors

Every error that a caller can mend is one line on standard error and exit status 2, and nothing is written.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from export.errors import ExportError
from export.interrupt import insistent
from runtime.errors import DiffusionError
from training.arguments import ArgumentParser
from training.errors import TrainingError
from training.paths import exists

INTERRUPTED = 130
ACCEPT = "accept differences from PyTorch up to X, and say so in the manifest"


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


positive.__name__ = "positive number"  # argparse puts it into its message


def bound_of_role(text: str) -> tuple[str, float]:
    """A graph and the difference from PyTorch that is accepted for it: ``unet:1e-4``.

    Raises:
        argparse.ArgumentTypeError: it is no such thing.
    """
    role, _, bound = text.partition(":")
    try:
        return role, positive(bound)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROLE:X with a positive number, such as unet:1e-4") from None


def lora(text: str) -> tuple[Path, float]:
    """A file and how strongly it is merged: ``FILE:0.8``, or ``FILE``, which is ``FILE:1``.

    Raises:
        argparse.ArgumentTypeError: what follows the colon is no number, or what stands before it is no path.
    """
    path, colon, scale = text.rpartition(":")
    # A colon may also be part of a name, or stand after a drive's letter: C:\\style.safetensors.
    try:
        if not colon or "/" in scale or "\\" in scale or exists(Path(text)):
            return Path(text), 1.0
        value = float(scale)
    except TrainingError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except ValueError:
        value = math.nan
    if not path or not math.isfinite(value):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a file nor FILE:SCALE with a number, such as style.safetensors:0.8"
        )
    return Path(path), value


def parser() -> ArgumentParser:
    main = ArgumentParser(prog="python -m export", description="Make ONNX bundles of trained weights, and check them.")
    commands = main.add_subparsers(dest="command", required=True)
    ddpm = commands.add_parser("ddpm", help="export a checkpoint of: python -m training ddpm")
    ddpm.add_argument("checkpoint", type=Path, help="model.safetensors of a training run")
    add_common(ddpm, licence="Apache-2.0")
    ddpm.add_argument("--accept-parity", type=positive, metavar="X", help=ACCEPT)
    add_sd15(commands.add_parser("sd15", help="export a Stable Diffusion 1.x checkpoint, such as people share"))
    check = commands.add_parser("check", help="repeat a bundle's parity with PyTorch; needs no checkpoint")
    check.add_argument("bundle", type=Path)
    back = commands.add_parser("checkpoint", help="write a Stable Diffusion bundle's weights as a checkpoint again")
    back.add_argument("bundle", type=Path)
    back.add_argument("--out", type=Path, required=True, help="the file, in the published layout; must not exist yet")
    return main


def add_common(command: argparse.ArgumentParser, licence: str) -> None:
    """The options of every export."""
    command.add_argument("--out", type=Path, required=True, help="the bundle's folder; its name becomes the bundle's")
    command.add_argument("--licence", default=licence, help="of the weights (default: %(default)s)")


def add_sd15(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "checkpoint",
        help="a file (.safetensors, .ckpt), a folder in diffusers' layout, or OWNER/NAME on the model hub",
    )
    add_common(command, licence="unknown")
    command.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="fp16 is half the size, for GPUs"
    )
    command.add_argument(
        "--half-weights", action="store_true", help="keep weights rounded to fp16 and compute in fp32: half the size"
    )
    command.add_argument(
        "--engines",
        nargs="*",
        choices=("cpu", "cuda"),
        metavar="ENGINE",
        help="variants with operators of ONNX Runtime's own beside the portable graphs: cpu (fp32), cuda (fp16); none "
        "with no name (default: cpu, for graphs above 64 MB)",
    )
    command.add_argument("--vae", type=Path, metavar="FILE", help="a file or folder whose VAE replaces the own one")
    command.add_argument(
        "--lora",
        type=lora,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE:SCALE",
        help="LoRA files to merge, each with its strength (default: 1)",
    )
    command.add_argument(
        "--accept-parity",
        type=bound_of_role,
        nargs="+",
        action="extend",
        default=[],
        metavar="ROLE:X",
        help=f"{ACCEPT}; each for one graph (fp32)",
    )
    command.add_argument("--use-ema", action="store_true", help="take the averaged weights of a file that has both")
    command.add_argument(
        "--prediction-type",
        choices=("epsilon", "v_prediction", "sample"),
        help="what the UNet predicts; a single file cannot tell and is taken for epsilon",
    )
    command.add_argument(
        "--zero-terminal-snr", action="store_true", help="trained with no signal left at the last timestep"
    )
    group = command.add_argument_group("defaults", "what the bundle draws with unless told otherwise")
    group.add_argument("--sampler", help="its name (default: dpmpp_2m_karras, or dpmpp_2m with --zero-terminal-snr)")
    group.add_argument("--steps", type=int, help="of the sampler (default: 20)")
    group.add_argument("--guidance-scale", type=float, help="1 is off (default: 7.5)")


def run(arguments: argparse.Namespace) -> None:
    """Run one command. It is imported only now, so that --help need not wait for torch."""
    if arguments.command == "ddpm":
        from export.ddpm import export_ddpm

        export_ddpm(arguments.checkpoint, arguments.out, arguments.licence, arguments.accept_parity)
    elif arguments.command == "sd15":
        run_sd15(arguments)
    elif arguments.command == "checkpoint":
        from export.checkpoint import write_checkpoint

        write_checkpoint(arguments.bundle, arguments.out)
    else:
        from export.check import check_bundle

        check_bundle(arguments.bundle)


def run_sd15(arguments: argparse.Namespace) -> None:
    from export.sd15 import export_sd15
    from training.stable_diffusion.lora import LoraFile

    export_sd15(
        arguments.checkpoint,
        arguments.out,
        precision=arguments.precision,
        half_weights=arguments.half_weights,
        engines=arguments.engines,
        vae=arguments.vae,
        loras=[LoraFile(path, scale) for path, scale in arguments.lora],
        use_ema=arguments.use_ema,
        prediction_type=arguments.prediction_type,
        zero_terminal_snr=arguments.zero_terminal_snr,
        sampler=arguments.sampler,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        licence=arguments.licence,
        accepted=dict(arguments.accept_parity),
    )


def main(arguments: list[str] | None = None) -> int:
    parsed = parser().parse_args(arguments)
    try:
        with insistent():
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
