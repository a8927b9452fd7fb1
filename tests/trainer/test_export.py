from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from pipeline.common import InputError, file_hash
from tests.trainer.checkpoints import N_POINTS, SMALLEST, write_checkpoint
from tests.trainer.conftest import WIDTH
from trainer import export as module
from trainer import load_student
from trainer.checkpoint import checkpoint_path, load_model, load_state
from trainer.export import default_out, distances_by_axis, export, push


def random_clouds(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    shape = (count, N_POINTS, 3)
    return torch.rand(shape, generator=generator) * 2 - 1, torch.rand(shape, generator=generator)


def result_file(path: Path, checkpoint: Path) -> Path:
    record = {
        "task": "zeroshot",
        "benchmark": "toys",
        "variant": "test",
        "count": 40,
        "model": {"hash": load_model(checkpoint).hash},
        "metrics": {"top1": {"value": 0.5, "low": 0.4, "high": 0.6}, "macro_f1": 0.3},
    }
    path.write_text(json.dumps(record))
    return path


def test_export__safetensors_are_a_checkpoint_without_state(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (10, 20):
        write_checkpoint(checkpoint_path(run, step), seed=step)
    (run / "best.json").write_text('{"step": 10}')
    made = export(run / "best", tmp_path / "out")
    assert made.source == checkpoint_path(run, 10)
    assert export(run, tmp_path / "newest").source == checkpoint_path(run, 20)
    assert made.max_difference == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    assert load_model(tmp_path / "out").step == 10
    # The same weights to the byte, so that what was made with them still knows them.
    assert load_model(tmp_path / "out").hash == load_model(made.source).hash
    with pytest.raises(InputError, match="no state"):
        load_state(tmp_path / "out")
    with pytest.raises(InputError, match="is there already; add --overwrite"):
        export(run, tmp_path / "out")
    assert export(checkpoint_path(run, 20), tmp_path / "out", overwrite=True).max_difference == 0
    assert load_model(tmp_path / "out").step == 20
    for out, message in (
        (checkpoint_path(run, 20), "contains the exported checkpoint"),
        (run, "not an export or a checkpoint, so it is not replaced"),
    ):
        with pytest.raises(InputError, match=message):
            export(checkpoint_path(run, 20), out, overwrite=True)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SMALLEST if name != "tiny"]


@pytest.mark.parametrize("backbone", ["tiny", *SLOW])
def test_export__pt2_computes_what_the_backbone_does(tmp_path: Path, backbone: str) -> None:
    model = write_checkpoint(tmp_path / "ckpt", backbone)
    made = export(tmp_path / "ckpt", tmp_path / "out", "pt2")
    assert made.max_difference <= 1e-6
    extra = {"config.json": ""}
    forward = torch.export.load(made.file, extra_files=extra).module()
    assert json.loads(extra["config.json"])["backbone"]["name"] == backbone
    for count in (1, 2, 7):
        xyz, rgb = random_clouds(count)
        with torch.no_grad():
            expected = F.normalize(model(xyz, rgb), dim=-1)
            assert torch.allclose(forward(xyz, rgb), expected, atol=1e-6)


@pytest.mark.slow  # the exporter takes its time
@pytest.mark.parametrize("backbone", list(SMALLEST))
def test_export__onnx_computes_what_the_backbone_does(tmp_path: Path, backbone: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    model = write_checkpoint(tmp_path / "ckpt", backbone)
    made = export(tmp_path / "ckpt", tmp_path / "out", "onnx")
    assert made.max_difference <= 1e-5
    session = onnxruntime.InferenceSession(str(made.file))
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["mrd3d"])["teacher"]["model"] == "synthetic-0"
    for count in (1, 4):
        xyz, rgb = random_clouds(count)
        (found,) = session.run(None, {"xyz": xyz.numpy(), "rgb": rgb.numpy()})
        with torch.no_grad():
            expected = F.normalize(model(xyz, rgb), dim=-1)
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


def test_export__graph_folders_are_no_checkpoints(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ckpt")
    export(tmp_path / "ckpt", tmp_path / "out", "pt2")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["export"]["to"] == "pt2"
    assert config["files"] == {"model.pt2": file_hash(tmp_path / "out" / "model.pt2")}
    with pytest.raises(InputError, match="not of a checkpoint"):
        load_student(tmp_path / "out")


def test_export__what_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "ckpt")

    def wrong(loaded: Any, file: Path) -> Any:
        file.write_bytes(b"weights")
        return lambda xyz, _: torch.full((len(xyz), WIDTH), WIDTH**-0.5)

    monkeypatch.setattr(module, "write_pt2", wrong)
    with pytest.raises(InputError, match="--to pt2: the export differs by"):
        export(tmp_path / "ckpt", tmp_path / "out", "pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_export__nan_is_a_difference(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ckpt")
    student = load_student(tmp_path / "ckpt", device="cpu")
    found = module.compare(student, lambda xyz, _: torch.full((len(xyz), WIDTH), torch.nan))
    assert found > 1e30


def test_export__without_the_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "ckpt")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"needs the extra onnx .*pip install 'mrd3d\[onnx\]'"):
        export(tmp_path / "ckpt", tmp_path / "out", "onnx")


