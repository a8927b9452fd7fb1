"""Dataset ``objaverse``: listing shard by shard, texts, downloads, what is said when they fail."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from pipeline.cameras import ring
from pipeline.captions import texts_for
from pipeline.common import InputError, content_hash
from pipeline.datasets.base import Dataset, Record
from pipeline.datasets.downloads import Policy
from pipeline.datasets.objaverse import ObjaverseDataset
from pipeline.datasets.sources import SourceOptions, make_dataset, sources
from pipeline.meshes import Limits
from pipeline.objects import ObjectSettings, process
from pipeline.renderers.base import RenderConfig
from pipeline.scene import MeshError
from pipeline.shards import Failure
from tests.pipeline.hub_server import Hub, serving

FAST = Policy(attempts=3, pause_s=0.01, idle_s=2.0, total_s=10.0)
LVIS = {"bow_(weapon)": ["u2"], "CD_player": ["u3", "u5"], "hot-air_balloon": ["gone"]}
UIDS = {"000-000": ["u1", "u2"], "000-001": ["u3"], "000-002": ["u4", "u5", "u6"]}


def entry(uid: str, **changes: Any) -> dict[str, Any]:
    """An object as the metadata have it, with some of what we do not read."""
    return {
        "uri": f"https://api.sketchfab.com/v3/models/{uid}",
        "uid": uid,
        "name": f"Old_Chair {uid}.glb",
        "staffpickedAt": None,
        "viewCount": 12,
        "tags": [{"name": "lowpoly", "slug": "lowpoly", "uri": "x"}, {"name": "Thing"}],
        "categories": [{"name": "Furniture & Home"}],
        "thumbnails": {"images": [{"url": "https://x/y.jpeg", "width": 64}]},
        "description": "A <b>thing</b>.\nMade in a day.",
        "license": "by",
        **changes,
    }


def box(size: float) -> bytes:
    data = trimesh.creation.box(extents=(1, size, 1)).export(file_type="glb")
    assert isinstance(data, bytes)
    return data


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        paths = {}
        for shard, uids in UIDS.items():
            server.put_json(f"metadata/{shard}.json.gz", {uid: entry(uid) for uid in uids})
            for uid in uids:
                paths[uid] = f"glbs/{shard}/{uid}.glb"
                server.files[paths[uid]] = box(2 + len(paths))
        server.put_json("lvis-annotations.json.gz", LVIS)
        server.put_json("object-paths.json.gz", paths)
        yield server


def dataset(hub: Hub | None, tmp_path: Path, **options: Any) -> ObjaverseDataset:
    defaults: dict[str, Any] = {
        "cache": tmp_path / "cache",
        "base_url": hub.url if hub else "http://127.0.0.1:9",
        "package_folder": None,
        "n_shards": len(UIDS),
        "policy": FAST,
    }
    return ObjaverseDataset(**{**defaults, **options})


def copy_of(hub: Hub, folder: Path) -> Path:
    """The hub as a folder, as the package leaves it."""
    for name, data in hub.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def meshes(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "glbs").rglob("*.glb"))


# -- listing ---------------------------------------------------------------------------------------


def test_records__all_in_the_order_of_the_shards(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path)
    records = list(one.records())
    assert [record.uid for record in records] == [
        f"objaverse/{uid}" for uids in UIDS.values() for uid in uids
    ]
    assert one.count() == len(records)
    assert records[2] == Record(
        uid="objaverse/u3",
        dataset="objaverse",
        source="glbs/000-001/u3.glb",
        key="glbs/000-001/u3.glb",
        category="CD player",
        texts=("Old_Chair u3.glb", "lowpoly, Thing", "A <b>thing</b>.\nMade in a day."),
        text_sources=("name", "tags", "description"),
    )
    assert [record.category for record in records] == [
        None, "bow (weapon)", "CD player", None, "CD player", None,
    ]  # fmt: skip
    assert texts_for(records[2])[0] == ("old chair u3", "name")


def test_records__lvis_has_those_with_a_category(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path, subset="lvis")
    assert [record.uid for record in one.records()] == [
        f"objaverse/{uid}" for uid in ("u2", "u3", "u5")
    ]
    assert one.count() == 4  # by the list; the metadata lack one


def test_records__a_shard_is_fetched_when_its_turn_comes(tmp_path: Path, hub: Hub) -> None:
    records = dataset(hub, tmp_path).records()
    next(records)
    next(records)
    assert set(hub.requests) == {"lvis-annotations.json.gz", "metadata/000-000.json.gz"}
    next(records)
    assert hub.requests["metadata/000-001.json.gz"] == 1
    assert not hub.requests["metadata/000-002.json.gz"]
    # The next run needs no network for what is there.
    hub.requests.clear()
    again = dataset(hub, tmp_path).records()
    assert [next(again).uid for _ in range(3)][-1] == "objaverse/u3"
    assert not hub.requests


def test_records__what_is_no_text_is_left_out(tmp_path: Path, hub: Hub) -> None:
    odd = {
        "u1": entry("u1", name=None, tags=None, description=""),
        "u2": entry("u2", name=7, tags=[{"slug": "x"}, "y", {"name": " "}], description=["x"]),
        "u3": None,
        "../u4": entry("u4"),
    }
    hub.put_json("metadata/000-000.json.gz", odd)
    records = list(dataset(hub, tmp_path, n_shards=1).records())
    assert [(record.uid, record.texts) for record in records] == [
        ("objaverse/u1", ()),
        ("objaverse/u2", ()),
        ("objaverse/u3", ()),
    ]
    assert texts_for(records[2]) == [("cd player", "category")]


def test_records__a_half_downloaded_shard_is_fetched_again(tmp_path: Path, hub: Hub) -> None:
    name = "metadata/000-000.json.gz"
    path = tmp_path / "cache" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(hub.files[name][:40])
    hub.script[name] = ["truncated", "html", "ok"]
    assert len(list(dataset(hub, tmp_path).records())) == 6
    assert path.read_bytes() == hub.files[name]


def test_records__no_network_says_what_to_get_and_where_to_put_it(tmp_path: Path) -> None:
    with serving() as gone:
        pass
    with pytest.raises(InputError) as caught:
        next(dataset(gone, tmp_path).records())
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("objaverse: lvis-annotations.json.gz cannot be had: no connection")
    assert f"get {gone.url}/lvis-annotations.json.gz by hand" in message
    assert message.endswith("give the folder as --root")


def test_records__a_missing_shard_on_the_hub_is_an_input_error(tmp_path: Path, hub: Hub) -> None:
    del hub.files["metadata/000-001.json.gz"]
    with pytest.raises(InputError, match=r"metadata/000-001\.json\.gz cannot be had: .* 404"):
        list(dataset(hub, tmp_path).records())


@pytest.mark.parametrize("value", [[], {"cup": "u1"}])
def test_records__metadata_of_another_form_are_an_input_error(
    tmp_path: Path, hub: Hub, value: Any
) -> None:
    hub.put_json("lvis-annotations.json.gz", value)
    with pytest.raises(InputError, match=r"objaverse: lvis-annotations\.json\.gz"):
        next(dataset(hub, tmp_path).records())


def test_options__say_no_path_and_the_dataset_is_picklable(tmp_path: Path, hub: Hub) -> None:
    one: Dataset = dataset(hub, tmp_path, subset="lvis", root=tmp_path)
    assert one.name == "objaverse"
    assert str(tmp_path) not in json.dumps(one.options)
    assert "127.0.0.1" not in json.dumps(one.options)
    assert one.options["subset"] == "lvis"
    assert pickle.loads(pickle.dumps(one)) == one
    assert len(pickle.dumps(one)) < 5000


# -- loading ---------------------------------------------------------------------------------------


def by_uid(one: ObjaverseDataset) -> dict[str, Record]:
    return {record.uid.split("/")[1]: record for record in one.records()}


def test_load__fetches_checks_and_keeps(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path)
    record = by_uid(one)["u3"]
    for _ in range(2):
        asset = one.load(record)
    data = hub.files["glbs/000-001/u3.glb"]
    assert (asset.sha256, asset.n_bytes) == (content_hash(data), len(data))
    # u3 was the third to be made: a box 5 units high.
    extent = asset.mesh.vertices.max(0) - asset.mesh.vertices.min(0)
    assert np.allclose(extent / extent[0], (1, 5, 1), atol=1e-5)
    assert hub.requests["glbs/000-001/u3.glb"] == 1
    assert meshes(tmp_path) == ["u3.glb"]


@pytest.mark.parametrize("manner", ["truncated", "short", "cut", "503", "html"])
def test_load__a_broken_answer_is_tried_again(tmp_path: Path, hub: Hub, manner: str) -> None:
    hub.script["glbs/000-001/u3.glb"] = [manner, manner, "ok"]
    one = dataset(hub, tmp_path)
    one.load(by_uid(one)["u3"])
    assert hub.requests["glbs/000-001/u3.glb"] == 3


def test_load__the_redirect_of_the_hub_is_followed(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path)
    hub.script["glbs/000-001/u3.glb"] = ["redirect"]
    one.load(by_uid(one)["u3"])
    hub.script["glbs/000-000/u1.glb"] = ["lying"]
    with pytest.raises(MeshError, match="its SHA-256 is") as caught:
        one.load(by_uid(one)["u1"])
    assert caught.value.kind == "download_failed"


def test_load__a_half_downloaded_mesh_in_the_cache_is_fetched_again(
    tmp_path: Path, hub: Hub
) -> None:
    one = dataset(hub, tmp_path)
    path = tmp_path / "cache" / "glbs" / "000-001" / "u3.glb"
    path.parent.mkdir(parents=True)
    path.write_bytes(hub.files["glbs/000-001/u3.glb"][:-1])
    one.load(by_uid(one)["u3"])
    assert path.read_bytes() == hub.files["glbs/000-001/u3.glb"]


def test_load__what_the_package_left_is_used_or_fetched_but_not_changed(
    tmp_path: Path, hub: Hub
) -> None:
    package = copy_of(hub, tmp_path / "package")
    half = package / "glbs" / "000-001" / "u3.glb"
    half.write_bytes(half.read_bytes()[:300])
    one = dataset(hub, tmp_path, package_folder=package, delete_after_use=True)
    for record in one.records():
        one.load(record)
    assert dict(hub.requests) == {"glbs/000-001/u3.glb": 1}
    assert half.stat().st_size == 300
    assert len(list(package.rglob("*.glb"))) == 6
    assert meshes(tmp_path) == []


def test_load__delete_after_use_leaves_the_metadata_only(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path, delete_after_use=True)
    for record in one.records():
        one.load(record)
    assert meshes(tmp_path) == []
    assert (tmp_path / "cache" / "lvis-annotations.json.gz").is_file()


def test_load__the_cache_stays_within_its_size(tmp_path: Path, hub: Hub) -> None:
    size = len(hub.files["glbs/000-001/u3.glb"])
    one = dataset(hub, tmp_path, cache_bytes=3 * size)
    for record in one.records():
        one.load(record)
        assert len(meshes(tmp_path)) <= 3
    assert "u6.glb" in meshes(tmp_path)


def settings(one: Dataset) -> ObjectSettings:
    return ObjectSettings(one, ring(1), RenderConfig(image_size=16))


def test_process__a_missing_download_is_a_failure_row(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path)
    hub.script["glbs/000-001/u3.glb"] = ["404"]
    hub.script["glbs/000-000/u1.glb"] = ["503"]
    records = by_uid(one)
    row = process(records["u3"], settings(one))
    assert row == Failure(
        "objaverse/u3",
        "objaverse",
        "glbs/000-001/u3.glb",
        "fetch",
        "download_failed",
        f"{hub.url}/glbs/000-001/u3.glb: the server answers 404 Not Found",
    )
    row = process(records["u1"], settings(one))
    assert isinstance(row, Failure)
    assert row.error == "download_failed"
    assert row.message.endswith("503 Service Unavailable (3 attempts)")


def test_process__no_network_is_a_failure_row(tmp_path: Path, hub: Hub) -> None:
    records = by_uid(dataset(hub, tmp_path))
    with serving() as gone:
        pass
    row = process(records["u3"], settings(dataset(gone, tmp_path)))
    assert isinstance(row, Failure)
    assert (row.stage, row.error) == ("fetch", "download_failed")
    assert "no connection: Connection refused" in row.message


def test_process__larger_than_the_limit_is_too_large(tmp_path: Path, hub: Hub) -> None:
    one = dataset(hub, tmp_path, limits=replace(Limits(), file_bytes=100))
    row = process(by_uid(one)["u3"], settings(one))
    assert isinstance(row, Failure)
    assert row.error == "too_large"
    assert meshes(tmp_path) == []


# -- without a network -----------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["", "hf-objaverse-v1"])
def test_root__is_used_without_a_network(tmp_path: Path, hub: Hub, inner: str) -> None:
    copy_of(hub, tmp_path / "root" / inner)
    one = dataset(hub, tmp_path, root=tmp_path / "root", cache=None)
    records = by_uid(one)
    assert len(records) == one.count() == 6
    one.load(records["u3"])
    assert not hub.requests
    (tmp_path / "root" / inner / "glbs/000-001/u3.glb").unlink()
    with pytest.raises(MeshError) as caught:
        one.load(records["u3"])
    assert caught.value.kind == "download_failed"
    assert caught.value.message == (
        "glbs/000-001/u3.glb is not there; --root alone fetches nothing: add --cache"
    )
    # With a cache, what is missing is fetched.
    dataset(hub, tmp_path, root=tmp_path / "root").load(records["u3"])
    assert meshes(tmp_path) == ["u3.glb"]


def test_root__a_missing_or_half_file_is_named(tmp_path: Path, hub: Hub) -> None:
    root = copy_of(hub, tmp_path / "root")
    one = dataset(hub, tmp_path, root=root, cache=None)
    (root / "metadata/000-001.json.gz").write_bytes(b"half")
    with pytest.raises(InputError, match=r"metadata/000-001\.json\.gz is damaged: not a whole gz"):
        list(one.records())
    (root / "lvis-annotations.json.gz").unlink()
    with pytest.raises(InputError) as caught:
        list(one.records())
    assert "lvis-annotations.json.gz is not there; get http" in str(caught.value)
    assert "(it holds glbs, metadata, object-paths.json.gz)" in str(caught.value)
    with pytest.raises(InputError, match="is not a directory: give a folder laid out like"):
        next(dataset(hub, tmp_path, root=tmp_path / "none").records())
    assert not hub.requests


def test_root__objects_are_those_whose_meshes_are_there(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(hub, tmp_path / "root")
    for name in ("000-001/u3", "000-002/u4", "000-002/u6"):
        (root / f"glbs/{name}.glb").unlink()
    # The shard of no mesh is not needed, nor is the list of paths.
    (root / "metadata/000-001.json.gz").unlink()
    (root / "object-paths.json.gz").unlink()
    (root / "glbs/000-002/u4.glb.tmp").write_bytes(b"half of a download")
    one = dataset(hub, tmp_path, root=root, cache=None)
    assert list(by_uid(one)) == ["u1", "u2", "u5"]
    assert one.count() == 3
    told = capsys.readouterr().err
    assert "2 more objects of these shards have no mesh in --root and are skipped" in told
    lvis = replace(one, subset="lvis")
    assert list(by_uid(lvis)) == ["u2", "u5"]
    assert lvis.count() == 2
    assert not hub.requests
    # What comes later is found by the next listing.
    (root / "glbs/000-002/u6.glb").write_bytes(box(2))
    assert list(by_uid(one)) == ["u1", "u2", "u5", "u6"]


def test_root__missing_metadata_are_named_all_at_once(tmp_path: Path, hub: Hub) -> None:
    root = copy_of(hub, tmp_path / "root")
    for shard in ("000-004", "000-005", "000-006", "000-100"):
        (root / f"glbs/{shard}").mkdir()
        (root / f"glbs/{shard}/u{shard}.glb").write_bytes(b"x")
    (root / "metadata/000-001.json.gz").unlink()
    with pytest.raises(InputError) as caught:
        next(dataset(hub, tmp_path, root=root, cache=None).records())
    message = str(caught.value)
    assert "holds meshes of 7 shards, and lacks the metadata of 5: " in message
    assert "5: 000-001, 000-004 to 000-006, 000-100; get http" in message
    # Of the subset, only those of its objects count.
    one = dataset(hub, tmp_path, root=root, cache=None, subset="lvis")
    with pytest.raises(InputError, match=r"3 shards, .* lacks the metadata of 1: 000-001; get"):
        next(one.records())
    (root / "glbs/000-001/u3.glb").unlink()
    assert [record.uid for record in one.records()] == ["objaverse/u2", "objaverse/u5"]


def test_root__without_meshes_says_what_was_expected_and_found(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(InputError, match=r"expected meshes in glbs/000-000/.*, found readme\.txt;"):
        next(dataset(hub, tmp_path, root=tmp_path, cache=None).records())
    root = copy_of(hub, tmp_path / "root")
    for uid in ("000-000/u2", "000-001/u3", "000-002/u5"):
        (root / f"glbs/{uid}.glb").unlink()
    one = dataset(hub, tmp_path, root=root, cache=None, subset="lvis")
    with pytest.raises(InputError, match="expected meshes that have an LVIS category"):
        next(one.records())
    assert not hub.requests


def test_root__delete_after_use_without_a_cache_is_refused(tmp_path: Path) -> None:
    one = ObjaverseDataset(root=tmp_path, delete_after_use=True)
    with pytest.raises(InputError, match="--delete-after-use: files of --root are never deleted"):
        next(one.records())


def test_source__builds_from_the_options_of_the_command(tmp_path: Path) -> None:
    shards = tmp_path / "metadata"
    shards.mkdir()
    for index in range(160):
        value = {f"u{index}": entry(f"u{index}")}
        (shards / f"000-{index:03d}.json.gz").write_bytes(gzip.compress(json.dumps(value).encode()))
    (tmp_path / "lvis-annotations.json.gz").write_bytes(
        gzip.compress(json.dumps({"cup": ["u159", "u8"]}).encode())
    )
    for shard, uid in (("000-008", "u8"), ("000-159", "u159"), ("000-003", "u3")):
        mesh = tmp_path / "glbs" / shard / f"{uid}.glb"
        mesh.parent.mkdir(parents=True)
        mesh.write_bytes(box(2))
    made = make_dataset("objaverse", SourceOptions(root=tmp_path, subset="lvis"))
    assert [record.uid for record in made.records()] == ["objaverse/u8", "objaverse/u159"]
    made = make_dataset(
        "objaverse", SourceOptions(cache=tmp_path, cache_bytes=7, delete_after_use=True)
    )
    assert isinstance(made, ObjaverseDataset)
    assert (made.cache_bytes, made.delete_after_use, made.subset) == (7, True, "all")
    with pytest.raises(InputError, match="--subset xyz"):
        make_dataset("objaverse", SourceOptions(subset="xyz"))
    assert "\n" not in sources()["objaverse"].get
