"""Released checkpoints: equal to a plain reference on random weights under the released names."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.common import InputError
from tests.trainer import reference
from trainer import released
from trainer.backbones import backbone_names, build_backbone, resolve_options
from trainer.backbones.layers import strided
from trainer.backbones.measure import on_meta
from trainer.backbones.uni3d import Uni3d
from trainer.checkpoint import load_model
from trainer.grouping import farthest_point_sample
from trainer.released import convert, import_weights, read_weights, rename

# Public: OpenShape's scaling 1, small enough for a test, and Uni3D-Ti.
OPENSHAPE_5M = {"dim": 256, "depth": 6, "mlp": 1024, "local": 96}
UNI3D_TI = {"dim": 192, "depth": 12, "hidden": 512}


def ordered_cloud(points: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """One cloud in farthest-point order, float64, (1, N, 3) each."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(1, points, 3, generator=generator, dtype=torch.float64) * 2 - 1
    rgb = torch.rand(1, points, 3, generator=generator, dtype=torch.float64)
    return xyz[:, farthest_point_sample(xyz, points)[0]], rgb


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def wrapped(prefix: str, state: reference.State) -> reference.State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def test_openshape__forward_is_that_of_the_reference(tmp_path: Path) -> None:
    state = reference.openshape_state(**OPENSHAPE_5M, width=1280)
    file = save(
        tmp_path / "model.pt",
        {
            "state_dict": wrapped("module.", state),
            "logit_scale": {"module.logit_scale": torch.ones(())},
            "optimizer": {"state": {}, "param_groups": [{"lr": 1.0}]},
            "epoch": 3,
        },
    )
    import_weights("openshape", file, tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert model.config["backbone"]["options"]["axes"] == "xzy"
    xyz, rgb = ordered_cloud(700)
    found = model.backbone.double()(xyz, rgb)[0]
    # The reference knows no exchange of axes and no scan: it gets the mirrored cloud in the order
    # of the scan, and our centroids, because its own search would begin at another point.
    mirrored = xyz[..., [0, 2, 1]]
    scanned = strided(torch.cat([mirrored, rgb], dim=-1))[0]
    expected = reference.openshape(
        reference.double(state), scanned[:, :3], scanned[:, 3:], 0.4, 256, mirrored[0, :64]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    again = load_model(tmp_path / "model").backbone(xyz.float(), rgb.float())[0]
    torch.testing.assert_close(again, expected.float(), rtol=1e-4, atol=1e-4)


def test_openshape__stored_scan_is_the_reference_on_the_cloud_as_it_is() -> None:
    state = reference.openshape_state(**OPENSHAPE_5M, width=32)
    found = convert("openshape", state, "weights")
    options = {**found.options, "scan": "stored", "axes": "xyz"}
    model = build_backbone(found.backbone, 32, options).double().eval()
    model.load_state_dict(found.weights)
    xyz, rgb = ordered_cloud(400, seed=1)
    expected = reference.openshape(reference.double(state), xyz[0], rgb[0], 0.4, 256)
    torch.testing.assert_close(model(xyz, rgb)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("width", "teacher"), [(768, ("ViT-L-14", "openai")), (None, ("ViT-B-32", "openai"))]
)
def test_openshape__models_for_clip_have_large_balls_and_no_mirror(
    width: int | None, teacher: tuple[str, str], tmp_path: Path
) -> None:
    state = reference.openshape_state(512, 12, 1024, 128, width)
    if width is None:  # without projection there is no outer module either
        state = {key.removeprefix("ppat."): value for key, value in state.items()}
    extra = {"image_proj.weight": torch.zeros(2)}  # other towers lie in the same file
    file = save(tmp_path / "model.pt", {**wrapped("pc_encoder.", state), **extra})
    config = import_weights("openshape", file, tmp_path / "out")
    options = config["backbone"]["options"]
    assert (options["centroids"], options["radius"], options["neighbours"]) == (64, 0.4, 256)
    assert options["axes"] == "xyz"
    assert options["scan"] == "strided"
    assert (config["teacher"]["model"], config["teacher"]["pretrained"]) == teacher
    model = load_model(tmp_path / "out")
    assert not model.teacher.has_fingerprint
    xyz, rgb = ordered_cloud(300)
    assert model.backbone(xyz.float(), rgb.float()).shape == (1, width or 512)


def test_uni3d__forward_is_that_of_the_reference(tmp_path: Path) -> None:
    state = reference.uni3d_state(**UNI3D_TI, kind="packed", width=1024)
    inner = {**wrapped("point_encoder.", state), "logit_scale": torch.tensor(4.6)}
    halves = {key: v.half() if v.is_floating_point() else v for key, v in inner.items()}
    file = save(tmp_path / "model.pt", {"module": wrapped("module.", halves), "epoch": 3})
    config = import_weights("uni3d", file, tmp_path / "model")
    assert config["teacher"]["model"] == "EVA02-E-14-plus"
    assert config["released"]["layout"] == "uni3d"
    assert config["n_parameters"] == 6_221_824
    model = load_model(tmp_path / "model")
    xyz, rgb = ordered_cloud(100)
    rounded = {key: v.half().double() for key, v in state.items()}
    backbone = model.backbone.double()
    assert isinstance(backbone, Uni3d)
    assert (backbone.centroids, backbone.options.neighbours) == (512, 64)
    backbone.centroids, backbone.options = 40, replace(backbone.options, neighbours=9)
    expected = reference.uni3d(rounded, xyz[0], rgb[0], heads=3, groups=40, k=9)
    found = backbone(xyz, rgb)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "dim", "heads", "hidden", "kind"),
    [
        ("uni3d-s", 384, 6, 1024, "packed"),
        ("uni3d-b", 768, 12, 2048, "split"),
        ("uni3d-l", 1024, 16, 2730, "split"),
        ("uni3d-g", 1408, 16, 6144, "plain"),
    ],
)
def test_uni3d__blocks_of_every_trunk_are_those_of_the_reference(
    name: str, dim: int, heads: int, hidden: int, kind: str
) -> None:
    options = {"depth": 1, "centroids": 12, "neighbours": 5, "local_dim": 64}
    state = reference.uni3d_state(dim, 1, hidden, kind, 40, local=64)
    model = build_backbone(name, 40, options).double().eval()
    model.load_state_dict(rename("uni3d", state, "weights"))
    xyz, rgb = ordered_cloud(60)
    expected = reference.uni3d(reference.double(state), xyz[0], rgb[0], heads, groups=12, k=5)
    torch.testing.assert_close(model(xyz, rgb)[0], expected, rtol=0, atol=1e-10)


