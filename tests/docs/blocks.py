"""Code blocks of the documentation: found, taken apart into commands, made into scripts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_FENCE = re.compile(r"^( *)```(\w*)\s*$")
_SEPARATORS = {"|", "||", "&&", ";", "&", "(", ")"}
_LOOPS = {"do", "then", "else", "time"}


@dataclass(frozen=True)
class Block:
    """One fenced block: ``line`` is that of its first line of code."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None  # the reason

    @property
    def name(self) -> str:
        """For the names of tests."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page of documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page. Raises ``ValueError`` for a fence that is not closed."""
    opened: tuple[str, str, int] | None = None
    reason: str | None = None
    held: list[str] = []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence:
                opened, held = (fence[1], fence[2], number + 1), []
            elif line.strip():
                told = NOT_RUN.search(line)
                reason = told[1] if told else None
        elif fence and fence[1] == opened[0] and not fence[2]:
            indent, language, first = opened
            text = "\n".join(one.removeprefix(indent) for one in held) + "\n"
            yield Block(page, first, language, text, reason)
            opened = reason = None
        else:
            held.append(line)
    if opened:
        raise ValueError(f"{page}: the block of line {opened[2] - 1} is not closed")


def commands(script: str) -> Iterator[list[str]]:
    """The words of every command in a shell script, without here-documents and redirections."""
    script = re.sub(r"<<'?(\w+)'?\n.*?\n\1\n", "\n", script, flags=re.DOTALL)
    for line in re.sub(r"\\\n", " ", script).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();|&<>")
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in lexer:
            if word in _SEPARATORS or (word in _LOOPS and not words):
                if words:
                    yield words
                words = []
            elif word in {">", ">>", "<"}:
                skip = True
            elif skip:
                skip = False
            else:
                words.append(word)
        if words:
            yield words


def script_of(page: Path) -> str:
    """All blocks of a page that are run, in their order, as one shell script."""
    lines = ["set -euo pipefail"]
    for block in blocks(page):
        if block.not_run:
            continue
        if block.language == "bash":
            lines += [f"echo '== {block.name}'", block.text]
        elif block.language == "python":
            lines += [
                f"echo '== {block.name}'",
                f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK",
            ]
    return "\n".join(lines) + "\n"
