"""The cloud as a Python dict: a mapping over CloudStore, its callback client, and the service itself."""

from cloudstore_mapping._version import __version__

__all__ = ["__version__"]
