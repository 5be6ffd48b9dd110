"""How small and how large a face each detector finds: least score over photos, by the face's share of the view.

    python benchmarks/detection.py PHOTO...

Each photo shows one face; the square view around its mesh is grown and shrunk.  The shares in
`facesdk.annotation.search` are read off this table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from facesdk import FaceSDK, read_image
from facesdk.annotation.annotator import AnnotateOptions, Annotator
from facesdk.annotation.region import Region
from harness import ROOT, save

SHARES = (1.6, 1.3, 1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.18, 0.15, 0.12, 0.1, 0.08, 0.06, 0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, help="photos of one face each")
    options = parser.parse_args()
    rows = []
    with FaceSDK("cpu", annotation="annotation") as sdk:
        for name in sdk.annotator.detectors:
            for share in SHARES:
                scores = [score(sdk.annotator, name, photo, share) for photo in options.photos]
                rows.append({"case": f"face {share:g} of the view", "system": name, "photos": len(scores)})
                rows[-1] |= {"least_score": round(min(scores), 3), "mean_score": round(float(np.mean(scores)), 3)}
                print(f"{name:16} {share:5.2f}  least {min(scores):.2f}  mean {np.mean(scores):.2f}")
    print(f"-> {save('detection', rows).relative_to(ROOT)}")
    return 0


def score(annotator: Annotator, detector: str, photo: Path, share: float) -> float:
    """Best score of a detector over the view of which the photo's face fills `share`."""
    picture = read_image(photo)
    points = annotator(picture, AnnotateOptions(max_faces=1)).faces[0].landmarks[:, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    (x, y), side = ((low + high) / 2).tolist(), float((high - low).max()) / share
    found, miss = annotator.detectors[detector](picture, Region(x, y, side, side), 0.5, 0.5)
    best = found[0] if found else miss
    return best.score if best else 0.0


if __name__ == "__main__":
    sys.exit(main())
