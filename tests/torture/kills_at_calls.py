"""T-sys: see syscalls.py."""

from .suite import Suite
from .syscalls import run_sys

SUITE = Suite("T-sys", run_sys)
