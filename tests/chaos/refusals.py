"""What tests of hostile files share: proper refusals, and PyTorch files of every format."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common import InputError, file_hash
from trainer import checkpoint

LONGEST = 2000  # characters of a message


def refusal(call: Callable[[], Any]) -> str:
    """The message of the ``InputError`` that a call must raise."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < LONGEST
    return message


def survived(call: Callable[[], Any]) -> bool:
    """Whether a call worked; where it did not, it raised a proper ``InputError``."""
    try:
        call()
    except InputError as error:
        message = str(error)
    else:
        return True
    assert message
    assert "\n" not in message
    return False


def rehashed(folder: Path) -> None:
    """Make the config of a checkpoint agree with its files again, as an attacker would."""
    config = json.loads((folder / checkpoint.CONFIG).read_text())
    config["files"] = {name: file_hash(folder / name) for name in config["files"]}
    (folder / checkpoint.CONFIG).write_text(json.dumps(config))


def legacy_tar(value: Any, path: Path) -> None:
    """A file as PyTorch wrote them first: a tar archive of pickles."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(value)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def plain_pickle(protocol: int, value: Any, path: Path) -> None:
    """What some programs call a PyTorch file."""
    path.write_bytes(pickle.dumps(value, protocol))


TORCH_FORMS: dict[str, Callable[[Any, Path], None]] = {
    "zip": lambda value, path: torch.save(value, path),
    "stream": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "tar": legacy_tar,
    **{f"pickle {protocol}": partial(plain_pickle, protocol) for protocol in (0, 2, 5)},
}
