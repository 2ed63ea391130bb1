"""What a process of our own leaves out while it is loaded."""

import os
import ssl
from contextlib import suppress

import pytest
from pydantic.plugin import _loader

from banana_batch.loading import by_itself


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
    with by_itself():
        assert ssl.create_default_context().cert_store_stats() == {"x509": 0, "crl": 0, "x509_ca": 0}
    assert dict(os.environ) == before
    with suppress(ImportError), by_itself():
        raise ImportError
    assert dict(os.environ) == before


def test_no_plugin_of_pydantic_is_looked_for_while_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed beside it: a plugin would see every value that is checked."""
    monkeypatch.setattr(_loader, "_plugins", None)
    monkeypatch.setattr(_loader, "entry_points", lambda group: pytest.fail(f"plugins looked for: {group}"))
    with by_itself():
        assert list(_loader.get_plugins()) == []
