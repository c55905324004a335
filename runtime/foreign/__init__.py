"""Folders that others exported, opened as bundles."""

from runtime.foreign.folder import open_folder

__all__ = ["open_folder"]
