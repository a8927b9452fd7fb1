"""What is known of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from evaluation.benchmarks.labels import LabelSet, from_categories, key
from pipeline.common import InputError
from pipeline.shards import ShardSet


@dataclass(frozen=True)
class Variant:
    """A selection of objects that goes by the name of the benchmark."""

    name: str
    split: str | None  # the rows that are measured; None: all
    counts: tuple[int, ...] = ()  # objects, as released or as papers say; none: not fixed
    where: tuple[tuple[str, str], ...] = ()  # options of the manifest's dataset that tell it


@dataclass(frozen=True)
class Benchmark:
    """Classes, names and selections of one benchmark.

    ``classes`` are the names in the order of the release; None where the set tells them.
    ``underscores``: names as released have them for blanks, which the protocol of Uni3D keeps.
    ``seen``: the classes whose word occurs in the benchmark's own training split, where it has one.
    """

    name: str
    told: str
    n_classes: int | None
    variants: tuple[Variant, ...]
    sources: tuple[str, ...]  # names of datasets in manifests
    classes: tuple[str, ...] | None = None
    underscores: bool = False
    seen: frozenset[str] | None = None

    def groups(self) -> dict[str, frozenset[str]]:
        """Groups of classes that are also measured by themselves."""
        if self.seen is None:
            return {}
        return {
            "seen words": self.seen,
            "unseen words": frozenset(self.classes or ()) - self.seen,
        }

    def variant(self, shards: ShardSet) -> Variant:
        """The variant that a set is of. Raises ``InputError`` for a set of something else."""
        dataset = shards.manifest.dataset
        options: dict[str, Any] = dataset.get("options") or {}
        if dataset.get("name") in self.sources:
            for variant in self.variants:
                if all(str(options.get(name)) == value for name, value in variant.where):
                    return variant
        told = ", ".join(
            f"{name} {value}"
            for name, value in options.items()
            if name != "root" and value is not None and not isinstance(value, dict | list)
        )
        raise InputError(
            f"{shards.storage.root}: is of dataset {dataset.get('name')}"
            + (f" ({told})" if told else "")
            + f", not of {self.name} (made with `pipeline datasets` {' or '.join(self.sources)}); "
            "leave --benchmark out, or give a name of your own"
        )

    def labels(self, categories: Iterable[str | None], *, as_released: bool = False) -> LabelSet:
        """All classes, also those of which the set has no object.

        ``as_released`` keeps underscores in names. Raises ``InputError`` for categories that are
        no class.
        """
        found = {c for c in categories if c is not None and key(c)}
        names = self.classes or tuple(from_categories(found).names)
        by_category = {key(name): i for i, name in enumerate(names)}
        strange = sorted(c for c in found if key(c) not in by_category)
        if strange:
            raise InputError(
                f"--benchmark {self.name}: {strange[0]!r}"
                + (f" and {len(strange) - 1} other categories" if len(strange) > 1 else "")
                + " of the set are not among its classes; give --labels, or leave --benchmark out"
            )
        if as_released and self.underscores:
            names = tuple(name.replace(" ", "_") for name in names)
        return LabelSet(list(names), by_category, f"benchmark {self.name}")
