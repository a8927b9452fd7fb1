"""Hostile pickles, PyTorch files and checkpoints: nothing is run, and one line says so."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.shapes import load_cloud
from evaluation.student import load_student
from pipeline.common import file_hash
from pipeline.datasets.point_files import read_points
from pipeline.imports.openshape import ObjectRules, make_row
from pipeline.imports.run import lvis_embeds
from pipeline.scene import MeshError
from pipeline.teacher import load_teacher
from tests.chaos.mutate import byte_mutations, json_mutations
from tests.chaos.mutate_clouds import Runs, npy, npz
from tests.chaos.refusals import TORCH_FORMS, refusal, rehashed, survived
from tests.pipeline.imports.release import make_object
from tests.pipeline.shard_tools import make_manifest
from tests.trainer.checkpoints import write_checkpoint
from trainer import checkpoint
from trainer.checkpoint import load_model, load_state
from trainer.released import import_weights, read_weights


@pytest.mark.parametrize("form", TORCH_FORMS)
@pytest.mark.parametrize("layout", ["openshape", "uni3d", "model"])
def test_pickle__in_released_weights_is_not_run(
    form: str, layout: Any, tmp_path: Path, canary: Path
) -> None:
    path = tmp_path / "model.pt"
    TORCH_FORMS[form]({"state_dict": {"a": torch.zeros(2), "b": Runs(str(canary))}}, path)
    if layout == "model":
        refusal(lambda: load_model(path))
    else:
        refusal(lambda: import_weights(layout, path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", TORCH_FORMS)
def test_pickle__in_the_state_of_a_checkpoint_is_not_run(
    form: str, tmp_path: Path, canary: Path
) -> None:
    folder = tmp_path / "step"
    write_checkpoint(folder)
    TORCH_FORMS[form]({"step": Runs(str(canary))}, folder / checkpoint.STATE)
    assert checkpoint.damage(folder) is not None
    rehashed(folder)
    assert checkpoint.damage(folder) is None
    assert checkpoint.STATE in refusal(lambda: load_state(folder))


def test_pickle__in_the_place_of_safetensors_is_not_run(tmp_path: Path, canary: Path) -> None:
    folder = tmp_path / "step"
    write_checkpoint(folder)
    for form in TORCH_FORMS.values():
        form({"cls_token": Runs(str(canary))}, folder / checkpoint.WEIGHTS)
        rehashed(folder)
        refusal(lambda: load_model(folder))


@pytest.mark.parametrize("form", TORCH_FORMS)
def test_pickle__in_weights_of_a_teacher_is_not_run(
    form: str, tmp_path: Path, canary: Path
) -> None:
    path = tmp_path / "weights.pt"
    TORCH_FORMS[form]({"state_dict": {"logit_scale": Runs(str(canary))}}, path)
    refusal(lambda: load_teacher(f"ViT-S-32-alt:{path}"))


def test_pickle__in_an_object_of_openshape_is_a_failure_by_its_name(canary: Path) -> None:
    manifest = make_manifest(n_points=80, n_views=3, width=6)
    rules = ObjectRules(manifest, "+y", {}, frozenset(), False, False)
    place = ("Objaverse", "000-001", "a")
    good = make_object("/".join(place))
    assert make_row(npy(np.array(good, object)), place, rules).uid == "objaverse/a"
    for key in ("xyz", "text", "image_feat", "extra"):
        data = npy(np.array({**good, key: Runs(str(canary))}, object), allow_pickle=True)
        with pytest.raises(MeshError) as error:
            make_row(data, place, rules)
        assert error.value.kind == "unsafe_pickle"
        assert error.value.message.endswith(".system")


def test_pickle__in_the_features_of_categories_is_not_run(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "meta_data" / "lvis_cat_name_pt_feat.npy"
    path.parent.mkdir()
    path.write_bytes(npy(np.array(Runs(str(canary)), object), allow_pickle=True))
    assert ".system" in refusal(lambda: lvis_embeds(tmp_path, {"a": "mug"}))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_pickle__in_a_point_file_is_not_run(name: str, tmp_path: Path, canary: Path) -> None:
    data = npy(np.array([Runs(str(canary))] * 60, object), allow_pickle=True)
    (tmp_path / name).write_bytes(data if name == "a.npy" else npz({"xyz.npy": data}))
    with pytest.raises(MeshError) as error:
        read_points(tmp_path / name)
    assert error.value.kind in ("pickled", "no_points")


def test_pickle__in_a_query_is_not_run(tmp_path: Path, canary: Path) -> None:
    pickled = npy(np.array([[Runs(str(canary))] * 3] * 60, object), allow_pickle=True)
    for data in (npz({"xyz.npy": pickled}), pickled, pickle.dumps(Runs(str(canary)))):
        (tmp_path / "a.npz").write_bytes(data)
        refusal(lambda: load_cloud(tmp_path / "a.npz", 8))


# --- weights that claim -----------------------------------------------------------------------


def test_weights__that_unfold_are_refused_before_they_do(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "plain.pt")
    assert read_weights(tmp_path / "plain.pt")["a"].shape == (100_000,)
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    assert "unfolds" in refusal(lambda: read_weights(tmp_path / "bomb.pt"))


def test_weights__views_and_tensors_without_numbers_are_refused(tmp_path: Path) -> None:
    views = {
        "one number a billion times": torch.zeros(1).expand(10**9),
        "without numbers": torch.zeros(4, device="meta"),
        "sparse": torch.zeros(4, 4).to_sparse(),
    }
    for told, tensor in views.items():
        torch.save({"a": tensor}, tmp_path / "a.pt")
        message = refusal(lambda: read_weights(tmp_path / "a.pt"))
        assert "no plain tensor" in message, told


def test_weights__a_dict_that_holds_itself_ends(tmp_path: Path) -> None:
    value: dict[str, Any] = {}
    value["state_dict"] = value
    torch.save(value, tmp_path / "a.pt")
    refusal(lambda: read_weights(tmp_path / "a.pt"))


def test_weights__any_changed_byte_is_read_or_refused(tmp_path: Path) -> None:
    for form in ("zip", "stream"):
        TORCH_FORMS[form]({"a": torch.arange(30.0), "b": {"c": [1, 2.5, "x"]}}, tmp_path / "a.pt")
        whole = (tmp_path / "a.pt").read_bytes()
        good = 0
        for _, data in byte_mutations(whole, f"weights {form}", 84):
            (tmp_path / "b.pt").write_bytes(data)
            good += survived(lambda: read_weights(tmp_path / "b.pt"))
        assert good < 84


# --- checkpoints ------------------------------------------------------------------------------


def test_checkpoint__any_value_of_its_config_is_read_or_refused(step: Path) -> None:
    config = json.loads((step / checkpoint.CONFIG).read_text())
    kept = {k: config[k] for k in ("teacher", "backbone", "n_points", "neutral_rgb", "step")}
    kept |= {"files": config["files"], "format": config["format"], "version": config["version"]}
    good = 0
    for _, value in json_mutations(kept, "checkpoint", 250):
        (step / checkpoint.CONFIG).write_text(json.dumps({"recipe": None, "data": {}, **value}))
        good += survived(lambda: load_student(step))
    assert 0 < good < 200


def test_checkpoint__options_of_a_giant_cost_nothing(step: Path) -> None:
    config = json.loads((step / checkpoint.CONFIG).read_text())
    for giant in ({"dim": 2**20}, {"depth": 10**9}, {"mlp_dim": 10**12}, {"heads": 10**6}):
        backbone = {**config["backbone"], "options": {**config["backbone"]["options"], **giant}}
        (step / checkpoint.CONFIG).write_text(json.dumps({**config, "backbone": backbone}))
        assert "do not fit" in refusal(lambda: load_model(step))
    none: dict[str, list[float]] = {
        "fingerprint_image": [],
        "fingerprint_text": [],
    }  # else their lengths tell
    teacher = {**config["teacher"], **none, "width": 2**28}
    (step / checkpoint.CONFIG).write_text(json.dumps({**config, "teacher": teacher}))
    assert "do not fit" in refusal(lambda: load_model(step))


@pytest.mark.parametrize(
    "text",
    [
        '{"format": "mrd3d-checkpoint", "version": 1, "files": ' + "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"format": "mrd3d-checkpoint", "version": ' + "9" * 5000 + "}",
        '{"format": "mrd3d-checkpoint", "version": NaN}',
        '{"format": "mrd3d-checkpoint", "version": true}',
        '{"format": "mrd3d-checkpoint", "version": 1}',
        "\ud800",
        "null",
    ],
    ids=["open", "deep", "digits", "nan", "true", "no files", "surrogate", "null"],
)
def test_checkpoint__config_that_is_none(text: str, step: Path) -> None:
    (step / checkpoint.CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    refusal(lambda: load_model(step))


def test_checkpoint__names_no_file_but_its_own(step: Path, tmp_path: Path) -> None:
    config = json.loads((step / checkpoint.CONFIG).read_text())
    (tmp_path / "secret").write_bytes(b"secret")
    for name in ("../secret", str(tmp_path / "secret"), "..", "/dev/stdin"):
        files = {**config["files"], name: file_hash(tmp_path / "secret")}
        (step / checkpoint.CONFIG).write_text(json.dumps({**config, "files": files}))
        assert "which no checkpoint has" in refusal(lambda: load_model(step))


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"step": null}', '{"step": 1e400}', '{"step": "../x"}', "[" * 100_000]
)
def test_checkpoint__note_of_the_best_that_is_none(text: str, tmp_path: Path) -> None:
    write_checkpoint(checkpoint.checkpoint_path(tmp_path, 5))
    (tmp_path / checkpoint.BEST).write_text(text)
    assert checkpoint.best(tmp_path) is None


def safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file that says what it likes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _entry(dtype: str, shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


LIES: dict[str, bytes] = {
    "header of 2^63": safetensors({}, length=2**63),
    "header beyond the file": safetensors({}, length=1000),
    "header of 0": safetensors(b"", length=0),
    "deep header": safetensors(b'{"a":' * 100_000 + b"0" + b"}" * 100_000),
    "no object": safetensors([1, 2]),
    "offsets beyond": safetensors({"a": _entry("F32", [4], 0, 16)}, b"\0" * 8),
    "offsets backwards": safetensors({"a": _entry("F32", [4], 16, 0)}, b"\0" * 16),
    "offsets that overlap": safetensors(
        {"a": _entry("F32", [4], 0, 16), "b": _entry("F32", [4], 8, 24)}, b"\0" * 24
    ),
    "shape of 2^62": safetensors({"a": _entry("F32", [2**62], 0, 16)}, b"\0" * 16),
    "shape that overflows": safetensors({"a": _entry("F32", [2**33, 2**33], 0, 16)}, b"\0" * 16),
    "negative shape": safetensors({"a": _entry("F32", [-4], 0, 16)}, b"\0" * 16),
    "type unknown": safetensors({"a": _entry("X32", [4], 0, 16)}, b"\0" * 16),
    "key twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "other tensors": safetensors({"zzz": _entry("F32", [1], 0, 4)}, b"\0" * 4),
    "empty": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_checkpoint__safetensors_that_lie(lie: str, step: Path) -> None:
    (step / checkpoint.WEIGHTS).write_bytes(LIES[lie])
    refusal(lambda: load_model(step))  # the hash
    rehashed(step)
    refusal(lambda: load_model(step))  # the reader
    (step / "weights.safetensors").write_bytes(LIES[lie])
    refusal(lambda: import_weights("uni3d", step / "weights.safetensors", step / "out"))


def test_checkpoint__any_changed_byte_of_its_weights(step: Path) -> None:
    whole = (step / checkpoint.WEIGHTS).read_bytes()
    header = 8 + struct.unpack_from("<Q", whole)[0]
    good = 0
    for _, data in byte_mutations(whole[:header], "safetensors", 100):
        (step / checkpoint.WEIGHTS).write_bytes(data + whole[header:])
        refusal(lambda: load_model(step))
        rehashed(step)
        good += survived(lambda: load_model(step))
    assert good < 60


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_checkpoint__weights_that_are_no_numbers_embed_nothing(value: float, step: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = {
        k: torch.full_like(v, value) for k, v in load_file(step / checkpoint.WEIGHTS).items()
    }
    save_file(weights, step / checkpoint.WEIGHTS)
    rehashed(step)
    student = load_student(step)
    xyz = np.random.default_rng(0).uniform(-1, 1, (1, 64, 3)).astype(np.float32)
    rgb = np.zeros((1, 64, 3), np.uint8)
    with np.errstate(all="ignore"):
        message = refusal(lambda: student.embed(xyz, rgb, np.array([True])))
    assert "not finite" in message
