"""Whether a shard set is sound: reads all of it again and names whatever is not as it must be."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.common import InputError
from pipeline.console import ProgressBar
from pipeline.sets import checks
from pipeline.shards import Batch, ImageSet, RowGroup, ShardSet, compare_contents
from pipeline.shards.contents import CONTENTS
from pipeline.shards.storage import Storage

MAX_PROBLEMS = 1000  # kept; all are counted
ORDER_SAMPLE = 100  # objects whose order is followed point by point
_NAME = re.compile(r"-(\d{5,})-([0-9a-f]{16})-[0-9a-f]{8}\.parquet$")  # rows, hash of the content
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    check: str
    file: str
    column: str | None
    uid: str | None
    message: str

    @property
    def line(self) -> str:
        """For people."""
        where = [self.file, *([f"column {self.column}"] if self.column else []), self.uid]
        return f"{', '.join(part for part in where if part)}: {self.message}"


@dataclass
class Verdict:
    """What was looked at and what is wrong."""

    root: str
    looked_at: dict[str, int] = field(default_factory=dict)  # by check: files, rows, values
    problems: list[Problem] = field(default_factory=list)  # the first MAX_PROBLEMS
    by_check: dict[str, int] = field(default_factory=dict)  # all of them
    notes: list[str] = field(default_factory=list)  # worth knowing, not wrong

    @property
    def sound(self) -> bool:
        """Nothing is wrong."""
        return not self.by_check

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"sound": self.sound, **asdict(self)}

    def saw(self, check: str, count: int = 1) -> None:
        """Count what a check looked at."""
        self.looked_at[check] = self.looked_at.get(check, 0) + count

    def add(
        self,
        check: str,
        file: str,
        message: str,
        *,
        column: str | None = None,
        uid: str | None = None,
    ) -> None:
        """Tell a problem."""
        self.by_check[check] = self.by_check.get(check, 0) + 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(check, file, column, uid, message))


# By check, what it does; also the order in which they are shown.
CHECKS = {
    "manifest": "fields and config hash",
    "contents": "every file of the finished run is present",
    "file": "name, size and content agree (SHA-256)",
    "columns": "every column decodes, page checksums",
    "uids": "no uid is empty or duplicated",
    "splits": "train, val, test or none",
    "xyz": "coordinates within -1 to 1",
    "rgb": "neutral grey without colour",
    "embeddings": "finite, of norm 1",
    "texts": "as many sources and embeddings as texts",
    "order": f"farthest-point order of the first {checks.PREFIX} points",
    "order, all": "farthest-point order of all ordered points, in a sample of objects",
    "failures": "files are complete",
    "images": "kept pictures belong to the rows and decode",
}


def verify_set(root: str | Path, *, order_sample: int = ORDER_SAMPLE, seed: int = 0) -> Verdict:
    """Read everything in the set at ``root``. One row group at a time is in memory.

    Raises ``InputError`` when there is no shard set at all; what is wrong with one is told in the
    result.
    """
    verdict = Verdict(str(root))
    storage = Storage.at(root)
    if not storage.exists("manifest.json"):
        ShardSet.open(root)  # raises
    verdict.saw("manifest")
    try:
        shards = ShardSet.open(root)
    except InputError as error:
        verdict.add("manifest", "manifest.json", _reason(error, storage, "manifest.json"))
        return verdict
    _SetCheck(shards, verdict, order_sample, seed).run()
    return verdict


class _SetCheck:
    """The checks of one set, one part after another."""

    def __init__(self, shards: ShardSet, verdict: Verdict, order_sample: int, seed: int) -> None:
        self.shards, self.verdict, self.storage = shards, verdict, shards.storage
        self.columns: list[str] = shards.schema.names
        self.sample, self.seed = order_sample, seed
        self.seen: dict[bytes, str] = {}  # part by digest of the uid: 16 bytes for any length
        self.images = ImageSet(shards) if shards.manifest.kept_images is not None else None
        self.readable: list[RowGroup] = []  # with clouds

    def run(self) -> None:
        self._contents()
        sizes = self.storage.sizes("part-", ".parquet")
        with ProgressBar("verify", len(sizes), "parts") as bar:
            for part in self.shards.parts:
                self._part(part)
                bar.advance(1)
        self._order()
        self._failures()
        if self.images is not None:
            self._orphans(self.images)
        left = self.storage.list(".tmp-", "")
        if left:
            self.verdict.notes.append(
                f"{len(left)} temporary files that a killed run left ({left[0]}, ...)"
            )

    def _part(self, part: str) -> None:
        self._content("file", part)
        try:
            groups = self.shards.groups_of(part)
        except InputError as error:
            self.verdict.add("file", part, _reason(error, self.storage, part))
            return
        told = _NAME.search(part)
        rows = sum(group.n_rows for group in groups)
        if told and int(told[1]) != rows:
            self.verdict.add("file", part, f"{rows} rows, and its name says {int(told[1])}")
        for group in groups:
            self._group(group)
        if self.images is not None:
            self._kept(self.images, part, groups)

    def _content(self, check: str, name: str) -> None:
        """Compare the hash of a whole file with the one in its name."""
        self.verdict.saw(check)
        told = _NAME.search(name)
        if told is None:
            self.verdict.add(check, name, "the name is not one that this program gives")
            return
        digest = hashlib.sha256()
        try:
            with self.storage.filesystem.open_input_stream(self.storage.join(name)) as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            self.verdict.add(check, name, f"cannot be read ({error})")
            return
        if digest.hexdigest()[:16] != told[2]:
            self.verdict.add(check, name, "the content does not agree with the hash in the name")

    def _group(self, group: RowGroup) -> None:
        found: dict[str, pa.ChunkedArray] = {}
        for name in self.columns:
            self.verdict.saw("columns")
            try:
                found[name] = self.shards.table(group, [name]).column(0)
            except InputError as error:
                reason = _reason(error, self.storage, group.part)
                self.verdict.add("columns", group.part, reason, column=name)
        uids = found["uid"].to_pylist() if "uid" in found else [None] * group.n_rows
        for check, column, count, wrong in self._rules(group, found):
            self.verdict.saw(check, count)
            for row, message in wrong:
                uid = uids[row] or f"row {row} of row group {group.index}"
                self.verdict.add(check, group.part, message, column=column, uid=uid)
        if "xyz" in found:
            self.readable.append(group)

    def _rules(
        self, group: RowGroup, found: dict[str, pa.ChunkedArray]
    ) -> Iterator[tuple[str, str, int, checks.Wrong]]:
        """Check, column, number of values looked at, and what is wrong."""
        manifest, rows = self.shards.manifest, group.n_rows
        everyone = np.arange(rows)
        if "uid" in found:
            yield "uids", "uid", rows, self._uids(group.part, found["uid"].to_pylist())
        if "split" in found:
            yield "splits", "split", rows, checks.wrong_splits(found["split"].to_pylist())
        if not any(name in found for name in ("xyz", "rgb", "image_embeds", "text_embeds")):
            return
        batch = self._decoded(group, found)
        if batch.xyz is not None:
            yield "xyz", "xyz", rows, checks.wrong_range(batch.xyz)
            yield "order", "xyz", rows, checks.wrong_prefix(batch.xyz, manifest.n_fps)
        if batch.rgb is not None and batch.has_color is not None:
            yield "rgb", "rgb", rows, checks.wrong_neutral(batch.rgb, batch.has_color)
        if batch.image_embeds is not None and manifest.n_views:
            flat = batch.image_embeds.reshape(-1, manifest.teacher.width)
            owner = np.repeat(everyone, manifest.n_views)
            yield "embeddings", "image_embeds", len(flat), checks.wrong_norms(flat, owner)
        if batch.thumbnail_embeds is not None and batch.has_thumbnail is not None:
            there = np.flatnonzero(batch.has_thumbnail)
            wrong = checks.wrong_norms(batch.thumbnail_embeds[there], there)
            yield "embeddings", "thumbnail_embed", len(there), wrong
        if batch.text_embeds is not None and batch.text_offsets is not None:
            counts = np.diff(batch.text_offsets)
            wrong = checks.wrong_norms(batch.text_embeds, np.repeat(everyone, counts))
            yield "embeddings", "text_embeds", len(batch.text_embeds), wrong
            if batch.texts is not None and batch.text_sources is not None:
                wrong = checks.wrong_counts(batch.texts, batch.text_sources, counts)
                yield "texts", "texts", rows, wrong

    def _decoded(self, group: RowGroup, found: dict[str, pa.ChunkedArray]) -> Batch:
        """The columns that can be read, as arrays; damaged uids are left empty."""
        columns = {"uid": pa.chunked_array([[""] * group.n_rows], pa.string()), **found}
        try:
            return self.shards.decode(group, pa.table(columns), list(found))
        except InputError as error:
            # The one column whose bytes can be whole and still be no embeddings.
            name = "text_embeds"
            reason = _reason(error, self.storage, group.part)
            self.verdict.add("columns", group.part, reason, column=name)
            rest = {key: values for key, values in columns.items() if key != name}
            return self.shards.decode(group, pa.table(rest), list(rest))

    def _uids(self, part: str, uids: list[str]) -> checks.Wrong:
        for row, uid in enumerate(uids):
            if not uid:
                yield row, "the uid is empty"
                continue
            digest = hashlib.blake2b(uid.encode(), digest_size=16).digest()
            if digest in self.seen:
                other = self.seen[digest]
                where = "in this part before" if other == part else f"in {other} too"
                yield row, f"the uid is {where}"
            self.seen.setdefault(digest, part)

    def _contents(self) -> None:
        """Files that were lost since a run finished: no other file tells of them."""
        try:
            contents = compare_contents(self.storage.root)
        except InputError as error:
            self.verdict.add("contents", CONTENTS, _reason(error, self.storage, CONTENTS))
            return
        if contents is None:
            self.verdict.notes.append(
                f"no {CONTENTS}, as in sets of older versions and of other code: files that are "
                "missing cannot be detected"
            )
            return
        self.verdict.saw("contents", contents.recorded)
        for name in contents.missing:
            self.verdict.add(
                "contents",
                name,
                "missing; copy it again, or run the command that made the set again",
            )
        if contents.added:
            self.verdict.notes.append(
                f"a run that has not finished added files: {len(contents.added)}; run the same "
                "command again to complete the set"
            )

    def _order(self) -> None:
        """Follow the order of a sample of objects to its end."""
        n_fps = self.shards.manifest.n_fps
        ends = np.cumsum([group.n_rows for group in self.readable], dtype=np.int64)
        count = min(self.sample, int(ends[-1])) if n_fps > 1 and len(ends) else 0
        if not count:
            return
        rng = np.random.default_rng(self.seed)
        with ProgressBar("order", count, "objects") as bar:
            for at in np.sort(rng.choice(int(ends[-1]), count, replace=False)):
                which = int(np.searchsorted(ends, at, side="right"))
                group = self.readable[which]
                row = int(at - (ends[which] - group.n_rows))
                found = {"xyz": self.shards.table(group, ["xyz"]).column(0)}
                xyz = self._decoded(group, found).xyz
                wrong = None if xyz is None else checks.first_out_of_order(xyz[row], n_fps)
                self.verdict.saw("order, all")
                if wrong is not None:
                    message = f"point {wrong} is not the farthest from those before it"
                    uid = self._uid(group, row)
                    self.verdict.add("order, all", group.part, message, column="xyz", uid=uid)
                bar.advance(1)

    def _uid(self, group: RowGroup, row: int) -> str:
        try:
            return str(self.shards.table(group, ["uid"]).column(0)[row])
        except InputError:
            return f"row {row} of row group {group.index}"

    def _failures(self) -> None:
        again = 0
        for name in self.storage.list("failures-", ".parquet"):
            self._content("failures", name)
            try:
                table = self.shards.read_failures(name)
            except InputError as error:
                self.verdict.add("failures", name, _reason(error, self.storage, name))
                continue
            for uid in set(table.column("uid").to_pylist()):
                again += hashlib.blake2b(uid.encode(), digest_size=16).digest() in self.seen
        if again:
            self.verdict.notes.append(
                f"{again} recorded failures are of objects that have a row: they succeeded later"
            )

    def _kept(self, images: ImageSet, part: str, groups: list[RowGroup]) -> None:
        """All views of the first object of each row group are decoded, one of the others."""
        for group in groups:
            try:
                name = images.file_of(part)
                batch = images.read(group)
            except InputError as error:
                self.verdict.add("images", part, _reason(error, self.storage, part))
                return
            self.verdict.saw("images", len(batch))
            for row, (uid, views) in enumerate(zip(batch.uid, batch.views, strict=True)):
                wrong = _undecodable(views if row == 0 else views[:1])
                if wrong is not None:
                    self.verdict.add("images", name, wrong, column="views", uid=uid)

    def _orphans(self, images: ImageSet) -> None:
        used = set()
        for part in self.shards.parts:
            with suppress(InputError):  # told with the part that lacks its pictures
                used.add(images.file_of(part))
        left = set(self.storage.list("images-", ".parquet")) - used
        if left:
            self.verdict.notes.append(f"{len(left)} files of kept pictures without a part")


def _undecodable(pictures: list[bytes]) -> str | None:
    from PIL import Image

    for picture in pictures:
        try:
            with Image.open(io.BytesIO(picture)) as image:
                image.load()
        except (OSError, ValueError, SyntaxError) as error:
            return f"a picture does not decode ({error})"
    return None


def _reason(error: InputError, storage: Storage, name: str) -> str:
    """The message without the file's path, which is told already."""
    return str(error).removeprefix(f"{storage.show(name)}: ")
