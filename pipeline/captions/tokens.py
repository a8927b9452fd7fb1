"""How long texts are for a teacher: what its tokenizer leaves out of those beyond its context."""

from __future__ import annotations

from typing import Any

_REMEMBERED = 100_000
_SPECIAL = 4  # tokens that a tokenizer may add around a text


class TokenCounter:
    """Counts tokens as a tokenizer of open_clip does (its own, or one of ``transformers``)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.context: int | None = getattr(tokenizer, "context_length", None)
        self._known: dict[str, int] = {}

    def excess(self, text: str) -> int:
        """Tokens of ``text`` beyond the context; 0 where it fits, or the tokenizer has no limit.

        The text is taken to be cleaned (``pipeline.captions``), so that a token is a byte or more.
        """
        if self.context is None or len(text.encode()) + _SPECIAL <= self.context:
            return 0
        if text not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[text] = max(0, self._length(text) - self.context)
        return self._known[text]

    def _length(self, text: str) -> int:
        if hasattr(self._tokenizer, "encode"):  # open_clip's own: without start and end
            return len(self._tokenizer.encode(text)) + 2
        inner = self._tokenizer.tokenizer  # a wrapped tokenizer of transformers
        return len(inner(self._tokenizer.clean_fn(text), truncation=False, verbose=False).input_ids)
