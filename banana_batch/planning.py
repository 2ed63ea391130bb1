"""From an order to a batch that is ready to run: folder, rows, differences.

Rule 1: everything is checked before anything is sent; a bad row leaves no trace on the disk.
Rule 2: `plan` looks and writes nothing; `run` does the same and then makes it so.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from .addresses import is_loopback
from .errors import BatchLocked, ManifestError, Problem, SettingsError
from .finding import find_batch
from .models import PlannedJob
from .money import credits_text
from .ordering import Order, resolved
from .prepared import ALLOWED_HOSTS, BASE_URL, FINGERPRINT, IN_SANDBOX, LIVE, SIDE, Prepared
from .run_settings import RunSettings
from .settings import DEFAULT_BASE_URL, ENV_PREFIX
from .store import database, paths, queries, runs
from .store.difference import Difference
from .store.evidence import refuse_the_past, set_log_aside
from .store.founding import Founder
from .store.listed import Listed
from .store.lock import LOCK_NAME, batch_lock
from .store.planning import Planner
from .store.unborn import Unborn, nowhere
from .text import plural, printable, shell_line

DEFAULT_FILENAME = "{index:05d}-{slug}"
_OF_THE_BATCH = frozenset(f"{ENV_PREFIX}{name}" for name in ("SANDBOX", "BASE_URL", "ALLOW_HOST"))


@contextlib.contextmanager
def looked_at(order: Order) -> Iterator[Prepared]:
    """Hold the manifest against the batch, if there is one. Writes nothing, takes no lock.

    Raises:
        ManifestError: bad rows, or a change that `--on-change` refuses.
        DiskError: there is no room for what is compared.
    """
    with runs.telling_disk(), contextlib.ExitStack() as stack:
        still = not paths.in_use(order.out)
        prepared = _look(order, stack, still=still)
        if still and not prepared.fresh and paths.in_use(order.out):
            # A run began meanwhile, and may have changed what was just being read.
            prepared = _look(order, stack, still=False)
        yield prepared


def _look(order: Order, stack: contextlib.ExitStack, *, still: bool) -> Prepared:
    fresh = not paths.exists(order.out)
    opened = nowhere() if fresh else database.open_reader(order.out, still=still)
    db = stack.enter_context(contextlib.closing(opened))
    prepared = Prepared(db, Difference(), fresh=fresh)
    if fresh:
        with contextlib.closing(nowhere()) as scratch:
            _stage(order, prepared, Founder(scratch, order.manifests.index_width))
    else:
        refuse_the_past(db, order.out)
        _stage(order, prepared, Planner(db, order.manifests.index_width))
        _check_side(db, order)
    return prepared


@contextlib.contextmanager
def made_ready(order: Order, pid: int | None = None) -> Iterator[Prepared]:
    """Lock the batch, make it if need be, and bring its jobs in line with the manifest.

    The connection is the caller's: it closes it.

    Args:
        pid: Who is told to hold the lock; None: this process.

    Raises:
        BatchLocked: another run holds it.
        DiskError: full, or broken.
        ManifestError: bad rows, a refused change, or a damaged state.
        SettingsError: the batch belongs to the other side (sandbox or live).
    """
    made = paths.make_folder(order.out)
    had_lock = (order.out / LOCK_NAME).exists()
    with runs.telling_disk(), contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(batch_lock(order.out, pid))
            prepared = _existing(order) if paths.exists(order.out) else _born(order)
            prepared.lock = lock
        except BaseException as failed:
            if not had_lock and not isinstance(failed, BatchLocked) and not paths.state_path(order.out).exists():
                with contextlib.suppress(OSError):  # what failed is what has to be told, not that this stays
                    (order.out / LOCK_NAME).unlink()
                _remove_empty(made)
            raise
        yield prepared


def _remove_empty(made: Iterable[Path]) -> None:
    for folder in reversed(list(made)):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _born(order: Order) -> Prepared:
    unborn = Unborn(order.out)
    db = unborn.open()
    try:
        prepared = Prepared(db, Difference(), fresh=True)
        founder = Founder(db, order.manifests.index_width)
        _stage(order, prepared, founder)
        founder.apply(reuse=order.settings.dedupe == "reuse")
        runs.remember(db, SIDE, IN_SANDBOX if order.settings.sandbox else LIVE)
        _remember_manifest(order, db)
        unborn.prove(db)
        set_log_aside(order.out)
        prepared.db = unborn.publish(db)
    except BaseException:
        unborn.discard(db)
        raise
    return prepared


def _opened(out: Path) -> sqlite3.Connection:
    db = database.open_writer(out)
    try:
        refuse_the_past(db, out)
    except BaseException:
        db.close()
        raise
    return db


def _existing(order: Order) -> Prepared:
    db = _opened(order.out)
    try:
        prepared = Prepared(db, Difference())
        mark = _mark(order)
        prepared.unchanged = bool(mark) and runs.recall(db, FINGERPRINT) == mark
        planner = None if prepared.unchanged else Planner(db, order.manifests.index_width)
        if planner is not None:
            _stage(order, prepared, planner)
        _check_side(db, order)  # a bad manifest is told first
        if planner is None:
            return prepared
        runs.tell_listed(db, None)
        planner.apply(reuse=order.settings.dedupe == "reuse")
        _remember_manifest(order, db)
    except BaseException:
        db.close()
        raise
    return prepared


def _remember_manifest(order: Order, db: sqlite3.Connection) -> None:
    runs.remember(db, FINGERPRINT, _mark(order))


def _mark(order: Order) -> str:
    """Return what stays the same as long as planning would come to the same; empty where that can't be told."""
    fingerprint = order.manifests.fingerprint()
    return f"{fingerprint.hex()} {order.settings.dedupe}" if fingerprint else ""


