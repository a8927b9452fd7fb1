"""Dataset ``objaverse-xl``: the annotations of Objaverse-XL, and the objects that stand alone.

The hub repository ``allenai/objaverse-xl`` lists the objects in one Parquet file per source
(``github/github.parquet`` and so on: fileIdentifier, source, license, fileType, sha256, metadata);
the objects stay where they were found. The package ``objaverse`` (0.1.7) keeps both under
``~/.objaverse``, and so does ``--root``:

    github/github.parquet            github/repos/<org>/<repo>/<path>   (save_repo_format="files")
    thingiverse/thingiverse.parquet  thingiverse/thing-<thing>-file-<file>.stl
    smithsonian/smithsonian.parquet  smithsonian/objects/<UUID 5 of the identifier>.glb
    sketchfab/sketchfab.parquet      hf-objaverse-v1/glbs/000-023/<uid>.glb

Every file is checked against the SHA-256 of its annotation. The package gets an object of GitHub by
cloning its repository; here the one file is fetched at the commit of its identifier, which serves
formats of one file. Those that refer to others are taken from clones under ``--root`` alone.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.captions import clean_name
from pipeline.common import InputError, content_hash
from pipeline.console import note
from pipeline.datasets.base import Asset, Record
from pipeline.datasets.download_cache import CacheFolder
from pipeline.datasets.downloads import (
    DamagedError,
    DownloadError,
    Downloads,
    Policy,
    TooLargeError,
    check_glb,
)
from pipeline.datasets.objaverse import HUB as SKETCHFAB_HUB
from pipeline.datasets.objaverse import ObjaverseDataset
from pipeline.datasets.sources import Source, SourceOptions
from pipeline.meshes import UP_AXES, Limits, load_mesh
from pipeline.meshes.files import read_file
from pipeline.scene import MeshError

HUB = "https://huggingface.co/datasets/allenai/objaverse-xl/resolve/main"
PACKAGE_FOLDER = Path("~/.objaverse")
DEFAULT_CACHE = Path("~/.cache/mrd3d/objaverse-xl")
PARTS = ("smithsonian", "sketchfab", "thingiverse", "github")
# File types that hold all that they need, and those that lie beside what they refer to.
SINGLE_TYPES = ("glb", "ply", "stl")
LINKED_TYPES = ("dae", "gltf", "obj")
_COLUMNS = ("fileIdentifier", "fileType", "sha256")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GITHUB = re.compile(r"https://github\.com/([^/]+)/([^/]+)/blob/([0-9a-f]{7,64})/(.+)")
_THING = re.compile(r"https://www\.thingiverse\.com/thing:(\d+)/.*fileId=(\d+)")
_SKETCHFAB = re.compile(r"https://sketchfab\.com/3d-models/([0-9A-Za-z_-]{1,64})")


@dataclass(frozen=True)
class _Place:
    """Where an object lies: addresses in the order to be tried, and its path in the package."""

    urls: tuple[str, ...]
    path: str
    base: str  # the folder within which its references are followed


@dataclass(frozen=True)
class ObjaverseXLDataset:
    """Objects of Objaverse-XL whose format can be loaded, by the annotations.

    - ``uid`` is ``objaverse-xl/``, the part, and the UUID 5 of the file identifier, by which the
      package names files; for Sketchfab its own uid.
    - Texts: the title in the metadata where there is one, and the file name of GitHub's objects.
      Names, tags and descriptions of the Sketchfab part are in the dataset ``objaverse``.
    - With ``root``, and no ``cache``, nothing is fetched, and the objects are those whose files
      are there. Types that refer to other files are listed with ``root`` only.
    - STL files of Thingiverse are made for printing and have +z up; all others are as
      ``load_mesh`` takes them. ``up_axis`` overrides that for all.
    """

    subset: str = "all"  # or one of PARTS
    root: Path | None = None
    cache: Path | None = None
    cache_bytes: int | None = None  # most that the meshes in the cache may take
    delete_after_use: bool = False
    up_axis: str | None = None
    mirror: str | None = None  # http://here serves https://host/path as http://here/host/path
    package_folder: Path | None = PACKAGE_FOLDER
    policy: Policy = field(default_factory=Policy)  # of one mesh
    limits: Limits = field(default_factory=Limits)

    @property
    def name(self) -> str:
        """``objaverse-xl``."""
        return "objaverse-xl"

    @property
    def options(self) -> dict[str, Any]:
        """What the objects depend on; not where their files are."""
        return {
            "subset": self.subset,
            "types": list(self._types),
            "up_axis": self.up_axis,
            "limits": asdict(self.limits),
        }

    def count(self) -> int:
        """How many objects of loadable types the annotations list.

        Of a ``root`` alone: how many of their files lie in it.
        """
        self._check()
        if not self._fetches:
            return sum(record is not None for record in self._listed())
        total = 0
        types = pa.array(self._types)
        for part in self._parts:
            with self._annotations(part) as file:
                for batch in file.iter_batches(columns=["fileType"]):
                    lower = pc.utf8_lower(batch.column(0))
                    total += pc.sum(pc.is_in(lower, value_set=types)).as_py() or 0
        return total

    def records(self) -> Iterator[Record]:
        """All records, part by part in the order of the annotations, a few thousand at a time.

        The paths of the Sketchfab part (some 800,000) are in memory while that part is listed.
        Raises ``InputError`` where annotations cannot be had, or a ``root`` alone holds nothing
        that they name.
        """
        self._check()
        found = left_out = 0
        for record in self._listed():
            if record is None:
                left_out += 1
                continue
            found += 1
            yield record
        if left_out and not found:
            raise InputError(
                f"--root {self.root}: holds none of the {left_out:,} files that the annotations "
                "name; fetch some with the package objaverse, or add --cache to download "
                "the standalone ones"
            )
        if left_out:
            note(
                f"objaverse-xl: {left_out:,} more objects have no file in --root and are skipped; "
                "add --cache to download the standalone ones"
            )

    def _listed(self) -> Iterator[Record | None]:
        """The objects of loadable types; None for one whose file is not there to be had."""
        for part in self._parts:
            paths = self._sketchfab().object_paths() if part == "sketchfab" else {}
            with self._annotations(part) as file:
                columns = [*_COLUMNS, *({"metadata"} & set(file.schema_arrow.names))]
                for batch in file.iter_batches(batch_size=4096, columns=columns):
                    for row in batch.to_pylist():
                        file_type = str(row["fileType"]).lower().lstrip(".")
                        if row["fileIdentifier"] and file_type in self._types:
                            record = _record(part, file_type, row, paths)
                            yield record if self._fetches or self._is_here(record) else None

    def load(self, record: Record) -> Asset:
        """Fetch and read one mesh; ``sha256`` is of the file.

        Raises ``MeshError``: ``download_failed`` where the file cannot be had or is not the one of
        the annotation, ``too_large``, and as ``load_mesh`` does.
        """
        part, file_type, sha256, hub_path = json.loads(record.key)
        try:
            place = _place(part, record.source, hub_path)
        except ValueError as error:
            raise MeshError("download_failed", str(error), "fetch") from None

        def whole(path: Path) -> bytes:
            data = read_file(path, self.limits.file_bytes, "the mesh file")
            if file_type == "glb":
                check_glb(data)
            return data

        downloads = Downloads(
            CacheFolder(self._cache_root / "objects", self.cache_bytes),
            keep=not self.delete_after_use,
            max_bytes=self.limits.file_bytes,
            policy=self.policy,
        )
        native = record.uid.rsplit("/", 1)[-1]
        cached = f"{part}/{native[:2]}/{native}.{file_type}"
        folder = self._folder()
        own = None if folder is None else _within(folder, place.path)
        data, reasons = None, []
        fetches = self._fetches and file_type not in LINKED_TYPES
        for url in place.urls if fetches else (None,):
            try:
                data = downloads.get(
                    None if url is None else self._at(url),
                    cached,
                    whole,
                    sha256=sha256,
                    found=() if own is None else (own,),
                )
                break
            except TooLargeError as error:
                raise MeshError("too_large", str(error)) from None
            except DownloadError as error:
                reasons.append(str(error).replace(cached, place.path))
        if data is None:
            if not fetches:
                reasons.append("nothing is fetched with --root alone: get it with the package")
            raise MeshError("download_failed", "; ".join(reasons), "fetch")
        axis = self.up_axis or ("+z" if part == "thingiverse" else "auto")
        path, base = downloads.cache.path(cached), None
        if own is not None and own.is_file():
            assert folder is not None
            path, base = own.with_suffix(f".{file_type}"), _within(folder, place.base)
        mesh = load_mesh(path, axis, self.limits, root=base, data=data)
        return Asset(mesh.normalised(), content_hash(data), len(data))

    def _is_here(self, record: Record) -> bool:
        """Whether an object's file is there, or ``load`` can say better why it is not."""
        part, _, _, hub_path = json.loads(record.key)
        folder = self._folder()
        try:
            return folder is None or (folder / _place(part, record.source, hub_path).path).exists()
        except (ValueError, OSError):
            return True

    # -- files -----------------------------------------------------------------------------------

    @property
    def _parts(self) -> tuple[str, ...]:
        return PARTS if self.subset == "all" else (self.subset,)

    @property
    def _types(self) -> tuple[str, ...]:
        return SINGLE_TYPES + (LINKED_TYPES if self.root is not None else ())

    @property
    def _fetches(self) -> bool:
        return self.root is None or self.cache is not None

    @property
    def _cache_root(self) -> Path:
        return (self.cache or DEFAULT_CACHE).expanduser()

    def _folder(self) -> Path | None:
        folder = self.root or self.package_folder
        return None if folder is None else folder.expanduser()

    def _at(self, url: str) -> str:
        return url if self.mirror is None else f"{self.mirror}/{url.removeprefix('https://')}"

    def _sketchfab(self) -> ObjaverseDataset:
        return ObjaverseDataset(
            root=None if self.root is None else self.root / "hf-objaverse-v1",
            cache=self.cache if self.root is not None else self._cache_root,
            base_url=self._at(SKETCHFAB_HUB),
            package_folder=None
            if self.package_folder is None
            else self.package_folder / "hf-objaverse-v1",
            policy=self.policy,
        )

    def _check(self) -> None:
        if self.up_axis not in (None, "auto", *UP_AXES):
            raise InputError(
                f"--up-axis {self.up_axis!r} is unknown: use auto or one of {', '.join(UP_AXES)}"
            )
        if self.root is None:
            return
        if not self.root.expanduser().is_dir():
            raise InputError(
                f"--root {self.root} is not a directory: give a folder laid out like "
                f"{PACKAGE_FOLDER}, with github/, thingiverse/, smithsonian/ and sketchfab/"
            )
        if self.cache is None and self.delete_after_use:
            raise InputError(
                "--delete-after-use: files of --root are never deleted; leave it out, or give "
                "--cache to fetch what --root lacks"
            )

    def _annotations(self, part: str) -> pq.ParquetFile:
        """The open annotations of a part. Raises ``InputError``."""
        name = f"{part}/{part}.parquet"
        url = f"{self._at(HUB)}/{name}"
        folder = self._folder()
        downloads = Downloads(
            CacheFolder(self._cache_root), policy=replace(self.policy, total_s=3600.0)
        )
        try:
            file: pq.ParquetFile = downloads.get(
                url if self._fetches else None,
                name,
                _open_parquet,
                found=() if folder is None else (folder / name,),
            )
        except DownloadError as error:
            reason = str(error).removeprefix(f"{url}: ")
            shown = reason if name in reason else f"{name} cannot be had: {reason}"
            only = ", or name a part that is there with --subset" if self.root is not None else ""
            raise InputError(
                f"objaverse-xl: {shown}; get {url} by hand, put it into a folder as {name} and "
                f"give the folder as --root{only}"
            ) from None
        missing = [column for column in _COLUMNS if column not in file.schema_arrow.names]
        if missing:
            found = ", ".join(file.schema_arrow.names)
            file.close()
            raise InputError(
                f"objaverse-xl: {name} has no column {missing[0]!r} (it has {found}): get the "
                f"current one from {url}"
            )
        return file


