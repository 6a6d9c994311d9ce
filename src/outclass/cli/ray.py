"""The options of a scan on Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outclass.errors import UsageError

if TYPE_CHECKING:
    from outclass.distributed import Layout

RAY = "Ray"
STARTING = "starting the processes that read and encode; the first results take some ten seconds"

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="local|ADDRESS",
        help="With -o: read and judge in many processes, into shards as with --shard-rows (100000 where it is not "
        "given). local starts them on this machine; auto or HOST:PORT is a cluster that this machine belongs to, with "
        "the same outclass on every node, which finds the images at the same place.",
        rich_help_panel=RAY,
    ),
]
RayActors = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that encode and judge. Default: one for every four cores, or one for each share of a GPU.",
        rich_help_panel=RAY,
    ),
]
RayGpus = Annotated[
    float | None,
    typer.Option(
        help="GPUs for each of them, such as 0.5. Default: one, where --device is cuda, or is auto and the cluster has "
        "GPUs and the encoder fills one.",
        rich_help_panel=RAY,
    ),
]


def laid_out(
    address: str | None,
    actors: int | None,
    gpus: float | None,
    device: str,
    threads: int | None,
    batch_size: int | None,
    apart: dict[str, bool],
) -> Layout | None:
    """How a scan runs on Ray; None where it does not.

    Args:
        address, actors, gpus: of the options.
        device, threads, batch_size: of the workers.
        apart: options that do not go together with --ray, and whether they were given.

    Raises:
        UsageError: one was, or what cannot be meant.
    """
    if address is None:
        if actors is not None or gpus is not None:
            raise UsageError("--ray-actors and --ray-gpus lay out the work on Ray: add --ray local, or --ray ADDRESS")
        return None
    from outclass.distributed import Layout

    if asked := [name for name, given in apart.items() if given]:
        raise UsageError(f"{asked[0]} does not go together with --ray: leave one of the two out")
    layout = Layout(address, device, actors, gpus, threads, batch_size)
    layout.check()
    return layout


def check_out(out: Path | None) -> None:
    """Refuse a scan on Ray that writes nothing.

    Raises:
        UsageError: it is one.
    """
    if out is None:
        raise UsageError("--ray needs a folder for the shards: -o DIR")
