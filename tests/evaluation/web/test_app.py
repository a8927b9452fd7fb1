"""The JSON API of the search page, over HTTP."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from evaluation.embeddings import LISTS, EmbeddingRows
from evaluation.index_choice import Wanted
from evaluation.web.app import make_app, plain
from evaluation.web.service import SearchService
from pipeline.common import InputError
from tests.evaluation import world
from tests.evaluation.web.conftest import HOST


def png(red: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), red, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def cloud_file() -> bytes:
    stream = io.BytesIO()
    rng = np.random.default_rng(0)
    np.savez(stream, xyz=world.spell(world.unit_vector(2), rng))
    return stream.getvalue()


def test_info__says_what_can_be_asked(client: TestClient) -> None:
    info = client.get("/api/info").json()
    assert (info["objects"], info["model"], info["shapes"], info["viewer"]) == (
        *(40, "reader", True, True),
    )
    assert info["categories"] == {"chair": 10, "fish": 9, "mug": 10, "oak_tree": 10}
    assert "n_faces" in info["columns"]


def test_search__as_the_index_finds(client: TestClient, service: SearchService) -> None:
    found = client.post("/api/search", data={"text": " a  red mug ", "k": 5}).json()["hits"]
    query = world.text_vector("a red mug")
    expected = [hit.item.uid for hit in service.index.search(query, 5)]
    assert [hit["uid"] for hit in found] == expected
    assert [hit["rank"] for hit in found] == [1, 2, 3, 4, 5]
    assert found[0]["category"] == "mug"
    assert {hit["viewer"] for hit in found} <= {"mesh", "cloud"}


def test_search__by_picture_shape_and_what_to_avoid(client: TestClient) -> None:
    picture = {"image": ("a.PNG", png(50), "image/png")}
    found = client.post("/api/search", data={"k": 3}, files=picture).json()["hits"]
    assert {hit["category"] for hit in found} == {"chair"}  # a mean red of 50 is class 1
    shape = {"shape": ("x.npz", cloud_file(), "application/octet-stream")}
    assert client.post("/api/search", data={"k": 1}, files=shape).status_code == 200
    mixed = client.post("/api/search", data={"text": "a mug", "minus": "a fish", "k": 40})
    last = mixed.json()["hits"][-1]
    assert last["category"] == "fish"


def test_search__more_like_this_leaves_it_out(client: TestClient, service: SearchService) -> None:
    found = client.post("/api/search", data={"like": 4, "k": 3}).json()["hits"]
    vector = service.index.engine.reconstruct(4)
    expected = [hit.row for hit in service.index.search(vector, 4) if hit.row != 4]
    assert [hit["row"] for hit in found] == expected
    assert [hit["rank"] for hit in found] == [1, 2, 3]


def test_search__filters(client: TestClient) -> None:
    asked = {"text": "a mug", "category": "fish", "k": 50}
    found = client.post("/api/search", data=asked).json()["hits"]
    assert [hit["category"] for hit in found] == ["fish"] * 9
    asked["where"] = "uid < 'tiny/010' and n_faces < 5"
    fewer = client.post("/api/search", data=asked).json()["hits"]
    assert {hit["uid"] for hit in fewer} == {"tiny/003", "tiny/007"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({}, "the query is empty"),
        ({"minus": "a fish"}, "not only what to avoid"),
        ({"text": "x" * 301}, "give at most 300"),
        ({"text": "a", "category": "dragon"}, "has no objects"),
        ({"text": "a", "where": "nothing = 1"}, "--where"),
        ({"text": "a", "where": "uid in (select * from read_csv('/etc/passwd'))"}, "--where"),
        ({"text": "a", "where": "1=1; drop table shards"}, "--where"),
        ({"text": "a", "where": "n_faces > 50"}, "no object"),
        ({"text": "a", "where": "uid < 'tiny/001'", "category": "fish"}, "no object of that"),
        ({"text": "a", "k": 0}, "k: Input should be"),
        ({"text": "a", "k": 1000}, "k: Input should be"),
        ({"text": "a", "like": "x"}, "like: Input should be"),
    ],
)
def test_search__wrong_requests_are_told_in_a_line(
    client: TestClient, data: dict[str, object], told: str
) -> None:
    answer = client.post("/api/search", data=data)
    assert answer.status_code == 400
    message = answer.json()["error"]
    assert told in message
    assert "\n" not in message
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"x", "a file of type .txt: give .png"),
        ("a", b"x", "a file of type unknown"),
        ("a.png", b"", "the file is empty"),
        ("a.png", b"GIF89a no picture", "not a readable picture"),
        ("../../a.png", b"x", "not a readable picture"),
    ],
)
def test_search__files_that_are_no_pictures(
    client: TestClient, name: str, content: bytes, told: str
) -> None:
    answer = client.post("/api/search", files={"image": (name, content, "image/png")})
    assert answer.status_code == 400
    assert told in answer.json()["error"]
    assert "/tmp" not in answer.json()["error"]


def test_search__broken_meshes_and_clouds(client: TestClient) -> None:
    for name in ("a.glb", "a.obj", "a.npz", "a.stl"):
        answer = client.post("/api/search", files={"shape": (name, b"\0\1\2", "model/any")})
        assert answer.status_code == 400, name
        assert "/" not in answer.json()["error"].split()[0]


def test_objects__picture_cloud_and_mesh(client: TestClient, meshes: Path) -> None:
    for row in (0, 1):
        answer = client.get(f"/api/objects/{row}/picture.png")
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).size == (192, 192)
    data = client.get("/api/objects/1/cloud.bin").content
    count = int(np.frombuffer(data[:4], "<i4")[0])
    assert count == world.N_POINTS
    assert len(data) == 4 + 15 * count
    xyz = np.frombuffer(data, "<f4", 3 * count, 4).reshape(-1, 3)
    assert np.abs(xyz).max() <= 1
    assert client.get("/api/objects/0/model.glb").content == (meshes / "000.glb").read_bytes()


@pytest.mark.parametrize("row", ["-1", "40", "99999999999", "x", "1.5", "..%2f..%2fetc", "0%00"])
@pytest.mark.parametrize("what", ["picture.png", "cloud.bin", "model.glb"])
def test_objects__rows_that_are_not_there(client: TestClient, row: str, what: str) -> None:
    answer = client.get(f"/api/objects/{row}/{what}")
    assert answer.status_code in (400, 404)
    assert "error" in answer.json()


def test_objects__a_source_outside_of_the_folder_is_not_served(
    service: SearchService, client: TestClient
) -> None:
    table = service.index.ids
    at = table.column_names.index("source")
    sources = ["../outside.glb", "/etc/passwd", *table.column("source").to_pylist()[2:]]
    service.index.ids = table.set_column(at, "source", [sources])
    for row in (0, 1):
        assert service.mesh_path(row) is None
        assert client.get(f"/api/objects/{row}/model.glb").status_code == 404


def test_removed_objects__are_gone_from_everything(
    fakes: Path, indexed: Path, shards: Path, embedded: Path
) -> None:
    from evaluation.embeddings import read_embeddings
    from evaluation.index import build_index
    from evaluation.index_update import update_index

    build_index(read_embeddings(embedded), indexed, wanted=Wanted("hnsw"))
    update_index(indexed, None, {"tiny/001"})
    client = TestClient(make_app(SearchService(indexed, shards=str(shards))), base_url=HOST)
    assert client.get("/api/info").json()["objects"] == 39
    assert client.get("/api/objects/1/cloud.bin").status_code == 404
    assert client.post("/api/search", data={"like": 1}).status_code == 404
    found = client.post("/api/search", data={"text": "a chair", "k": 100}).json()["hits"]
    assert len(found) == 39
    assert "tiny/001" not in {hit["uid"] for hit in found}


def part_of(rows: EmbeddingRows, row: int) -> EmbeddingRows:
    lists = {name: getattr(rows, name)[row : row + 1] for name in LISTS}
    return EmbeddingRows(**lists, vectors=rows.vectors[row : row + 1])


def changed_index(indexed: Path, embedded: Path, kind: str) -> Path:
    """The index as ``kind``, with its oak trees gone and tiny/001, a chair, replaced by a fish."""
    from evaluation.embeddings import Embeddings, read_embeddings
    from evaluation.index import build_index
    from evaluation.index_update import update_index

    data = read_embeddings(embedded)
    build_index(data, indexed, wanted=Wanted(kind))
    trees = {u for u, c in zip(data.rows.uid, data.rows.category, strict=True) if c == "oak_tree"}
    one = replace(part_of(data.rows, 1), category=["fish"])
    update_index(indexed, Embeddings(data.meta, one), trees, replace=True)
    return indexed


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_search__a_category_whose_objects_are_gone_is_none(
    indexed: Path, embedded: Path, kind: str
) -> None:
    service = SearchService(changed_index(indexed, embedded, kind))
    client = TestClient(make_app(service), base_url=HOST)
    answer = client.post("/api/search", data={"text": "a mug", "category": "oak_tree"})
    assert answer.status_code == 400
    assert answer.json()["error"] == "category oak_tree: has no objects"
    assert "oak_tree" not in client.get("/api/info").json()["categories"]


@pytest.mark.parametrize("asked", [{"category": "{}"}, {"where": "category = '{}'"}])
def test_search__a_replaced_object_is_found_as_what_it_is_now(
    fakes: Path, indexed: Path, embedded: Path, asked: dict[str, str]
) -> None:
    service = SearchService(changed_index(indexed, embedded, "hnsw"))
    client = TestClient(make_app(service), base_url=HOST)

    def found(category: str) -> set[str]:
        filled = {name: value.format(category) for name, value in asked.items()}
        answer = client.post("/api/search", data={"text": "a mug", "k": 50, **filled})
        return {hit["uid"] for hit in answer.json()["hits"]}

    chairs, fish = ({f"tiny/{i:03d}" for i in range(n, 39, 4)} for n in (1, 3))
    assert found("chair") == chairs - {"tiny/001"}
    assert found("fish") == fish | {"tiny/001"}


def test_search__more_like_this_by_codes_has_scores_that_are_cosines(tmp_path: Path) -> None:
    from evaluation.index import build_index
    from tests.evaluation.test_index import embeddings

    build_index(embeddings(6000), tmp_path / "idx", wanted=Wanted("ivfpq", recall=0))
    service = SearchService(tmp_path / "idx")
    hits = service.search(like=5, k=5)
    coded = service.index.engine.reconstruct(5)
    assert abs(float(np.linalg.norm(coded)) - 1) > 1e-4  # or this would tell nothing
    expected = service.index.search(coded / np.linalg.norm(coded), 6)
    assert [hit["score"] for hit in hits] == pytest.approx(
        [hit.score for hit in expected if hit.row != 5][:5], abs=1e-5
    )


def test_classify__probabilities_sum_to_one_and_the_right_class_leads(client: TestClient) -> None:
    names = "mug\nchair\n\noak tree\nmug\n"
    answer = client.post(
        "/api/classify", data={"classes": names}, files={"shape": ("x.npz", cloud_file())}
    )
    classes = answer.json()["classes"]
    assert sum(one["probability"] for one in classes) == pytest.approx(1)
    assert len(classes) == 3
    cosines = [one["cosine"] for one in classes]
    assert cosines == sorted(cosines, reverse=True)
    few = client.post(
        "/api/classify", data={"classes": "mug"}, files={"shape": ("x.npz", cloud_file())}
    )
    assert "2 to 200 classes" in few.json()["error"]


def test_score__needs_a_mesh_and_a_text(client: TestClient, meshes: Path) -> None:
    mesh = {"mesh": ("box.glb", (meshes / "000.glb").read_bytes())}
    found = client.post("/api/score", data={"text": "a red mug"}, files=mesh).json()
    assert found["text"] == "a red mug"
    assert -1 <= found["view_text"] <= 1
    assert found["n_distractors"] > 100
    assert client.post("/api/score", data={"text": " "}, files=mesh).status_code == 400
    assert client.post("/api/score", data={"text": "a"}).status_code == 400
    cloud = {"mesh": ("x.npz", cloud_file())}
    assert client.post("/api/score", data={"text": "a"}, files=cloud).status_code == 400


def test_page__comes_from_here_alone_with_its_headers(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    used = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert used
    for address in used:
        assert address.startswith("data:") or client.get(address).status_code == 200
    for file in ("app.js", "viewer.js", "style.css", "index.html"):
        text = files("evaluation.web").joinpath(f"static/{file}").read_text()
        assert not re.search(r"https?://|//cdn", text), file
    assert client.get("/static/vendor/three.min.js").status_code == 200
    assert client.get("/static/..%2fservice.py").status_code == 404
    assert client.get("/nothing").json() == {"error": "Not Found"}


def test_openapi__describes_every_answer(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) >= {"/api/info", "/api/search", "/api/score", "/api/classify"}
    assert "503" in described["paths"]["/api/search"]["post"]["responses"]
    json.dumps(described)


def test_plain__an_upload_has_no_folder() -> None:
    assert plain("/tmp/x12/shape.glb: cannot be read; give another") == (
        "shape.glb: cannot be read; give another"
    )


def test_service__shards_and_meshes_that_do_not_fit(
    fakes: Path, indexed: Path, tmp_path: Path
) -> None:
    from pipeline.shards import ShardSet, create_or_open, write_part

    other = ShardSet.open(world.make_shards(tmp_path / "a", 2))
    rows = [replace(row, uid=f"x/{row.uid}") for row in other.rows(other.row_groups[0])]
    create_or_open(tmp_path / "b", other.manifest)
    write_part(tmp_path / "b", other.manifest, rows)
    with pytest.raises(InputError, match="holds none of the objects"):
        SearchService(indexed, shards=str(tmp_path / "b"))
    with pytest.raises(InputError, match="no such folder"):
        SearchService(indexed, meshes=tmp_path / "none")
