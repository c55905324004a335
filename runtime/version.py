"""The version of this package, which pictures carry; ``pyproject.toml`` has the same."""

__version__ = "0.1.0"
