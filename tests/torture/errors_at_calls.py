"""T-err: see syscalls.py."""

from .suite import Suite
from .syscalls import run_err

SUITE = Suite("T-err", run_err)
