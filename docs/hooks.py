"""Hook of mkdocs: tables of the options of commands, made from the Typer apps as a page is built.

A line ``<!-- options: pipeline embed -->`` becomes a box with a table for every group of options.
mkdocs-click finds no options here: Typer carries a copy of click, whose classes it does not know.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import types
import typing

import typer
from mkdocs.exceptions import PluginError

MARKER = re.compile(r"^<!-- options: (\w+) ([\w-]+) -->$", re.MULTILINE)
FOLDED_FROM = 9  # options: more are folded until the reader asks for them
TYPES = {"bool": "", "str": "text", "int": "integer", "float": "number", "Path": "path"}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Event of mkdocs: the page with a box in the place of each marker."""
    return MARKER.sub(lambda found: box(found[1], found[2]), markdown)


def box(app: str, name: str) -> str:
    """Markdown of the options of the command ``name`` of a package. Raises ``PluginError``."""
    group: typing.Any = typer.main.get_command(importlib.import_module(f"{app}.cli").app)
    commands = group.commands
    if name not in commands:
        raise PluginError(f"<!-- options: {app} {name} -->: no such command")
    hints = typing.get_type_hints(inspect.unwrap(commands[name].callback), include_extras=True)
    shown = [option for option in commands[name].params if not option.hidden]
    groups: dict[str, list[str]] = {"": []}  # those of no group stand first
    for option in shown:
        cells = " | ".join(row(option, *typing.get_args(hints[option.name])))
        groups.setdefault(option.rich_help_panel or "", []).append(f"| {cells} |")
    lines = []
    for title, rows in groups.items():
        if rows:
            lines += [f"**{title}**", ""] if title else []
            lines += ["| option | value | what it does |", "|---|---|---|", *rows, ""]
    fold = "???" if len(shown) >= FOLDED_FROM else "???+"
    lines = [f'{fold} info "Options of `{app} {name}`"', "", *("    " + line for line in lines)]
    return "\n".join(line.rstrip() for line in lines)


def row(option: typing.Any, kind: typing.Any, info: typing.Any) -> list[str]:
    """Cells of one option: its names; type, range and default; what its help says."""
    names = [*option.opts, *option.secondary_opts]
    if option.param_type_name == "argument":
        names = [option.metavar or option.name.upper()]
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
    several = typing.get_origin(kind) is list
    kind = typing.get_args(kind)[0] if several else kind
    is_choice = issubclass(kind, enum.Enum)
    value = ", ".join(f"`{one.value}`" for one in kind) if is_choice else TYPES[kind.__name__]
    facts = [value, "repeatable" if several else "", "**needed**" if option.required else ""]
    if info.min is not None or info.max is not None:
        low, high = ("" if end is None else f"{end:g}" for end in (info.min, info.max))
        facts[0] += f" {low} to {high}" if low and high else f" ≥ {low}" if low else f" ≤ {high}"
    if kind is bool and option.secondary_opts and option.default is not None:
        facts.append(f"default `{names[not option.default]}`")
    elif kind is not bool and not option.required and option.default not in (None, [], ()):
        default = option.default.value if is_choice else option.default
        facts.append(f"default `{default}`")
    told = ", ".join(fact for fact in facts if fact)
    return ["<br>".join(f"`{one}`" for one in names), told, plain(option.help or "")]


def plain(text: str) -> str:
    """Help as Markdown of a table's cell: only its backticks mean something."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_\[\]<>|])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)
