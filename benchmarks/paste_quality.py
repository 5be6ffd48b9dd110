"""Paste-back beside an inswapper-style paste: how near both come to a picture that is known.

    python benchmarks/paste_quality.py --task face_landmarker.task [--show FOLDER]

A stand-in replaces the network: the wanted picture is made first (the face recoloured, mirrored, ...), and the
"network" gives its crop and its mask.  Both systems cut, paste and are compared with the wanted picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from facesdk import FaceSDK, Store, read_image, write_image
from facesdk.annotation.alignment import arcface_template, similarity
from facesdk.face import Face
from facesdk.swap.crop import crop_matrix, cut_crop
from facesdk.swap.masks import feather
from facesdk.swap.paste import PasteOptions, paste, paste_mask
from facesdk.swap.warp import inverse, pixel_matrix, scale, similarity_matrix, transform, warp
from harness import ROOT, save

DATA = ROOT / "tests" / "data"
REFERENCE = Path(os.environ.get("FACESDK_REFERENCE") or ROOT.parent / "shared" / "reference")
TASK = REFERENCE / "annotation" / "models" / "face_landmarker_v2_with_blendshapes.task"
Pixels = np.ndarray[Any, Any]
# what a network's colours are off by
CASTS = {"colour factor": ((1.12, 0.97, 0.85), 0.0), "colour offset": (1.0, (0.06, -0.01, -0.05))}


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What a perfect swap would do: picture -> wanted, inside mask (H, W); factor and offset are a network's fault."""

    name: str
    picture: Pixels
    wanted: Pixels
    mask: Pixels
    face: Face
    size: int
    cast: tuple[Any, Any] = (1.0, 0.0)

    def network(self, matrix: Pixels, size: int) -> tuple[Pixels, Pixels]:
        """(result, mask) of the stand-in for a crop."""
        mask = warp(self.mask, matrix, (size, size), border="zero", cubic=False)
        crop, (factor, offset) = cut_crop(self.wanted, matrix, size)[0], self.cast
        return crop + (crop * np.float32(factor) + np.float32(offset) - crop) * mask[..., None], mask


def scenes(pictures: dict[str, tuple[Pixels, Face]]) -> Iterator[Scene]:
    """Every change on every picture, with crops coarser than, about as fine as, and finer than the face."""
    for name, (picture, face) in pictures.items():
        mask = feather(cv2.GaussianBlur(face.mask(), (0, 0), 1.5), 0.03)
        for change in (untouched, recoloured, mirrored):
            new = change(picture.astype(np.float32), face)
            blended = picture + mask[..., None] * (new - picture)
            wanted = np.rint(np.clip(blended, 0, 255)).astype(np.uint8)
            for size in (64, 128, 256) if change is not untouched else (128,):
                scene = Scene(f"{name}, {change.__name__}, crop {size}", picture, wanted, mask, face, size)
                yield scene
                for cast in CASTS if change is mirrored and size == 128 else ():
                    yield dataclasses.replace(scene, name=f"{scene.name}, {cast}", cast=CASTS[cast])


def untouched(picture: Pixels, face: Face) -> Pixels:
    return picture


def recoloured(picture: Pixels, face: Face) -> Pixels:
    """Detail kept, colours and contrast not."""
    return picture * np.float32([0.95, 0.8, 0.7]) + np.float32([10, 16, 24])


def mirrored(picture: Pixels, face: Face) -> Pixels:
    """Every feature somewhere else: the face mirrored about its own axis."""
    matrix = crop_matrix(face, 1)
    flip = np.array([[-1, 0, 1], [0, 1, 0], [0, 0, 1]], np.float64)
    back, there = (np.vstack([m, [0, 0, 1]]) for m in (inverse(matrix), matrix))
    return warp(picture, (back @ flip @ there)[:2], picture.shape[1::-1])


# -- systems --------------------------------------------------------------------------------------------------


def facesdk_paste(scene: Scene, options: PasteOptions | None = None) -> tuple[Pixels, Pixels, float]:
    """(picture, weight, milliseconds) of this package."""
    options = options or PasteOptions()
    start = time.perf_counter()
    matrix = crop_matrix(scene.face, scene.size)
    seen, validity = cut_crop(scene.picture, matrix, scene.size)
    cut = time.perf_counter() - start
    result, mask = scene.network(matrix, scene.size)
    start = time.perf_counter()
    weight = paste_mask(options, validity, model_mask=mask)
    pasted = paste(scene.picture, result, seen, weight, matrix, options, model_mask=mask)
    return pasted.picture, pasted.mask_full(), (cut + time.perf_counter() - start) * 1e3


