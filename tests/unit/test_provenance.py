"""Provenance: written into every format that carries it, read back by `facesdk inspect`, absent where switched off."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import features

from facesdk.cli import main
from facesdk.errors import ImageError, UsageError
from facesdk.image import read_image, write_image
from facesdk.provenance import PictureFile, Provenance, parse_xmp

RGB = np.random.default_rng(3).integers(0, 256, (24, 40, 3), np.uint8)
SWAPPED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MARK = Provenance("swapped", "hififace-256", "3")
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".tif", ".gif"] + [".avif"] * bool(features.check("avif"))


def recorded(path: Path) -> dict[str, str]:
    return PictureFile.read(path).provenance


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PNG"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write_image(path, RGB, MARK)
    found = recorded(path)
    assert found.pop("software").startswith("FaceSDK 0")
    assert found == {"DigitalSourceType": SWAPPED, "bundle": "hififace-256", "bundle_version": "3"}
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_mark_does_not_touch_a_pixel(tmp_path: Path, suffix: str) -> None:
    for name, mark in (("plain", None), ("marked", MARK)):
        write_image(tmp_path / f"{name}{suffix}", RGB, mark)
    plain, marked = (read_image(tmp_path / f"{name}{suffix}") for name in ("plain", "marked"))
    np.testing.assert_array_equal(marked, plain)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_packet_is_where_the_format_has_it(tmp_path: Path, suffix: str) -> None:
    """Pillow finds it by itself; in a GIF, which Pillow searches for none, the sub-blocks end at the trailer."""
    path = tmp_path / f"out{suffix}"
    write_image(path, RGB, MARK)
    if suffix == ".gif":
        assert end_of_extension(path.read_bytes(), b"XMP DataXMP") == path.stat().st_size - 1
        assert path.read_bytes().endswith(b";")
        return
    with Pillow.open(path) as picture:
        picture.load()
        packet = picture.info.get("xmp") or picture.info["XML:com.adobe.xmp"].encode()
    assert bytes(packet).startswith(b"<?xpacket begin=")


def end_of_extension(data: bytes, name: bytes) -> int:
    """Where a GIF reader that knows nothing of XMP arrives after skipping the extension."""
    position = data.index(b"!\xff\x0b" + name) + 3 + len(name)
    while data[position]:
        position += 1 + data[position]
    return position + 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_switched_off(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write_image(path, RGB, provenance=None)
    assert recorded(path) == {}
    assert b"xmpmeta" not in path.read_bytes()


@pytest.mark.parametrize("picture", [RGB, RGB[..., 0]])
def test_inspect_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str], picture: np.ndarray) -> None:
    path = tmp_path / "out.png"
    write_image(path, picture, Provenance("generated", "dense-face"))
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["provenance"]
    assert found["DigitalSourceType"] == GENERATED
    assert found["bundle"] == "dense-face"
    assert "bundle_version" not in found


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".jp2"])
def test_formats_without_a_place_are_refused_and_leave_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(ImageError, match=r"provenance=None") as caught:
        write_image(path, RGB, MARK)
    assert suffix in caught.value.fact
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_unknown_suffix_is_still_an_unknown_suffix(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ImageError):
        write_image(tmp_path / f"out{suffix}x", RGB, MARK)
    assert not list(tmp_path.iterdir())


def test_the_packet_is_xml_whatever_the_names_hold() -> None:
    mark = Provenance("swapped", """<b> & "quoted" 'both' é 中""", "1.0 <beta>")
    packet = mark.to_xmp()
    tree = ElementTree.fromstring(packet.split("?>", 1)[1].rsplit("<?", 1)[0])
    (description,) = tree.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert description.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"] == SWAPPED
    assert description.attrib["{http://ns.adobe.com/xap/1.0/}CreatorTool"].startswith("FaceSDK ")
    found = parse_xmp(packet.encode())
    assert (found["bundle"], found["bundle_version"]) == (mark.bundle, mark.version)


def test_the_longest_names_fit_a_jpeg_segment(tmp_path: Path) -> None:
    mark = Provenance("swapped", "&" * 256, "中" * 256)
    write_image(tmp_path / "out.jpg", RGB, mark)
    assert recorded(tmp_path / "out.jpg")["bundle_version"] == "中" * 256


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (("edited", "b"), "kind"),
        (("swapped", ""), "bundle"),
        (("swapped", "a\nb"), "bundle"),
        (("swapped", "a\ud800"), "bundle"),
        (("swapped", "b", "\0"), "version"),
        (("swapped", "b" * 257), "bundle"),
    ],
)
def test_marks_that_cannot_be_written(fields: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        Provenance(*fields)  # type: ignore[arg-type]
    assert caught.value.remedy
