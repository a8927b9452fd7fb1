"""Small trees in the layouts of the known sources, each with real meshes that load."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.pipeline.gltf_files import CUBE_CORNERS, CUBE_FACES, png, quad_glb

RED = png(np.full((2, 2, 3), (255, 0, 0), np.uint8))
Files = Mapping[str, bytes | str]


def write(root: Path, files: Files) -> Path:
    """Write files by relative path; returns the root."""
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def box_obj(
    material: str | None = "model.mtl", size: tuple[float, float, float] = (1, 2, 3)
) -> str:
    """A box of the given half sizes, with texture coordinates; one material of a library."""
    lines = [f"mtllib {material}", "usemtl skin"] if material else []
    corners = CUBE_CORNERS / [1, 2, 3] * size
    lines += [f"v {x} {y} {z}" for x, y, z in corners]
    lines += ["vt 0.5 0.5"]
    lines += [f"f {a + 1}/1 {b + 1}/1 {c + 1}/1" for a, b, c in CUBE_FACES]
    return "\n".join(lines) + "\n"


def mtl(texture: str | None) -> str:
    """A material library with one material."""
    return "newmtl skin\nKd 0.5 0.5 0.5\n" + (f"map_Kd {texture}\n" if texture else "")


def box_off(size: tuple[float, float, float] = (1, 2, 3)) -> str:
    """A box as an OFF file; the counts follow the keyword without a blank, as in ModelNet."""
    corners = CUBE_CORNERS / [1, 2, 3] * size
    lines = [f"OFF{len(corners)} {len(CUBE_FACES)} 0"]
    lines += [f"{x} {y} {z}" for x, y, z in corners]
    lines += [f"3 {a} {b} {c}" for a, b, c in CUBE_FACES]
    return "\n".join(lines) + "\n"


TAXONOMY = [
    {
        "synsetId": "02691156",
        "name": "airplane,aeroplane,plane",
        "children": ["02690373"],
        "numInstances": 2,
    },
    {"synsetId": "02690373", "name": "airliner", "children": [], "numInstances": 1},
    {
        "synsetId": "02747177",
        "name": "ashcan,trash can,ash-bin",
        "children": [],
        "numInstances": 1,
    },
]
ALL_CSV = (
    "id,synsetId,subSynsetId,modelId,split\n"
    "000001,02691156,02690373,aa11,train\n"
    "000002,2747177,2747177,cc33,test\n"
)


def shapenet(root: Path) -> Path:
    """Two models of v2, one of v1, a README; taxonomy and split table."""
    files: dict[str, bytes | str] = {
        "README.txt": "see shapenet.org",
        "taxonomy.json": json.dumps(TAXONOMY),
        "all.csv": ALL_CSV,
        "02747177/cc33/model.obj": box_obj(),
        "02747177/cc33/model.mtl": mtl("./images/texture0.png"),
        "02747177/cc33/images/texture0.png": RED,
    }
    for model in ("bb22", "aa11"):
        folder = f"02691156/{model}"
        files |= {
            f"{folder}/models/model_normalized.obj": box_obj("model_normalized.mtl"),
            f"{folder}/models/model_normalized.mtl": mtl("../images/texture0.png"),
            f"{folder}/models/model_normalized.json": "{}",
            f"{folder}/images/texture0.png": RED,
        }
    return write(root, files)


def said(tag: str, *values: str) -> list[dict[str, Any]]:
    """A text field of a listing."""
    return [{"language_tag": tag, "value": value} for value in values]


LISTINGS: list[dict[str, Any]] = [
    {"item_id": "B000NOMODEL", "item_name": said("en_US", "Phone case")},
    {
        "item_id": "B0CHAIR",
        "domain_name": "amazon.in",
        "3dmodel_id": "B0CHAIR",
        "product_type": [{"value": "CHAIR"}],
        "item_name": said("en_IN", "Chair from India"),
    },
    {
        "item_id": "B0CHAIR",
        "domain_name": "amazon.com",
        "3dmodel_id": "B0CHAIR",
        "product_type": [{"value": "CHAIR"}],
        "item_name": said("de_DE", "Stuhl") + said("en_US", "Rivet Velvet Chair, Blue"),
        "bullet_point": said("en_US", "Solid wood legs", "Solid wood legs", "Assembles easily"),
        "item_keywords": said("en_US", "armchair", "velvet") + said("de_DE", "Sessel"),
        "color": [{"language_tag": "en_US", "standardized_values": ["Blue"], "value": "Navy"}],
        "material": said("en_US", "Velvet"),
    },
    {
        "item_id": "B0LAMP",
        "3dmodel_id": "B0LAMP",
        "product_type": "TABLE_LAMP",  # as the README has it
        "item_name": said("de_DE", "Tischlampe"),
    },
]
MODELS = [("B0LAMP", "P/B0LAMP.glb"), ("B0CHAIR", "R/B0CHAIR.glb"), ("B0BARE", "E/B0BARE.glb")]


def abo_tables(
    models: list[tuple[str, str]] = MODELS, listings: list[dict[str, Any]] = LISTINGS
) -> dict[str, bytes]:
    """The two tables of Amazon Berkeley Objects; listings alternate between two files."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["3dmodel_id", "path", "meshes", "faces"])
    table.writerows([*model, 1, 2] for model in models)
    files = {"3dmodels/metadata/3dmodels.csv.gz": gzip.compress(text.getvalue().encode())}
    for number, name in enumerate("0f"):
        lines = "".join(json.dumps(entry) + "\n" for entry in listings[number::2])
        files[f"listings/metadata/listings_{name}.json.gz"] = gzip.compress(lines.encode())
    return files