def inswapper_paste(scene: Scene) -> tuple[Pixels, Pixels, float]:
    """(picture, weight, milliseconds) of a paste as inswapper does it: a white square, worn and blurred, no mask."""
    size, (height, width) = scene.size, scene.picture.shape[:2]
    start = time.perf_counter()
    matrix = similarity(scene.face.five_points, arcface_template(128) * size / 128)
    cv2.warpAffine(scene.picture, matrix, (size, size), borderValue=0.0)
    cut = time.perf_counter() - start
    result, _ = scene.network(matrix - half_pixel(matrix), size)
    start = time.perf_counter()
    back = cv2.invertAffineTransform(matrix)
    pasted = cv2.warpAffine(np.clip(result * 255, 0, 255), back, (width, height), borderValue=0.0)
    white = cv2.warpAffine(np.full((size, size), 255, np.float32), back, (width, height), borderValue=0.0)
    white[white > 20] = 255
    rows, columns = np.where(white == 255)
    side = int(np.sqrt(np.ptp(rows) * np.ptp(columns)))
    worn = max(side // 10, 10)
    white = cv2.erode(white, np.ones((worn, worn), np.uint8))
    blur = 2 * max(side // 20, 5) + 1
    weight = cv2.GaussianBlur(white, (blur, blur), 0) / 255
    merged = weight[..., None] * pasted + (1 - weight[..., None]) * scene.picture.astype(np.float32)
    return merged.astype(np.uint8), weight, (cut + time.perf_counter() - start) * 1e3


def half_pixel(matrix: Pixels) -> Pixels:
    """What a matrix gains when pixel centres, which were at halves, count as whole numbers."""
    return pixel_matrix(matrix) - matrix


SYSTEMS: dict[str, Callable[[Scene], tuple[Pixels, Pixels, float]]] = {
    "FaceSDK": facesdk_paste,
    "FaceSDK colour=0": lambda scene: facesdk_paste(scene, PasteOptions(colour=0)),
    "inswapper-style": inswapper_paste,
}

# -- metrics --------------------------------------------------------------------------------------------------


def figures(scene: Scene, picture: Pixels, weight: Pixels) -> dict[str, float]:
    """What a paste did wrong.

    changed_outside_px: pixels changed where the wanted mask is 0;  changed_weight0_px: where the paste's own weight is.
    psnr, delta_e (CIE76), sharpness (of the Laplacian, 1 = the wanted one's): where the wanted mask is above a half.
    seam_error: around the mask's edge, gradient of the error over the gradient that belongs there.
    """
    inside, kept = scene.mask > 0.5, scene.mask == 0
    around = (cv2.dilate(scene.mask, np.ones((9, 9))) > 0) & (scene.mask < 1)
    return {
        "changed_outside_px": int((picture != scene.picture).any(axis=2)[kept].sum()),
        "changed_weight0_px": int((picture != scene.picture).any(axis=2)[weight == 0].sum()),
        "psnr_inside_db": round(psnr(picture[inside], scene.wanted[inside]), 2),
        "delta_e_inside": round(float(delta_e(picture, scene.wanted)[inside].mean()), 3),
        "seam_error": round(seam_error(picture, scene.wanted, around), 3),
        "sharpness_ratio": round(sharpness(picture, inside) / sharpness(scene.wanted, inside), 3),
    }


def psnr(first: Pixels, second: Pixels) -> float:
    """Decibels of two pictures of 0..255; 99 where they are the same."""
    error = float(np.mean((first.astype(np.float64) - second) ** 2))
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))


def delta_e(first: Pixels, second: Pixels) -> Pixels:
    """(H, W) CIE76 colour difference of RGB pictures, after a blur of 1 px, as detail has no colour to the eye."""
    labs = [cv2.cvtColor(cv2.GaussianBlur(p.astype(np.float32) / 255, (0, 0), 1), cv2.COLOR_RGB2LAB)
            for p in (first, second)]  # fmt: skip
    return np.linalg.norm(labs[0] - labs[1], axis=2)


def seam_error(picture: Pixels, wanted: Pixels, band: Pixels) -> float:
    """Mean gradient of what is wrong, over the mean gradient that belongs there, around the mask's edge."""
    wrong, right = (_gradient(p)[band].mean() for p in (picture.astype(np.float32) - wanted, wanted))
    return float(wrong / right)


def sharpness(picture: Pixels, where: Pixels) -> float:
    """Mean square of the Laplacian."""
    return float((cv2.Laplacian(_grey(picture), cv2.CV_32F)[where] ** 2).mean())


