"""TLS to the broker: the context, made of files, and what is wrong with one, with its name."""

from __future__ import annotations

import ssl
from pathlib import Path

from merklekv.errors import MerkleKVError


class BadTlsFile(MerkleKVError):
    """A file for TLS cannot be used."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file} {reason}")
        self.file = file
        self.reason = reason


def client_context(ca_file: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    """What a client needs for TLS, with the files as they are now. Raises BadTlsFile.

    `ca_file`: certificates to trust; empty: the system's. The other two: both or neither.
    """
    for file in filter(None, (ca_file, cert_file, key_file)):
        _require_readable(file)
    context = ssl.create_default_context()
    if ca_file:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_certificates(context, ca_file)
    if cert_file:
        _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert_file)
        _load_key(context, cert_file, key_file)
    return context


def tls_reason(error: OSError) -> str:
    """The words of an error of TLS, without the place in its library; empty for any other error."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {error.verify_message}"
    return (error.reason or "").lower().replace("_", " ") if isinstance(error, ssl.SSLError) else ""


def _require_readable(file: str) -> None:
    try:
        if not Path(file).is_file() and Path(file).exists():
            raise BadTlsFile(file, "is not a file")
        Path(file).open("rb").close()
    except OSError as error:
        raise BadTlsFile(file, f"cannot be read: {error.strerror}") from None


def _load_certificates(context: ssl.SSLContext, file: str) -> None:
    try:
        context.load_verify_locations(file)
    except OSError as error:
        raise BadTlsFile(file, f"cannot be used: give certificates in PEM{_cause(error)}") from None


def _load_key(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    is_encrypted = False

    def password() -> str:
        nonlocal is_encrypted
        is_encrypted = True
        return ""

    try:
        context.load_cert_chain(cert_file, key_file, password)
    except OSError as error:
        if is_encrypted:
            raise BadTlsFile(key_file, "cannot be used: it is encrypted: give a key without a password") from None
        if tls_reason(error) == "key values mismatch":
            raise BadTlsFile(key_file, f"cannot be used: it is not the key of {cert_file}") from None
        raise BadTlsFile(key_file, f"cannot be used: give a private key in PEM{_cause(error)}") from None


def _cause(error: OSError) -> str:
    return f" ({cause})" if (cause := tls_reason(error)) else ""
