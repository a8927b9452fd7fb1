"""Dataset ``objaverse``: Objaverse 1.0, listed shard by shard, its meshes fetched when needed.

The files of the hub repository ``allenai/objaverse``, as the package ``objaverse`` (0.1.7) reads
them, lie under the same names in its own folder (``~/.objaverse/hf-objaverse-v1``), in ``--root``
and in the cache:

    metadata/000-000.json.gz ... 000-159.json.gz   uid -> what Sketchfab says of the object
    lvis-annotations.json.gz                       LVIS category -> uids
    object-paths.json.gz                           uid -> glbs/000-023/<uid>.glb
    glbs/000-023/<uid>.glb

The folder of an object's mesh has the name of the shard that holds its metadata: the package finds
the one by the other. So an object is listed from its shard alone, and no more than one shard
(about 5,000 objects) is ever in memory.

A copy that is used without a network (``--root`` alone) is mostly a part: what the package has
fetched for some uids. There the objects are those whose meshes lie in it, and only the shards that
hold them are needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.common import InputError, content_hash
from pipeline.console import note
from pipeline.datasets.base import Asset, Record
from pipeline.datasets.download_cache import CacheFolder
from pipeline.datasets.downloads import (
    DownloadError,
    Downloads,
    Policy,
    TooLargeError,
    check_glb,
    read_gzip_json,
)
from pipeline.datasets.layouts import first_entries, names_in
from pipeline.datasets.sources import Source, SourceOptions
from pipeline.meshes import Limits, load_mesh
from pipeline.meshes.files import read_file
from pipeline.scene import MeshError

HUB = "https://huggingface.co/datasets/allenai/objaverse/resolve/main"
PACKAGE_FOLDER = Path("~/.objaverse/hf-objaverse-v1")
DEFAULT_CACHE = Path("~/.cache/mrd3d/objaverse")
LVIS_FILE = "lvis-annotations.json.gz"
PATHS_FILE = "object-paths.json.gz"
MESHES = "glbs"
_UID = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True)
class ObjaverseDataset:
    """Objects of Objaverse 1.0: all of them, or those with an LVIS category (``lvis``).

    - ``uid`` is ``objaverse/`` and the uid of Sketchfab.
    - Texts are raw: the name, the tags joined by commas, the description.
    - The category is the LVIS category as words (``bow_(weapon)``: ``bow (weapon)``).

    Files are looked for in ``root`` or, without one, in the folder of the package; there they are
    read, never changed. Everything else is fetched into the cache. With a ``root`` and no ``cache``
    nothing is fetched at all, and the objects are those whose meshes are there. ``~`` in a path is
    the home of whoever runs the worker.
    """

    subset: str = "all"  # all, lvis
    root: Path | None = None
    cache: Path | None = None
    cache_bytes: int | None = None  # most that the meshes in the cache may take
    delete_after_use: bool = False  # meshes that were fetched; never those of root or the package
    base_url: str = HUB
    package_folder: Path | None = PACKAGE_FOLDER
    n_shards: int = 160
    policy: Policy = field(default_factory=Policy)  # of one mesh; metadata may take an hour a file
    limits: Limits = field(default_factory=Limits)

    @property
    def name(self) -> str:
        """``objaverse``."""
        return "objaverse"

    @property
    def options(self) -> dict[str, Any]:
        """What the objects depend on; not where their files are."""
        return {"subset": self.subset, "limits": asdict(self.limits)}

    def count(self) -> int:
        """How many objects there are, by the lists of the LVIS categories or of the paths.

        Of a ``root`` alone: how many meshes lie in it.
        """
        self._check()
        if not self._fetches:
            return sum(len(uids) for uids in self._meshes_here(self._categories()).values())
        return len(self._categories() if self.subset == "lvis" else self.object_paths())

    def object_paths(self) -> dict[str, str]:
        """Where the mesh of every uid lies on the hub. Raises ``InputError``."""
        self._check()
        return {uid: str(path) for uid, path in self._metadata(PATHS_FILE).items()}

    def records(self) -> Iterator[Record]:
        """All records in the order of the shards, a shard being read when its turn comes.

        Raises ``InputError`` where metadata cannot be had, with the way to get it by hand; of a
        ``root`` alone before the first record, and naming all files that are missing.
        """
        self._check()
        categories = self._categories()
        here = None if self._fetches else self._meshes_here(categories)
        if here is not None:
            self._check_copy(here)
        left_out = 0
        for shard in self._shards() if here is None else here:
            for uid, entry in self._metadata(f"metadata/{shard}.json.gz").items():
                category = categories.get(uid)
                if self.subset == "lvis" and category is None:
                    continue
                if here is not None and uid not in here[shard]:
                    left_out += 1
                elif _UID.fullmatch(uid):  # it becomes a part of a path and of an address
                    yield _record(uid, shard, entry, category)
        if left_out:
            note(
                f"objaverse: {left_out:,} more objects of these shards have no mesh in --root and "
                "are skipped; add --cache to download them"
            )

    def load(self, record: Record) -> Asset:
        """Fetch and read one mesh; ``sha256`` is of the file.

        Raises ``MeshError``: ``download_failed`` where the file cannot be had, ``too_large``, and
        as ``load_mesh`` does.
        """
        name = record.key
        fetches = self._fetches
        downloads = Downloads(
            CacheFolder(self._cache_root / MESHES, self.cache_bytes),
            keep=not self.delete_after_use,
            max_bytes=self.limits.file_bytes,
            policy=self.policy,
        )
        inside = name.removeprefix(f"{MESHES}/")

        def whole(path: Path) -> bytes:
            data = read_file(path, self.limits.file_bytes, "the mesh file")
            check_glb(data)
            return data

        try:
            data = downloads.get(
                f"{self.base_url}/{name}" if fetches else None,
                inside,
                whole,
                found=self._found(name),
            )
        except TooLargeError as error:
            raise MeshError("too_large", str(error)) from None
        except DownloadError as error:
            reason = str(error)
            if not fetches:
                reason = reason.replace(inside, name, 1)
                reason += "; --root alone fetches nothing: add --cache"
            raise MeshError("download_failed", reason, "fetch") from None
        # The path only says the format, and where a reference would be looked for: such files
        # hold everything that they need.
        mesh = load_mesh(downloads.cache.path(inside), limits=self.limits, data=data)
        return Asset(mesh.normalised(), content_hash(data), len(data))

    # -- files -----------------------------------------------------------------------------------

    @property
    def _fetches(self) -> bool:
        return self.root is None or self.cache is not None

    @property
    def _cache_root(self) -> Path:
        return (self.cache or DEFAULT_CACHE).expanduser()

    def _folder(self) -> Path | None:
        """Where files may be that are not ours: ``root``, else the package's folder."""
        folder = self.root or self.package_folder
        if folder is None:
            return None
        folder = folder.expanduser()
        inner = folder / PACKAGE_FOLDER.name
        return inner if self.root is not None and inner.is_dir() else folder

    def _found(self, name: str) -> tuple[Path, ...]:
        folder = self._folder()
        return () if folder is None else (folder / name,)

    def _check(self) -> None:
        if self.root is None:
            return
        folder = self._folder()
        assert folder is not None
        if not folder.is_dir():
            raise InputError(
                f"--root {self.root} is not a directory: give a folder laid out like "
                f"{PACKAGE_FOLDER}, with metadata/, glbs/ and {LVIS_FILE}"
            )
        if self.cache is None and self.delete_after_use:
            raise InputError(
                "--delete-after-use: files of --root are never deleted; leave it out, or give "
                "--cache to fetch what --root lacks"
            )
        if self.cache is None and not (folder / MESHES).is_dir():
            raise self._no_meshes(folder)

    def _shards(self) -> list[str]:
        """The names of all shards: 000-000, 000-001 ..."""
        return [f"{index // 1000:03d}-{index % 1000:03d}" for index in range(self.n_shards)]

    def _meshes_here(self, categories: dict[str, str]) -> dict[str, set[str]]:
        """The uids whose meshes lie in ``root``, those of the subset, by shard; shards sorted.

        Shards without any are left out.
        """
        folder = self._folder()
        assert folder is not None
        found = {}
        for shard in names_in(folder / MESHES):
            files = names_in(folder / MESHES / shard, files=True)
            uids = {name.removesuffix(".glb") for name in files if name.endswith(".glb")}
            if self.subset == "lvis":
                uids &= categories.keys()
            if uids:
                found[shard] = uids
        return found

    def _no_meshes(self, folder: Path) -> InputError:
        of = " that have an LVIS category" if self.subset == "lvis" else ""
        return InputError(
            f"--root {self.root}: expected meshes{of} in {MESHES}/000-000/<uid>.glb ..., found "
            f"{first_entries(folder)}; fetch some with the package objaverse, or add --cache to "
            "download them on demand"
        )

    def _check_copy(self, here: dict[str, set[str]]) -> None:
        """Raise ``InputError`` unless ``root`` holds meshes, and the metadata of all of them."""
        folder = self._folder()
        assert folder is not None
        if not here:
            raise self._no_meshes(folder)
        missing = [s for s in here if not (folder / f"metadata/{s}.json.gz").is_file()]
        if missing:
            names = f"{missing[0]}.json.gz" + (" and so on" if missing[1:] else "")
            raise InputError(
                f"objaverse: --root holds meshes of {len(here)} shards, and lacks the metadata of "
                f"{len(missing)}: {_ranges(missing)}; get {self.base_url}/metadata/{names} by hand "
                "into the folder metadata/ of --root, or add --cache to have it fetched"
            )

    def _metadata(self, name: str) -> dict[str, Any]:
        """The JSON object of a metadata file. Raises ``InputError``."""
        url = f"{self.base_url}/{name}"
        downloads = Downloads(
            CacheFolder(self._cache_root), policy=replace(self.policy, total_s=3600.0)
        )
        try:
            value = downloads.get(
                url if self._fetches else None,
                name,
                read_gzip_json,
                found=self._found(name),
            )
        except DownloadError as error:
            folder = self._folder()
            if self.root is not None and folder is not None:
                held = sorted(entry.name for entry in folder.iterdir() if entry.name[0] != ".")
                place = f"put it into --root as {name} (it holds {', '.join(held[:6]) or 'nothing'}"
                place += ", ...)" if len(held) > 6 else ")"
            else:
                place = f"put it into a folder as {name} and give the folder as --root"
            reason = str(error).removeprefix(f"{url}: ")
            shown = reason if name in reason else f"{name} cannot be had: {reason}"
            raise InputError(f"objaverse: {shown}; get {url} by hand and {place}") from None
        if not isinstance(value, dict):
            raise InputError(f"objaverse: {name} holds no JSON object; get it again")
        return value

    def _categories(self) -> dict[str, str]:
        """LVIS category of the uids that have one (46,205 when this was written)."""
        found: dict[str, str] = {}
        for category, uids in self._metadata(LVIS_FILE).items():
            words = " ".join(str(category).replace("_", " ").split())
            if not isinstance(uids, list):
                raise InputError(f"objaverse: {LVIS_FILE} has no list of uids for {category!r}")
            for uid in uids:
                found.setdefault(str(uid), words)
        return found


