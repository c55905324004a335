"""What can go wrong in an export, as far as the caller can mend it."""


class ExportError(Exception):
    """An export or a check failed; the message is one line: what is wrong, what is allowed, what to do."""
