"""The scores of a folder of verdicts, tallied, and what is made of them: thresholds, p-values and metrics over all
images at once, whatever shards they lie in.
"""

from __future__ import annotations

import csv
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from outclass.decide.calibrated import Calibrated, Wanted
from outclass.decide.counts import Counts
from outclass.decide.metrics import Metrics, measure_counts
from outclass.decide.tally import Tally
from outclass.errors import MismatchError, UsageError
from outclass.guard import Guard
from outclass.images.sources import Folder
from outclass.learning import Learned
from outclass.report.outputs import VERDICTS, Format, check_format
from outclass.shards.differing import side_by_side
from outclass.shards.manifest import MANIFEST, OF_PART, hash_file, scorer_of
from outclass.shards.reading import verdict_files

log = logging.getLogger("outclass")

AT_ONCE = 1 << 22  # rows held before they are tallied
ROWS = 1 << 16  # read from a file at a time
OF_SCAN = re.compile(rf"{OF_PART.pattern}|{VERDICTS}(-\d+)?\.({'|'.join(get_args(Format))})")

Rows: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]
Codes: TypeAlias = dict[str | None, int]


@dataclass(frozen=True, slots=True)
class FolderScores:
    """The ``ood_score`` of all images of a scan; higher = more OOD.

    Attributes:
        all: images that could be read.
        by_label: the same by their nearest class; None where nobody asked.
        failed: images that could not be read and have none.
        scorer: what the scores depend on, as plain JSON.
        folder: they were read from.
    """

    all: Tally
    by_label: dict[str, Tally] | None
    failed: int
    scorer: dict[str, Any]
    folder: str

    def check(self, scorer: dict[str, Any], whose: str, name: str) -> None:
        """Refuse to mix them with the scores of another guard.

        Args:
            scorer: of the other.
            whose: that is, in words.
            name: of that one, beside the folder's.

        Raises:
            MismatchError: it would score otherwise; all that differs is named.
        """
        if others := side_by_side(self.scorer, scorer, (repr(self.folder), name)):
            raise MismatchError(
                f"the scores in {self.folder!r} are not those of {whose}: {'; '.join(others)}. Scores of different "
                "guards cannot be compared; scan the images again with this one"
            )


def read_scores(folder: str | os.PathLike[str], by_label: bool = False) -> FolderScores:
    """Tally the scores that a scan wrote into a folder, in shards or in one file.

    Args:
        folder: of the scan.
        by_label: tally each nearest class on its own, too; classes share few scores, so this takes 12 bytes an image.

    Raises:
        UsageError: there are no verdicts, or the parts of a scan that are not merged.
        MismatchError: the scan is not finished, a file is damaged, or nothing says which guard gave the scores.
    """
    files, scorer = _files(Path(folder))
    codes: Codes = {}
    tallies: dict[int, Tally] = {}
    failed, held, waiting = 0, 0, []
    for path in files:
        for rows in _rows(path, codes):
            waiting.append(rows)
            held += len(rows[0])
            if held >= AT_ONCE:
                failed += _tally(waiting, tallies, by_label)
                held, waiting = 0, []
    failed += _tally(waiting, tallies, by_label)
    apart = {label: tallies[code] for label, code in codes.items() if label and code in tallies} if by_label else None
    return FolderScores(Tally.merge(tallies.values()), apart, failed, scorer, os.fspath(folder))


def is_scan(path: str | os.PathLike[str]) -> bool:
    """Whether it is a folder of verdicts, of a scan or of parts of one, and none of images, too.

    Where it holds both it is one of images, and a warning says so.
    """
    folder = Path(path)
    if "://" in os.fspath(path) or not folder.is_dir() or not _holds_verdicts(folder):
        return False
    image = next(iter(Folder(folder)), None)
    if image is not None:
        log.warning(
            "%r holds the verdicts of a scan and images, such as %s: the images are taken. Where the verdicts are "
            "meant, move the images elsewhere", os.fspath(path), image.id,
        )  # fmt: skip
    return image is None


