"""What is asked before a run begins, and what is told of a doubt."""

import sys

from banana_batch import money
from banana_batch.report.moments import local_text
from banana_batch.report.stream import Stream
from banana_batch.store.queries import Doubt
from banana_batch.text import printable


def doubt_line(doubt: Doubt) -> str:
    """Return what is known of a request without an answer."""
    sent = local_text(doubt.sent_us)
    why = printable(doubt.message or doubt.error_class or "no answer", 120)
    return f"  {printable(doubt.id, 60)}: sent {sent}, {why}; at risk {money.priced_text(doubt.at_risk)}"


def is_terminal() -> bool:
    """Tell whether questions reach a person: standard input and error are a terminal."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty())


def confirmed(question: str) -> bool:
    """Ask a yes-or-no question before a run begins; False where nobody can answer."""
    if not is_terminal():
        return False
    Stream().write(f"{question} [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