def round_trip(picture: Pixels, matrix: Pixels, size: int) -> float:
    """PSNR of a picture cut and put back by the inverse, where the crop is 8 px and more from its border."""
    crop, _ = cut_crop(picture, matrix, size)
    back = 255 * warp(crop, inverse(matrix), picture.shape[1::-1])
    inner = np.zeros((size, size), np.float32)
    inner[8:-8, 8:-8] = 1
    seen = warp(inner, inverse(matrix), picture.shape[1::-1], border="zero", cubic=False) > 0.999
    return psnr(np.rint(np.clip(back, 0, 255))[seen], picture[seen])


def plain_round_trip(picture: Pixels, matrix: Pixels, size: int) -> float:
    """The same by plain bilinear warps of bytes, as inswapper cuts and pastes."""
    pixel = pixel_matrix(matrix)
    crop = cv2.warpAffine(picture, pixel, (size, size))
    back = cv2.warpAffine(crop, cv2.invertAffineTransform(pixel), picture.shape[1::-1])
    inner = np.zeros((size, size), np.float32)
    inner[8:-8, 8:-8] = 1
    seen = warp(inner, inverse(matrix), picture.shape[1::-1], border="zero", cubic=False) > 0.999
    return psnr(back[seen], picture[seen])


def _grey(picture: Pixels) -> Pixels:
    return cv2.cvtColor(picture.astype(np.float32), cv2.COLOR_RGB2GRAY)


def _gradient(picture: Pixels) -> Pixels:
    grey = _grey(picture)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


# -- the run --------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=Path, default=TASK, help="face_landmarker*.task file that finds the faces")
    parser.add_argument("--show", type=Path, help="write the pictures here")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rows = round_trips()
    for scene in scenes(faces(options.task)):
        for system, run in SYSTEMS.items():
            picture, weight, _ = run(scene)
            times = sorted(run(scene)[2] for _ in range(5))
            rows.append({"case": scene.name, "system": system, "threads": 1, "median_ms": round(times[2], 3)})
            rows[-1].update(figures(scene, picture, weight))
            print("  ".join(f"{value}" for value in rows[-1].values()))
            if options.show:
                show(options.show / f"{scene.name} - {system}.png", scene, picture)
    versions = {"versions": f"opencv {cv2.__version__}, numpy {np.__version__}"}
    print(f"-> {save('paste', [{**row, **versions} for row in rows]).relative_to(ROOT)}")
    return 0


def faces(task: Path) -> dict[str, tuple[Pixels, Face]]:
    """The pictures and their first face; `astronaut_large` is the same portrait three times as wide."""
    pictures = {name: read_image(DATA / f"{name}.png") for name in ("astronaut", "astronaut_rot35")}
    size = tuple(3 * side for side in pictures["astronaut"].shape[1::-1])
    pictures["astronaut_large"] = cv2.resize(pictures["astronaut"], size, interpolation=cv2.INTER_CUBIC)
    with tempfile.TemporaryDirectory() as home:
        bundle = Store(Path(home)).add(task)
        with FaceSDK("cpu", annotation=bundle.folder) as sdk:
            return {name: (picture, sdk.annotate(picture)[0]) for name, picture in pictures.items()}


def round_trips() -> list[dict[str, Any]]:
    """Rows of cutting and putting back, without any network."""
    picture, rows = read_image(DATA / "astronaut.png"), []
    for enlarged in (0.5, 1.0, 1.3, 2.5):
        for degrees in (0, 17, 90):
            size = int(160 * enlarged)
            turn = enlarged * np.exp(1j * np.radians(degrees))
            matrix = similarity_matrix(turn, size / 2 * (1 + 1j) - turn * (224 + 128j))
            for system, trip in (("FaceSDK", round_trip), ("inswapper-style", plain_round_trip)):
                case = f"round trip, scale {enlarged}, {degrees} degrees"
                rows.append({"case": case, "system": system, "round_trip_db": round(trip(picture, matrix, size), 2)})
                print(case, system, rows[-1]["round_trip_db"])
    return rows


def show(path: Path, scene: Scene, picture: Pixels) -> None:
    """The face before, after, and as wanted, side by side."""
    low, high = transform(inverse(crop_matrix(scene.face, 1)), np.array([[-0.1, -0.1], [1.1, 1.1]]))
    (x0, y0), (x1, y1) = np.clip(low, 0, None).astype(int), high.astype(int)
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.hstack([p[y0:y1, x0:x1] for p in (scene.picture, picture, scene.wanted)])
    zoom = max(1, round(1 / scale(crop_matrix(scene.face, 400))))
    write_image(path, np.repeat(np.repeat(row, zoom, axis=0), zoom, axis=1))


if __name__ == "__main__":
    sys.exit(main())
