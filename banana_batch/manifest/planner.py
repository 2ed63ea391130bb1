"""Rows to planned jobs.

Rule 1: one path for every format, for job files and for jobs made in code: `(line, names, values)` in, PlannedJob out.
Rule 2: what repeats is done once: columns per layout, choices of model, size … per combination of their values.
        What is left per row is the prompt, one hash and one file name; nothing is kept.
Rule 3: a row is planned whole or not at all, and all of its bad values are told.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from json import dumps
from json.encoder import encode_basestring as quoted
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from banana_batch.models import PlannedJob

from .formats import Row
from .layout import Draft, Layout, read_layout
from .naming import Namer, tell_no_column
from .references import BadReference, is_url, local_reference
from .reporting import Report, shown
from .requests import Mould, Request, compact, mould, settle
from .rows import Choices, read_choices, read_copies, read_extra, read_id, read_references, says_nothing
from .templates import NoColumn, TextTemplate

_MAX_REMEMBERED = 4_096  # layouts, and combinations in each: an adversarial file must not fill the memory
_A_PROMPT = "any text with a character that is not space"
_FIT_FOR_JSON = "what JSON in UTF-8 can hold: finite numbers, no half a character (a lone surrogate)"


class Defaults(Struct, frozen=True):
    """What holds for rows that say nothing.

    Attributes:
        choices: Command line, environment and `[defaults]`, merged.
        prompt: Made from a row's columns.
        references: Reference images, as named.
        folder: What `references` are relative to.
        extra: Further request fields; a row's own come on top.
    """

    choices: Choices = field(default_factory=Choices)
    prompt: TextTemplate | None = None
    references: tuple[str, ...] = ()
    folder: Path = field(default_factory=Path)
    extra: Mapping[str, Any] = field(default_factory=dict)


class Planner:
    """Plans the rows of one file.

    Args:
        folder: What the rows' reference images are relative to.

    Attributes:
        saw_local_references: A row named a file of this machine, whose content the manifest's bytes don't tell.
    """

    def __init__(
        self, report: Report, folder: Path, defaults: Defaults, namer: Namer, allow_unknown_model: bool
    ) -> None:
        self._report = report
        self._folder = folder
        self._defaults = defaults
        self._namer = namer
        self._allow_unknown_model = allow_unknown_model
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._draft = Draft()
        self.saw_local_references = False

    def plan(self, rows: Iterable[Row], table: bool) -> Iterator[PlannedJob]:
        """Yield the jobs of the rows that are good, in order; tell the others.

        Args:
            table: One header names the columns of all rows, and empty cells say nothing.
        """
        report, layouts = self._report, self._layouts
        for line, names, values in rows:
            report.line = line
            layout = layouts.get(names) or self._layout(names)
            if layout is not None and (layout.prompt >= 0 or self._defaults.prompt or not table):
                yield from self._jobs(layout, values, table)
            elif table:
                # Told once, and not for each row.
                if layout is not None:
                    self._made_prompt(layout, values, None)
                return

    def plan_laid_out(self, layout: Layout, values: Sequence[Any], line: int) -> Sequence[PlannedJob]:
        """Return the jobs of one row whose columns were laid out by the caller."""
        self._report.line = line
        return self._jobs(layout, values, table=False)

    def _layout(self, names: tuple[str, ...]) -> Layout | None:
        if len(self._layouts) >= _MAX_REMEMBERED:
            self._layouts.clear()
        layout = read_layout(names, self._report)
        if layout is not None:
            self._layouts[names] = layout
        return layout

    def _jobs(self, layout: Layout, values: Sequence[Any], table: bool) -> Sequence[PlannedJob]:
        report, draft, before = self._report, self._draft, self._report.count
        draft.begin(layout, values)
        if layout.rare or self._namer.makes_ids:
            self._read_rare(draft)
        shape = self._shape(draft)
        prompt = values[layout.prompt] if layout.prompt >= 0 else None
        if type(prompt) is not str or not prompt or prompt.isspace():
            prompt = self._made_prompt(layout, values, prompt)
        meta = self._meta(layout, values, table) if layout.meta else None
        if shape is None or prompt is None:
            return ()
        text = quoted(prompt)
        try:
            draft.key = shape.key(text)
        except UnicodeEncodeError:
            report.problem("prompt", shown(prompt), "text without half a character (a lone surrogate)")
            return ()
        draft.shape, draft.prompt = shape, prompt
        body = shape.body(text)
        jobs = [self._planned(draft, draft.id, body, meta)]
        if draft.copies > 1:
            jobs += self._copies(draft, body, meta)
        return jobs if report.count == before else ()

    def _copies(self, draft: Draft, body: str, meta: str | None) -> Iterator[PlannedJob]:
        given = draft.id
        for copy in range(2, draft.copies + 1):
            draft.copy = copy
            yield self._planned(draft, given and f"{given}~{copy}", body, meta)

    def _planned(self, draft: Draft, name: str | None, body: str, meta: str | None) -> PlannedJob:
        shape, report, stem = draft.shape, self._report, self._namer.stem(draft)
        # A named tuple's own constructor is a function of Python's, and takes twice as long.
        return tuple.__new__(
            PlannedJob,
            (name, draft.key, shape.kind, body, shape.references, shape.unsent, meta, stem, report.file, report.line),
        )

    def _read_rare(self, draft: Draft) -> None:
        values, report = draft.values, self._report
        said = {name: values[place] for name, place in draft.layout.rare.items() if not says_nothing(values[place])}
        if "id" in said:
            draft.id = read_id(said["id"], report)
        elif self._namer.makes_ids:
            draft.id = self._namer.made_id(draft)
        if "filename" in said:
            draft.filename = self._namer.given_filename(said["filename"])
        if "copies" in said:
            draft.copies = read_copies(said["copies"], report)
        if "refer_images" in said:
            draft.references = read_references(said["refer_images"], report)
        if "extra" in said:
            draft.extra = read_extra(said["extra"], report)

    def _shape(self, draft: Draft) -> Mould | None:
        """Return the row's request but for its prompt; None, and told, where it can't be sent."""
        layout = draft.layout
        try:
            request, shape = layout.moulds[layout.choose(draft.values)]
        except (KeyError, TypeError):  # TypeError: a list or an object where a choice belongs
            settled = self._settled(layout, draft.values)
            if settled is None:
                return None
            request, shape = settled
        if not draft.references and not draft.extra:
            return shape
        return self._mould(request, draft.references, draft.extra)

    def _settled(self, layout: Layout, values: Sequence[Any]) -> tuple[Request, Mould] | None:
        choices = read_choices(layout.choices(values), self._report)
        if choices is None:
            return None
        request = settle(choices, self._defaults.choices, self._allow_unknown_model, self._report)
        if request is None:
            return None
        shape = self._mould(request, (), {})
        if shape is None:
            return None
        if len(layout.moulds) >= _MAX_REMEMBERED:
            layout.moulds.clear()
        layout.moulds[layout.choose(values)] = request, shape
        return request, shape

    def _mould(self, request: Request, own: Sequence[str], extra: Mapping[str, Any]) -> Mould | None:
        names, folder = (own, self._folder) if own else (self._defaults.references, self._defaults.folder)
        if len(names) > request.max_references:
            most = f"at most {request.max_references} for {request.kind.model}"
            self._report.problem("refer_images", f"{len(names)} images", most)
            return None
        try:
            local = {name: local_reference(name, folder) for name in names if not is_url(name)}
            self.saw_local_references |= bool(local)
            return mould(request, names, local, {**self._defaults.extra, **extra})
        except BadReference as bad:
            self._report.problem("refer_images", shown(bad.found), bad.allowed)
        except (ValueError, TypeError, RecursionError) as failed:
            found = "half a character" if isinstance(failed, UnicodeEncodeError) else str(failed)
            self._report.problem("extra" if extra else "refer_images", shown(found), _FIT_FOR_JSON)
        return None

    def _made_prompt(self, layout: Layout, values: Sequence[Any], given: Any) -> str | None:
        """Return the prompt that a template makes of a row without one; None, and told, where there is none."""
        template, report = self._defaults.prompt, self._report
        if given is not None and given != "":
            report.problem("prompt", shown(given), _A_PROMPT)
        elif template is None and layout.prompt >= 0:
            report.problem("prompt", "nothing", _A_PROMPT)
        elif template is None:
            have = ", ".join(map(shown, layout.folded[:12])) or "none"
            report.problem("prompt", f"no such column among: {have}", f"{_A_PROMPT}; or --prompt 'a {{column}} …'")
        else:
            try:
                prompt = template.render(layout.columns(values))
            except NoColumn as missing:
                tell_no_column("prompt", missing, self._draft, report)
                return None
            if prompt.strip():
                return prompt
            report.problem("prompt", shown(prompt), _A_PROMPT)
        return None

    def _meta(self, layout: Layout, values: Sequence[Any], table: bool) -> str | None:
        """Return the user's own columns as a JSON object; None without any."""
        try:
            parts = [
                name + (quoted(value) if type(value) is str else compact(value))
                for place, name in layout.meta
                if (value := values[place]) != "" or not table
            ]
            meta = f"{{{','.join(parts)}}}"
            meta.encode()
        except (ValueError, TypeError, RecursionError):
            self._tell_unfit(layout, values)
            return None
        return meta if parts else None

    def _tell_unfit(self, layout: Layout, values: Sequence[Any]) -> None:
        for place, name in layout.meta:
            try:
                f"{name}{compact(values[place])}".encode()
            except (ValueError, TypeError, RecursionError):
                self._report.problem(shown(name[1:-2]), shown(dumps(values[place])), _FIT_FOR_JSON)
