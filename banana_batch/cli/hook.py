"""`--on-finish`: the user's own command, once per ended run, with the summary on its standard input."""

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from banana_batch.errors import BananaError, Exit
from banana_batch.report.log import RunLog
from banana_batch.run_settings import RunSettings
from banana_batch.store.evidence import LOG_NAME

from . import outcome

_TIMEOUT_S = 300.0
_STANDARD_ERROR = 2
# Of a run that could not begin these mean that nothing ended: another run has the batch, or the user's own slip.
_NOT_BEGUN = frozenset({Exit.LOCKED, Exit.USAGE, Exit.NO_INPUT})


def on_finish(settings: RunSettings, summary: Mapping[str, object], out: Path | None) -> None:
    """Run the hook, if there is one; what becomes of it is told and logged, and changes nothing else."""
    command = settings.on_finish
    if not command or summary["exit"] in _NOT_BEGUN:
        return
    # The hook has no business with the key.
    environ = {name: value for name, value in os.environ.items() if name != "TT_API_KEY"}
    try:
        done = subprocess.run(  # noqa: S602  # the user's own command line, by design
            command,
            shell=True,
            input=json.dumps(summary).encode(),
            # With --json, standard output holds one object and nothing else.
            stdout=_STANDARD_ERROR if settings.json_output else None,
            check=False,
            timeout=_TIMEOUT_S,
            env=environ,
        )
        problem = f"ended with {done.returncode}" if done.returncode else None
    except (OSError, subprocess.SubprocessError) as failed:
        problem = f"failed: {type(failed).__name__}"
    if problem:
        outcome.complain(BananaError(f"--on-finish {problem}; the run itself ended with {summary['exit']}"))
        _log(out, problem)


def _log(out: Path | None, problem: str) -> None:
    if out is None or not out.is_dir():
        return
    try:
        log = RunLog(out / LOG_NAME, wall_us=lambda: time.time_ns() // 1000, trouble=lambda _: None)
    except BananaError:
        return
    log.emit("hook_failed", message=problem)
    log.close()
