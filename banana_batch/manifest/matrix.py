"""`[matrix]` of a job file: every combination of its lists, as rows."""

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

from msgspec import Struct

from .formats import Row

# One text for the whole matrix: a template, or a value of its own kind.
_WHOLE = ("prompt", "id", "filename", "copies", "refer_images", "extra")
_TEMPLATES = ("prompt", "id", "filename")


class Matrix(Struct, frozen=True):
    """A cross product; the last list runs fastest.

    Attributes:
        line: Where it starts in the job file.
        axes: Lists, by column.
        constants: What is the same for all rows, by column.
        prompt, id, filename: Templates over the columns; None: not given.
    """

    line: int
    axes: Mapping[str, list[Any]]
    constants: Mapping[str, Any]
    prompt: str | None
    id: str | None
    filename: str | None

    def count(self) -> int:
        """Return how many rows there are, without making one."""
        return prod(map(len, self.axes.values()))

    def rows(self) -> Iterator[Row]:
        """Yield the rows."""
        names = (*self.axes, *self.constants)
        constants = tuple(self.constants.values())
        for values in product(*self.axes.values()):
            yield self.line, names, values + constants


def read_matrix(table: Mapping[str, Any], line: int) -> Matrix:
    """Make a matrix of its table.

    Raises:
        ValueError: `(column, found, allowed)` of a value that can't be used.
    """
    axes: dict[str, list[Any]] = {}
    constants: dict[str, Any] = {}
    for name, value in table.items():
        if name in _TEMPLATES:
            if not isinstance(value, str) or not value.strip():
                raise ValueError(name, value, "a text, with {name} for the columns")
        elif isinstance(value, list) and name not in _WHOLE:
            if not value:
                raise ValueError(name, value, "a list with at least one value")
            axes[name] = value
        elif isinstance(value, dict) and name != "extra":
            raise ValueError(name, value, "a value, or a list of values")
        else:
            constants[name] = value
    return Matrix(line, axes, constants, *(table.get(name) for name in _TEMPLATES))
