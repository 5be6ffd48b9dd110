"""`FaceSDK`: the facade over all systems."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .annotation.annotator import AnnotateOptions, Annotation, Annotator
from .annotation.tracking import Tracker, TrackOptions
from .engine import Device
from .errors import FaceSDKError, ModelNotFound, UsageError
from .face import Face
from .image import PictureSource, read_image
from .store import Store

#: annotation bundles in the order in which they are taken; the one with irises and blendshapes first
ANNOTATION_BUNDLES = ("annotation-478", "annotation")


class FaceSDK:
    """Faces in, faces out.  Engines open at first use; safe to use from several threads; a context manager.

    device      see Engine.open.   threads: processor threads of each engine; None: what suits its networks.
    annotation  name of a bundle in the store or path of a bundle folder; by default the best one in the store.
    """

    def __init__(
        self,
        device: Device = "auto",
        *,
        threads: int | None = None,
        annotation: str | Path | None = None,
        store: Store | None = None,
    ) -> None:
        self._device, self._threads, self._annotation = device, threads, annotation
        self._store = store or Store()
        self._lock = threading.Lock()
        self._annotator: Annotator | None = None

    def annotate(self, image: PictureSource, options: AnnotateOptions | None = None) -> list[Face]:
        """The faces of a picture, best first.

        Raises NoFaceFound (with the nearest miss), ImageError for a picture that cannot be read, ModelNotFound.
        """
        result = self.annotator(read_image(image), options)
        if result.error is not None:
            raise result.error
        return list(result.faces)

    def annotate_batch(
        self, images: Iterable[PictureSource], options: AnnotateOptions | None = None, *, workers: int = 1
    ) -> Iterator[Annotation]:
        """One Annotation per picture, in order: its faces, or the `error` (NoFaceFound, ImageError) instead.

        workers  pictures in work at once; at most twice as many are held in memory.
        Raises UsageError, ModelNotFound.
        """
        if workers < 1:
            raise UsageError(f"workers is {workers}", remedy="give 1 or more")
        options, annotator = options or AnnotateOptions(), self.annotator

        def one(image: PictureSource) -> Annotation:
            try:
                return annotator(read_image(image), options)
            except FaceSDKError as error:
                return Annotation((0, 0), error=error)

        with ThreadPoolExecutor(workers) as pool:
            waiting = []
            for image in images:
                waiting.append(pool.submit(one, image))
                if len(waiting) >= 2 * workers:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

    def track(
        self,
        frames: Iterable[PictureSource],
        options: AnnotateOptions | None = None,
        tracking: TrackOptions | None = None,
    ) -> Iterator[Annotation]:
        """One Annotation per frame of a video; a face keeps its `track_id` while it is seen."""
        tracker = Tracker(self.annotator, options or AnnotateOptions(), tracking or TrackOptions())
        for frame in frames:
            yield tracker(read_image(frame))

    @property
    def annotator(self) -> Annotator:
        """The annotation chain, opened at first use."""
        with self._lock:
            if self._annotator is None:
                self._annotator = self._open_annotator()
            return self._annotator

    def close(self) -> None:
        """Free every engine; a later call opens them again."""
        with self._lock:
            annotator, self._annotator = self._annotator, None
        if annotator is not None:
            annotator.close()

    def __enter__(self) -> FaceSDK:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_annotator(self) -> Annotator:
        installed = [name for name in ANNOTATION_BUNDLES if self._store.path(name).is_dir()]
        if self._annotation is None and not installed:
            raise ModelNotFound("no annotation bundle is installed", remedy="facesdk models pull annotation")
        bundle = self._store.open(installed[0] if self._annotation is None else self._annotation)
        # task files lack the full-range detector that finds small faces; the wheel's bundle has it
        more = self._store.open("annotation") if "annotation" in installed else None
        return Annotator(bundle, self._device, 1 if self._threads is None else self._threads, more_detectors=more)
