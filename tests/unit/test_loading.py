"""What a process of our own leaves out while it is loaded."""

import os
import ssl
from contextlib import suppress

import pytest

from banana_batch.loading import nobody_trusted


@pytest.mark.parametrize("said", [None, "/etc/ssl/certs/of-the-company.pem"])
def test_certificates_are_left_out_while_loading_and_only_then(
    monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    """A context that is made meanwhile trusts nobody; afterwards the environment is as it was, whatever happened."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    if said is not None:
        monkeypatch.setenv("SSL_CERT_FILE", said)
    before = dict(os.environ)
    with nobody_trusted():
        assert ssl.create_default_context().cert_store_stats() == {"x509": 0, "crl": 0, "x509_ca": 0}
    assert dict(os.environ) == before
    with suppress(ImportError), nobody_trusted():
        raise ImportError
    assert dict(os.environ) == before
