"""One shard set of several that were made alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.catalog.columns import column
from pipeline.common import InputError, canonical_json
from pipeline.console import ProgressBar
from pipeline.sets.writing import Mask, Written, check_out, new_set
from pipeline.shards import CONTRACT_VERSION, Manifest, ShardSet
from pipeline.shards.storage import Storage

ON_DUPLICATE = ("error", "first")
# What may differ between sets that are merged when it is asked for. The rest decides the shape of
# the columns or whether embeddings can be compared.
MAY_DIFFER = ("cameras", "renderer", "sampling_seed", "templates")


@dataclass(frozen=True)
class Merged:
    """What was merged."""

    written: Written
    given: list[int]  # rows of each set
    left_out: list[int]  # of those, rows whose uid an earlier row has

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def merge_sets(
    roots: Sequence[str | Path],
    out: str | Path,
    *,
    on_duplicate: str = "error",
    allow: Sequence[str] = (),
    overwrite: bool = False,
) -> Merged:
    """Write the rows of all ``roots``, one set after another, and their failures to a new set.

    ``on_duplicate``: ``error`` refuses a uid that comes twice, ``first`` keeps its first row.
    ``allow`` names fields of ``MAY_DIFFER`` in which the manifests may disagree: the new set has
    those of the first, and its ``dataset`` tells the others.

    Raises ``InputError`` that names the first field in which two sets differ, or the uid, and as
    ``new_set`` does.
    """
    if on_duplicate not in ON_DUPLICATE:
        raise InputError(f"--on-duplicate {on_duplicate}: use one of {', '.join(ON_DUPLICATE)}")
    if len(roots) < 2:
        raise InputError("merge: give at least two shard sets")
    sources = [ShardSet.open(root) for root in roots]
    paths = [_identity(source.storage) for source in sources]
    twice = [str(root) for at, root in enumerate(roots) if paths[at] in paths[:at]]
    if twice:
        raise InputError(f"merge: {twice[0]} is given twice")
    check_out(Storage.at(out), sources, overwrite)
    manifest = merged_manifest(sources, allow)
    keeps = _kept(sources, on_duplicate)
    total = sum(len(keep) for keep in keeps)
    with (
        new_set(out, manifest, sources, overwrite=overwrite) as writer,
        ProgressBar("merge", total, "objects") as bar,
    ):
        failed: set[str] = set()
        for source, keep in zip(sources, keeps, strict=True):
            writer.copy(source, bar, keep)
            fresh = {failure.uid: failure for failure in source.failures()}
            writer.copy_failures([f for uid, f in fresh.items() if uid not in failed])
            failed.update(fresh)
        written = writer.finish()
    return Merged(written, [len(k) for k in keeps], [int((~k).sum()) for k in keeps])


def _identity(storage: Storage) -> str:
    return str(Path(storage.path).resolve()) if storage.is_local else storage.root.rstrip("/")


def merged_manifest(sources: Sequence[ShardSet], allow: Sequence[str] = ()) -> Manifest:
    """The manifest of the rows of all ``sources`` together. Raises as ``merge_sets`` does."""
    unknown = sorted(set(allow) - set(MAY_DIFFER))
    if unknown:
        raise InputError(f"--allow {unknown[0]}: use one of {', '.join(MAY_DIFFER)}")
    # Of one version, the newest, so that fields that older ones lack are compared too.
    first = replace(sources[0].manifest, contract_version=CONTRACT_VERSION)
    datasets = [first.dataset]
    for source in sources[1:]:
        own = source.manifest
        differs = {
            name: getattr(own, name)
            for name in allow
            if canonical_json(getattr(own, name)) != canonical_json(getattr(first, name))
        }
        # Of a cloud in farthest-point order every prefix is: the shorter one serves for all.
        alike = replace(
            own,
            dataset=first.dataset,
            n_fps=first.n_fps,
            contract_version=CONTRACT_VERSION,
            **{name: getattr(first, name) for name in differs},
        )
        # What cannot be allowed comes first: allowing the rest would be of no use.
        hard = replace(alike, **{name: getattr(first, name) for name in MAY_DIFFER})
        found = hard.difference(first) or alike.difference(first)
        if found:
            field = found.split(".")[0].split(":")[0]
            remedy = (
                f"add --allow {field} to merge them all the same"
                if field in MAY_DIFFER
                else "only sets that were made alike can be merged"
            )
            raise InputError(
                f"{source.storage.root}: differs from {sources[0].storage.root} in {found}; "
                f"{remedy}"
            )
        datasets.append({**own.dataset, **({"differs": differs} if differs else {})})
    # Where one set's teacher is known by name alone, that is all that is known of the merged one.
    teachers = sorted((s.manifest.teacher for s in sources), key=lambda t: t.has_fingerprint)
    return replace(
        first,
        teacher=first.teacher if teachers[0].has_fingerprint else teachers[0],
        contract_version=0,
        dataset=_combined(datasets),
        n_fps=min(source.manifest.n_fps for source in sources),
        versions=_common(sources),
    )


def _combined(datasets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One dataset of several. Equal ones are one: parts of a run that was spread over machines."""
    unique: dict[str, dict[str, Any]] = {}
    for dataset in datasets:
        nested = dataset.get("name") == "merged" and "derived" not in dataset
        for item in dataset["sets"] if nested and "differs" not in dataset else [dataset]:
            unique.setdefault(canonical_json(item), item)
    sets = list(unique.values())
    return sets[0] if len(sets) == 1 else {"name": "merged", "sets": sets}


def _common(sources: Sequence[ShardSet]) -> dict[str, str] | None:
    """Library versions that all sets were made with."""
    told = [source.manifest.versions or {} for source in sources]
    common = {k: v for k, v in told[0].items() if all(other.get(k) == v for other in told)}
    return common or None


def _kept(sources: Sequence[ShardSet], on_duplicate: str) -> list[Mask]:
    """For every row of every set, in reading order, whether it is the first with its uid."""
    columns = [column(source, "uid") for source in sources]
    uids = pa.concat_arrays(columns)
    codes = uids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    keep = np.zeros(len(codes), np.bool_)
    keep[np.unique(codes, return_index=True)[1]] = True
    bounds = np.cumsum([0, *(len(own) for own in columns)])
    if on_duplicate == "error" and not keep.all():
        second = int(np.flatnonzero(~keep)[0])
        places = [int(np.flatnonzero(codes == codes[second])[0]), second]
        named = [
            sources[int(np.searchsorted(bounds, place, "right")) - 1].storage.root
            for place in places
        ]
        where = f"{named[0]} and {named[1]}" if named[0] != named[1] else f"{named[0]}, twice"
        raise InputError(
            f"{uids[second].as_py()}: this uid is in {where} ({int((~keep).sum())} such rows); "
            "add --on-duplicate first to keep the first row of each"
        )
    return [keep[bounds[i] : bounds[i + 1]] for i in range(len(sources))]
