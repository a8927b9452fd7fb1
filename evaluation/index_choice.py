"""Which FAISS index: exact while that is cheap, otherwise what meets recall, memory and latency.

- ``flat``: every vector as float32. Exact.
- ``hnsw``: the same vectors and a graph of neighbours (Malkov and Yashunin, 2018). Fast and good;
  needs more memory than ``flat``.
- ``ivfpq``: vectors as product-quantised codes in inverted lists (Jegou et al., 2011). A small part
  of the memory; how good is for the measurement to tell.

An approximate index is built, its width of search is turned up until the share of the exact best
ten that it finds reaches the wanted one for every kind of query, and the time of single queries is
taken. Text and shape queries lie differently among the shapes: an index can be good for one and
poor for the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from evaluation.exact import top_k
from pipeline.common import InputError

F32 = NDArray[np.float32]
Advance = Callable[[int], None]
Trying = Callable[["Plan"], AbstractContextManager[Advance]]  # what is told of a plan and its rows

KINDS = ("flat", "hnsw", "ivfpq")
# Exact search of 200,000 rows of 512 takes about 20 ms a query on one core: nothing to gain below.
FLAT_LIMIT = 200_000
RECALL = 0.95
RECALL_K = 10

NEIGHBOURS = 32  # of a node of the graph; twice as many on its lowest level
EF_CONSTRUCTION = 200
_EF_SEARCH = (32, 64, 128, 256, 512, 1024)
_PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_DIMS_A_CODE = (8, 4, 2, 1)  # coordinates that one byte of a code stands for
_TRAIN_PER_LIST = 64  # k-means of FAISS wants 39 or more
_TRAIN_PER_CODE = 128  # k-means of a codebook of 256; more costs minutes and gains nothing
_TIMED = 100  # single queries
# Rows that are added at once. A graph of a million takes minutes: its blocks are small for the sake
# of progress, and make it no worse and no slower.
_BLOCKS = {"flat": 1 << 16, "hnsw": 1 << 12, "ivfpq": 1 << 16}
_GAIN = 0.002  # of recall, below which a wider search is no use


@dataclass(frozen=True)
class Wanted:
    """What an index is to reach. None: no limit."""

    kind: str = "auto"
    flat_limit: int = FLAT_LIMIT
    recall: float = RECALL
    memory: int | None = None  # bytes
    latency_ms: float | None = None  # of 95 in 100 single queries


@dataclass(frozen=True)
class Plan:
    """An index that could be built."""

    kind: str
    settings: dict[str, Any]
    memory: int  # bytes, estimated

    def told(self) -> str:
        """In words, for messages."""
        if self.kind == "ivfpq":
            return f"ivfpq with codes of {self.settings['code_bytes']} bytes"
        return self.kind


@dataclass(frozen=True)
class Built:
    """An index, and how it did on the sample queries."""

    plan: Plan
    engine: Any
    recall: dict[str, dict[str, float | int]] | None  # by kind of query; None: exact
    latency_ms: float | None  # None: not measured
    tried: list[dict[str, Any]] = field(default_factory=list)  # in this order, the chosen one last


def plans(count: int, width: int, wanted: Wanted) -> list[Plan]:
    """Indexes in the order in which they are tried. Raises ``InputError`` for an unknown kind."""
    if wanted.kind not in ("auto", *KINDS):
        raise InputError(f"--kind {wanted.kind}: use auto, {', '.join(KINDS)}")
    flat = Plan("flat", {}, 4 * count * width)
    found = [hnsw_plan(count, width), *ivfpq_plans(count, width)]
    order = [flat, *found] if count <= wanted.flat_limit else [*found, flat]
    return [plan for plan in order if wanted.kind in ("auto", plan.kind)]


def hnsw_plan(count: int, width: int) -> Plan:
    """The graph over float32 vectors."""
    # Links are 4 bytes; a node is on a further level with probability 1/32; level and offset: 12.
    links = 4 * (2 * NEIGHBOURS + NEIGHBOURS / (NEIGHBOURS - 1))
    settings = {"neighbours": NEIGHBOURS, "ef_construction": EF_CONSTRUCTION}
    return Plan("hnsw", settings, int(count * (4 * width + links + 12)))


def ivfpq_plans(count: int, width: int) -> Iterator[Plan]:
    """Codes from short to long, as the width allows; none for fewer rows than a codebook takes."""
    if count < 256 * 39 // 2:
        return
    lists = max(1, min(int(4 * math.sqrt(count)), count // _TRAIN_PER_LIST))
    for dims in _DIMS_A_CODE:
        if width % dims:
            continue
        code = width // dims
        memory = count * (code + 8) + 4 * lists * width + 4 * 256 * width
        yield Plan("ivfpq", {"lists": lists, "code_bytes": code}, memory)


def choose(
    vectors: F32,
    samples: Mapping[str, F32],
    wanted: Wanted,
    seed: int = 0,
    trying: Trying | None = None,
) -> Built:
    """Build the first index of ``plans`` that meets what is wanted.

    ``vectors`` are (N, D); ``samples`` (Q, D) queries by kind, on which recall and time are
    measured. ``trying`` is entered with every plan that is built, and counts the rows added.
    Raises ``InputError`` when none does, with what was tried.
    """
    count, width = vectors.shape
    exact: dict[str, Any] = {}
    tried: list[dict[str, Any]] = []
    engine: Any = None
    for plan in plans(count, width, wanted):
        entry: dict[str, Any] = {"kind": plan.kind, **plan.settings, "memory": plan.memory}
        tried.append(entry)
        if wanted.memory is not None and plan.memory > wanted.memory:
            entry["refused"] = f"needs {_size(plan.memory)}"
            continue
        if not hasattr(engine, "nlist"):
            engine = None  # a refused graph is not held while the next index is made
        with trying(plan) if trying else nullcontext() as advance:
            engine = make(plan, vectors, seed, engine, advance)
        if plan.kind == "flat":
            recall = None
        else:
            exact = exact or {k: top_k(q, vectors, RECALL_K)[1] for k, q in samples.items()}
            recall = tune(plan, engine, samples, exact, wanted.recall)
            entry |= {name: recall_told["recall"] for name, recall_told in recall.items()}
            worst = min((float(one["recall"]) for one in recall.values()), default=1.0)
            if worst < wanted.recall:
                entry["refused"] = f"recall {worst:.3f}"
                continue
        # A flat index below its limit is taken without a look at the clock, unless it is asked for.
        timed = plan.kind != "flat" or wanted.latency_ms is not None
        latency = latency_ms(engine, samples) if timed else None
        entry["latency_ms"] = latency
        if wanted.latency_ms is not None and latency is not None and latency > wanted.latency_ms:
            entry["refused"] = f"{latency:.2g} ms per query"
            continue
        return Built(plan, engine, recall, latency, tried)
    raise _none(tried, wanted, count)


def make(
    plan: Plan,
    vectors: F32,
    seed: int = 0,
    before: Any = None,
    advance: Advance | None = None,
) -> Any:
    """The index of a plan, filled. Codebooks and lists are learned from a sample.

    Lists do not depend on the codes: they are taken from ``before``, an index with as many.
    ``advance`` counts the rows added.
    """
    count, width = vectors.shape
    engine: Any
    if plan.kind == "flat":
        engine = faiss.IndexFlatIP(width)
    elif plan.kind == "hnsw":
        engine = faiss.IndexHNSWFlat(width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        engine.hnsw.efConstruction = EF_CONSTRUCTION
    else:
        lists, code = plan.settings["lists"], plan.settings["code_bytes"]
        coarse: Any = faiss.IndexFlatIP(width)
        if before is not None and getattr(before, "nlist", None) == lists:
            library: Any = faiss
            coarse = library.clone_index(library.downcast_index(before.quantizer))
        engine = faiss.IndexIVFPQ(coarse, width, lists, code, 8, faiss.METRIC_INNER_PRODUCT)
        engine.own_fields = True
        coarse.this.disown()  # the index frees it
        engine.cp.spherical = True  # of unit vectors compared by angle
        engine.pq.cp.max_points_per_centroid = _TRAIN_PER_CODE
        needed = max(_TRAIN_PER_LIST * lists, 256 * _TRAIN_PER_CODE)
        chosen = np.random.default_rng(seed).permutation(count)[:needed]
        engine.train(np.ascontiguousarray(vectors[np.sort(chosen)]))
    step = _BLOCKS[plan.kind]
    for start in range(0, count, step):
        block = np.ascontiguousarray(vectors[start : start + step], np.float32)
        engine.add(block)
        if advance:
            advance(len(block))
    return engine


def tune(
    plan: Plan,
    engine: Any,
    samples: Mapping[str, F32],
    exact: Mapping[str, NDArray[np.int64]],
    wanted: float,
) -> dict[str, dict[str, float | int]]:
    """Widen the search until every kind of query has the ``wanted`` recall, or gains no more.

    Returns the recalls. The width stays in ``engine`` and ``plan.settings``.
    """
    found: dict[str, dict[str, float | int]] = {}
    before = -1.0
    widths = _EF_SEARCH if plan.kind == "hnsw" else _PROBES
    for width in widths:
        if plan.kind == "ivfpq" and width >= 2 * plan.settings["lists"]:
            break
        set_width(plan.kind, engine, min(width, plan.settings.get("lists", width)))
        plan.settings["width"] = width_of(plan.kind, engine)
        found = {
            name: recall_against(engine, exact[name], queries) for name, queries in samples.items()
        }
        worst = min((float(one["recall"]) for one in found.values()), default=1.0)
        if worst >= wanted or (width >= 32 and worst - before < _GAIN):
            break
        before = worst
    return found


def set_width(kind: str, engine: Any, width: int) -> None:
    """How many candidates (hnsw) or lists (ivfpq) a search looks at."""
    if kind == "hnsw":
        engine.hnsw.efSearch = width
    else:
        engine.nprobe = width


def width_of(kind: str, engine: Any) -> int:
    """What ``set_width`` set."""
    return int(engine.hnsw.efSearch if kind == "hnsw" else engine.nprobe)


def recall_against(engine: Any, exact: NDArray[np.int64], queries: F32) -> dict[str, float | int]:
    """Share of the ``exact`` rows (Q, k) that the index finds among its best k."""
    k = exact.shape[1]
    _, found = engine.search(np.ascontiguousarray(queries), k)
    hits = [len(np.intersect1d(a, b)) for a, b in zip(exact, found, strict=True)]
    return {"k": k, "queries": len(queries), "recall": float(np.mean(hits) / k) if hits else 0.0}


def latency_ms(engine: Any, samples: Mapping[str, F32]) -> float:
    """Milliseconds within which 95 of 100 single queries are answered, on this machine."""
    queries = np.concatenate([q[: _TIMED // len(samples) + 1] for q in samples.values()])[:_TIMED]
    seconds = []
    for query in queries:
        one = np.ascontiguousarray(query[None])
        begun = time.perf_counter()
        engine.search(one, RECALL_K)
        seconds.append(time.perf_counter() - begun)
    return float(np.percentile(seconds, 95) * 1000)


def _none(tried: list[dict[str, Any]], wanted: Wanted, count: int) -> InputError:
    told = "; ".join(
        f"{Plan(entry['kind'], entry, 0).told()}: {entry['refused']}" for entry in tried
    )
    limits = [f"recall {wanted.recall:g}"]
    if wanted.memory is not None:
        limits.append(_size(wanted.memory))
    if wanted.latency_ms is not None:
        limits.append(f"{wanted.latency_ms:g} ms")
    if not tried:
        told = f"{count} rows are too few to train codes on"
    return InputError(
        f"no index reaches {', '.join(limits)} ({told}); lower --recall, or raise --memory or "
        "--latency"
    )


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.3g} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g} MB"