def abo(root: Path) -> Path:
    """Three models, of which one has no listing."""
    model = quad_glb(RED)[1]
    return write(root, abo_tables() | {f"3dmodels/original/{path}": model for _, path in MODELS})


MODEL_INFO = [
    {
        "model_id": "0a-11",
        "super-category": "Cabinet/Shelf/Desk",
        "category": "Corner/Side Table",
        "style": "Modern",
        "theme": "Smooth Net",
        "material": "Wood",
    },
    {
        "model_id": "0b-22",
        "super-category": "Lighting",
        "category": None,
        "style": None,
        "theme": None,
        "material": "Others",
    },
    {"model_id": "0c-33", "super-category": "Bed", "category": "Kids Bed", "style": "Modern"},
]


def future3d(root: Path) -> Path:
    """Three models over the root and a part; the last has a library that names no texture."""
    files: dict[str, bytes | str] = {"model_info.json": json.dumps(MODEL_INFO)}
    for folder, texture in (
        ("0a-11", "./texture.png"),
        ("0b-22", "./texture.png"),
        ("3D-FUTURE-model-part2/0c-33", None),
    ):
        files |= {
            f"{folder}/raw_model.obj": box_obj(),
            f"{folder}/normalized_model.obj": box_obj(),
            f"{folder}/model.mtl": mtl(texture),
            f"{folder}/texture.png": RED,
            f"{folder}/image.jpg": b"a picture",
        }
    return write(root, files)


def modelnet(root: Path) -> Path:
    """Three models of ModelNet40 in two classes, with what the archive brings along."""
    return write(
        root,
        {
            "ModelNet40/night_stand/train/night_stand_0001.off": box_off(),
            "ModelNet40/night_stand/test/night_stand_0201.off": box_off(),
            "ModelNet40/chair/test/chair_0890.off": box_off(),
            "ModelNet40/chair/test/.DS_Store": "x",
            "ModelNet40/README.txt": "x",
            "__MACOSX/ModelNet40/chair/test/chair_0890.off": "x",
        },
    )


def omniobject3d(root: Path) -> Path:
    """Three scans in two categories."""
    files: dict[str, bytes | str] = {}
    for scan in ("toy_animals/toy_animals_002", "toy_animals/toy_animals_001", "apple/apple_010"):
        files |= {
            f"raw_scans/{scan}/Scan/Scan.obj": box_obj("Scan.mtl"),
            f"raw_scans/{scan}/Scan/Scan.mtl": mtl("Scan.jpg"),
            f"raw_scans/{scan}/Scan/Scan.jpg": RED,
        }
    return write(root, files)


PBTXT = """# of Gazebo Fuel
name: "ACE Coffee Mug"
model {
  file: "model.sdf"
  file_format { name: "sdf" version { major: 1 minor: 6 } }
}
description: "A mug. 16 oz,\\n \\"blue\\" \\342\\200\\234enamel\\342\\200\\235"
tags: "mug"
tags: "kitchen"
legal { license: "Creative Commons Attribution 4.0 International" }
annotations { key: "source" value: "scan" }
categories { first: "Bottles and Cans and Cups" }
"""


def gso(root: Path) -> Path:
    """Two scans, one without metadata, and a folder that is none."""
    files: dict[str, bytes | str] = {
        "ACE_Coffee_Mug_Kristen_16_oz_cup/metadata.pbtxt": PBTXT,
        "ACE_Coffee_Mug_Kristen_16_oz_cup/thumbnails/0.jpg": b"a picture",
        "zips/a.zip": b"x",
    }
    for name in ("ACE_Coffee_Mug_Kristen_16_oz_cup", "3D_Dollhouse_Sofa"):
        files |= {
            f"{name}/meshes/model.obj": box_obj(),
            f"{name}/meshes/model.mtl": mtl("texture.png"),
            f"{name}/materials/textures/texture.png": RED,
        }
    return write(root, files)


TREES: dict[str, Callable[[Path], Path]] = {
    "shapenet": shapenet,
    "abo": abo,
    "3d-future": future3d,
    "modelnet": modelnet,
    "omniobject3d": omniobject3d,
    "gso": gso,
}
