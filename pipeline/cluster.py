"""Joining a Ray cluster, or starting a local one for the time of a job."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from pipeline.common import InputError, cores, not_joined, quiet_stderr, terminable

# Nothing of ours is reported anywhere, and no process of Ray's does work that nobody reads.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    # The log monitor then looks for new files every half second, not ten times a second.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    # On a machine with much other work the defaults (60 s and 100 s) end what is merely slow.
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
}


_PROBE_S = 10.0
_STARTS = 3


def available(kind: str) -> float:
    """How much of a resource (``CPU``, ``GPU``) the cluster has."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return float(resources.get(kind, 0))


# What tells where an S3 store is. Keys are not among them: what is handed to a job's workers stands
# in the cluster's logs; its machines have keys of their own, or roles.
_HANDED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")


@contextmanager
def running(
    address: str | None = None,
    worker_cpus: float | None = None,
    object_store_bytes: int | None = None,
) -> Iterator[Callable[[], int]]:
    """Join the cluster at ``address``, or start Ray here and stop it afterwards.

    Yields a function that counts the CPUs of the cluster as it is. ``worker_cpus`` is how many the
    workers hold together on a Ray that is started here; None: all that this process may use.

    A session that the caller has started is used and left running. Raises ``InputError`` when no
    cluster answers at ``address``, or one with another Ray or Python.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data  # sets its own loggers up when it is imported

    for name in ("ray", "ray.util"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # What ends a graph is raised too; a machine that was lost is no matter for a traceback.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield _cpus
        return
    local: dict[str, Any] = {
        # One more than the render workers hold for good: the tasks between them need a slot, and
        # without one the graph would wait for ever.
        "num_cpus": math.ceil(worker_cpus or cores()) + 1,
        "object_store_memory": object_store_bytes,
        "include_dashboard": False,
    }
    handed = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    joined: dict[str, Any] = {"runtime_env": {"env_vars": handed}} if handed else {}
    if address:
        _probe(address)
    # Ray tells of workers that died on stdout, where results go.
    with redirect_stdout(sys.stderr):
        try:
            with quiet_stderr():
                _init(
                    # "local": without it Ray would join whatever runs on this machine.
                    address=address or "local",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **(joined if address else local),
                )
        except Exception as error:
            told = not_joined(address, error) if address else None
            if not address and object_store_bytes and "object store" in str(error):
                told = InputError(
                    f"--object-store: {object_store_bytes:,} bytes are too few for Ray; give 100MB "
                    "or more"
                )
            if told is None:
                raise
            raise told from error
        try:
            with terminable():  # Ray has taken the signal for itself
                yield _cpus
        finally:
            ray.shutdown()


def _init(**options: Any) -> None:
    """``ray.init``; once more where Ray's own 30 s for the start are too few."""
    import ray

    for left in reversed(range(_STARTS)):
        try:
            ray.init(**options)
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
        else:
            return


def _probe(address: str) -> None:
    """Raise ``InputError`` where nothing listens: Ray itself would try for many minutes."""
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if named.startswith("ray://"):
        raise InputError(
            f"--address {address}: Ray's client protocol does not carry data sets; run the command "
            "on a machine of the cluster, with --address auto"
        )
    host, _, port = named.rpartition(":")
    if not (host and port.isdigit()):
        return  # Ray looks for it on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise not_joined(address, ConnectionError()) or error from error


def _cpus() -> int:
    return max(1, int(available("CPU")))
