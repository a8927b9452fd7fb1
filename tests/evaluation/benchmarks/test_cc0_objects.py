"""The list of real objects, the command that finds them, and the benchmark of that name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.benchmarks.known import cc0_objects
from evaluation.benchmarks.known.cc0_objects import CC0_OBJECTS, Member, members, seen_classes
from pipeline.common import InputError, file_hash
from pipeline.datasets.folder import FolderDataset
from pipeline.shards import ShardSet, create_or_open, write_part
from tests.evaluation import world
from tests.running import Cli


def share(group: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:12], 16) / 16**12


def expected_splits(listed: Sequence[Member]) -> dict[str, str]:
    """The split of every group with a class, by the rule of docs/evaluation.md."""
    labels = defaultdict(list)
    for member in listed:
        if member.label:
            labels[member.group].append(member.label)
    of_class = defaultdict(list)
    for group, names in labels.items():
        most = max(names.count(name) for name in names)
        of_class[min(name for name in names if names.count(name) == most)].append(group)
    splits = {}
    for groups in of_class.values():
        ordered, n = sorted(groups, key=share), len(groups)
        if n == 1:
            number = share(ordered[0])
            splits[ordered[0]] = "test" if number < 0.25 else "val" if number < 0.42 else "train"
            continue
        n_test, n_val = max(1, round(0.3 * n)), round(0.1 * n)
        for i, group in enumerate(ordered):
            splits[group] = "test" if i < n_test else "val" if i < n_test + n_val else "train"
    return splits


def test_list__objects_are_there_once_and_groups_lie_in_one_split_by_the_rule() -> None:
    listed = members()
    assert len({member.sha256 for member in listed}) == len(listed)
    assert all(len(member.sha256) == 64 for member in listed)
    assert [member.file for member in listed] == sorted({member.file for member in listed})
    splits = expected_splits(listed)
    for member in listed:
        assert member.split == splits.get(member.group, "train"), member
        assert member.name == " ".join(member.name.split()).lower(), member
        assert not member.name.rsplit(" ", 1)[-1].isdigit(), member
    groups = Counter(splits.values())
    assert groups["train"] / len(splits) == pytest.approx(0.6, abs=0.05)
    assert groups["test"] / len(splits) == pytest.approx(0.3, abs=0.05)


def test_list__a_class_of_several_groups_is_trained_and_tested() -> None:
    found = defaultdict(set)
    for group, split in expected_splits(members()).items():
        for member in members():
            if member.group == group and member.label:
                found[member.label].add((group, split))
    several = {name: {split for _, split in own} for name, own in found.items() if len(own) > 1}
    assert several
    # But for groups of two classes, which go with the larger one.
    odd = {name for name, splits in several.items() if not {"train", "test"} <= splits}
    assert len(odd) <= 3, odd


def test_list__no_two_classes_are_one_meaning_of_the_vocabulary(assets_dir: Path) -> None:
    lookup = json.loads((assets_dir / "clip-text-vectors" / "vocab_lookup.json").read_text())
    rows = defaultdict(list)
    assert CC0_OBJECTS.classes is not None
    for name in CC0_OBJECTS.classes:
        rows[tuple(lookup[name])].append(name)
    assert all(len(names) == 1 for names in rows.values())


def test_list__every_hash_is_that_of_the_real_file(assets_dir: Path) -> None:
    folder = assets_dir / "cc0-meshes" / "meshes"
    assert {path.name for path in folder.glob("*.glb")} == {member.file for member in members()}
    wrong = [m.file for m in members() if file_hash(folder / m.file) != m.sha256]
    assert wrong == []


def test_seen_classes__by_an_object_or_by_a_word_of_a_name() -> None:
    def member(name: str, label: str | None, split: str) -> Member:
        return Member("", "", name, label, split, "")

    listed = (
        member("red mug", "mug", "train"),
        member("raft paddle", None, "train"),
        member("raft", "raft", "test"),
        member("crafty", "craft", "test"),
        member("paddles", "paddles", "val"),
    )
    assert seen_classes(listed) == {"mug", "raft"}
    groups = CC0_OBJECTS.groups()
    assert groups["seen words"] | groups["unseen words"] == set(CC0_OBJECTS.classes or ())
    tested = {member.label for member in members() if member.split == "test" and member.label}
    assert len(tested & groups["unseen words"]) > 20


def test_command__finds_files_by_their_bytes_and_writes_what_the_folder_source_takes(
    command: Cli, assets_dir: Path, tmp_path: Path
) -> None:
    wanted = [
        next(m for m in members() if m.split == split and m.label) for split in ("train", "test")
    ]
    root, table = tmp_path / "mine", tmp_path / "cc0.csv"
    (root / "deep").mkdir(parents=True)
    for name, member in zip(("a.glb", "deep/b.GLB"), wanted, strict=True):
        shutil.copy(assets_dir / "cc0-meshes" / "meshes" / member.file, root / name)
    (root / "other.glb").write_bytes(b"no object of the list")
    call = ("benchmarks", "cc0-objects", "--root", root, "--out", table)
    found = command.json(*call)
    assert found["found"] == 2
    assert found["splits"] == {"train": 1, "test": 1}
    assert found["others"] == 1
    records = {r.source: r for r in FolderDataset(root, table).records()}
    for name, member in zip(("a.glb", "deep/b.GLB"), wanted, strict=True):
        record = records[name]
        assert (record.category, record.split) == (member.label, member.split)
        assert record.texts == (member.name,)
        assert record.text_sources == ("name",)
    assert records["other.glb"].split is None
    assert "--overwrite" in command.refused(*call)
    inside = root / "deep" / "cc0.csv"
    assert "2 of 1,361" in " ".join(command.ok(*call[:-1], inside).split())
    again = {r.source: r.split for r in FolderDataset(root, inside).records()}
    assert again["a.glb"] == wanted[0].split
    shutil.copy(root / "a.glb", root / "copy.glb")
    assert "are the same object" in command.refused(*call, "--overwrite")


def test_command__errors_name_the_option(command: Cli, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    (tmp_path / "x.glb").write_bytes(b"x")
    assert "none of its 1 .glb files" in command.refused(
        "benchmarks", "cc0-objects", "--root", tmp_path, "--out", out
    )
    assert "together" in command.refused("benchmarks", "cc0-objects", "--root", tmp_path)
    assert "with a list of files: cc0-objects" in command.refused(
        "benchmarks", "modelnet40", "--root", tmp_path, "--out", out
    )
    assert "no such benchmark" in command.refused("benchmarks", "cc0")
    assert [entry["name"] for entry in command.json("benchmarks", "cc0-objects")] == ["cc0-objects"]
    assert not out.exists()


def set_of(root: Path, listed: Sequence[Member]) -> Path:
    """A set whose rows are the objects of a list; the clouds are of the synthetic world."""
    manifest = world.manifest(dataset={"name": "folder", "options": {}})
    made = world.make_shards(root / "made", len(listed), dataset=manifest.dataset)
    opened = ShardSet.open(made)
    rows = [row for group in opened.row_groups for row in opened.rows(group)]
    changed = [
        replace(row, sha256=member.sha256, category=member.label, split=member.split)
        for row, member in zip(rows, listed, strict=True)
    ]
    out = root / "set"
    create_or_open(out, manifest)
    write_part(out, manifest, changed)
    return out


def test_benchmark__rows_are_compared_with_the_list(tmp_path: Path) -> None:
    test = [member for member in members() if member.split == "test" and member.label][:3]
    train = [member for member in members() if member.split == "train"][:3]
    foreign = replace(train[0], sha256="f" * 64)
    good = [*test, *train, foreign]
    assert CC0_OBJECTS.variant(ShardSet.open(set_of(tmp_path / "0", good))).split == "test"
    for i, (bad, told) in enumerate(
        [
            ([*test, replace(foreign, split="test")], "is not in the list"),
            ([*test, replace(train[0], split="test")], "is of split train"),
            ([replace(test[0], split="train"), *train], "is of split test"),
            ([replace(test[0], label="whatever")], f"class {test[0].label}"),
            ([foreign], "no object of the list"),
        ],
        1,
    ):
        with pytest.raises(InputError, match=told):
            CC0_OBJECTS.variant(ShardSet.open(set_of(tmp_path / str(i), bad)))


def test_zeroshot__over_all_classes_and_by_whether_the_word_was_seen(
    command: Cli, fakes: Path, tmp_path: Path
) -> None:
    tested = [member for member in members() if member.split == "test"]
    unseen = CC0_OBJECTS.groups()["unseen words"]
    chosen = [m for m in tested if m.label in unseen][:3]
    chosen += [m for m in tested if m.label and m.label not in unseen][:5]
    chosen += [m for m in tested if not m.label][:1]
    shards = set_of(tmp_path, chosen)
    call = ("zeroshot", "--shards", shards, "--checkpoint", fakes, "--benchmark", "cc0-objects")
    found = command.json(*call)
    assert found["count"] == 8
    assert found["benchmark_counts"] == [237, 255]
    assert found["protocol"]["n_classes"] == len(cc0_objects.CC0_OBJECTS.classes or ())
    groups = {group["name"]: group for group in found["groups"]}
    assert groups["unseen words"]["count"] == 3
    assert groups["seen words"]["count"] == 5
    hits = sum(round(g["top5"]["value"] * g["count"]) for g in groups.values())
    assert hits == sum(rank <= 5 for rank in found["ranks"])
    assert "unseen" in command.ok(*call)
