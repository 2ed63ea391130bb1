"""From what a row chose to the wire body, and to the hash that names the purchase.

Rule 1: the canonical request is the wire body with the spec's defaults filled in, aliases resolved and local
        references by content hash. It is versioned and pinned by test vectors: were it to change, every row
        of every batch would be bought anew.
Rule 2: defaults that a model does not take are not sent to it. What a row spells out is sent, or refused where the
        spec refuses it; where only third parties speak against it, there is a warning.
Rule 3: everything but the prompt is put together once per combination (`Mould`): a row adds its prompt.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from msgspec import Struct

from banana_batch.capabilities import (
    DEFAULT_ASPECT_RATIO,
    DEFAULT_IMAGE_SIZE,
    DEFAULT_MODEL,
    MAX_REFERENCES,
    MODELS,
    Model,
    resolve_model,
)
from banana_batch.models import Kind

from .references import Reference
from .reporting import Report, one_of, shown
from .rows import Choices, allowed

CANONICAL_VERSION = 1
KEY_BYTES = 16

_PREFIX = f"banana_batch request {CANONICAL_VERSION}\n".encode()
_SEARCHES = ("google_search", "image_search")


class Request(Struct, frozen=True):
    """What is asked for, but for prompt, references and extra fields.

    Attributes:
        wire: Fields as they are sent.
        canonical: The same with the spec's defaults filled in.
        unsent: What was spelled out and is not sent.
        max_references: Most reference images.
    """

    kind: Kind
    wire: dict[str, Any]
    canonical: dict[str, Any]
    unsent: dict[str, Any]
    max_references: int


class Mould(Struct, frozen=True):
    """A request into which only the prompt is still to be put, as a quoted JSON text.

    Attributes:
        kind: For prices and latencies.
        head, tail: The canonical request, UTF-8, before and behind the prompt.
        wire_tail: The wire body behind the prompt.
        references, unsent: As in PlannedJob.
        aspect_ratio: In force, for file names.
    """

    kind: Kind
    head: bytes
    tail: bytes
    wire_tail: str
    references: str | None
    unsent: str | None
    aspect_ratio: str

    def key(self, quoted_prompt: str) -> bytes:
        """Return the hash of the canonical request.

        Raises:
            UnicodeEncodeError: the prompt has half a character (a lone surrogate).
        """
        return hashlib.sha256(self.head + quoted_prompt.encode() + self.tail).digest()[:KEY_BYTES]

    def body(self, quoted_prompt: str) -> str:
        """Return the wire body as compact JSON."""
        return f'{{"prompt":{quoted_prompt}{self.wire_tail}'


def compact(value: Any, sort: bool = False) -> str:
    """Return compact JSON.

    Raises:
        ValueError: a number that JSON does not have (NaN, Infinity), or half a character.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=sort)
    text.encode()
    return text


@lru_cache(maxsize=256)
def kind_of(model: str, image_size: str) -> Kind:
    """Return the one object for a model and size."""
    return Kind(model, image_size)


def settle(row: Choices, defaults: Choices, allow_unknown_model: bool, report: Report) -> Request | None:
    """Merge a row's choices with the defaults, for the row's model; None, and told, where they don't go together."""
    name = resolve_model(row.model or defaults.model or DEFAULT_MODEL)
    model = MODELS.get(name)
    if model is None and not allow_unknown_model:
        report.problem("model", shown(name), allowed("model", name))
        return None
    if row.aspect_ratio not in (None, DEFAULT_ASPECT_RATIO) and model and not model.takes_ratio:
        report.problem("aspect_ratio", shown(row.aspect_ratio), f"1:1 or nothing, as {name} takes no aspect_ratio")
        return None
    wire: dict[str, Any] = {"model": name}
    unsent: dict[str, Any] = {}
    for field in ("aspect_ratio", "image_size", "thinking_level"):
        _settle_value(field, row, defaults, model, wire, unsent)
    for field in _SEARCHES:
        _settle_search(field, row, defaults, model, wire, unsent)
    if model is not None:
        _warn(row, model, report)
    canonical = {"aspect_ratio": DEFAULT_ASPECT_RATIO, "image_size": DEFAULT_IMAGE_SIZE, **wire}
    canonical |= {field: field in wire for field in _SEARCHES}
    kind = kind_of(name, canonical["image_size"])
    return Request(kind, wire, canonical, unsent, model.max_references if model else MAX_REFERENCES)


