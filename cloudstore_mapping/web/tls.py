"""The certificate of a service that speaks https itself, looked at before anything is started."""

from __future__ import annotations

import ssl

from cloudstore_mapping.storefiles import read_file
from cloudstore_mapping.web.options import Options


def check_certificate(options: Options) -> None:
    """Raise `ValueError` with a sentence that says what to do unless `options` name a certificate that can be used."""
    if options.tls_cert is None and options.tls_key is None:
        return
    if options.tls_cert is None or options.tls_key is None:
        raise ValueError("A certificate needs its key, and a key its certificate; give both --tls-cert and --tls-key.")
    for file in (options.tls_cert, options.tls_key):
        try:
            read_file(file)
        except OSError as error:
            raise ValueError(f"{file} can't be read ({error.strerror}); look at its name and permissions.") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.tls_cert, options.tls_key, _no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            sentence = f"{options.tls_key} is not the key of the certificate in {options.tls_cert}; name its own."
        else:
            sentence = f"{options.tls_cert} and {options.tls_key} are no certificate and key that can be read as PEM."
        raise ValueError(sentence) from error
    except _LockedKeyError:
        raise ValueError(f"{options.tls_key} has a passphrase; take it out, and protect the file instead.") from None


class _LockedKeyError(Exception):
    """OpenSSL asked for a passphrase, which nobody could type at a start."""


def _no_passphrase() -> str:
    raise _LockedKeyError
