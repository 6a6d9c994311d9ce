"""A few-shot evaluation on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outclass.benchmark import FewShot


def print_shots(result: FewShot) -> None:
    """AUROC and its gain for the mean over the OOD sets, then AUROC for each set; each with its n."""
    from outclass.cli.show import say
    from outclass.cli.tables import table
    from outclass.report.shot_table import TITLES, Figure

    tables = result.tables()
    kinds: tuple[Figure, ...] = ("auroc", "gain")
    for ood_set in tables.sets:
        for kind in kinds:
            print(f"{tables.title(ood_set)}: {TITLES[kind].format(reference=tables.reference)}")
            table(*tables.cells(ood_set, kind))
        kinds = ("auroc",)
    for line in tables.legend():
        say(line)
