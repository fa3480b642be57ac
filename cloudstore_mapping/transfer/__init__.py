"""A store's data carried out and in: to and from files of JSON, dbm and shelve, and other stores, media too."""

from cloudstore_mapping.transfer.exporting import Exported, export_store
from cloudstore_mapping.transfer.formats import Format
from cloudstore_mapping.transfer.importing import Imported, import_store

__all__ = ["Exported", "Format", "Imported", "export_store", "import_store"]
