"""Options that several commands share: a dataclass of them, which is one parameter of a command's function.

``takes_options`` gives the function the fields as parameters of its own, in that one's place: to the parser, the help and
callers in Python nothing is nested. A field is described by its dataclass, or by the function where it means more there.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import docstring_parser

from mmdit.errors import UserError

_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD


def takes_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function whose parameters that are dataclasses are replaced by their fields, in name, order, default and help."""
    hints = typing.get_type_hints(function)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in groups:
            parameters += _fields(groups[parameter.name])
        else:
            parameters.append(parameter.replace(kind=_KIND, annotation=hints[parameter.name]))
    signature = inspect.Signature(parameters, return_annotation=hints["return"])

    def command(*values: Any, **named: Any) -> Any:
        bound = signature.bind(*values, **named)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        made = {
            name: group(**{field.name: arguments.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        return function(**arguments, **made)

    command.__name__, command.__qualname__, command.__module__ = (
        function.__name__,
        function.__qualname__,
        function.__module__,
    )
    command.__doc__ = _documentation(function, groups, list(signature.parameters))
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__annotations__["return"] = signature.return_annotation
    command.__signature__ = signature  # type: ignore[attr-defined]
    return command


def refuse_idle(command: Callable[..., Any], given: Mapping[str, Any], why: str) -> None:
    """Refuse options that have no effect beside the others of a command.

    Args:
        command: whose options they are.
        given: name -> value; one at its default was not asked for.
        why: it has none, and what would be right.

    Raises:
        UserError: the first that isn't at its default.
    """
    parameters = inspect.signature(command).parameters
    for name, value in given.items():
        if value != parameters[name].default:
            typed = "" if value is True else f" {str(value).lower() if value is False else value}"
            raise UserError(f"--{name}{typed}: {why}, or leave it out")


def _fields(group: Any) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(group)
    return [
        inspect.Parameter(field.name, _KIND, default=field.default, annotation=hints[field.name])
        for field in dataclasses.fields(group)
    ]


def _documentation(function: Callable[..., Any], groups: Mapping[str, Any], names: list[str]) -> str:
    """The function's docstring with a description of each of ``names``."""
    described: dict[str, str] = {}
    classes = [each for group in groups.values() for each in reversed(group.__mro__) if dataclasses.is_dataclass(each)]
    for source in (*classes, function):
        found = docstring_parser.parse(inspect.getdoc(source) or "").params
        described |= {each.arg_name: each.description or "" for each in found}
    text = (inspect.getdoc(function) or "").partition("\nArgs:\n")[0].rstrip()
    lines = [f"    {name}: " + described[name].replace("\n", "\n        ") for name in names]
    return "\n".join([text, "", "Args:", *lines])
