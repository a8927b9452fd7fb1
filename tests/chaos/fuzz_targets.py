"""What is fuzzed: each of our own parsers as a function of bytes, with seeds from the generators.

A target may raise what its parser says it raises. Anything else is a finding: another exception, an
assertion, a hang, or memory beyond the limit.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.embeddings import (
    FORMAT,
    meta_from_record,
    parse_record,
    read_embeddings,
    write_embeddings,
)
from evaluation.shapes import load_cloud
from pipeline.captions.files import CaptionFile
from pipeline.common import InputError, content_hash
from pipeline.datasets.point_files import read_points
from pipeline.datasets.tables import read_table
from pipeline.imports.archives import DamagedArchiveError, read_tar
from pipeline.imports.openshape import ObjectRules, make_row
from pipeline.imports.unpickle import BadPickleError, UnsafePickleError, load_npy, unpickle
from pipeline.meshes import Limits, collada, load_mesh, meshopt, simple
from pipeline.meshes.draco import claimed_sizes, decode_draco
from pipeline.meshes.ktx2 import decode_ktx2
from pipeline.meshes.textures import decode_texture
from pipeline.meshes.wavefront import _parse_mtl
from pipeline.scene import MeshError
from pipeline.shards import Manifest, ShardSet, TeacherInfo
from tests.chaos import mutate_clouds, mutate_gltf, mutate_images, mutate_meshes, mutate_tables
from tests.evaluation.test_embeddings import META, rows
from tests.pipeline.cloud_files import ply_bytes, text_bytes
from tests.pipeline.gltf_encoders import (
    ktx2_uastc,
    meshopt_attributes,
    meshopt_indices,
    meshopt_triangles,
)
from tests.pipeline.gltf_files import CUBE_FACES, pack_glb
from tests.pipeline.imports.release import make_object
from tests.pipeline.shard_tools import make_manifest, make_set
from tests.pipeline.shard_tools import make_row as shard_row
from tests.pipeline.test_mesh_materials import quad_dae
from trainer import checkpoint
from trainer.recipe import load_recipe

LAZY = (collada, simple)  # imported by the readers when they are needed: here, to be instrumented
# Small, so that a claim that passes them is found soon.
LIMITS = Limits(
    file_bytes=2**22, json_bytes=2**20, faces=50_000, vertices=100_000, nodes=5000,
    texture_pixels=2**20, max_texture_side=256,
)  # fmt: skip
MODES = ("ATTRIBUTES", "TRIANGLES", "INDICES", "other")
FILTERS = ("NONE", "OCTAHEDRAL", "QUATERNION", "EXPONENTIAL", "COLOR", "other")
STRIDES = (0, 2, 3, 4, 8, 12, 16, 64, 252, 256, 260)


@dataclass(frozen=True)
class Target:
    """A parser, what it may raise, and good inputs to begin with."""

    parse: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]
    seeds: Callable[[], Iterable[bytes]]

    def __call__(self, data: bytes) -> bool:
        """Parse; whether the bytes were good. Raises whatever is a finding."""
        try:
            self.parse(data)
        except self.allowed as error:
            told = str(error)
            # What readers pass on of others' code must not hide a fault of ours.
            if told.startswith(("AssertionError", "NameError", "SystemError", "ZeroDivision")):
                raise RuntimeError(told) from error
            return False
        return True


_FOLDER = Path(
    tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)


@atexit.register
def _remove(owner: int = os.getpid()) -> None:
    if os.getpid() == owner:  # not in the children that fuzz
        shutil.rmtree(_FOLDER, ignore_errors=True)


def _file(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def _mesh(suffix: str) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        return load_mesh(_FOLDER / f"a.{suffix}", limits=LIMITS, data=data).normalised()

    return parse


def _cloud(suffix: str) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        return read_points(_file(f"cloud.{suffix}", data), None, LIMITS)

    return parse


def _captions(suffix: str) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        return sum(1 for _ in CaptionFile(_file(f"captions.{suffix}", data)).entries())

    return parse


def _table(suffix: str) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        return read_table(_file(f"metadata.{suffix}", data), _FOLDER, {})

    return parse


def _meshopt(data: bytes) -> object:
    head, body = data[:5].ljust(5, b"\0"), data[5:]
    count = min(int.from_bytes(head[3:5], "little"), 4096)
    mode, name = MODES[head[0] % len(MODES)], FILTERS[head[1] % len(FILTERS)]
    return meshopt.decode_view(body, mode, name, count, STRIDES[head[2] % len(STRIDES)])


def _meshopt_seeds() -> Iterable[bytes]:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (20, 8), np.uint8)
    for version in (0, 1):
        for kind in (0, 1, 4):
            yield bytes([0, kind, 4, 20, 0]) + meshopt_attributes(rows, version, rng)
    yield bytes([1, 0, 3, 36, 0]) + meshopt_triangles(CUBE_FACES)[0]
    yield bytes([2, 0, 3, 36, 0]) + meshopt_indices(CUBE_FACES.ravel(), rng)


def _draco(data: bytes) -> object:
    claimed_sizes(data)
    return decode_draco(data, {0: "POSITION", 1: "COLOR_0"}, LIMITS)


def _draco_seeds() -> Iterable[bytes]:
    builder = mutate_gltf.draco()
    yield builder.binary


def _glb_seeds() -> Iterable[bytes]:
    for make in mutate_gltf.BASES.values():
        yield pack_glb(*mutate_gltf.finished(make()))


def _gltf_seeds() -> Iterable[bytes]:
    for make in mutate_gltf.BASES.values():
        document, binary = mutate_gltf.finished(make())
        uri = "data:;base64," + base64.b64encode(binary).decode()
        buffer = {"byteLength": len(binary), "uri": uri}
        yield json.dumps({**document, "buffers": [buffer] * len(document["buffers"])}).encode()


def _image_seeds() -> Iterable[bytes]:
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "TGA", "DDS", "PPM"):
        yield mutate_images.picture(form)
    yield ktx2_uastc(np.zeros((2, 2, 4), np.uint8))


def _ktx2_seeds() -> Iterable[bytes]:
    yield ktx2_uastc(np.random.default_rng(1).integers(0, 256, (4, 4, 4)).astype(np.uint8))


_MANIFEST = make_manifest(n_points=80, n_views=3, width=6)
_RULES = ObjectRules(_MANIFEST, "+y", {"a": "mug"}, frozenset(), False, False)
_PLACE = ("Objaverse", "000-001", "a")


def _object_seeds() -> Iterable[bytes]:
    values = make_object("/".join(_PLACE))
    yield mutate_clouds.npy(np.array(values, object), allow_pickle=True)
    yield mutate_clouds.npy(np.array({"xyz": values["xyz"]}, object), allow_pickle=True)


def _pickle_seeds() -> Iterable[bytes]:
    for data in _object_seeds():
        yield data[data.index(b"\n") + 1 :]
    yield b"\x80\x04\x95\x0f\0\0\0\0\0\0\0}\x94\x8c\x01a\x94]\x94(K\x01K\x02es."


def _tar(data: bytes) -> object:
    return sum(member.size for member in read_tar(_file("a.tar.gz", data), ".npy", 1 << 20))


def _tar_seeds() -> Iterable[bytes]:
    import io
    import tarfile

    for mode, form in (("w", tarfile.GNU_FORMAT), ("w:gz", tarfile.PAX_FORMAT)):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode, format=form) as archive:  # type: ignore[call-overload]
            for name in ("a.npy", "x" * 120 + "/b.npy"):
                entry = tarfile.TarInfo(name)
                entry.size = 600
                archive.addfile(entry, io.BytesIO(b"\1" * 600))
        yield stream.getvalue()


class _Set:
    """One shard set whose only part is changed."""

    def __init__(self) -> None:
        manifest = make_manifest()
        self.root = _FOLDER / "set"
        rows = [shard_row(manifest, f"toy/{i}") for i in range(3)]
        (name,) = make_set(self.root, manifest, [rows])
        self.whole = (self.root / name).read_bytes()
        self.stem = name.removesuffix(".parquet").rsplit("-", 1)[0]
        (self.root / name).unlink()


_SET: list[_Set] = []


def _set() -> _Set:
    if not _SET:
        _SET.append(_Set())
    return _SET[0]


def _part(data: bytes) -> object:
    found = _set()
    length = int.from_bytes(data[-8:-4], "little") + 8
    told = content_hash(data[-length:] if length <= len(data) else data)[:8]
    part = found.root / f"{found.stem}-{told}.parquet"
    part.write_bytes(data)
    try:
        shards = ShardSet.open(found.root)
        for group in shards.row_groups:
            shards.read(group)
            shards.table(group)
            shards.rows(group)
    finally:
        part.unlink()
    return None


def _record(data: bytes) -> object:
    return meta_from_record(parse_record(data, "it", FORMAT, 9, "x"), "it", "x")


def _record_seeds() -> Iterable[bytes]:
    from dataclasses import asdict

    teacher = asdict(_MANIFEST.teacher)
    model = {"kind": "teacher", "name": "x", "path": "", "hash": "", "step": 0}
    record = {"format": FORMAT, "version": 1, "teacher": teacher, "model": model, "data": {}}
    yield json.dumps(record).encode()


def _embeddings_seeds() -> Iterable[bytes]:
    write_embeddings(_FOLDER / "s.parquet", META, [rows(4)])
    yield (_FOLDER / "s.parquet").read_bytes()


def _config(data: bytes) -> object:
    _file("config.json", data)
    checkpoint.damage(_FOLDER)
    _file("best.json", data)
    checkpoint.best(_FOLDER)
    config = checkpoint.read_config(_FOLDER)
    return TeacherInfo.from_json(config.get("teacher"), "it", "x")


def _config_seeds() -> Iterable[bytes]:
    from dataclasses import asdict

    values = {"format": checkpoint.FORMAT, "version": 1, "teacher": asdict(_MANIFEST.teacher)}
    yield json.dumps({**values, "files": {checkpoint.WEIGHTS: "0"}, "step": 3}).encode()


def _weights(data: bytes) -> object:
    return checkpoint.load_tensors(_file("a.pt", data))


def _weights_seeds() -> Iterable[bytes]:
    import torch

    for new in (True, False):
        torch.save({"a": torch.arange(4.0)}, _FOLDER / "s.pt", _use_new_zipfile_serialization=new)
        yield (_FOLDER / "s.pt").read_bytes()


def _recipe(data: bytes) -> object:
    return load_recipe(str(_file("a.toml", data)))


def _recipe_seeds() -> Iterable[bytes]:
    from importlib.resources import files

    yield (files("trainer") / "recipes" / "tiny.toml").read_bytes()


def _npz_seeds() -> Iterable[bytes]:
    good = {"xyz.npy": mutate_clouds.npy(mutate_clouds.XYZ)}
    for compressed in (False, True):
        yield mutate_clouds.npz(good, compressed)


def _h5_seeds() -> Iterable[bytes]:
    def plain(file: Any) -> None:
        file["xyz"] = mutate_clouds.XYZ

    yield mutate_clouds.h5(plain)


def _parquet_seeds() -> Iterable[bytes]:
    yield mutate_tables.parquet({"uid": ["a.glb"] * 3, "caption": ["a chair", None, "x"]})


def _of(*values: bytes | str) -> Callable[[], Iterable[bytes]]:
    return lambda: [value.encode() if isinstance(value, str) else value for value in values]


_MESH, _INPUT = (MeshError,), (InputError,)
_XYZ = text_bytes(mutate_clouds.XYZ[:20], mutate_clouds.RGB[:20])
TARGETS: dict[str, Target] = {
    "glb": Target(_mesh("glb"), _MESH, _glb_seeds),
    "gltf": Target(_mesh("gltf"), _MESH, _gltf_seeds),
    "meshopt": Target(_meshopt, _MESH, _meshopt_seeds),
    "draco": Target(_draco, _MESH, _draco_seeds),
    "ktx2": Target(lambda d: decode_ktx2(d, LIMITS, "it"), _MESH, _ktx2_seeds),
    "texture": Target(lambda d: decode_texture(d, LIMITS, "it"), _MESH, _image_seeds),
    "obj": Target(
        _mesh("obj"), _MESH, _of(re.sub(rb"mtllib.*\n|usemtl.*\n", b"", mutate_meshes.OBJ))
    ),
    "mtl": Target(_parse_mtl, (ValueError, IndexError), _of(mutate_meshes.MTL)),
    "ply": Target(
        _mesh("ply"),
        _MESH,
        _of(*map(mutate_meshes.ply_of, ("ascii", "binary_little_endian", "binary_big_endian"))),
    ),
    "stl": Target(_mesh("stl"), _MESH, _of(mutate_meshes.stl_binary(), mutate_meshes.stl_text())),
    "off": Target(
        _mesh("off"), _MESH, _of(mutate_meshes.off_text(), mutate_meshes.off_text(color=True))
    ),
    "dae": Target(_mesh("dae"), _MESH, _of(quad_dae(None))),
    "cloud-npy": Target(_cloud("npy"), _MESH, _of(mutate_clouds.npy(mutate_clouds.XYZ))),
    "cloud-npz": Target(_cloud("npz"), _MESH, _npz_seeds),
    "cloud-h5": Target(_cloud("h5"), _MESH, _h5_seeds),
    "cloud-text": Target(_cloud("txt"), _MESH, _of(_XYZ, b"x,y,z\n" + b"1,2,3\n4,5,6\n" * 9)),
    "cloud-ply": Target(_cloud("ply"), _MESH, _of(ply_bytes(mutate_clouds.XYZ))),
    "query-npz": Target(lambda d: load_cloud(_file("q.npz", d), 8), _INPUT, _npz_seeds),
    "captions-csv": Target(_captions("csv"), _INPUT, _of(mutate_tables.CSV)),
    "captions-json": Target(_captions("json"), _INPUT, _of(json.dumps(mutate_tables.RECORDS))),
    "captions-jsonl": Target(
        _captions("jsonl"), _INPUT, _of('{"uid": "a", "caption": "x"}\n{"b": ["y"]}\n')
    ),
    "captions-parquet": Target(_captions("parquet"), _INPUT, _parquet_seeds),
    "table-csv": Target(_table("csv"), _INPUT, _of(mutate_tables.CSV)),
    "table-parquet": Target(_table("parquet"), _INPUT, _parquet_seeds),
    "manifest": Target(lambda d: Manifest.from_json(d, "it"), _INPUT, _of(_MANIFEST.to_json())),
    "shard": Target(_part, _INPUT, lambda: [_set().whole]),
    "pickle": Target(unpickle, (BadPickleError, UnsafePickleError), _pickle_seeds),
    "openshape-npy": Target(load_npy, (BadPickleError, UnsafePickleError), _object_seeds),
    "openshape-object": Target(lambda d: make_row(d, _PLACE, _RULES), _MESH, _object_seeds),
    "tar": Target(_tar, (DamagedArchiveError,), _tar_seeds),
    "checkpoint": Target(_config, _INPUT, _config_seeds),
    "weights": Target(_weights, _INPUT, _weights_seeds),
    "index-record": Target(_record, _INPUT, _record_seeds),
    "embeddings": Target(
        lambda d: read_embeddings(_file("e.parquet", d)), _INPUT, _embeddings_seeds
    ),
    "recipe": Target(_recipe, _INPUT, _recipe_seeds),
}
