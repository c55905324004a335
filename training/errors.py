"""What can go wrong, as far as the caller can mend it.

Every message is one line: what is wrong, what is allowed, what to do.
"""


class TrainingError(Exception):
    """Base of all errors below, and raised itself for options that do not fit; commands print it as one line."""


class DataError(TrainingError):
    """A data set is missing, truncated or altered; the message says which file and what to do."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged or of another kind; the message says which and what to do."""


class OutputError(TrainingError):
    """A file or folder cannot be written, or holds something that must not be lost."""
