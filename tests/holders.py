"""Archives and tables of pictures made on the spot, and what a scan says of them."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest
from conftest import BLUE, GREEN, RED, encoded, picture, within

from outclass import Guard
from outclass.images.sources import open_source

DATA = {"red": encoded(picture(RED)), "blue": encoded(picture(BLUE)), "green": encoded(picture(GREEN), "JPEG")}


def write_tar(path, members, kind=None):
    """(name, bytes or a TarInfo) pairs as a tar file."""
    with tarfile.open(path, kind or ("w:gz" if str(path).endswith("gz") else "w")) as archive:
        for name, data in members:
            if isinstance(data, tarfile.TarInfo):
                data.name = name
                archive.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, members):
    """(name, bytes) pairs as a ZIP file, every other one packed."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate(members):
            archive.writestr(name, data, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2])
    return path


def write(path, members):
    """A tar or a ZIP file, by its name."""
    return (write_zip if str(path).endswith("zip") else write_tar)(path, members)


def write_parquet(path, records, **options):
    """(name, bytes) pairs as a parquet file in the layout of Hugging Face datasets."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"image": {"bytes": data, "path": name}, "label": 0} for name, data in records]
    table = pa.Table.from_pylist(rows, pa.schema([("label", pa.int64()), ("image", image)]))
    pq.write_table(table, path, **options)
    return path


def ids(source):
    """Of all Items; fails where listing them hangs."""
    return [item.id for item in within(20, lambda: list(open_source(source)))]


def verdicts(source, guard=None):
    """Of a scan; fails where it hangs."""
    guard = guard or Guard(["red", "blue"], "toy", threshold=-0.9)
    return within(60, lambda: list(guard.scan(source)))