def calibrate_on(
    guard: Guard,
    folder: str | os.PathLike[str],
    false_alarm_rate: float = 0.05,
    *,
    confidence: float | None = None,
    by_class: bool = False,
) -> Learned:
    """Calibrate a guard on the verdicts of a scan of ID images that it judged: no image is read again.

    The threshold and the p-values are those of all images at once, whatever shards they lie in. ``Guard.calibrate``
    counts images once that are nearly the same and leaves out those that the detector was fitted on; scores do not
    tell, so the folder may hold no such images. No vectors are kept, so a change of classes needs a new calibration.

    Args:
        guard: judged them; its threshold is replaced.
        folder: of a scan, in shards or in one file.
        false_alarm_rate, confidence, by_class: as for ``Guard.calibrate``; the class is the label of the verdict.

    Returns:
        What was calibrated on; ``describe()`` says what the threshold promises.

    Raises:
        UsageError: no verdicts there, or too few images for what is asked (the message says how many it takes).
        MismatchError: another guard judged them, the scan is not finished, or a file is damaged.
        NotReadyError: the detector has not learned yet.
    """
    wanted = Wanted(false_alarm_rate, confidence, by_class)
    judge = guard.judge
    judge.check_ready()
    found = read_scores(folder, by_class)
    found.check(scorer_of(guard), "this guard", "this guard")
    if not found.all.n:
        raise UsageError(
            f"no image in {found.folder!r} has a score, of {found.failed:,} there: it takes the scan of ID images that "
            "can be read"
        )
    scores, predicted = found.all.expand(), np.zeros(found.all.n, np.intp)
    if found.by_label:
        parts = [found.by_label.get(name, Tally.of([])).expand() for name in judge.names]
        scores, predicted = np.concatenate(parts), np.repeat(np.arange(len(parts)), list(map(len, parts)))
    calibrated = Calibrated.make(wanted, scores, predicted, len(judge.names))
    if doubt := calibrated.doubts(judge.detector.score_range()):
        log.warning(doubt)
    if judge.fitted is not None:
        log.warning(
            "this guard has learned from images, and scores do not tell which: were any of them in %r, there would be "
            "more false alarms than promised", found.folder,
        )  # fmt: skip
    threshold = calibrated.threshold(len(judge.names))
    guard.judge = replace(judge, threshold=threshold, calibrated=calibrated, evidence=None, tiling=None)
    return Learned(0, False, None, None, calibrated, judge.names, threshold=threshold)


@dataclass(frozen=True, slots=True)
class ScanMetrics:
    """How well the verdicts of scans tell OOD from ID images.

    Attributes:
        detector: that gave the scores.
        rows: metrics of each OOD set against the ID images, by the folder of its scan.
        failed: images of all sets that could not be read and have no part in the metrics.
    """

    detector: str
    rows: dict[str, Metrics]
    failed: int


def measure_folders(known: str | os.PathLike[str], unknown: Iterable[str | os.PathLike[str]]) -> ScanMetrics:
    """Metrics of scans of ID and of OOD images that one guard judged, each over all images of both at once.

    The figures are those that ``decide.metrics.measure`` makes of all scores, to the last bit.

    Args:
        known: folder of the scan of ID images.
        unknown: folders of the scans of OOD images.

    Raises:
        UsageError: there are no verdicts, or no image of a side has a score.
        MismatchError: different guards judged them, a scan is not finished, or a file is damaged.
    """
    of_id = read_scores(known)
    failed, rows = of_id.failed, {}
    for folder in unknown:
        of_ood = read_scores(folder)
        of_ood.check(of_id.scorer, f"the guard that judged {of_id.folder!r}", repr(of_id.folder))
        rows[of_ood.folder] = measure_counts(Counts.of_tallies(of_id.all, of_ood.all))
        failed += of_ood.failed
    return ScanMetrics(of_id.scorer["detector"]["name"], rows, failed)


