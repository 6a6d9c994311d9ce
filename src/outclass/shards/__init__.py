"""Scans of huge sources: verdicts in shards with a manifest, resumable."""

from outclass.shards.scanning import ROWS, ShardedScan, check_unsharded, read_verdicts, scan_to

__all__ = ["ROWS", "ShardedScan", "check_unsharded", "read_verdicts", "scan_to"]
