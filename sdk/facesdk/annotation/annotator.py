"""The annotation chain: picture -> detection -> landmarks -> `Face`."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..engine import Device
from ..errors import BundleError, FaceSDKError, NoFaceFound, UsageError, one_of
from ..face import Face
from ..image import Picture
from .blazeface import BlazeFace, Detection, box_iou
from .geometry import facial_transform, head_pose
from .mesh import FaceMesh
from .region import Region
from .search import RELIABLE_SHARE, Pass, passes

Landmarks = npt.NDArray[np.float32]
Search = Literal["fast", "auto", "thorough"]
#: presence of a face that needs no second look, and the least of both looks otherwise.  On the golden images, upright,
#: turned in steps of 30 degrees and cut by the frame, true faces reach 0.996 in both, false and wrongly turned ones
#: stay below 0.88 in one of them (outcomes: tests/unit/test_search.py).
CERTAIN, CONVINCED = 0.999, 0.99
_MANY_VIEWS = 4


@dataclasses.dataclass(frozen=True)
class AnnotateOptions:
    """How to look for faces.  Defaults are MediaPipe's, but for `search`."""

    search: Search = dataclasses.field(
        default="auto",
        metadata={
            "help": "fast: MediaPipe's single pass; auto: further passes (close-up, turned, tiles) until one "
            "finds a face; thorough: all passes, for small faces beside large ones"
        },
    )
    max_faces: int | None = dataclasses.field(default=None, metadata={"help": "keep the best N faces; all by default"})
    min_score: float = dataclasses.field(default=0.5, metadata={"help": "least score of the detector, 0..1"})
    min_presence: float = dataclasses.field(default=0.5, metadata={"help": "least certainty of the landmark network"})
    smallest_px: float = dataclasses.field(default=20.0, metadata={"help": "smallest face worth a search in tiles"})

    def __post_init__(self) -> None:
        if self.search not in ("fast", "auto", "thorough"):
            raise one_of("search", self.search, ("fast", "auto", "thorough"))
        for name in ("min_score", "min_presence"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", remedy="give a number between 0 and 1")
        if self.max_faces is not None and self.max_faces < 1:
            raise UsageError(f"max_faces is {self.max_faces}", remedy="give 1 or more, or leave it out")
        if not self.smallest_px >= 1:
            raise UsageError(f"smallest_px is {self.smallest_px}", remedy="give 1 or more")


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """Something that was almost taken for a face: box (4,) px, detector score, presence (None: never asked)."""

    box: tuple[float, float, float, float]
    score: float
    presence: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Annotation:
    """What was found in one picture, best faces first; `error` says why there is none.

    image_size (width, height).  rejected: near misses, best first.  passes: names of the search passes that ran.
    """

    image_size: tuple[int, int]
    faces: tuple[Face, ...] = ()
    rejected: tuple[Candidate, ...] = ()
    passes: tuple[str, ...] = ()
    timings_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    error: FaceSDKError | None = None


class Annotator:
    """The networks of an annotation bundle, run as a chain.  Safe to use from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        device: Device = "auto",
        threads: int = 1,
        *,
        more_detectors: Bundle | None = None,
    ) -> None:
        """`threads`: one, because the networks are too small to share (see facesdk bench --threads 1 and 2).

        more_detectors  another annotation bundle, for the full-range detector that `bundle` may lack.
        """
        _check_bundle(bundle)
        self.bundle = bundle
        self._iou = float(bundle.constants["detection"]["iou"])
        homes = {name: source for source in (more_detectors, bundle) if source for name in source.engine_names}
        self.detectors = {
            name: BlazeFace(homes[name].open(name, device, threads=threads)) for name in RELIABLE_SHARE if name in homes
        }
        self.mesh = FaceMesh(bundle, device, threads)

    def __call__(self, picture: Picture, options: AnnotateOptions | None = None) -> Annotation:
        """Faces of a (H, W, 3) RGB uint8 picture; where there is none, `error` is a NoFaceFound."""
        search = _Search(self, picture, options or AnnotateOptions())
        height, width = picture.shape[:2]
        for step in passes(width, height, tuple(self.detectors), search.options.smallest_px):
            if not search.wants(step):
                break
            search.run(step)
        return search.result()

    def detect(self, picture: Picture, step: Pass, min_score: float) -> tuple[list[Detection], list[Detection]]:
        """Detections of one pass, best first and each face once, and its near misses."""
        detector = self.detectors[step.detector]
        results = [detector(picture, view, min_score, self._iou) for view in step.views]
        found = sorted((d for detections, _ in results for d in detections), key=lambda d: -d.score)
        return found if len(step.views) == 1 else _distinct(found), [miss for _, miss in results if miss is not None]

    def face(
        self,
        picture: Picture,
        region: Region,
        landmarks: Landmarks,
        presence: float,
        detection: Detection | None = None,
        track_id: int | None = None,
    ) -> Face:
        """All that follows from the landmarks of one face; without a detection the box is that of the landmarks."""
        height, width = picture.shape[:2]
        transform = facial_transform(landmarks, width, height, self.mesh.canonical)
        points = landmarks[:, :2]
        return Face(
            box=(detection.box if detection else np.concatenate([points.min(axis=0), points.max(axis=0)])).astype(
                np.float32
            ),
            score=detection.score if detection else presence,
            key_points=detection.key_points.astype(np.float32) if detection else np.empty((0, 2), np.float32),
            landmarks=landmarks,
            presence=presence,
            five_points=self.mesh.five_points(landmarks),
            transform=transform.astype(np.float32),
            pose=head_pose(transform),
            blendshapes=self.mesh.blendshapes(landmarks),
            region=region,
            image_size=(width, height),
            triangles=self.mesh.triangles,
            track_id=track_id,
        )

    def close(self) -> None:
        """Free all engines."""
        for detector in self.detectors.values():
            detector.engine.close()
        self.mesh.close()


class _Search:
    """The state of one search: faces so far, near misses, times.

    A face is sure when the landmark network is.  Where it hesitates it looks again, where its own landmarks say: a
    true face then convinces it.  Unsure faces of MediaPipe's pass stand, unless a later pass finds a sure one there.
    """

    def __init__(self, annotator: Annotator, picture: Picture, options: AnnotateOptions) -> None:
        self.annotator, self.picture, self.options = annotator, picture, options
        self.sure: list[Face] = []
        self.unsure: list[Face] = []
        self.rejected: list[Candidate] = []
        self.passes: list[str] = []
        self.timings = dict.fromkeys(("detect", "landmarks", "derive"), 0.0)

    def wants(self, step: Pass) -> bool:
        """Whether a pass is worth running after those before it; tiles only where nothing at all was found."""
        if not self.passes or self.options.search == "thorough":
            return True
        nothing = not self.sure and not self.unsure
        return self.options.search == "auto" and (nothing or (bool(self.unsure) and len(step.views) < _MANY_VIEWS))

    def run(self, step: Pass) -> None:
        """Add the faces of one pass that are not there yet."""
        start = time.perf_counter()
        detections, misses = self.annotator.detect(self.picture, step, self.options.min_score)
        detections = [d for d in detections if not any(same_face(d.box, face.box) for face in self.sure)]
        start = self._lap("detect", start)
        mesh = self.annotator.mesh
        regions = [d.face_region(mesh.region_scale, square=mesh.square) for d in detections[: self.options.max_faces]]
        meshes = mesh.landmarks(self.picture, regions)
        start = self._lap("landmarks", start)
        self.rejected += [Candidate(_box(d), d.score, None) for d in misses]
        for detection, region, (landmarks, presence) in zip(detections, regions, meshes, strict=False):
            self._sort_in(detection, region, landmarks, presence, first=not self.passes)
        self._lap("derive", start)
        self.passes.append(step.name)

    def result(self) -> Annotation:
        standing = [face for face in self.unsure if not any(same_face(face.box, other.box) for other in self.sure)]
        faces = sorted(self.sure + standing, key=lambda face: -face.score)[: self.options.max_faces]
        rejected = sorted(self.rejected, key=lambda c: (c.presence or 0, c.score), reverse=True)
        size = (self.picture.shape[1], self.picture.shape[0])
        found = Annotation(size, tuple(faces), tuple(rejected), tuple(self.passes), self.timings)
        return found if faces else dataclasses.replace(found, error=_no_face(found, self.options))

    def _sort_in(
        self, detection: Detection, region: Region, landmarks: Landmarks, presence: float, *, first: bool
    ) -> None:
        """Make a face of one landmark result, or note it as rejected."""
        sure = self.options.search == "fast" or (first and presence >= CERTAIN)
        if not sure:
            again = self.annotator.mesh.region_of(landmarks)
            ((better, second),) = self.annotator.mesh.landmarks(self.picture, [again])
            if min(presence, second) >= CONVINCED:
                sure, region, landmarks, presence = True, again, better, second
        if presence <= self.options.min_presence or not (sure or first):
            self.rejected.append(Candidate(_box(detection), detection.score, presence))
            return
        faces = self.sure if sure else self.unsure
        faces.append(self.annotator.face(self.picture, region, landmarks, presence, detection))

    def _lap(self, stage: str, start: float) -> float:
        now = time.perf_counter()
        self.timings[stage] += (now - start) * 1e3
        return now


def _check_bundle(bundle: Bundle) -> None:
    lacks = [f"engine {name}" for name in ("detector_short", "landmarks") if name not in bundle.engine_names]
    lacks += [f"constants {name}" for name in ("detection", "landmarks") if name not in bundle.constants]
    if lacks:
        raise BundleError(
            f"{bundle.name} is not an annotation bundle",
            cause=f"it lacks {', '.join(lacks)}",
            remedy="choose one of system annotation: facesdk models list",
        )


def _no_face(annotation: Annotation, options: AnnotateOptions) -> NoFaceFound:
    """Why there is no face, and the nearest miss; a candidate counts as uncertain from half of `min_score`."""
    image_size = annotation.image_size
    serious = [c for c in annotation.rejected if c.score >= options.min_score / 2]
    best = serious[0] if serious else None
    if max(image_size) < options.smallest_px or (best and _longer_side(best) < options.smallest_px):
        reason, remedy = "too-small", f"give a picture in which the face is larger than {options.smallest_px:g} px"
    elif best:
        reason, remedy = "too-uncertain", "lower min_score or min_presence, or give a clearer picture"
    else:
        reason, remedy = "none", "give a picture that shows a face; search='fast' skips the further passes"
    what = f"; the nearest miss scored {best.score:.2f} at {tuple(round(v) for v in best.box)}" if best else ""
    return NoFaceFound(
        f"no face in {image_size[0]} x {image_size[1]} px{what}", reason=reason, best_rejected=best, remedy=remedy
    )


def _distinct(detections: list[Detection]) -> list[Detection]:
    kept: list[Detection] = []
    for detection in detections:
        if not any(same_face(detection.box, other.box) for other in kept):
            kept.append(detection)
    return kept


def same_face(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Whether two boxes show one face: they overlap, or one lies in the other (a face cut by the edge of a tile)."""
    inner = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    smaller = min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())
    return bool(box_iou(a, b[None])[0] > 0.3 or inner > 0.6 * smaller)


def _box(detection: Detection) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = detection.box.tolist()
    return x0, y0, x1, y1


def _longer_side(candidate: Candidate) -> float:
    x0, y0, x1, y1 = candidate.box
    return max(x1 - x0, y1 - y0)
