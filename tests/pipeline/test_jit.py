from __future__ import annotations

from typing import Any

import pytest

from pipeline.jit import jit


def test_cache__is_given_up_when_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def njit(*, cache: bool, **options: Any) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr("numba.njit", njit)
    assert jit(len) is len
    assert asked == [True, False]
