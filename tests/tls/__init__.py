"""Certificates of an authority of the tests' own, and a server's side of TLS with one of them."""

import ssl
from pathlib import Path

_FOLDER = Path(__file__).parent
CA = _FOLDER / "ca.pem"


def server_tls(name: str) -> ssl.SSLContext:
    """Return a server's context.

    Args:
        name: `good`, `expired` or `other-host`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_FOLDER / f"{name}.pem")
    return context
