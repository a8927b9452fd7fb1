"""The commands end to end on the synthetic world, and what they say to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.evaluation import world
from tests.running import Cli


def test_retrieve__text_finds_its_class(command: Cli, indexed: Path) -> None:
    hits = command.json("retrieve", "--index", indexed, "--text", "a red mug", "-k", 5)
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    assert [hit["category"] for hit in hits] == ["mug"] * 5
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_retrieve__table_names_the_objects(command: Cli, indexed: Path, tmp_path: Path) -> None:
    out = tmp_path / "hits.json"
    printed = command.ok("retrieve", "--index", indexed, "--text", "chair", "--out", out)
    assert "tiny/" in printed
    assert "chair" in printed
    assert len(json.loads(out.read_text())["queries"][0]["hits"]) == 10


def test_retrieve__k_beyond_the_size_is_clipped(command: Cli, indexed: Path) -> None:
    assert len(command.json("retrieve", "--index", indexed, "--text", "fish", "-k", 999)) == 40


def test_retrieve__image_is_put_on_the_background_of_the_views(
    command: Cli, indexed: Path, tmp_path: Path
) -> None:
    # Mean red 150 is class 3, fish. The transparent half takes the background's red, 10.
    picture = tmp_path / "fish.png"
    pixels = np.full((20, 20, 4), 255, np.uint8)
    pixels[:, :10, 0], pixels[:, 10:, 0], pixels[:, 10:, 3] = 255, 99, 0
    Image.fromarray(pixels).save(picture)  # (255 + 10) / 2 = 132.5, nearest 150
    hits = command.json("retrieve", "--index", indexed, "--image", picture, "-k", 3)
    assert {hit["category"] for hit in hits} == {"fish"}


def test_retrieve__cloud_finds_itself(
    command: Cli, indexed: Path, fakes: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "c.npz", xyz=rng.normal(size=(50, 3)))
    hits = command.json(
        "retrieve", "--index", indexed, "--shape", tmp_path / "c.npz", "--checkpoint", fakes
    )
    assert len(hits) == 10


def test_retrieve__where_leaves_only_what_the_condition_allows(
    command: Cli, indexed: Path, shards: Path
) -> None:
    asked = ("retrieve", "--index", indexed, "--text", "a red mug", "-k", 99, "--where")
    hits = command.json(*asked, "category = 'fish' and uid < 'tiny/020'")
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    assert {hit["category"] for hit in hits} == {"fish"}
    assert all(hit["uid"] < "tiny/020" for hit in hits)
    # Columns that only the shards have, and a column that is null for one object.
    hits = command.json(*asked, "not has_color and category is not null", "--shards", shards)
    assert {hit["uid"] for hit in hits} == {f"tiny/{i:03d}" for i in range(0, 39, 5)}
    assert "10 of 10 for" in command.ok(*asked, "category = 'mug'")


def test_retrieve__wrong_conditions_are_one_line(
    command: Cli, indexed: Path, shards: Path, tmp_path: Path
) -> None:
    asked = ("retrieve", "--index", indexed, "--text", "a red mug")
    assert "the columns are uid, source, category, texts" in command.refused(
        *asked, "--where", "n_faces < 5000"
    )
    assert "no object of" in command.refused(*asked, "--where", "category = 'dragon'")
    assert "no condition" in command.refused(*asked, "--where", " ")
    assert "give a condition" in command.refused(*asked, "--shards", shards)
    hostile = "uid in (select content from read_text('/etc/hostname'))"
    assert "--where" in command.refused(*asked, "--where", hostile)
    other = world.make_shards(tmp_path / "other", 1)
    error = command.refused(*asked, "--where", "n_faces < 5", "--shards", tmp_path / "none")
    assert "none" in error
    hits = command.json(*asked, "--where", "n_faces < 5", "--shards", other)
    assert [hit["uid"] for hit in hits] == ["tiny/000"]


def test_retrieve__same_answers_as_numpy(command: Cli, indexed: Path) -> None:
    table = pq.read_table(indexed.parent / "e.parquet")
    raw = b"".join(table["embed"].to_pylist())
    vectors = np.frombuffer(raw, "<f4").reshape(-1, world.D)
    wanted = np.argsort(-vectors @ world.text_vector("a mug"), kind="stable")[:10]
    hits = command.json("retrieve", "--index", indexed, "--text", "a mug")
    assert [hit["uid"] for hit in hits] == [table["uid"][int(i)].as_py() for i in wanted]


def test_zeroshot__writes_everything_needed_to_repeat_it(
    command: Cli, fakes: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "z.json"
    printed = command.ok("zeroshot", "--checkpoint", fakes, "--shards", shards, "--out", out)
    assert "top-1" in printed
    record = json.loads(out.read_text())
    assert record["count"] == 39  # one object has no category
    assert record["protocol"]["skipped_without_category"] == 1
    assert record["protocol"]["templates"] == ["a {}", "the {}"]
    assert record["confusion"]["classes"] == ["chair", "fish", "mug", "oak tree"]
    matrix = np.array(record["confusion"]["matrix"])
    assert matrix.sum() == 39
    assert record["metrics"]["top1"]["value"] == pytest.approx(np.trace(matrix) / 39)
    assert record["metrics"]["top1"]["value"] > 0.9
    assert record["metrics"]["top5"]["value"] == 1
    assert record["model"] == {"kind": "student", "name": "reader", "hash": "abc", "step": 7}
    assert len(record["uid_hash"]) == 16
    assert record["data"]["dataset"] == record["benchmark"] == "tiny"


def test_zeroshot__a_constant_student_gets_nothing(command: Cli, fakes: Path, shards: Path) -> None:
    record = command.json("zeroshot", "--checkpoint", fakes / "blind", "--shards", shards)
    values = [record["metrics"][f"top{k}"]["value"] for k in (1, 3)]
    assert values[0] <= values[1] < 1
    assert values[0] == pytest.approx(
        max(row["count"] for row in record["per_class"]) / 39, abs=0.03
    )


def test_zeroshot__teacher_views_mean_and_first(command: Cli, fakes: Path, shards: Path) -> None:
    mean = command.json("zeroshot", "--teacher-views", "--shards", shards)
    first = command.json("zeroshot", "--teacher-views", "--views", "first", "--shards", shards)
    assert mean["model"]["kind"] == "teacher-views"
    assert mean["model"]["name"] != first["model"]["name"]
    assert mean["metrics"]["top1"]["value"] > 0.9


def test_zeroshot__split_counts_only_its_rows(command: Cli, fakes: Path, shards: Path) -> None:
    record = command.json("zeroshot", "--checkpoint", fakes, "--shards", shards, "--split", "train")
    assert record["count"] == 20
    assert record["variant"] == "train"
    # The odd rows hold chair and fish only; the even ones mug and oak tree.
    assert record["protocol"]["n_classes"] == 2


def test_zeroshot__label_file_adds_wrong_answers_and_drops_others(
    command: Cli, fakes: Path, shards: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"Oak-Tree": "oak tree", "mug": "mug", "unicorn": "unicorn"}))
    record = command.json("zeroshot", "--checkpoint", fakes, "--shards", shards, "--labels", labels)
    assert record["count"] == 20
    assert record["protocol"]["skipped_outside_of_labels"] == 19
    assert [row["count"] for row in record["per_class"]] == [10, 10, 0]
    assert record["per_class"][2]["recall"] is None


def test_zeroshot__field_templates(command: Cli, fakes: Path, shards: Path) -> None:
    record = command.json(
        "zeroshot", "--checkpoint", fakes, "--shards", shards, "--templates", "field64"
    )
    assert len(record["protocol"]["templates"]) == 64


def test_recall__perfect_student_reads_every_direction(
    command: Cli, fakes: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.json"
    printed = command.ok("recall", "--checkpoint", fakes, "--shards", shards, "--out", out)
    record = json.loads(out.read_text())
    assert set(record["directions"]) == {
        *("text->3d", "3d->text", "image->3d", "3d->image", "3d->3d"),
        *("image->3d class", "class->3d"),
    }
    assert set(record["teacher_ceiling"]) == {
        "text->views",
        "views->text",
        "image->views",
        "views->image",
        "views->views",
        "image->views class",
        "class->views",
    }
    assert record["protocol"]["text_source"] == "caption"
    text = record["directions"]["text->3d"]
    assert text["n_queries"] == 20  # 40 captions, each carried by two objects
    assert text["chance_recall@1"] == pytest.approx(2 / 40)
    shapes = record["directions"]["3d->3d"]
    assert shapes["n_queries"] == 39
    assert shapes["n_without_answer"] == 1
    assert shapes["n_candidates"] == 39
    assert shapes["recall@1"]["value"] > 0.9
    assert "teacher" in printed
    assert "text->views" in printed


def test_recall__names_are_few_queries_with_many_right_answers(
    command: Cli, fakes: Path, shards: Path
) -> None:
    record = command.json("recall", "--checkpoint", fakes, "--shards", shards, "--texts", "name")
    text = record["directions"]["text->3d"]
    assert text["n_queries"] == len(world.CLASSES)
    assert text["recall@1"]["value"] == 1
    assert record["directions"]["3d->text"]["n_candidates"] == len(world.CLASSES)


def test_recall__blind_student_ranks_last(command: Cli, fakes: Path, shards: Path) -> None:
    record = command.json("recall", "--checkpoint", fakes / "blind", "--shards", shards)
    image = record["directions"]["image->3d"]
    assert image["recall@10"]["value"] == 0
    assert image["median_rank"] == 40
    assert image["tied"] == 40


def test_zeroshot__several_draws_tell_their_spread(command: Cli, fakes: Path, shards: Path) -> None:
    common = ("zeroshot", "--shards", shards, "--checkpoint", fakes)
    one, three = command.json(*common), command.json(*common, "--draws", 3, "--seed", 7)
    assert "draws" not in one
    assert (one["protocol"]["draws"], three["protocol"]["draws"]) == (1, 3)
    found = three["draws"]["top1"]
    # The stand-in reads its first points, so other points tell it nothing.
    assert found["each"][0] == one["metrics"]["top1"]["value"]
    assert found["mean"] == pytest.approx(np.mean(found["each"]))
    assert found["sd"] == pytest.approx(np.std(found["each"], ddof=1))
    assert found["sd"] > 0.1


def test_refusals__each_is_one_line_with_a_remedy(
    command: Cli, fakes: Path, shards: Path, indexed: Path, tmp_path: Path
) -> None:
    retrieve = ("retrieve", "--index", indexed)
    text_file = tmp_path / "not.png"
    text_file.write_text("no picture")
    other = world.make_shards(tmp_path / "other", 4, teacher=world.teacher_info(seed=555))
    cases: list[tuple[tuple[object, ...], str]] = [
        (("retrieve", "--index", tmp_path / "none", "--text", "mug"), "no index there"),
        ((*retrieve,), "one of --text"),
        ((*retrieve, "--text", "mug", "--image", text_file), "not a readable picture"),
        ((*retrieve, "--minus", "mug"), "at least one of --text"),
        ((*retrieve, "--text", "mug@0"), "has weight 0"),
        ((*retrieve, "--text", "mug", "--minus", "mug"), "cancel each other"),
        ((*retrieve, "--text", "mug", "--out", "hits.txt"), "ends in .json, .csv or .html"),
        ((*retrieve, "--text", "mug", "--queries", text_file), "leave the other parts out"),
        ((*retrieve, "--text", "  "), "is empty"),
        ((*retrieve, "--image", text_file), "not a readable picture"),
        ((*retrieve, "--image", tmp_path / "missing.png"), "no such file"),
        ((*retrieve, "--shape", tmp_path / "missing.glb"), "no such file"),
        ((*retrieve, "--shape", text_file), "no longer at"),
        ((*retrieve, "--shape", text_file, "--checkpoint", fakes), "unsupported_format"),
        ((*retrieve, "--shape", text_file, "--checkpoint", fakes / "other"), "is not the one"),
        ((*retrieve, "--text", "mug", "--teacher", "other"), "fingerprints differ"),
        (("zeroshot", "--shards", shards), "either --checkpoint"),
        (("zeroshot", "--shards", shards, "--teacher-views", "--checkpoint", fakes), "either"),
        (("zeroshot", "--shards", shards, "--teacher-views", "--views", "x"), "mean or first"),
        (("zeroshot", "--shards", shards, "--teacher-views", "--draws", "2"), "--draws: applies"),
        (("zeroshot", "--shards", tmp_path, "--teacher-views"), "not a shard set"),
        (("zeroshot", "--shards", other, "--checkpoint", fakes), "fingerprints differ"),
        (("zeroshot", "--shards", other, "--teacher-views"), "fingerprints differ"),
        (("zeroshot", "--shards", shards, "--checkpoint", fakes, "--split", "no"), "test, train"),
        (("zeroshot", "--shards", shards, "--checkpoint", fakes, "--labels", "no"), "--labels"),
        (
            ("zeroshot", "--shards", shards, "--checkpoint", fakes, "--labels", text_file),
            "none of its objects",
        ),
        (
            ("zeroshot", "--shards", shards, "--checkpoint", fakes, "--templates", text_file),
            "is no template",
        ),
        (("zeroshot", "--shards", shards, "--checkpoint", fakes, "--templates", "no"), "field64"),
        (("recall", "--shards", shards, "--checkpoint", fakes, "--texts", "tags"), "caption, name"),
        (("index", "--embeddings", text_file, "--out", tmp_path / "i"), "not Parquet"),
        (("index", "--embeddings", tmp_path / "e.parquet", "--out", shards), "not an index"),
        (("encode", "--checkpoint", fakes, "--out", tmp_path / "x"), "either --shards"),
        (
            ("encode", "--checkpoint", fakes, "--meshes", tmp_path / "m", "--out", tmp_path / "x"),
            "no such file",
        ),
        (("report", text_file, "--out", tmp_path / "r.html"), "not JSON"),
        (("report", tmp_path / "none.json", "--out", tmp_path / "r.html"), "no such file"),
        (("retrieve", "--index", indexed, "--txt", "mug"), "--txt"),
    ]
    for arguments, wanted in cases:
        assert wanted in command.refused(*arguments), arguments
    assert not (tmp_path / "x").exists()


def test_zeroshot__a_known_benchmark_brings_classes_split_and_counts(
    command: Cli, fakes: Path, tmp_path: Path
) -> None:
    dataset = {"name": "openshape", "options": {"kind": "lvis"}}
    root = world.make_shards(tmp_path / "lvis", 20, dataset=dataset)
    common = ("zeroshot", "--checkpoint", fakes, "--shards", root, "--benchmark", "objaverse-lvis")
    record = command.json(*common, "--protocol", "uni3d")
    assert record["variant"] == "openshape list"
    assert record["benchmark_counts"] == [46205]
    assert (record["protocol"]["name"], record["protocol"]["centre"]) == ("uni3d", "mean")
    assert "oak_tree" in record["confusion"]["classes"]
    assert len(record["protocol"]["templates"]) == 64
    printed = command.ok(*common)
    assert "19 of 46,205 objects" in " ".join(printed.split())
    train = command.json(*common, "--split", "train")
    assert train["variant"] == "train"
    assert "benchmark_counts" not in train


def test_results__of_two_protocols_never_share_a_table(
    command: Cli, fakes: Path, shards: Path, tmp_path: Path
) -> None:
    for name in ("ours", "openshape"):
        common = ("zeroshot", "--checkpoint", fakes, "--shards", shards)
        command.ok(*common, "--protocol", name, "--out", tmp_path / f"{name}.json")
    printed = command.ok(
        *("report", tmp_path / "ours.json", tmp_path / "openshape.json"),
        *("--out", tmp_path / "page.html"),
    )
    assert printed.count("Zero-shot on") == 2
    assert "protocol of openshape" in " ".join(printed.split())


def test_benchmarks__are_listed(command: Cli) -> None:
    found = {entry["name"]: entry for entry in command.json("benchmarks")}
    assert found["modelnet40"]["classes"] == 40
    assert "scanobjectnn" in command.ok("benchmarks")


def test_benchmark__nearly_known_or_of_another_set_is_refused(
    command: Cli, fakes: Path, shards: Path
) -> None:
    for task in ("zeroshot", "recall", "probe"):
        common = (task, "--checkpoint", fakes, "--shards", shards, "--benchmark")
        assert "did you mean modelnet40" in command.refused(*common, "ModelNet40")
        assert "not of modelnet40" in command.refused(*common, "modelnet40")