def _check_side(db: sqlite3.Connection, order: Order) -> None:
    """Refuse to go on with a batch on the other side than it was begun.

    Raises:
        SettingsError: a sandbox batch without --sandbox, or the other way round; see `_check_gateway`.
    """
    side, out, sandbox = runs.recall(db, SIDE), order.out, order.settings.sandbox
    if side == IN_SANDBOX and not sandbox:
        raise SettingsError(
            f"{out}: this batch was begun in the sandbox; its images are rehearsal pictures",
            "add --sandbox to go on with it, or choose another folder for real images: -o DIR",
        )
    if side == LIVE and sandbox:
        raise SettingsError(
            f"{out}: this batch was begun at the real endpoint and is not continued in the sandbox",
            "leave --sandbox out to go on with it, or rehearse in another folder: -o DIR",
        )
    _check_gateway(db, order)


def _check_gateway(db: sqlite3.Connection, order: Order) -> None:
    """Refuse to mix what a gateway on this machine sold, a rehearsal most likely, with what another one sells.

    Raises:
        SettingsError: the batch has bought something on the other side.
    """
    before, now = runs.recall(db, BASE_URL), order.settings.base_url
    if order.settings.sandbox or not before or _is_here(before) == _is_here(now) or queries.next_attempt(db) == 1:
        return
    raise SettingsError(
        f"{order.out}: this batch was begun at {printable(before)} and is not continued at {printable(now)}:"
        " one of them is this machine, the other is not",
        f"add --base-url {shell_line([before])} to go on with it, or choose another folder: -o DIR",
    )


def _is_here(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")


def _stage(order: Order, prepared: Prepared, listed: Listed) -> None:
    """Read, validate and compare the whole manifest.

    Raises:
        ManifestError: bad rows, all of them; or a change that is refused.
    """
    settings, manifests = order.settings, order.manifests
    problems: list[Problem] = []
    rows: Iterable[PlannedJob] = manifests.jobs(problems, prepared.warnings)
    problems += listed.stage(rows, default_names=settings.filename == DEFAULT_FILENAME)
    if problems:
        raise ManifestError(
            f"{plural(len(problems), 'bad value')} in the manifest; nothing was sent",
            "mend the rows above and run again",
            problems,
        )
    difference = prepared.difference = listed.difference()
    if difference.duplicates and settings.dedupe == "error":
        raise ManifestError(
            f"{plural(difference.duplicates, 'row')} ask for what another row asks for already; nothing was sent",
            "remove them, or say --dedupe allow (pay for each) or --dedupe reuse (pay once)",
        )
    _refuse_change(order, difference)


def _refuse_change(order: Order, difference: Difference) -> None:
    if order.settings.on_change == "accept":
        return
    if difference.changed:
        raise ManifestError(_change_text(difference), _CHANGE_HINT)
    if difference.mostly_gone:
        raise ManifestError(
            f"{order.out}: {difference.removed:,} of the {difference.known:,} rows that this batch knows are gone,"
            f" and {difference.new:,} are new; nothing was sent",
            "is it the right manifest for this folder, with the same defaults? Another folder: -o DIR;"
            " or, to pay for the new rows: --on-change accept",
        )


_CHANGE_HINT = (
    "give the row another id, or put the request back;"
    " to buy the new request too and keep the old image: --on-change accept"
)


def _change_text(difference: Difference) -> str:
    lines = [f"{plural(difference.changed, 'row')} changed that were sent already; nothing was sent"]
    for change in difference.changes:
        lines.append(f'{change.file}:{change.line}: id "{change.id}"')
        lines += [f"    {line}" for line in change.differences]
    if difference.changed > len(difference.changes):
        lines.append(f"and {difference.changed - len(difference.changes):,} more")
    return "\n".join(lines)


def opened_for_images(
    batch: str, options: Mapping[str, object], environ: Mapping[str, str], cwd: Path
) -> tuple[Path, RunSettings, Callable[[], contextlib.AbstractContextManager[Prepared]]]:
    """Find a batch whose images are to be fetched: with its own side, gateway and allowed hosts.

    Raises:
        InputMissing, UsageError, ManifestError, SettingsError: it can't be opened, or the options are bad.
    """
    out = find_batch(batch, cwd)
    with contextlib.closing(database.open_reader(out)) as db:
        remembered: dict[str, object] = {"sandbox": runs.recall(db, SIDE) == IN_SANDBOX}
        if not remembered["sandbox"]:
            remembered["base_url"] = runs.recall(db, BASE_URL) or DEFAULT_BASE_URL
            remembered["allow_host"] = (runs.recall(db, ALLOWED_HOSTS) or "").split()
        last = queries.last_run(db)
        if last is not None and last.budget is not None:
            remembered["budget"] = credits_text(last.budget)
    # The environment is meant for what will be bought: where this was bought is not its to say.
    settings = resolved(
        options, {name: environ[name] for name in environ if name not in _OF_THE_BATCH}, remembered
    ).of_run

    @contextlib.contextmanager
    def ready() -> Iterator[Prepared]:
        with batch_lock(out):
            yield Prepared(_opened(out), Difference(), unchanged=True)

    return out, settings, ready
