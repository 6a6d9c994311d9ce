"""Archives, tables and videos on other machines: the same streams of images, read where they lie."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, Any

from outclass.errors import ImageError
from outclass.images.archives import Tar, Zip, check_size
from outclass.images.decode import ImageLike, Stored
from outclass.images.places import Place
from outclass.images.sources import TARS, VIDEOS, Source
from outclass.images.tables import Parquet
from outclass.images.video import Video

LOCAL_HEADER = 30  # bytes of a ZIP member's own header, before its name
NAMES_MARGIN = 1024  # by which that header may be longer than the directory says


def container(place: Place, id: str, fps: float) -> Source | None:
    """What a remote file holds; None where it is one image itself."""
    name = place.plain.lower()
    if name.endswith(".zip"):
        return RemoteZip(place, id)
    if name.endswith(TARS):
        return RemoteTar(place, id)
    if name.endswith(".parquet"):
        return RemoteParquet(place, id)
    return RemoteVideo(place, id, fps) if name.endswith(VIDEOS) else None


@dataclass(frozen=True, slots=True)
class RemoteMember(Stored):
    """A member of a remote ZIP file, read in one request by the thread that decodes it."""

    place: Place
    info: zipfile.ZipInfo

    def read(self) -> bytes:
        """Its bytes, unpacked and checked.

        Raises:
            ImageError: larger than any image, damaged, encrypted, or packed in a way that is not known.
        """
        info = self.info
        check_size(max(info.file_size, info.compress_size))
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ImageError("a member that is encrypted, or packed in a rare way: download the archive")
        start, size = info.header_offset, self.place.size or 0
        after = start + LOCAL_HEADER + len(info.orig_filename.encode()) + NAMES_MARGIN + info.compress_size
        data = self.place.part(start, min(after, size))
        lengths = int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
        packed = data[LOCAL_HEADER + lengths :][: info.compress_size]
        try:
            if info.compress_type == zipfile.ZIP_DEFLATED:
                packed = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, info.file_size + 1)
        except zlib.error as error:
            raise ImageError(f"the member is damaged: {error}") from error
        if data[:4] != b"PK\3\4" or len(packed) != info.file_size or zlib.crc32(packed) != info.CRC:
            raise ImageError("the member is damaged")
        return packed


class RemoteZip(Zip):
    """The images in a remote ZIP file; its directory is read first, each member when it is wanted."""

    def __init__(self, place: Place, id: str) -> None:
        super().__init__(place.plain, id)
        self._place = place

    def _archive(self) -> zipfile.ZipFile:
        size = self._place.length()
        self._place = self._place.at(self._place.path, size)
        self._place.part(max(0, size - 22), size)  # zipfile would take an error of the network for a damaged file
        return zipfile.ZipFile(self._place.open())

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Stored:
        return RemoteMember(self._place, info)


class RemoteTar(Tar):
    """The images in a remote tar file, read once from front to back; those in flight are held."""

    def __init__(self, place: Place, id: str) -> None:
        super().__init__(place.plain, id)
        self.streamed = True
        self._place = place

    def _open(self) -> IO[bytes]:
        return self._place.open()


class RemoteParquet(Parquet):
    """The images in a column of a remote parquet file; of each row group the column of images alone is fetched."""

    def __init__(self, place: Place, id: str, column: str | None = None) -> None:
        super().__init__(place.plain, id, column)
        self._place = place

    def find(self, id: str) -> ImageLike | None:
        """None: it would take a row group for each image."""
        return None

    def _file(self) -> Any:
        return self._place.open()

    def _size(self) -> int:
        return self._place.length()


class RemoteVideo(Video):
    """Frames of a remote video file, read from front to back."""

    def __init__(self, place: Place, id: str, fps: float) -> None:
        super().__init__(place.plain, id, fps)
        self._place = place

    def find(self, id: str) -> ImageLike | None:
        """None: it would be read once more for each frame."""
        return None

    def _file(self) -> Any:
        return self._place.open()