def _open_parquet(path: Path) -> pq.ParquetFile:
    # An open file stays readable when it is renamed, as a fresh download is.
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedError(f"not a whole Parquet file ({error})"[:200]) from None


def _within(folder: Path, relative: str) -> Path | None:
    """A path below ``folder``; None where it would lead outside, by ``..`` or by a link."""
    path = Path(os.path.realpath(folder / relative))
    return path if path.is_relative_to(os.path.realpath(folder)) else None


def _record(part: str, file_type: str, row: dict[str, Any], paths: dict[str, str]) -> Record:
    identifier = str(row["fileIdentifier"])
    digest = str(row["sha256"] or "").lower()
    match = _SKETCHFAB.fullmatch(identifier)
    native = match[1] if match else str(uuid.uuid5(uuid.NAMESPACE_DNS, identifier))
    texts = list(_texts(part, identifier, row.get("metadata")))
    key = [part, file_type, digest if _SHA256.fullmatch(digest) else None, paths.get(native, "")]
    return Record(
        uid=f"objaverse-xl/{part}/{native}",
        dataset="objaverse-xl",
        source=identifier,
        key=json.dumps(key),
        texts=tuple(text for text, _ in texts),
        text_sources=tuple(source for _, source in texts),
    )


def _texts(part: str, identifier: str, metadata: Any) -> Iterator[tuple[str, str]]:
    """(raw text, source): a title of the metadata; the file or folder name on GitHub."""
    try:
        values = json.loads(metadata) if isinstance(metadata, str) else metadata
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict):
        for field_name in ("title", "name", "filename"):
            value = values.get(field_name)
            if isinstance(value, str) and value.strip():
                yield value, "name"
                break
    match = _GITHUB.fullmatch(identifier) if part == "github" else None
    if match:
        path = PurePosixPath(match[4])
        if clean_name(path.stem):
            yield path.stem, "name"
        elif path.parent.name and clean_name(path.parent.name):
            yield path.parent.name, "folder"


