"""The pages of the commands: a section for each, with the options that the code has."""

from __future__ import annotations

import importlib
import importlib.util
import re
from types import ModuleType
from typing import Any

import pytest
import typer
from mkdocs.exceptions import PluginError

from tests.docs.blocks import ROOT

APPS = ("pipeline", "trainer", "evaluation")
HEADING = re.compile(r"^## (\w+) ([\w-]+)$", re.MULTILINE)


def commands_of(app: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(importlib.import_module(f"{app}.cli").app)
    return dict(group.commands)


def text_of(app: str) -> str:
    return (ROOT / "docs" / "commands" / f"{app}.md").read_text("utf-8")


def load_hooks() -> ModuleType:
    """docs/ is no package: the module is loaded as mkdocs does, from its file."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load_hooks()
COMMANDS = [(app, name) for app in APPS for name in commands_of(app)]


@pytest.mark.parametrize("app", APPS)
def test_page__has_a_section_for_each_command_and_for_no_other(app: str) -> None:
    headings = HEADING.findall(text_of(app))
    assert {of for of, _ in headings} == {app}
    named = [name for _, name in headings]
    assert sorted(named) == sorted(commands_of(app))


@pytest.mark.parametrize(("app", "name"), COMMANDS)
def test_section__says_what_it_is_for_shows_its_command_and_has_its_options(
    app: str, name: str
) -> None:
    section = re.split(r"^## ", text_of(app).split(f"\n## {app} {name}\n")[1], flags=re.MULTILINE)
    body = section[0].strip()
    assert re.match(r"[A-Z][^#|`]+", body), "begins with what the command is for"
    assert re.search(rf"^```bash\n(.*\n)*?{app} {name}\b", body, re.MULTILINE)
    assert [(m[1], m[2]) for m in HOOKS.MARKER.finditer(body)] == [(app, name)]


@pytest.mark.parametrize(("app", "name"), COMMANDS)
def test_box__has_every_option_once_with_its_help(app: str, name: str) -> None:
    box = HOOKS.box(app, name)
    rows = [line.strip() for line in box.splitlines() if line.startswith("    | ")]
    rows = [row for row in rows if not row.startswith("| option |")]
    options = commands_of(app)[name].params
    assert len(rows) == len(options)
    for option in options:
        names = {*option.opts, *option.secondary_opts}
        if option.param_type_name == "argument":
            names = {option.metavar or option.name.upper()}
        (row,) = [r for r in rows if set(re.findall(r"`([^`]+)`", r.split(" | ")[0])) == names]
        assert ("**needed**" in row) == option.required
        assert option.help
        told = row.split(" | ")[2].removesuffix(" |").replace("\\", "")
        assert told == option.help.replace("\\", "")


def test_box__tells_groups_ranges_defaults_and_choices() -> None:
    box = HOOKS.box("pipeline", "embed")
    assert box.startswith('??? info "Options of `pipeline embed`"\n\n    **')
    assert re.search(
        r"\| `--points` \| integer ≥ 16, default `10000` \| Points per object\. \|", box
    )
    assert re.search(r"\| `--max-failures` \| number 0 to 1, default `0.05` \|", box)
    assert re.search(r"\| `--teacher` \| text, repeatable \|", box)
    assert "only files that match, as in a shell: \\*\\_lod0" in box.lower()
    assert re.search(
        r"\| `--format` \| `npz`, `webdataset`, `openshape`, \*\*needed\*\* \|",
        HOOKS.box("pipeline", "export"),
    )
    assert re.search(
        r"\| `--near-duplicates`<br>`--no-near-duplicates` \| default `--near-duplicates` \|",
        HOOKS.box("pipeline", "split"),
    )
    assert HOOKS.box("pipeline", "datasets").startswith("???+ ")  # short, so it is open


def test_hook__replaces_markers_alone() -> None:
    page = "text\n\n<!-- options: pipeline datasets -->\n\n<!-- not run: GPU -->\n"
    done = HOOKS.on_page_markdown(page, page=None, config=None, files=None)
    assert done == page.replace(
        "<!-- options: pipeline datasets -->", HOOKS.box("pipeline", "datasets")
    )


def test_hook__a_marker_of_no_command_ends_the_build() -> None:
    with pytest.raises(PluginError, match="options: pipeline embde -->: no such command"):
        HOOKS.on_page_markdown("<!-- options: pipeline embde -->")


def test_plain__signs_of_markdown_mean_nothing_but_in_backticks() -> None:
    assert HOOKS.plain("a|b <c> *d* `e|f_g` [h]") == "a\\|b \\<c\\> \\*d\\* `e|f_g` \\[h\\]"
