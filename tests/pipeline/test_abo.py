"""Dataset ``abo``: the table of models, listings in many languages, damaged downloads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.common import InputError
from pipeline.datasets.abo import AboDataset
from pipeline.scene import MeshError
from tests.pipeline.layout_files import LISTINGS, MODELS, abo, abo_tables, said, write


def test_records__follow_the_table_with_english_texts_only(tmp_path: Path) -> None:
    lamp, chair, bare = AboDataset(abo(tmp_path)).records()
    assert chair.uid == "abo/B0CHAIR"
    assert chair.source == "3dmodels/original/R/B0CHAIR.glb"
    assert chair.category == "chair"
    assert list(zip(chair.texts, chair.text_sources, strict=True)) == [
        ("Rivet Velvet Chair, Blue", "title"),
        ("Solid wood legs", "description"),
        ("Assembles easily", "description"),
        ("armchair, velvet", "tags"),
        ("chair", "category"),
        ("chair, Navy, Velvet", "attributes"),
    ]
    assert lamp.texts == ("table lamp",)  # its name is German
    assert lamp.category == "table lamp"
    assert (bare.category, bare.texts) == (None, ())


def test_records__listing_of_the_model_itself_wins_among_equals(tmp_path: Path) -> None:
    def listing(item: str, name: str) -> dict[str, object]:
        return {
            "item_id": item,
            "3dmodel_id": "B0CHAIR",
            "product_type": [],
            "item_name": said("en_US", name),
        }

    listings = [listing("B0OTHER", "Green"), listing("B0CHAIR", "Blue"), listing("B0X", "Red")]
    root = write(tmp_path, abo_tables([MODELS[1]], listings))
    (root / "3dmodels/original").mkdir(parents=True)
    (record,) = AboDataset(root).records()
    assert record.texts == ("Blue",)
    assert record.category is None


def test_records__missing_listings_say_how_to_get_them(tmp_path: Path) -> None:
    root = abo(tmp_path)
    for path in root.glob("listings/metadata/*"):
        path.unlink()
    with pytest.raises(InputError, match=r"expected .*listings_.*found .*abo-listings\.tar"):
        list(AboDataset(root).records())


@pytest.mark.parametrize("name", ["3dmodels/metadata/3dmodels.csv.gz", "listings/metadata"])
def test_records__file_cut_short_is_an_input_error(tmp_path: Path, name: str) -> None:
    path = abo(tmp_path) / name
    path = path if path.is_file() else path / "listings_f.json.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match="cannot be read whole") as error:
        list(AboDataset(tmp_path).records())
    assert path.name in str(error.value)


@pytest.mark.parametrize("line", ['{"3dmodel_id": ', '["3dmodel_id"]', '"3dmodel_id"'])
def test_records__line_that_is_no_product_is_an_input_error(tmp_path: Path, line: str) -> None:
    path = abo(tmp_path) / "listings/metadata/listings_f.json.gz"
    path.write_bytes(gzip.compress(line.encode() + b"\n"))
    with pytest.raises(InputError, match=r"listings_f\.json\.gz: a line is not a product"):
        list(AboDataset(tmp_path).records())


def test_records__table_without_its_columns_is_an_input_error(tmp_path: Path) -> None:
    path = abo(tmp_path) / "3dmodels/metadata/3dmodels.csv.gz"
    path.write_bytes(gzip.compress(b"id,file\n1,2\n"))
    with pytest.raises(InputError, match="3dmodel_id"):
        list(AboDataset(tmp_path).records())


def test_records__listings_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Products without a model are never parsed: only lines that name one are.
    parsed: list[str] = []
    loads = json.loads

    def counted(line: str) -> Any:
        parsed.append(line)
        return loads(line)

    monkeypatch.setattr(json, "loads", counted)
    list(AboDataset(abo(tmp_path)).records())
    assert len(parsed) == sum("3dmodel_id" in entry for entry in LISTINGS) == 3


def test_load__path_of_the_table_cannot_leave_the_root(tmp_path: Path) -> None:
    write(tmp_path, {"secret.glb": b"x"})
    root = write(tmp_path / "data", abo_tables([("B0", "../../../secret.glb")]))
    (root / "3dmodels/original").mkdir(parents=True)
    dataset = AboDataset(root)
    (record,) = dataset.records()
    with pytest.raises(MeshError) as error:
        dataset.load(record)
    assert error.value.kind == "outside_reference"