def _place(part: str, identifier: str, hub_path: str) -> _Place:
    """Where an object lies. ``ValueError`` where its identifier is not of the known form."""
    if part == "sketchfab":
        if not hub_path:
            raise ValueError(f"{identifier}: object-paths.json.gz does not name its file")
        path = f"hf-objaverse-v1/{hub_path}"
        return _Place((f"{SKETCHFAB_HUB}/{quote(hub_path)}",), path, path)
    if part == "smithsonian":
        address = urlsplit(identifier)
        if address.scheme == "https" and f".{address.hostname}".endswith(".si.edu"):
            name = f"smithsonian/objects/{uuid.uuid5(uuid.NAMESPACE_DNS, identifier)}.glb"
            return _Place((quote(identifier, safe=":/?&=%"),), name, name)
    thing = _THING.fullmatch(identifier)
    if part == "thingiverse" and thing:
        name = f"thingiverse/thing-{thing[1]}-file-{thing[2]}.stl"
        return _Place((f"https://www.thingiverse.com/download:{thing[2]}",), name, name)
    file = _GITHUB.fullmatch(identifier)
    if part == "github" and file and ".." not in file[4].split("/"):
        org, repo, commit, path = file.groups()
        tail = quote(f"{org}/{repo}/{commit}/{path}")
        return _Place(
            # What is kept in Git LFS lies at the second address, a pointer to it at the first.
            (
                f"https://raw.githubusercontent.com/{tail}",
                f"https://media.githubusercontent.com/media/{tail}",
            ),
            f"github/repos/{org}/{repo}/{path}",
            f"github/repos/{org}/{repo}",
        )
    raise ValueError(f"{identifier}: not an address of {part} as it was published")


