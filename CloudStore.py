"""The callback client under the name that the original documentation gives its file."""

from cloudstore_mapping.client.callbacks import CloudStore

__all__ = ["CloudStore"]
