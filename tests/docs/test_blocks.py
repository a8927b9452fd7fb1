"""Every command and import in the documentation is one that exists."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.docs.blocks import ROOT, Block, blocks, commands, pages, script_of

BLOCKS = [block for page in pages() for block in blocks(page)]
OURS = ("pipeline", "trainer", "evaluation")
ANYWHERE = ("--debug", "--quiet")


def of(language: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language == language]
    assert chosen
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.name)


def check_command(words: list[str]) -> None:
    """Raise for a command of ours whose subcommand, option or value is not known."""
    app = importlib.import_module(f"{words[0]}.cli").app
    command: Any = typer.main.get_command(app)
    context = command.make_context(words[0], [], resilient_parsing=True)
    words = [word for word in words[1:] if word not in ANYWHERE]
    if not words or words == ["--help"]:
        return
    name = words.pop(0)
    chosen = command.get_command(context, name)
    assert chosen is not None, f"no command {name}"
    if words == ["--help"]:
        return
    try:
        chosen.make_context(name, words, parent=context)
    except Exception as error:
        if "does not exist" not in str(error):  # a file of the reader's
            raise


@of("bash")
def test_bash__names_commands_options_and_values_that_exist(block: Block) -> None:
    recipes = set(re.findall(r"^([a-z][\w-]*).*:$", (ROOT / "Justfile").read_text(), re.MULTILINE))
    for words in commands(block.text):
        program = words[0].rsplit("/", 1)[-1]
        if program in OURS:
            check_command([program, *words[1:]])
        elif program == "just" and len(words) > 1:
            assert words[1] in recipes, words
        elif program == "python" and len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words


@of("python")
def test_python__compiles_and_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@of("bash")
def test_bash__is_a_script_that_the_shell_can_read(block: Block) -> None:
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash")
    done = subprocess.run(
        [shell, "-n"], input=block.text, capture_output=True, text=True, check=False
    )
    assert not done.stderr


def test_blocks__every_one_names_its_language() -> None:
    nameless = [block.name for block in BLOCKS if not block.language]
    assert not nameless


def test_check__sees_what_is_wrong() -> None:
    check_command(["pipeline", "embed", "--dataset", "folder", "--out", "x", "--quiet"])
    for wrong in (
        ["pipeline", "embde", "--out", "x"],
        ["pipeline", "embed", "--dataset", "folder", "--oout", "x"],
        ["pipeline", "embed", "--dataset", "folder", "--out", "x", "--points", "many"],
        ["pipeline", "embed", "--dataset", "folder"],
        ["evaluation", "retrieve", "stray"],
    ):
        with pytest.raises(
            Exception, match=r"(?i)no (such )?(command|option)|should be|missing|extra"
        ):
            check_command(wrong)


def test_commands__of_loops_pipes_comments_and_continued_lines() -> None:
    script = (
        "for a in 1 2; do\n  x --y 'a b' \\\n    --z  # why\ndone\ncat <<END\nn o\nEND\np | q > f\n"
    )
    assert list(commands(script)) == [
        *(
            ["for", "a", "in", "1", "2"],
            ["x", "--y", "a b", "--z"],
            ["done"],
            ["cat"],
            ["p"],
            ["q"],
        ),
    ]


def test_script__leaves_out_what_is_not_run(tmp_path: Path) -> None:
    page = ROOT / "docs" / "tutorial.md"
    script = script_of(page)
    reasons = [block for block in blocks(page) if block.not_run]
    assert reasons
    assert all(block.text not in script for block in reasons)
