"""Scans on many machines, by Ray Data."""

from outclass.distributed.cluster import LOCAL, Cluster, cluster
from outclass.distributed.engine import Pool, in_chunks, items_data, stream
from outclass.distributed.indexing import index_to
from outclass.distributed.messages import Message
from outclass.distributed.scanning import Layout, RayScan, scan_to

__all__ = [
    "LOCAL",
    "Cluster",
    "Layout",
    "Message",
    "Pool",
    "RayScan",
    "cluster",
    "in_chunks",
    "index_to",
    "items_data",
    "scan_to",
    "stream",
]
