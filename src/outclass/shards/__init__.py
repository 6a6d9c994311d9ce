"""Scans of huge sources: verdicts in shards with a manifest, resumable; in parts on several machines, and merged."""

from outclass.shards.merging import merge
from outclass.shards.reading import check_unsharded, read_verdicts
from outclass.shards.scanning import ROWS, ShardedScan, scan_to
from outclass.shards.scores import calibrate_on, is_scan, measure_folders, read_scores

__all__ = [
    "ROWS",
    "ShardedScan",
    "calibrate_on",
    "check_unsharded",
    "is_scan",
    "measure_folders",
    "merge",
    "read_scores",
    "read_verdicts",
    "scan_to",
]
