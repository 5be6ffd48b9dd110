"""Faces through a video: the landmarks of one frame say where to look in the next; One-Euro smoothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..face import Face
from ..image import Picture
from .annotator import AnnotateOptions, Annotation, Annotator, same_face
from .region import Region

Points = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class TrackOptions:
    """How to follow faces.  The filter's constants are MediaPipe's for face landmarks."""

    frames_per_second: float = 30.0
    smooth: bool = True
    detect_every: int = 15  # frames between looks for new faces while at least one is tracked
    min_cutoff: float = 0.05
    beta: float = 80.0
    derivative_cutoff: float = 1.0

    def __post_init__(self) -> None:
        for name in ("frames_per_second", "detect_every", "min_cutoff", "derivative_cutoff"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}", remedy="give a positive number")
        if not self.beta >= 0:
            raise UsageError(f"beta is {self.beta}", remedy="give 0 or more")


class OneEuro:
    """One-Euro filter (Casiez 2012) of a point set; speed is measured in face sizes per second."""

    def __init__(self, options: TrackOptions) -> None:
        self._options, self._rate = options, options.frames_per_second
        self._value: npt.NDArray[np.float64] | None = None
        self._speed: npt.NDArray[np.float64] | None = None

    def __call__(self, points: Points) -> Points:
        """The smoothed points of this frame, same shape."""
        value = points.astype(np.float64)
        if self._value is None or self._speed is None:
            self._value, self._speed = value, np.zeros_like(value)
            return points
        extent = np.ptp(value[:, :2], axis=0).mean()
        speed = (value - self._value) / max(extent, 1e-6) * self._rate
        self._speed = self._blend(self._speed, speed, self._options.derivative_cutoff)
        cutoff = self._options.min_cutoff + self._options.beta * np.abs(self._speed)
        self._value = self._blend(self._value, value, cutoff)
        return self._value.astype(np.float32)

    def _blend(
        self, old: npt.NDArray[np.float64], new: npt.NDArray[np.float64], cutoff: float | npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        alpha = 1 / (1 + self._rate / (2 * math.pi * cutoff))
        return np.asarray(alpha * new + (1 - alpha) * old)


class Tracker:
    """Faces of successive frames; a face keeps its `track_id` as long as the landmark network sees it."""

    def __init__(self, annotator: Annotator, options: AnnotateOptions, tracking: TrackOptions) -> None:
        self._annotator, self._options, self._tracking = annotator, options, tracking
        self._tracks: list[_Track] = []
        self._identifiers = itertools.count(1)
        self._frames_since_detection = 0

    def __call__(self, frame: Picture) -> Annotation:
        """The faces of the next frame, in the order in which they were first seen.

        The detector runs while nothing is tracked and every `detect_every` frames, but not once `max_faces` are.
        """
        start = time.perf_counter()
        faces = self._follow(frame)
        seen_ms = (time.perf_counter() - start) * 1e3
        result = Annotation((frame.shape[1], frame.shape[0]))
        self._frames_since_detection += 1
        most = self._options.max_faces
        room = None if most is None else most - len(faces)
        if not faces or (room != 0 and self._frames_since_detection >= self._tracking.detect_every):
            self._frames_since_detection = 0
            result = self._annotator(frame, self._options)
            new = [face for face in result.faces if not any(same_face(face.box, old.box) for old in faces)]
            faces += [self._begin(face) for face in new[:room]]
        return dataclasses.replace(
            result,
            error=None if faces else result.error,
            faces=tuple(faces),
            timings_ms={**result.timings_ms, "track": seen_ms},
        )

    def _follow(self, frame: Picture) -> list[Face]:
        """Faces of the running tracks; those that are lost, or have slid onto another's face, end."""
        faces: list[Face] = []
        alive = []
        regions = [track.region for track in self._tracks]
        found = self._annotator.mesh.landmarks(frame, regions)
        for track, (landmarks, presence) in zip(self._tracks, found, strict=True):
            if presence <= self._options.min_presence:
                continue
            region, track.region = track.region, self._annotator.mesh.region_of(landmarks)
            if track.smooth is not None:
                landmarks = track.smooth(landmarks)
            face = self._annotator.face(frame, region, landmarks, presence, track_id=track.identifier)
            if not any(same_face(face.box, other.box) for other in faces):
                faces.append(face)
                alive.append(track)
        self._tracks = alive
        return faces

    def _begin(self, face: Face) -> Face:
        smooth = OneEuro(self._tracking) if self._tracking.smooth else None
        if smooth is not None:
            smooth(face.landmarks)
        identifier = next(self._identifiers)
        self._tracks.append(_Track(identifier, self._annotator.mesh.region_of(face.landmarks), smooth))
        return dataclasses.replace(face, track_id=identifier)


@dataclasses.dataclass
class _Track:
    identifier: int
    region: Region
    smooth: OneEuro | None
