"""Whom TLS trusts: the system's certificates, and those of a file. There is no switch that turns it off."""

import ssl
from pathlib import Path

from banana_batch.errors import SettingsError


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return what a server's certificate is judged by: TLS 1.2 or later, names checked. Reads files: some 40 ms.

    Args:
        ca_file: PEM certificates that are trusted beside the system's.

    Raises:
        SettingsError: `ca_file` can't be read or holds no certificate.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(("http/1.1",))
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as failed:
            raise SettingsError(f"--ca-file {ca_file}: {failed.strerror or 'no certificates in it'}") from None
    return context
