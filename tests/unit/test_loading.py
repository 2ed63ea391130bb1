"""What a process of our own leaves out while it is loaded, and what it has before it is needed."""

import os
import ssl
from contextlib import suppress

import pytest
from pydantic.plugin import _loader

from banana_batch.loading import by_itself
from tests.unit.peak import printed_and_peak


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


def test_memory_that_was_taken_ahead_is_there_when_it_is_needed() -> None:
    """A burst of small objects takes hardly a new page; where nothing was taken ahead, all of its."""
    code = """
import resource, sys
from banana_batch.loading import take_memory_ahead

take_memory_ahead(int(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
burst = [bytes(200) for _ in range(10_000)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    (taken_anew,), _ = printed_and_peak(code, 0)
    (left_over,), _ = printed_and_peak(code, 3 << 20)
    assert left_over < taken_anew / 5
