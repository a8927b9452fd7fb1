"""The manifest: round trip, validation of what a user may hand us, and when two sets may mix."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common import InputError
from pipeline.shards import (
    Failure,
    Manifest,
    ShardSet,
    create_or_open,
    read_manifest,
    taken_back,
    unstarted,
    write_failures,
)
from pipeline.shards.manifest import FINGERPRINT_COSINE
from tests.pipeline.shard_tools import make_manifest, make_row, make_set

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
OPTIONS = st.dictionaries(st.text(max_size=5), JSON, max_size=3)


def as_value(manifest: Manifest) -> dict[str, Any]:
    """The manifest as the parsed JSON of its file."""
    value: dict[str, Any] = json.loads(manifest.to_json())
    return value


def assert_refused(text: bytes | str, tmp_path: Path, *expected: str) -> None:
    """Opening a set with this manifest gives one line with the file, the reason and a remedy."""
    path = tmp_path / "manifest.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    for opening in (
        lambda: ShardSet.open(tmp_path),
        lambda: create_or_open(tmp_path, make_manifest()),
    ):
        with pytest.raises(InputError) as caught:
            opening()
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{path}: ")
        assert any(f"; {verb} " in message for verb in ("make", "upgrade", "put")), message
        for part in expected:
            assert part in message


@settings(max_examples=60, deadline=None)
@given(
    dataset=OPTIONS,
    renderer=OPTIONS,
    templates=st.lists(st.text(max_size=8), max_size=3),
    seed=st.integers(),
    versions=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    config=OPTIONS,
)
def test_round_trip__any_manifest_is_read_back_equal(
    dataset: dict[str, Any],
    renderer: dict[str, Any],
    templates: list[str],
    seed: int,
    versions: dict[str, str] | None,
    config: dict[str, Any],
) -> None:
    manifest = make_manifest(
        dataset=dataset,
        renderer=renderer,
        templates=templates,
        sampling_seed=seed,
        versions=versions,
    )
    manifest = replace(manifest, teacher=replace(manifest.teacher, config=config))
    text = manifest.to_json()
    again = Manifest.from_json(text, "m")
    assert again == manifest
    assert again.config_hash == manifest.config_hash
    assert again.difference(manifest) is None
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x00" * 100,
        b"{",
        b'{"format": "mrd3d-shards"',
        b"\xff\xfe\x00",
        b"just text",
        b"[" * 100_000,
        b"1" * 10_000,
    ],
    ids=["empty", "zeros", "brace", "truncated", "latin", "text", "deep", "digits"],
)
def test_open__not_json(text: bytes, tmp_path: Path) -> None:
    assert_refused(text, tmp_path, "not JSON")


@pytest.mark.parametrize("value", [[], 3, "x", None, {}, {"format": "other"}, {"a": 1}])
def test_open__foreign_json(value: Any, tmp_path: Path) -> None:
    assert_refused(json.dumps(value), tmp_path, "not the manifest of a shard set")


def test_open__truncated_anywhere_is_refused(tmp_path: Path) -> None:
    text = make_manifest().to_json()
    for length in range(len(text.rstrip()) - 1):
        assert_refused(text[:length], tmp_path, "not JSON")


@pytest.mark.parametrize("version", [3, 17, 10**30])
def test_open__newer_contract_tells_to_upgrade(version: int, tmp_path: Path) -> None:
    # A newer contract may have fields that this one does not know.
    value = {**as_value(make_manifest()), "contract_version": version, "novel": 1}
    assert_refused(json.dumps(value), tmp_path, f"version {version} is newer", "upgrade mrd3d")


@pytest.mark.parametrize("version", [0, -1, "1", None, True, 1.0, [1]])
def test_open__contract_version_is_not_a_number(version: Any, tmp_path: Path) -> None:
    value = {**as_value(make_manifest()), "contract_version": version}
    assert_refused(json.dumps(value), tmp_path, "contract_version")


FIELDS = [name for name in as_value(make_manifest()) if name not in ("format", "contract_version")]
TEACHER_FIELDS = list(as_value(make_manifest())["teacher"])


@pytest.mark.parametrize("name", FIELDS + [f"teacher.{name}" for name in TEACHER_FIELDS])
def test_open__missing_or_wrongly_typed_field_is_named(name: str, tmp_path: Path) -> None:
    def change(edit: Callable[[dict[str, Any], str], None]) -> str:
        value = as_value(make_manifest())
        owner, _, key = name.rpartition(".")
        edit(value[owner] if owner else value, key)
        return json.dumps(value)

    def drop(owner: dict[str, Any], key: str) -> None:
        del owner[key]

    def replace_with(wrong: Any) -> Callable[[dict[str, Any], str], None]:
        def edit(owner: dict[str, Any], key: str) -> None:
            owner[key] = wrong

        return edit

    assert_refused(change(drop), tmp_path, name)
    # True is an int to Python and 3.5 is not one; {} is a dict but a str is not.
    assert_refused(change(replace_with(True)), tmp_path, name)
    assert_refused(change(replace_with([None])), tmp_path, name)


@pytest.mark.parametrize("owner", ["", "teacher"])
def test_open__unknown_field_is_named(owner: str, tmp_path: Path) -> None:
    value = as_value(make_manifest())
    (value[owner] if owner else value)["colour"] = 1
    assert_refused(json.dumps(value), tmp_path, "unknown field", "colour")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("n_points", 0),
        ("n_points", -5),
        ("n_points", 10**12),
        ("n_fps", -1),
        ("n_fps", 9),
        ("n_views", -1),
        ("n_views", 10**12),
        ("up_axis", "+z"),
        ("teacher.width", 0),
        ("teacher.width", 5),
        ("teacher.logit_scale", -1.0),
        ("teacher.logit_scale", 10**400),
        ("teacher.logit_scale", float("nan")),
        ("teacher.fingerprint_image", []),
        ("teacher.fingerprint_image", [1.0, 0.0, 0.0]),
        ("teacher.fingerprint_image", [0.0, 0.0, 0.0, 0.0]),
        ("teacher.fingerprint_image", [5.0, 0.0, 0.0, 0.0]),
        ("teacher.fingerprint_text", [float("nan"), 0.0, 0.0, 0.0]),
        ("teacher.fingerprint_text", [float("inf"), 0.0, 0.0, 0.0]),
        ("teacher.fingerprint_text", [10**400, 0, 0, 0]),
    ],
)
def test_open__impossible_value_is_named(name: str, wrong: Any, tmp_path: Path) -> None:
    value = as_value(make_manifest())
    owner, _, key = name.rpartition(".")
    (value[owner] if owner else value)[key] = wrong
    shown = "fingerprint" if name == "teacher.width" and wrong else key.split("_")[-1]
    assert_refused(json.dumps(value), tmp_path, shown)


@pytest.mark.parametrize("name", ["sampling_seed", "n_views", "n_fps", "n_points"])
def test_open__edited_by_hand_is_told(name: str, tmp_path: Path) -> None:
    value = as_value(make_manifest())
    value[name] += 1
    assert_refused(json.dumps(value), tmp_path, "config_hash")


def test_open__no_manifest_or_no_folder(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError) as caught:
            ShardSet.open(root)
        assert str(caught.value).startswith(f"{root}: no manifest.json")
        assert "pipeline embed --out" in str(caught.value)


def test_open__root_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(InputError, match=r"no manifest\.json"):
        ShardSet.open(path)
    with pytest.raises(InputError, match=r"cannot be (read|written)"):
        create_or_open(path, make_manifest())


def test_open__address_that_no_store_understands() -> None:
    with pytest.raises(InputError, match="nosuch://bucket/x: no file system for this address"):
        ShardSet.open("nosuch://bucket/x")


CHANGES: dict[str, dict[str, Any]] = {
    "dataset.name": {"dataset": {"name": "other", "options": {"count": 3}}},
    "dataset.options.count": {"dataset": {"name": "toy", "options": {"count": 4}}},
    "dataset.options.extra": {"dataset": {"name": "toy", "options": {"count": 3, "extra": 0}}},
    "n_points": {"n_points": 9},
    "n_fps": {"n_fps": 3},
    "n_views": {"n_views": 3},
    "sampling_seed": {"sampling_seed": 8},
    "renderer.version": {"renderer": {**make_manifest().renderer, "version": "2"}},
    "renderer.settings.image_size": {
        "renderer": {**make_manifest().renderer, "settings": {"image_size": 225}}
    },
    "cameras.poses": {"cameras": {**make_manifest().cameras, "poses": [[1.0, 1e-6], [0.0, 1.0]]}},
    "templates": {"templates": ["{}"]},
    "teacher.model": {"teacher": replace(make_manifest().teacher, model="ViT")},
    "teacher.pretrained": {"teacher": replace(make_manifest().teacher, pretrained="v2")},
    "teacher.config.context": {"teacher": replace(make_manifest().teacher, config={"context": 1})},
    "teacher.logit_scale": {"teacher": replace(make_manifest().teacher, logit_scale=99.0)},
}


@pytest.mark.parametrize("field", CHANGES)
def test_create_or_open__other_manifest_names_the_field(field: str, tmp_path: Path) -> None:
    ours = make_manifest()
    other = replace(ours, **CHANGES[field])
    assert other.config_hash != ours.config_hash
    found = other.difference(ours)
    assert found is not None
    assert found.startswith(f"{field}: ")
    create_or_open(tmp_path, ours)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(InputError) as caught:
        create_or_open(tmp_path, other)
    assert f"differs from the set in {field}: " in str(caught.value)
    assert "--out" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_create_or_open__a_table_that_has_grown_is_told_as_such(tmp_path: Path) -> None:
    ours = make_manifest()

    def with_table(sha256: str) -> Manifest:
        options = {"root": "meshes", "metadata": {"file": "words.csv", "sha256": sha256}}
        return replace(ours, dataset={"name": "folder", "options": options})

    create_or_open(tmp_path, with_table("a"))
    with pytest.raises(InputError, match="given with --metadata, has changed since"):
        create_or_open(tmp_path, with_table("b"))


def with_fingerprint(part: str, cosine: float) -> Manifest:
    """A manifest whose one fingerprint has this cosine with that of ``make_manifest``."""
    manifest = make_manifest()
    ours = np.asarray(getattr(manifest.teacher, f"fingerprint_{part}"))
    orthogonal = np.eye(4)[1]
    turned = (cosine * ours + np.sqrt(1 - cosine**2) * orthogonal).tolist()
    changes: dict[str, Any] = {f"fingerprint_{part}": turned}
    return replace(manifest, teacher=replace(manifest.teacher, **changes))


@pytest.mark.parametrize("part", ["image", "text"])
def test_create_or_open__fingerprints_are_compared_by_cosine(part: str, tmp_path: Path) -> None:
    ours = make_manifest()
    create_or_open(tmp_path, ours)
    near = with_fingerprint(part, FINGERPRINT_COSINE + 1e-4)
    far = with_fingerprint(part, FINGERPRINT_COSINE - 1e-4)
    assert near.config_hash == ours.config_hash == far.config_hash
    assert create_or_open(tmp_path, near) == ours
    with pytest.raises(InputError, match=rf"teacher: {part} fingerprints differ \(cosine 0\.99"):
        create_or_open(tmp_path, far)
    opposite = with_fingerprint(part, -1.0)
    assert "cosine -1.000" in str(opposite.teacher.mismatch(ours.teacher))


def nameless(**changes: Any) -> Manifest:
    """A manifest whose teacher is known by name only."""
    teacher = replace(make_manifest().teacher, fingerprint_image=[], fingerprint_text=[], **changes)
    return make_manifest(teacher=teacher)


def test_unknown_fingerprint__round_trip_in_version_2(tmp_path: Path) -> None:
    ours = nameless()
    assert ours.contract_version == 2
    create_or_open(tmp_path, ours)
    assert read_manifest(tmp_path) == ours
    assert create_or_open(tmp_path, nameless()) == ours
    assert not ours.teacher.has_fingerprint


@pytest.mark.parametrize("part", ["image", "text"])
def test_unknown_fingerprint__half_of_one_is_damage(part: str, tmp_path: Path) -> None:
    value = as_value(make_manifest(thumbnails=True))
    value["teacher"][f"fingerprint_{part}"] = []
    assert_refused(json.dumps(value), tmp_path, "fingerprint")


def test_unknown_fingerprint__teachers_are_compared_by_name() -> None:
    known, ours = make_manifest().teacher, nameless().teacher
    assert ours.mismatch(known) is None
    assert known.mismatch(ours) is None
    other = nameless(pretrained="v2").teacher
    assert "toy/v1 against toy/v2, and no fingerprint" in str(known.mismatch(other))
    assert ours.mismatch(nameless(model="b").teacher) is not None
    assert ours.mismatch(nameless(width=8).teacher) == "width 4 against 8"


def test_mismatch__other_width_is_told() -> None:
    ours, other = make_manifest().teacher, make_manifest(width=8).teacher
    assert ours.mismatch(other) == "width 4 against 8"


def test_create_or_open__versions_are_told_but_never_compared(tmp_path: Path) -> None:
    ours = create_or_open(tmp_path, make_manifest())
    other = make_manifest(versions={"numpy": "9.9"})
    assert other.config_hash == ours.config_hash
    assert create_or_open(tmp_path, other) == ours
    assert read_manifest(tmp_path).versions == {"numpy": "2.0"}


def test_create_or_open__last_bits_of_computed_numbers_do_not_count(tmp_path: Path) -> None:
    ours = create_or_open(tmp_path, make_manifest())
    poses = [[float(np.nextafter(1.0, 0.0)), -0.0], [1e-300 - 1e-300, 1.0]]
    other = make_manifest(cameras={**ours.cameras, "poses": poses})
    other = replace(other, teacher=replace(other.teacher, logit_scale=100.0 + 1e-12))
    assert other.config_hash == ours.config_hash
    assert create_or_open(tmp_path, other) == ours


def test_create_or_open__parts_without_a_manifest_are_refused(tmp_path: Path) -> None:
    manifest = make_manifest()
    make_set(tmp_path, manifest, [[make_row(manifest, "toy/1")]])
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"holds parts but no manifest\.json; use an empty folder"):
        create_or_open(tmp_path, manifest)


def test_taken_back__only_a_set_that_was_started_for_nothing(tmp_path: Path) -> None:
    full, fresh, failed = (str(tmp_path / name) for name in ("full", "fresh", "failed"))
    make_set(full, make_manifest(), [[make_row(make_manifest(), "a/0")]])
    assert unstarted([full, fresh, failed]) == [fresh, failed]
    for root in (fresh, failed):
        create_or_open(root, make_manifest())
    write_failures(failed, [Failure("a/b", "a", "b", "load", "empty_file", "zero bytes")])
    with pytest.raises(KeyboardInterrupt), taken_back([full, fresh, failed]):
        raise KeyboardInterrupt
    assert unstarted([full, fresh, failed]) == [fresh]
    with taken_back([fresh]):
        create_or_open(fresh, make_manifest())
    assert not unstarted([fresh])


def test_mismatch__of_a_fingerprint_without_direction_is_told() -> None:
    teacher = make_manifest().teacher
    broken = replace(teacher, fingerprint_text=[float("nan")] * 4)
    assert "fingerprints differ" in str(teacher.mismatch(broken))