def test_export__card_tells_facts_results_and_limits(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ckpt")
    result = result_file(tmp_path / "result.json", tmp_path / "ckpt")
    export(tmp_path / "ckpt", tmp_path / "out", results=[result])
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in (
        "library_name: mrd3d",
        'load_student("out")',
        "synthetic-0",
        "toys: 90 shapes, config 0123",
        "| top1_image | 0.7500 |",
        "Zeroshot on toys, test, 40 objects",
        "| top1 | 50.0 % | 40.0 to 60.0 |",
        "Trained on 80 shapes",
        "data.batch_size = 16",
        "2407.14007",
    ):
        assert fact in card, fact
    assert "demo model" not in card


def test_export__card_of_the_demo_teacher_warns(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "plain")
    teacher = {**load_model(tmp_path / "plain").config["teacher"], "model": "demo"}
    write_checkpoint(tmp_path / "ckpt", teacher=teacher)
    export(tmp_path / "ckpt", tmp_path / "out")
    assert "demo model" in (tmp_path / "out" / "README.md").read_text()


def test_export__released_weights_have_a_card_too(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "recipe": None,
        "data": {"shards": [], "n_points": 10_000},
        "validation": None,
        "released": {"layout": "openshape", "file": "model.pt", "sha256": "ab" * 32},
    }
    write_checkpoint(tmp_path / "ckpt", **changes)
    export(tmp_path / "ckpt", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "released by others (openshape, model.pt, sha256 abababababababab)" in card


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"hash": 1}}'])
def test_export__result_that_is_none(tmp_path: Path, text: str) -> None:
    write_checkpoint(tmp_path / "ckpt")
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(InputError, match=r"--result .*not an evaluation result file"):
        export(tmp_path / "ckpt", tmp_path / "out", results=[tmp_path / "result.json"])


def test_export__result_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ckpt")
    write_checkpoint(tmp_path / "other", seed=6)
    result = result_file(tmp_path / "result.json", tmp_path / "other")
    with pytest.raises(InputError, match="not of checkpoint"):
        export(tmp_path / "ckpt", tmp_path / "out", results=[result])


def test_distances_by_axis__as_cdist() -> None:
    xyz, others = random_clouds(2)
    assert torch.allclose(distances_by_axis(xyz, others), torch.cdist(xyz, others), atol=1e-6)


def test_push__uploads_weights_config_and_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_checkpoint(tmp_path / "ckpt")
    hub: dict[str, Any] = {}

    class Api:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
            hub["repository"] = (name, private, exist_ok)
            return f"https://hub.example/{name}"

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: str) -> None:
            hub["name"] = repo_id
            hub["files"] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push(tmp_path / "ckpt", "org/toy") == "https://hub.example/org/toy"
    assert hub["repository"] == ("org/toy", True, True)
    assert hub["name"] == "org/toy"
    assert set(hub["files"]) == {"README.md", "config.json", "model.safetensors"}
    assert b'load_student("org/toy")' in hub["files"]["README.md"]

    # What was uploaded is what a stranger loads.
    cache = tmp_path / "cache"
    cache.mkdir()
    for name, content in hub["files"].items():
        (cache / name).write_bytes(content)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(cache))
    monkeypatch.chdir(tmp_path)
    weights = load_student("org/toy", device="cpu").backbone.state_dict()
    expected = model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert set(load_file(cache / "model.safetensors")) == set(expected)


def test_push__refusal_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "ckpt")

    class Api:
        def create_repo(self, *_: object, **__: object) -> str:
            raise OSError("401 no token\nmore")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(InputError, match=r"org/toy: the hub refused \(401 no token\)"):
        push(tmp_path / "ckpt", "org/toy")
    with pytest.raises(InputError, match="not of the form ORG/NAME"):
        push(tmp_path / "ckpt", "toy")


def test_default_out__is_beside_the_run_and_no_checkpoint_of_it(tmp_path: Path) -> None:
    assert default_out(tmp_path / "mrd", "onnx") == tmp_path / "mrd-onnx"
    (tmp_path / "mrd").mkdir()
    (tmp_path / "mrd" / "best.json").write_text('{"step": 10}')
    assert default_out(tmp_path / "mrd" / "best", "pt2") == tmp_path / "mrd-best-pt2"
    step = checkpoint_path(tmp_path / "mrd", 10)
    assert default_out(step, "pt2") == tmp_path / "mrd-step-00000010-pt2"


def test_cli__export_without_out_is_beside_the_run(tmp_path: Path) -> None:
    from trainer.cli import app

    write_checkpoint(checkpoint_path(tmp_path / "run", 5))
    result = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--to", "safetensors"])
    assert result.exit_code == 0, result.output
    assert load_model(tmp_path / "run-safetensors").step == 5


def test_cli__export_tells_the_largest_difference(tmp_path: Path) -> None:
    from trainer.cli import app

    write_checkpoint(tmp_path / "ckpt")
    arguments = ["export", str(tmp_path / "ckpt"), "--to", "pt2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["max_difference"] <= 1e-6
    assert Path(told["file"]).is_file()
