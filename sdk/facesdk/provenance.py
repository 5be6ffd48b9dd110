"""What a picture file says about its origin: XMP written, XMP and EXIF read without decoding the picture."""

from __future__ import annotations

import dataclasses
import functools
import html
import mmap
import re
import struct
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args
from xml.sax.saxutils import quoteattr

from PIL import Image as Pillow
from PIL import PngImagePlugin, UnidentifiedImageError

from .errors import ImageError, ImageTooLarge, UsageError, one_of

_ORIENTATION, _SOFTWARE = 0x0112, 0x0131  # EXIF 2.32
_PACKET = re.compile(rb"<x:xmpmeta.*?</x:xmpmeta>|<rdf:RDF.*?</rdf:RDF>", re.DOTALL)
_MOST_XMP_BYTES = 1 << 20

Kind = Literal["swapped", "generated"]
# IPTC NewsCodes, controlled vocabulary digitalsourcetype
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_SOURCE_TYPE = {"swapped": "compositeWithTrainedAlgorithmicMedia", "generated": "trainedAlgorithmicMedia"}
_NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "facesdk": "urn:facesdk:provenance:1",
}
_LONGEST = 256  # of a bundle's name and version; a JPEG segment holds 64 KiB


@functools.cache  # it reads the package's metadata, which takes longer than writing a small picture
def _our_version() -> str:
    return version("facesdk")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What is written into a picture that a model made.

    kind     "swapped": a photo with a part made by a model; "generated": made by a model altogether.
    bundle   name of the bundle that made it.   version: of that bundle, empty where it has none.
    """

    kind: Kind
    bundle: str
    version: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise one_of("kind", self.kind, get_args(Kind))
        for name, text in (("bundle", self.bundle), ("version", self.version)):
            if not text.isprintable() or len(text) > _LONGEST or (name == "bundle" and not text):
                raise UsageError(f"{name} is {text[:40]!r}", remedy=f"give 1 to {_LONGEST} printable characters")

    def to_xmp(self) -> str:
        """The XMP packet (ISO 16684-1): IPTC's digital source type, the software, the bundle."""
        properties = {
            "Iptc4xmpExt:DigitalSourceType": _SOURCE_TYPES + _SOURCE_TYPE[self.kind],
            "xmp:CreatorTool": f"FaceSDK {_our_version()}",
            "facesdk:bundle": self.bundle,
            **({"facesdk:bundleVersion": self.version} if self.version else {}),
        }
        spaces = {f"xmlns:{prefix}": address for prefix, address in _NAMESPACES.items()}
        attributes = "".join(f"\n    {name}={quoteattr(value)}" for name, value in {**spaces, **properties}.items())
        return (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
            ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
            f'  <rdf:Description rdf:about=""{attributes}/>\n </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>'
        )


def save_marked(picture: Pillow.Image, path: Path, provenance: Provenance, **options: Any) -> None:
    """Save with the XMP packet: PNG, JPEG, WebP, TIFF, GIF, AVIF.

    MP4 is not among them: Pillow writes no video.  Raises ImageError for other formats, or what Pillow raises.
    """
    kind = Pillow.registered_extensions().get(path.suffix.lower(), "")
    if kind not in _PLACES:
        raise ImageError(
            f"pictures of the kind {path.suffix!r} cannot carry their provenance",
            cause="what a model made is marked as such (XMP)",
            remedy="use .png, .jpg, .webp, .tif or .gif; or switch the mark off: provenance=None",
        )
    packet = provenance.to_xmp().encode()
    picture.save(path, **options, **_PLACES[kind](packet))
    if kind == "GIF":
        # an application extension before the trailer; XMP's own trick lets readers of sub-blocks find its end
        data = path.read_bytes()
        end = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
        path.write_bytes(data[:-1] + b"!\xff\x0bXMP DataXMP" + packet + end + data[-1:])


def _png_text(packet: bytes) -> dict[str, Any]:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet.decode())
    return {"pnginfo": info}


def _jpeg_segment(packet: bytes) -> dict[str, Any]:
    body = b"http://ns.adobe.com/xap/1.0/\0" + packet
    return {"extra": b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body}


# Pillow's options that put an XMP packet where the format wants it (ISO 16684-3)
_PLACES: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "PNG": _png_text,
    "JPEG": _jpeg_segment,
    "WEBP": lambda packet: {"xmp": packet},
    "AVIF": lambda packet: {"xmp": packet},
    "TIFF": lambda packet: {"tiffinfo": {700: packet}},
    "GIF": lambda packet: {},
}


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """The header of a picture file.

    orientation  EXIF 1..8; 1 (upright) where the file has none.
    provenance   name -> text: `DigitalSourceType` (IPTC), `software`, `bundle`, `bundle_version`; empty where nothing
                 is recorded.
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
              "bundle": "bundle", "Bundle": "bundle", "bundleVersion": "bundle_version"}  # fmt: skip
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