def _ranges(shards: list[str]) -> str:
    """Sorted names of shards, runs of them as ranges: ``000-000 to 000-003, 000-007``."""
    runs: list[list[str]] = []
    for shard in shards:
        if runs and _number(shard) == _number(runs[-1][-1]) + 1:
            runs[-1].append(shard)
        else:
            runs.append([shard])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _number(shard: str) -> int:
    thousands, _, rest = shard.partition("-")
    return 1000 * int(thousands) + int(rest) if thousands.isdigit() and rest.isdigit() else -2


def _record(uid: str, shard: str, entry: Any, category: str | None) -> Record:
    name = f"{MESHES}/{shard}/{uid}.glb"
    texts = list(_texts(entry)) if isinstance(entry, dict) else []
    return Record(
        uid=f"objaverse/{uid}",
        dataset="objaverse",
        source=name,
        key=name,
        category=category,
        texts=tuple(text for text, _ in texts),
        text_sources=tuple(source for _, source in texts),
    )


def _texts(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(raw text, source) of an entry of the metadata; what is empty or no text is left out."""
    name, description = entry.get("name"), entry.get("description")
    if isinstance(name, str) and name.strip():
        yield name, "name"
    tags = entry.get("tags")
    names = [
        tag["name"]
        for tag in (tags if isinstance(tags, list) else [])
        if isinstance(tag, dict) and isinstance(tag.get("name"), str) and tag["name"].strip()
    ]
    if names:
        yield ", ".join(names), "tags"
    if isinstance(description, str) and description.strip():
        yield description, "description"


def _build(options: SourceOptions) -> ObjaverseDataset:
    return ObjaverseDataset(
        subset=options.subset or "all",
        root=options.root,
        cache=options.cache,
        cache_bytes=options.cache_bytes,
        delete_after_use=bool(options.delete_after_use),
    )


SOURCE = Source(
    name="objaverse",
    summary="Objaverse 1.0, GLB files of Sketchfab with names, tags and descriptions; LVIS subset",
    licence="ODC-By 1.0 as a whole; each object CC BY, BY-NC, BY-NC-SA, BY-SA or CC0",
    size="798,759 objects, about 8.9 TB; lvis: 46,205 objects of 1,156 categories",
    get=(
        "nothing by hand: metadata and meshes are fetched from the Hugging Face hub when they are "
        f"needed, into --cache ({DEFAULT_CACHE}); what the package objaverse has fetched to "
        f"{PACKAGE_FOLDER} is used as it is. Without a network: a copy of that folder, or of a "
        "part of it, as --root: the meshes that lie there count, with metadata/ of their shards "
        f"and {LVIS_FILE}"
    ),
    layout=f"metadata/000-000.json.gz ..., {MESHES}/000-000/<uid>.glb ..., {LVIS_FILE}",
    options=("root", "subset", "cache", "cache_bytes", "delete_after_use"),
    required=(),
    build=_build,
    subsets=("all", "lvis"),
)
