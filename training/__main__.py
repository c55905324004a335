"""``python -m training``: train models, and judge what they draw."""

from __future__ import annotations

import sys
from pathlib import Path

from training.arguments import ArgumentParser
from training.errors import TrainingError


# A command's module is imported only when it is asked for, so that --help need not wait for torch.
def ddpm(arguments: list[str]) -> int:
    """train the class-conditional DDPM"""
    from training.ddpm.command import main

    return main(arguments)


def stable_diffusion(arguments: list[str]) -> int:
    """train a small Stable Diffusion"""
    from training.stable_diffusion.pocket.command import main

    return main(arguments)


def classifier(arguments: list[str]) -> int:
    """train the classifier that judges samples"""
    from training.classifier.command import main

    return main(arguments)


def evaluate(arguments: list[str]) -> int:
    """draw from a bundle and let a classifier judge"""
    from training.evaluate.draw import draws_texts

    if any(draws_texts(Path(word)) for word in arguments if not word.startswith("-")):
        from training.stable_diffusion.pocket.evaluation.command import main
    else:
        from training.evaluate.command import main
    return main(arguments)


COMMANDS = {"ddpm": ddpm, "stable-diffusion": stable_diffusion, "classifier": classifier, "evaluate": evaluate}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status: 0, 2 for what the caller can mend, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    summaries = "; ".join(f"{name}: {command.__doc__}" for name, command in COMMANDS.items())
    parser = ArgumentParser(prog="python -m training", description="Train diffusion models in PyTorch and judge them.")
    parser.add_argument("command", choices=list(COMMANDS), help=f"{summaries}. Each has its own --help.")
    command = COMMANDS[parser.parse_args(arguments[:1]).command]
    try:
        return command(arguments[1:])
    except (TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; run: pip install 'diffusion-anywhere[train]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