def _holds_verdicts(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:  # a million images are listed once
            if any(OF_SCAN.fullmatch(entry.name) for entry in entries):
                return True
        # of a scan of nothing; others call files so, too
        return "shard_rows" in json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _files(folder: Path) -> tuple[Iterator[Path], dict[str, Any]]:
    """The files with verdicts, each of them checked by its turn, and what their scores depend on."""
    manifest, files = verdict_files(folder)
    if manifest is not None:
        if not manifest.complete:
            raise MismatchError(
                f"the scan in {str(folder)!r} is not finished: {manifest.rows:,} rows so far; run the command that "
                "began it again, and it goes on"
            )
        return files, manifest.scorer
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        scorer, blake2b = dict(summary["scorer"]), str(summary["verdicts"]["blake2b"])
    except (OSError, ValueError, KeyError, TypeError):
        raise MismatchError(
            f"nothing in {str(folder)!r} says which guard gave the scores: summary.json is missing, of an older "
            "outclass or of a scan by tiles; scan again into a new folder"
        ) from None
    (file,) = files
    if hash_file(file) != blake2b:  # of a scan that was killed before it wrote its summary, or changed since
        raise MismatchError(
            f"the verdicts in {str(folder)!r} are not those that summary.json speaks of; scan again into a new folder"
        )
    return iter([file]), scorer


def _tally(waiting: list[Rows], tallies: dict[int, Tally], by_label: bool) -> int:
    """Add rows to the tallies of their codes, or all to that of 0; how many have no score."""
    if not waiting:
        return 0
    scores, codes = (np.concatenate(column) for column in zip(*waiting, strict=True))
    read = ~np.isnan(scores)
    failed = len(read) - int(read.sum())
    if failed == len(read):
        return failed
    scores, codes = scores[read], codes[read] if by_label else np.zeros(len(read) - failed, np.intp)
    order = np.argsort(codes, kind="stable")
    found, starts = np.unique(codes[order], return_index=True)
    for code, part in zip(found.tolist(), np.split(scores[order], starts[1:]), strict=True):
        tallies[code] = Tally.merge([tallies[code], Tally.of(part)] if code in tallies else [Tally.of(part)])
    return failed


def _rows(path: Path, codes: Codes) -> Iterator[Rows]:
    """(b,) scores, NaN where there is none, and (b,) codes of labels, some rows at a time; new labels get new codes."""
    read = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}[path.suffix]
    check_format(path.suffix[1:])
    try:
        yield from read(path, codes)
    except (ValueError, TypeError, KeyError, IndexError, csv.Error, OSError) as error:  # pyarrow's own are such
        raise MismatchError(f"{str(path)!r} holds no verdicts, or is damaged: {error}") from error


def _csv_rows(path: Path, codes: Codes) -> Iterator[Rows]:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        head = next(reader, [])  # an empty file has none
        score, label = head.index("ood_score"), head.index("label")
        while lines := list(itertools.islice(reader, ROWS)):
            yield _coded([line[score] or None for line in lines], [line[label] or None for line in lines], codes)


def _jsonl_rows(path: Path, codes: Codes) -> Iterator[Rows]:
    with open(path, encoding="utf-8", newline="\n") as file:
        while rows := [json.loads(line) for line in itertools.islice(file, ROWS)]:
            yield _coded([row["ood_score"] for row in rows], [row["label"] for row in rows], codes)


def _parquet_rows(path: Path, codes: Codes) -> Iterator[Rows]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS, columns=["ood_score", "label"]):
            label = batch.column("label").dictionary_encode("encode")
            known = [codes.setdefault(name, len(codes)) for name in label.dictionary.to_pylist()]
            scores = batch.column("ood_score").to_numpy(zero_copy_only=False).astype(np.float32)
            yield scores, np.array(known, np.intp)[label.indices.to_numpy()]


def _coded(scores: list[Any], labels: list[str | None], codes: Codes) -> Rows:
    numbers = np.array([math.nan if one is None else float(one) for one in scores], np.float32)
    return numbers, np.array([codes.setdefault(label, len(codes)) for label in labels], np.intp)
