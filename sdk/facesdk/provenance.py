"""What a picture file says about its origin: XMP and EXIF, read without decoding the picture."""

from __future__ import annotations

import dataclasses
import html
import mmap
import re
import struct
import warnings
from pathlib import Path

from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from .errors import ImageError, ImageTooLarge

_ORIENTATION, _SOFTWARE = 0x0112, 0x0131  # EXIF 2.32
_PACKET = re.compile(rb"<x:xmpmeta.*?</x:xmpmeta>|<rdf:RDF.*?</rdf:RDF>", re.DOTALL)
_MOST_XMP_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """The header of a picture file.

    orientation  EXIF 1..8; 1 (upright) where the file has none.
    provenance   name -> text: `DigitalSourceType` (IPTC), `software`, `bundle`; empty where nothing is recorded.
    """

    format: str
    width: int
    height: int
    mode: str
    orientation: int
    provenance: dict[str, str]

    @classmethod
    def read(cls, path: str | Path) -> PictureFile:
        """The header of the file; raises ImageError where Pillow does not know it, or ImageTooLarge."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nothing is decoded, so neither size nor odd EXIF does harm
                with Pillow.open(path) as picture:
                    return _header(picture, Path(path))
        except UnidentifiedImageError as error:
            raise ImageError(f"{path} is not a picture that Pillow reads", remedy="check the path") from error
        except Pillow.DecompressionBombError as error:
            raise ImageTooLarge(f"{path} is too large", cause=str(error), remedy="scale it down first") from error
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise ImageError(f"{path} cannot be read", cause=str(error), remedy="get the file again") from error


def _header(picture: Pillow.Image, path: Path) -> PictureFile:
    exif = picture.getexif()
    orientation = exif.get(_ORIENTATION, 1)
    packet = _embedded(picture) or _searched(path)
    provenance = parse_xmp(packet)
    if software := str(exif.get(_SOFTWARE) or picture.info.get("Software") or "").strip("\0 "):
        provenance.setdefault("software", software)
    return PictureFile(
        format=picture.format or "unknown",
        width=picture.width,
        height=picture.height,
        mode=picture.mode,
        orientation=orientation if orientation in range(1, 9) else 1,
        provenance=provenance,
    )


def parse_xmp(packet: bytes) -> dict[str, str]:
    """The origin that an XMP packet states; by search, so that a packet that is not valid XML still tells."""
    text = packet.decode(errors="replace")
    wanted = {"DigitalSourceType": "DigitalSourceType", "CreatorTool": "software", "Software": "software",
              "bundle": "bundle", "Bundle": "bundle"}  # fmt: skip
    found: dict[str, str] = {}
    for tag, name in wanted.items():
        if value := _property(text, tag):
            found.setdefault(name, value)
    return found


def _property(text: str, tag: str) -> str:
    """The value of `prefix:tag`, written as an attribute, as an element, or as an element's rdf:resource."""
    name = rf"\b[A-Za-z][\w-]*:{tag}"
    for pattern in (rf"{name}\s*=\s*([\"'])(.*?)\1", rf"<{name}\s[^>]*?rdf:resource\s*=\s*([\"'])(.*?)\1",
                    rf"<{name}(\s[^>]*)?>([^<]+)<"):  # fmt: skip
        if found := re.search(pattern, text, re.DOTALL):
            return html.unescape(found[2]).strip()
    return ""


def _embedded(picture: Pillow.Image) -> bytes:
    for key in ("xmp", "XML:com.adobe.xmp"):
        value = picture.info.get(key)
        if value:
            return value.encode() if isinstance(value, str) else bytes(value)
    return b""


def _searched(path: Path) -> bytes:
    """The first XMP packet anywhere in the file: for formats whose XMP this Pillow does not read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = _PACKET.search(data)
        return found[0][:_MOST_XMP_BYTES] if found else b""