def test_import__evaluation_embeds_with_it(tmp_path: Path) -> None:
    from evaluation.student import load_student

    state = reference.openshape_state(**OPENSHAPE_5M, width=1280)
    save_file(wrapped("module.", state), tmp_path / "model.safetensors")
    import_weights("openshape", tmp_path / "model.safetensors", tmp_path / "out")
    student = load_student(tmp_path / "out")
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-1, 1, (2, 10_000, 3)).astype(np.float32)
    rgb = rng.integers(0, 255, (2, 10_000, 3)).astype(np.uint8)
    embeds = student.embed(xyz, rgb, np.array([True, False]))
    assert embeds.shape == (2, 1280)
    assert np.allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-5)
    assert student.teacher.label == "ViT-bigG-14/laion2b_s39b_b160k"


@pytest.mark.parametrize("layout", ["openshape", "uni3d"])
def test_load_released__is_what_an_import_of_the_file_gives(
    tmp_path: Path, layout: released.Layout
) -> None:
    if layout == "openshape":
        state = wrapped("module.", reference.openshape_state(**OPENSHAPE_5M, width=1280))
    else:
        inner = reference.uni3d_state(**UNI3D_TI, kind="packed", width=1024)
        state = wrapped("point_encoder.", inner)
    file = save(tmp_path / "model.pt", state)
    import_weights(layout, file, tmp_path / "model")
    found, expected = load_model(file), load_model(tmp_path / "model")
    xyz, rgb = ordered_cloud(700)
    clouds = xyz.float(), rgb.float()
    torch.testing.assert_close(found.backbone(*clouds), expected.backbone(*clouds), rtol=0, atol=0)
    assert found.teacher == expected.teacher
    assert found.config["released"] == expected.config["released"]
    assert found.n_points == expected.n_points


def test_import__teacher_and_axes_can_be_named(tmp_path: Path) -> None:
    state = reference.openshape_state(**OPENSHAPE_5M, width=640)
    file = save(tmp_path / "model.pt", state)
    with pytest.raises(InputError, match=r"640 numbers.*--teacher"):
        import_weights("openshape", file, tmp_path / "out")
    with pytest.raises(InputError, match="MODEL:TAG"):
        import_weights("openshape", file, tmp_path / "out", teacher="mine")
    config = import_weights(
        "openshape", file, tmp_path / "out", teacher="ViT-B-16:mine", axes="xyz"
    )
    assert config["teacher"]["width"] == 640
    assert config["backbone"]["options"]["axes"] == "xyz"
    with pytest.raises(InputError, match="is there already; add --overwrite"):
        import_weights("openshape", file, tmp_path / "out", teacher="ViT-B-16:mine")


