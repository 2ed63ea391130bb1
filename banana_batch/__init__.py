"""The batch engine for TTAPI's Nano Banana image endpoint.

from banana_batch import Job, Settings, run_batch
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import run_batch
    from .job import Job
    from .models import RunResult
    from .settings import Settings

__version__ = "0.1.0"
__all__ = ["Job", "RunResult", "Settings", "__version__", "run_batch"]

_HOMES = {"run_batch": "api", "Job": "job", "RunResult": "models", "Settings": "settings"}


def __getattr__(name: str) -> Any:
    """Import on first use: `banana-batch --version` and `status` need none of it (performance: start-up)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
