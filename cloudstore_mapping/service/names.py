"""What can be a file's name, of data and of media."""

from __future__ import annotations

from cloudstore_mapping.errors import BadNameError


def check_name(name: str, max_bytes: int) -> None:
    """Raise `BadNameError` for what can't be a file's name: names are data and never paths, but not all is stored."""
    if not name:
        raise BadNameError("A file needs a name of at least one character.", key=name)
    if "\0" in name:
        raise BadNameError("A file's name can't hold the character NUL; leave it out.", key=name)
    if len(name) > max_bytes or (not name.isascii() and len(name.encode()) > max_bytes):
        sentence = f"A file's name can't be longer than {max_bytes} bytes (the service's max_name_bytes); shorten it."
        raise BadNameError(sentence, key=name)