def test_sizes__of_every_backbone_are_recognised() -> None:
    names = [name for name in backbone_names() if name.startswith("pointbert-")]
    assert set(released._OPENSHAPE_SIZES.values()) == set(names)
    for (dim, depth, mlp, local), name in released._OPENSHAPE_SIZES.items():
        options = resolve_options(name)
        assert (options["dim"], options["depth"], options["mlp_dim"]) == (dim, depth, mlp)
        assert options["local_dims"][-1] == local
    names = [name for name in backbone_names() if name.startswith("uni3d-")]
    assert set(released._UNI3D_SIZES.values()) == set(names)
    for (dim, depth), name in released._UNI3D_SIZES.items():
        model = on_meta(name, 8)
        assert isinstance(model, Uni3d)
        assert (len(model.cls_token), len(model.blocks)) == (dim, depth)


def broken(state: reference.State, case: str) -> reference.State:
    state = dict(state)
    if case == "missing":
        del state["ppat.transformer.layers.3.1.norm.bias"]
    elif case == "position":
        state["ppat.transformer.layers.0.0.fn.pe.0.weight"] = torch.zeros(64, 3, 1, 1)
    elif case == "channels":
        state["ppat.sa.mlp_convs.0.weight"] = torch.zeros(64, 6, 1, 1)
    elif case == "size":
        state["ppat.transformer.layers.0.1.fn.net.0.bias"] = torch.zeros(999)
    elif case == "foreign":
        state = {"conv1.weight": torch.zeros(3)}
    return state


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "blocks.3.norm_mlp.bias is missing"),
        ("position", r"fn\.pe\.0\.weight is of no supported variant"),
        ("channels", r"local.linears.0.weight has shape \(64, 6\)"),
        ("size", "MLP 999"),
        ("foreign", "conv1.weight is of no supported variant"),
    ],
)
def test_convert__other_weights_are_refused_in_one_line(case: str, message: str) -> None:
    state = reference.openshape_state(**OPENSHAPE_5M, width=64)
    with pytest.raises(InputError, match=message) as caught:
        convert("openshape", broken(state, case), "model.pt")
    assert "\n" not in str(caught.value)


def test_convert__layouts_are_not_taken_for_one_another() -> None:
    with pytest.raises(InputError, match="no weights of Uni3D"):
        convert("uni3d", reference.openshape_state(**OPENSHAPE_5M, width=64), "model.pt")
    state = reference.uni3d_state(**UNI3D_TI, kind="packed", width=64)
    with pytest.raises(InputError, match="no supported variant"):
        convert("openshape", wrapped("point_encoder.", state), "model.pt")


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_read_weights__hostile_and_damaged_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_weights(tmp_path / "none.pt")
    file = save(tmp_path / "hostile.pt", {"state_dict": Payload()})
    with pytest.raises(InputError, match="more than tensors and plain values"):
        read_weights(file)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match=r"plain\.pt"):
        read_weights(tmp_path / "plain.pt")
    assert "run" not in capsys.readouterr().out
    whole = save(tmp_path / "whole.pt", {"a": torch.zeros(1000)}).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.pt"):
        read_weights(tmp_path / "cut.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match=r"cut\.safetensors: damaged"):
        read_weights(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match="no named tensors"):
        read_weights(save(tmp_path / "empty.pt", {"epoch": 3}))
    with pytest.raises(InputError, match="no named tensors"):
        read_weights(save(tmp_path / "list.pt", [torch.zeros(2)]))


def test_load_trunk__takes_the_weights_of_timm(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    trunk = timm.create_model("eva02_tiny_patch14_224", pretrained=False, depth=1)
    save_file(trunk.state_dict(), tmp_path / "model.safetensors")
    model = build_backbone("uni3d-ti", 16, {"depth": 1})
    from trainer.backbones import load_trunk

    load_trunk(model, str(tmp_path / "model.safetensors"))
    expected = trunk.state_dict()
    found = model.state_dict()
    taken = [name for name in found if name.startswith(("blocks.", "fc_norm."))]
    assert len(taken) == 15
    for name in taken:
        assert torch.equal(found[name], expected[name])
    other = build_backbone("uni3d-ti", 16, {"depth": 2})
    with pytest.raises(InputError, match="not weights of timm's eva02_tiny"):
        load_trunk(other, str(tmp_path / "model.safetensors"))
    with pytest.raises(InputError, match="no trunk of timm"):
        load_trunk(build_backbone("tiny", 16), "x.safetensors")
