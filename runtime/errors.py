"""What can go wrong, as far as the caller can mend it.

Every message is one line: what is wrong, what is allowed, what to do.
"""


def printable(text: str) -> str:
    """A text on one line, without what a terminal acts upon: such characters as Python would write them."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class DiffusionError(Exception):
    """Base of all errors below; the command line prints it as one line and exits with status 2."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class BundleError(DiffusionError):
    """A bundle is missing, damaged, from the future, or not a bundle."""


class EngineError(DiffusionError):
    """ONNX Runtime is missing, installed twice, or cannot run where it was asked to."""


class RequestError(DiffusionError, ValueError):
    """An argument is out of range or does not fit the model."""


class Cancelled(DiffusionError):  # noqa: N818 - nothing was wrong
    """What was computed was stopped, by a ``CancelToken`` or after a time; the pipeline can be used again."""


class TimedOut(Cancelled, TimeoutError):  # noqa: N818
    """It took longer than it was allowed to."""


class PromptWarning(UserWarning):
    """Not all of a prompt will be heard."""


def one_line(error: BaseException) -> str:
    """The message of an error of some library, short enough for a line of ours."""
    return " ".join(str(error).split())[:300]
