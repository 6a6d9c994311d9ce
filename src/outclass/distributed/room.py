"""The open pipelines of this process: whether one more has room on their Ray."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
from collections.abc import Iterator

from outclass.distributed.cluster import Cluster
from outclass.errors import UsageError

_open: dict[str, tuple[tuple[str, str], float]] = {}  # their Ray, and CPUs of their actors


@contextlib.contextmanager
def room(found: Cluster, actors: float, reading: float) -> Iterator[None]:
    """The place of a pipeline among those of this process that are open; what has no room would keep all from moving.

    Meanwhile Ray must not start itself: it would, in the threads of a pipeline that is open when its Ray ends.

    Args:
        found: the cluster.
        actors: CPUs that all actors of the pipeline reserve.
        reading: CPUs that each of its reading tasks reserves.

    Raises:
        UsageError: there is no room.
    """
    import ray
    from ray._private import auto_init_hook

    about = ray.get_runtime_context()
    session, name = (about.gcs_address, about.get_job_id()), secrets.token_hex(8)

    def is_full() -> bool:
        taken = sum(cpus for one, cpus in _open.values() if one == session)
        return taken > 0 and taken + actors > found.cpus - len(found.nodes) * reading

    if is_full():
        gc.collect()  # one that was forgotten may be in a circle
    if is_full():
        raise UsageError(
            "another scan of this process is open and has the CPUs of this Ray: let it end, or close it "
            "(scan.close(), or with ... as scan:), before the next one begins"
        )
    _open[name] = session, actors
    auto_init_hook.enable_auto_connect = False
    try:
        yield
    finally:
        del _open[name]
        auto_init_hook.enable_auto_connect = not _open and os.environ.get("RAY_ENABLE_AUTO_CONNECT") != "0"
