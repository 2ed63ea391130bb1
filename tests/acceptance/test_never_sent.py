"""A request that never left this machine was no attempt: not in the results, not for a limit, not for a changed row."""

from pathlib import Path

import pytest

from .command import KEY, command, results
from .peer import Peer, serving

ROWS = "id,prompt\n" + "".join(f"{name},{name}\n" for name in "abcdef")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A batch whose first run found nobody: its port was closed."""
    (tmp_path / "six.csv").write_text(ROWS)
    nobody = ("--base-url", "http://127.0.0.1:9", "--give-up-after", "0.5")
    assert command("run", "six.csv", "-o", "out", *nobody, cwd=tmp_path, TT_API_KEY=KEY).code == 69
    return tmp_path


def _run(peer: Peer, folder: Path, *options: str) -> int:
    return peer.run("six.csv", "-o", "out", *options, cwd=folder).code


def test_it_is_no_attempt(folder: Path) -> None:
    """`attempts` 0 and no time of sending; the ledger counts none."""
    assert {(row["attempts"], row["sent_at"]) for row in results(folder / "out")} == {(0, None)}
    assert {row["attempts"] for row in command("ledger", "out", "--json", cwd=folder).object["rows"]} == {0}


def test_a_limit_counts_it_as_a_first_time(folder: Path) -> None:
    """`--limit 1` sends one job, not all that were once on their way."""
    with serving() as peer:
        assert _run(peer, folder, "--limit", "1") == 0
        assert peer.calls == 1
        assert _run(peer, folder, "--limit", "2") == 0
        assert peer.calls == 3


def test_its_row_may_change(folder: Path) -> None:
    """A job never sent just takes its new request."""
    (folder / "six.csv").write_text(ROWS.replace("a,a", "a,another"))
    with serving() as peer:
        assert _run(peer, folder) == 0
        assert peer.calls == 6
        assert "another" in {charge.prompt for charge in peer.charges}
