"""``python -m runtime``: draw pictures, check a bundle, examine this machine.

    python -m runtime "a red sneaker on a white background" -o sneaker.png
    python -m runtime --model sd15 "a photo of a cat" -o cat.png
    python -m runtime --model mnist-paper --label 7 -o seven.png
    python -m runtime --model sd15 --prompts list.txt -o pictures
    python -m runtime replay cat.png
    python -m runtime check BUNDLE
    python -m runtime plan --model BUNDLE --sampler ddim --steps 20 --json -o plan.json
    python -m runtime benchmark BUNDLE
    python -m runtime web
    python -m runtime cache --clear
    python -m runtime doctor

Every error that a caller can mend is one line on standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings

from runtime import benchmark, cache_command, check, draw, plan_command, replay, web_command
from runtime.arguments import ArgumentParser
from runtime.cancel import interruptible
from runtime.engine import examine
from runtime.errors import DiffusionError, printable

INTERRUPTED = 130
COMMANDS = ("draw", "replay", "check", "plan", "benchmark", "web", "cache", "doctor")


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


def parser() -> ArgumentParser:
    main = ArgumentParser(prog="python -m runtime", description="Run exported diffusion models without PyTorch.")
    commands = main.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    draw.add_arguments(commands.add_parser("draw", help="draw pictures; may be left out"))
    replay.add_arguments(commands.add_parser("replay", help="draw a picture again, and say whether it is the same"))
    check.add_arguments(commands.add_parser("check", help="replay a bundle's conformance file on this machine"))
    benchmark.add_arguments(commands.add_parser("benchmark", help="images per second, against other programs in turn"))
    plan_command.add_arguments(commands.add_parser("plan", help="a sampler's table: printed, kept, or as a picture"))
    web_command.add_arguments(
        commands.add_parser("web", help="draw in the browser: a page, served to this machine alone")
    )
    cache_command.add_arguments(commands.add_parser("cache", help="what is kept on disk to load faster, and its sizes"))
    commands.add_parser("doctor", help="which ONNX Runtime is here, and what is wrong with it").set_defaults(run=doctor)
    return main


def show_warning(message: Warning | str, *where: object, **more: object) -> None:
    """A warning as one line; where in the source it was raised is of no use on a command line."""
    print(f"warning: {printable(str(message))}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] not in (*COMMANDS, "-h", "--help"):
        words = ["draw", *words]
    if isinstance(sys.stdout, io.TextIOWrapper):  # what is printed names files, whose names may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    parsed = parser().parse_args(words)
    try:
        with interruptible(), warnings.catch_warnings():
            warnings.showwarning = show_warning
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