def _settle_value(
    field: str, row: Choices, defaults: Choices, model: Model | None, wire: dict[str, Any], unsent: dict[str, Any]
) -> None:
    given, default = getattr(row, field), getattr(defaults, field)
    if given is not None and field == "aspect_ratio" and model and not model.takes_ratio:
        unsent[field] = given
    elif given is not None:
        wire[field] = given
    elif default is not None and (model is None or _takes(model, field, default)):
        wire[field] = default


def _settle_search(
    field: str, row: Choices, defaults: Choices, model: Model | None, wire: dict[str, Any], unsent: dict[str, Any]
) -> None:
    given, default = getattr(row, field), getattr(defaults, field)
    if given is None and (model is None or _takes(model, field, default)):
        given = default
    if given:
        wire[field] = "true"  # the documentation's sample has a string; off is left out, as "false" may read as true
    elif given is not None:
        unsent[field] = False


def _takes(model: Model, field: str, value: Any) -> bool:
    if field == "aspect_ratio":
        return model.takes_ratio and value in model.ratios
    if field == "image_size":
        return value in model.sizes
    return model.thinking if field == "thinking_level" else bool(getattr(model, field))


def _warn(row: Choices, model: Model, report: Report) -> None:
    if row.aspect_ratio and row.aspect_ratio not in model.ratios:
        known = one_of(sorted(model.ratios))
        report.warning("aspect_ratio", f"{row.aspect_ratio} for {model.id}", f"known to work: {known}")
    if row.image_size and row.image_size not in model.sizes:
        report.warning(
            "image_size", f"{row.image_size} for {model.id}", f"known to work: {one_of(sorted(model.sizes))}"
        )
    if row.thinking_level and not model.thinking:
        report.warning("thinking_level", f"{row.thinking_level} for {model.id}", "nothing, as it has no effect there")
    for field in _SEARCHES:
        if getattr(row, field) and not getattr(model, field):
            report.warning(field, f"true for {model.id}", "nothing, as that model is not known to search so")


def mould(request: Request, names: Sequence[str], local: Mapping[str, Reference], extra: Mapping[str, Any]) -> Mould:
    """Put together all of a request but its prompt.

    Args:
        names: Reference images as the row names them.
        local: Those of them that are files of this machine.
        extra: Further request fields; none of the spec's.

    Raises:
        ValueError: `extra` holds what JSON or UTF-8 can't.
    """
    wire = dict(request.wire)
    canonical = dict(request.canonical)
    if names:
        wire["refer_images"] = list(names)
        canonical["refer_images"] = [f"sha256:{local[name].sha256}" if name in local else name for name in names]
    wire |= extra
    canonical |= extra
    before = {name: value for name, value in canonical.items() if name < "prompt"}
    behind = {name: value for name, value in canonical.items() if name > "prompt"}
    references = {name: {"path": r.path, "sha256": r.sha256, "mime": r.mime} for name, r in local.items()}
    return Mould(
        kind=request.kind,
        head=_PREFIX + compact(before, sort=True)[:-1].encode() + b',"prompt":',
        tail=(f",{compact(behind, sort=True)[1:]}" if behind else "}").encode(),
        wire_tail=f",{compact(wire)[1:]}",
        references=compact(references) if references else None,
        unsent=compact(request.unsent) if request.unsent else None,
        aspect_ratio=canonical["aspect_ratio"],
    )
