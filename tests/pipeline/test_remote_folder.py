"""``--root s3://...``: what a folder on a store gives is what the same folder gives on disk."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.commands.options import source_options
from pipeline.common import InputError
from pipeline.datasets.base import Asset, Dataset, Record
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.remote import RemoteFolderDataset
from pipeline.datasets.sources import make_dataset
from pipeline.meshes import Limits
from pipeline.scene import MeshError
from tests.pipeline.s3_server import BUCKET, s3_environment, upload

PLACE = "some/place/meshes"
ADDRESS = f"s3://{BUCKET}/{PLACE}"
VERTICES = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nvt 1 0\nvt 0 1\n"
FACES = "f 1/1 2/2 3/3\nf 1/1 2/2 4/3\nf 2/1 3/2 4/3\nf 1/1 3/2 4/3\n"


def write_obj(path: Path, texture: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    library = f"mtllib {path.stem}.mtl\nusemtl skin\n"
    path.write_text(f"{library if texture else ''}{VERTICES}{FACES}")
    if texture:
        path.with_suffix(".mtl").write_text(f"newmtl skin\nKd 1 1 1\nmap_Kd {texture}\n")


def write_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_gltf(path: Path, buffer: str) -> None:
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "<f4")
    indices = np.array([0, 1, 2, 0, 1, 3, 1, 2, 3, 0, 2, 3], "<u2")
    data = points.tobytes() + indices.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not buffer.startswith("data:"):
        (path.parent / buffer).write_bytes(data)
    else:
        buffer += base64.b64encode(data).decode()
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": 5126,
                "count": 4,
                "type": "VEC3",
                "min": [0, 0, 0],
                "max": [1, 1, 1],
            },
            {"bufferView": 1, "componentType": 5123, "count": 12, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 48},
            {"buffer": 0, "byteOffset": 48, "byteLength": 24},
        ],
        "buffers": [{"byteLength": len(data), "uri": buffer}],
    }
    path.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "meshes"
    write_obj(root / "chair" / "plain one.obj", None)
    write_obj(root / "chair" / "beside.obj", "beside.png")
    write_picture(root / "chair" / "beside.png", 1)
    write_obj(root / "lamp" / "models" / "model.obj", "C:\\work\\Textures\\Oak.PNG")
    write_picture(root / "lamp" / "textures" / "oak.png", 2)
    write_obj(root / "lost" / "lost.obj", "nowhere.png")
    write_obj(root / "out" / "out.obj", "../../../secret.png")
    write_gltf(root / "apart.gltf", "apart.bin")
    write_gltf(root / "whole.gltf", "data:application/octet-stream;base64,")
    write_gltf(root / "cut.gltf", "cut.bin")
    (root / "cut.bin").unlink()
    (root / "größe#1%.off").write_text(
        "OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 1 2 3\n3 0 2 3\n"
    )
    (root / "empty.stl").write_bytes(b"")
    (root / ".hidden.obj").write_text("x")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "x.obj").write_text("x")
    (root / "readme.txt").write_text("x")
    (root / "lamp" / "more.zip").write_text("x")
    (root / "captions.csv").write_text(
        "path,caption,split\nchair/beside.obj,a small chair,test\napart.gltf,a corner,train\n"
    )
    return root


@pytest.fixture(scope="module")
def store(local: Path) -> Iterator[str]:
    with s3_environment() as found:
        upload(local, PLACE)
        yield found


def outcome(dataset: Dataset, record: Record) -> object:
    """An asset as bytes, or why there is none."""
    try:
        asset: Asset = dataset.load(record)
    except MeshError as error:
        return error.kind, error.stage, error.message
    return pickle.dumps(asset)


def test_remote__records_options_and_objects_are_those_of_the_folder_on_disk(
    store: str, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = FolderDataset(local), RemoteFolderDataset(address=ADDRESS)
    assert there.options == here.options
    assert there.count() == here.count() == 10
    records = list(here.records())
    assert list(there.records()) == records
    told = capsys.readouterr().err.replace("\n", " ")
    assert told.count("not read: archives (1, such as 'lamp/more.zip')") == 2
    found = {record.source: outcome(there, record) for record in records}
    assert found == {record.source: outcome(here, record) for record in records}
    kinds = {source: value[0] for source, value in found.items() if isinstance(value, tuple)}
    assert kinds == {
        "lost/lost.obj": "missing_texture",
        "out/out.obj": "outside_reference",
        "cut.gltf": "missing_buffer",
        "empty.stl": "empty_file",
    }


def test_remote__instances_travel_and_patterns_hold(store: str, local: Path) -> None:
    there = pickle.loads(pickle.dumps(RemoteFolderDataset(address=ADDRESS, pattern="*.gltf")))
    here = FolderDataset(local, pattern="*.gltf")
    assert list(there.records()) == list(here.records())
    assert there.options == here.options


def test_remote__too_large_a_file_is_not_fetched(store: str, local: Path) -> None:
    there = RemoteFolderDataset(address=ADDRESS, limits=replace(Limits(), file_bytes=100))
    (record,) = [r for r in there.records() if r.source == "whole.gltf"]
    with pytest.raises(MeshError, match="the limit is 100") as caught:
        there.load(record)
    assert caught.value.kind == "too_large"


def test_remote__a_record_that_leads_out_or_is_gone_fails_alone(store: str) -> None:
    there = RemoteFolderDataset(address=ADDRESS)
    first = next(there.records())
    for key, kind in (("../elsewhere.obj", "outside_reference"), ("gone.obj", "missing_file")):
        with pytest.raises(MeshError) as caught:
            there.load(replace(first, key=key))
        assert caught.value.kind == kind


def test_remote__an_address_with_nothing_there_is_refused(store: str) -> None:
    with pytest.raises(InputError, match=r"--root s3://bucket/none: there is nothing"):
        list(RemoteFolderDataset(address="s3://bucket/none").records())


def test_make_dataset__addresses(store: str, tmp_path: Path) -> None:
    made = make_dataset("folder", source_options(None, root=ADDRESS))
    assert isinstance(made, RemoteFolderDataset)
    made = make_dataset("folder", source_options(None, root=f"file://{tmp_path}"))
    assert made == FolderDataset(tmp_path)
    made = make_dataset("folder", source_options(None, root=str(tmp_path)))
    assert made == FolderDataset(tmp_path)
    with pytest.raises(InputError, match=r"--root s3://bucket/x: shapenet reads local folders"):
        make_dataset("shapenet", source_options(None, root="s3://bucket/x?scheme=http"))
    with pytest.raises(InputError, match="folder needs it"):
        make_dataset("folder", source_options(None, root=None))
