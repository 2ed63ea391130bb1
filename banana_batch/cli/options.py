"""Options of `run` and `plan`, made from the settings model: one place for names, help and environment.

Each is read as text here; the model parses it, so that an option, a variable and a job-file key mean the same.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_origin

import typer

from banana_batch.settings import ENV_PREFIX, Settings, described, option_name


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that takes `options` the settings' options; it gets those that were typed, as one dict."""
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.name != "options"
    ]
    made = _parameters()

    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        options = {}
        for name in Settings.model_fields:
            value = given.pop(name)
            if value not in (None, [], ()):
                options[option_name(name)] = value
        return command(**given, options=options)

    # Typer reads the signature; the wrapped function's own has none of the options.
    wrapped.__dict__["__signature__"] = inspect.Signature([*own, *made])
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *made)}
    del wrapped.__dict__["__wrapped__"]
    return wrapped


@functools.cache
def _parameters() -> list[inspect.Parameter]:
    return [_parameter(name) for name in Settings.model_fields]


def _parameter(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    look = described(field)
    flag = "--" + option_name(name).replace("_", "-")
    optional_flag = field.annotation == bool | None
    names = [f"{flag}/--no-{flag[2:]}" if optional_flag else flag]
    if look.short:
        names.append(f"-{look.short}")
    base: Any = bool if field.annotation in (bool, bool | None) else str
    if get_origin(field.annotation) is list:
        base = list[str]
    option = typer.Option(
        *names,
        # Rich takes brackets for markup.
        help=f"{field.description} [env: {ENV_PREFIX}{option_name(name).upper()}]".replace("[", r"\["),
        metavar=look.metavar or None,
        rich_help_panel=look.group,
        show_default=False,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[base | None, option]
    )