def _build(options: SourceOptions) -> ObjaverseXLDataset:
    return ObjaverseXLDataset(
        subset=options.subset or "all",
        root=options.root,
        cache=options.cache,
        cache_bytes=options.cache_bytes,
        delete_after_use=bool(options.delete_after_use),
        up_axis=options.up_axis,
    )


SOURCE = Source(
    name="objaverse-xl",
    summary="Objaverse-XL: meshes of GitHub, Thingiverse, the Smithsonian and Sketchfab",
    licence="ODC-By 1.0 as a whole; each object its own, in the column license of the annotations",
    size="over 10 million objects, a part of them of types that can be loaded; bytes unpublished",
    get=(
        "annotations and single files (glb, ply, stl) are fetched when they are needed, into "
        f"--cache ({DEFAULT_CACHE}). obj, gltf and dae of GitHub lie beside files that they need, "
        "and the package gets those by cloning whole repositories: pip install 'mrd3d[objaverse]', "
        "objaverse.xl.download_objects(..., save_repo_format='files'), then --root ~/.objaverse. "
        "fbx, blend, usd and abc are left out; the Polycam part is given out on request only"
    ),
    layout=(
        "<part>/<part>.parquet, github/repos/<org>/<repo>/, smithsonian/objects/, "
        "thingiverse/thing-<thing>-file-<file>.stl, hf-objaverse-v1/"
    ),
    options=("root", "up_axis", "subset", "cache", "cache_bytes", "delete_after_use"),
    required=(),
    build=_build,
    subsets=("all", *PARTS),
)
