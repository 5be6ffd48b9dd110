"""`FaceSDK`: the facade over all systems."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .annotation.annotator import AnnotateOptions, Annotation, Annotator
from .annotation.tracking import Tracker, TrackOptions
from .diffusion.face_tokens import FaceTokens
from .diffusion.generate import Generation, OnPreview, Score, generate
from .diffusion.networks import DiffusionNetworks
from .diffusion.networks import find_bundle as find_diffusion_bundle
from .diffusion.options import GenerateOptions, MethodChoice
from .diffusion.people import Faces, People, likeness, people_of
from .encoder import Encoder, find_bundle
from .engine import Device, Precision, StepCallback, check_place
from .errors import EmbeddingSpaceMismatch, FaceSDKError, ModelNotFound, UsageError
from .face import Face
from .identity import Identity
from .image import Picture, PictureSource, read_image
from .store import Store
from .swap.choose import choose_faces
from .swap.networks import SourceFace, SwapNetworks
from .swap.networks import find_bundle as find_swap_bundle
from .swap.paste import PasteOptions
from .swap.swapper import SwapOptions, Swapper, SwapResult
from .synthesis.attributes import AttributeOptions
from .synthesis.generate import SynthesisOptions
from .synthesis.networks import Floats, SynthesisNetworks
from .synthesis.networks import find_bundle as find_synthesis_bundle
from .synthesis.sampling import sample_vectors
from .synthesis.synthesizer import Synthesis, Synthesizer

#: annotation bundles in the order in which they are taken; the one with irises and blendshapes first
ANNOTATION_BUNDLES = ("annotation-478", "annotation")

IdentitySource = Identity | PictureSource | Sequence[PictureSource]

log = logging.getLogger("facesdk")


class FaceSDK:
    """Faces in, faces out.  Engines open at first use; safe to use from several threads; a context manager.

    device      see Engine.open.   threads: processor threads of each engine; None: what suits its networks.
    annotation  name of a bundle in the store or path of a bundle folder; by default the best one in the store.
    encoder     the same for the encoder, swapper for face swap, synthesizer for synthesis, diffusion for prompts; by
                default the only one in the store.
    precision   of what paints: synthesis and diffusion; see Engine.open.
    resident    False frees the engines of diffusion after each stage: less memory, and every call opens them anew.
    """

    def __init__(
        self,
        device: Device = "auto",
        *,
        threads: int | None = None,
        annotation: str | Path | None = None,
        encoder: str | Path | None = None,
        swapper: str | Path | None = None,
        synthesizer: str | Path | None = None,
        diffusion: str | Path | None = None,
        precision: Precision = "fp32",
        resident: bool = True,
        store: Store | None = None,
    ) -> None:
        check_place(device, precision)
        self._device, self._threads, self._precision, self._resident = device, threads, precision, resident
        self._annotation, self._encoder_name, self._swapper_name = annotation, encoder, swapper
        self._synthesizer_name, self._diffusion_name = synthesizer, diffusion
        self._store = store or Store()
        self._lock = threading.Lock()
        self._annotator: Annotator | None = None
        self._encoder: Encoder | None = None
        self._swapper: Swapper | None = None
        self._synthesizer: Synthesizer | None = None
        self._diffusion: DiffusionNetworks | None = None

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

    def encode(
        self, images: PictureSource | Sequence[PictureSource], face: Face | None = None, *, flip: bool = False
    ) -> Identity:
        """The identity of the person in a picture, or in a list of pictures of one person.

        face  whose, in a single picture; by default the largest, and the log says so where there are others.
        flip  mean over each crop and its mirror image, at twice the work.
        Raises NoFaceFound, ImageError, ModelNotFound, UsageError.
        """
        several = cast(Sequence[PictureSource], images if isinstance(images, list | tuple) else [images])
        if face is not None and len(several) != 1:
            raise UsageError(f"one face for {len(several)} pictures", remedy="give a single picture, or leave it out")
        pictures = (read_image(image) for image in several)  # one at a time in memory
        return self.encoder.encode_many(((p, face or self._largest_face(p)) for p in pictures), flip=flip)

    def compare(self, a: IdentitySource, b: IdentitySource) -> float:
        """Cosine -1..1 of two identities, or of those of pictures; raises EmbeddingSpaceMismatch, or as `encode`."""
        one, other = (source if isinstance(source, Identity) else self.encode(source) for source in (a, b))
        return one.cosine(other)

    def swap(
        self,
        source: SourceFace | PictureSource | Sequence[PictureSource],
        target: PictureSource,
        faces: str = "all",
        options: SwapOptions | None = None,
        paste: PasteOptions | None = None,
        *,
        like: SourceFace | None = None,
    ) -> SwapResult:
        """The target with the source's identity on the faces that `faces` names (see `choose_faces`).

        source  photo or photos of the source, or what `swap_source` made of them.
        like    of the faces named, only the one most like this person.
        Raises NoFaceFound, ImageError, ModelNotFound, UsageError.
        """
        if not isinstance(source, SourceFace):
            source = self.swap_source(source, options.template if options else None)
        picture = read_image(target)
        chosen = self.chosen_faces(picture, faces)
        if like is not None:
            chosen = [self.swapper.most_like(picture, chosen, like, options.template if options else None)]
        return self.swapper.swap(picture, chosen, source, options, paste)

    def swap_source(self, images: PictureSource | Sequence[PictureSource], template: str | None = None) -> SourceFace:
        """What a swap needs of the source, from the largest face of one photo or of several; for many targets."""
        several = cast(Sequence[PictureSource], images if isinstance(images, list | tuple) else [images])
        pictures = (read_image(image) for image in several)
        sources = [self.swapper.source(picture, self._largest_face(picture), template) for picture in pictures]
        return self.swapper.networks.mean(sources)

    def chosen_faces(self, picture: Picture, which: str) -> list[Face]:
        """The faces of a picture that `which` names: all, largest, a number from the left, or a position."""
        return choose_faces(self.annotate(picture), which)

    def synthesize(
        self,
        source: int | Floats | IdentitySource | Sequence[Identity],
        images: int = 1,
        attributes: AttributeOptions | None = None,
        options: SynthesisOptions | None = None,
        seed: int = 0,
        *,
        unusual: bool = False,
    ) -> Synthesis:
        """`images` pictures of each identity of the source.

        source  vectors (n, 512), identities of `synthesis_identity`, photos of one person each, or a number of new
                identities to draw.
        Of photos and identities the kind is "reference" where `options` name none, so that nothing is optimised.
        Raises UsageError, EmbeddingSpaceMismatch, NoFaceFound, ImageError, ModelNotFound.
        """
        options = options or SynthesisOptions()
        if isinstance(source, int):
            vectors = sample_vectors(source, seed, threshold=options.separation)
        elif isinstance(source, np.ndarray) and source.dtype != np.uint8:
            vectors = cast(Floats, source)
        else:
            options = options.of_kind("reference")
            several = source if isinstance(source, list | tuple) else [source]
            rows = [self._synthesis_vector(cast(Identity | PictureSource, one)) for one in several]
            vectors = np.array(rows, np.float32).reshape(len(rows), self.synthesizer.networks.width)
        return self.synthesizer.synthesize(vectors, images, attributes, options, seed, unusual=unusual)

    def synthesis_identity(self, image: PictureSource) -> Identity:
        """The identity of a photo's largest face in the space that the generator understands."""
        picture = read_image(image)
        return self.synthesizer.networks.encoder.encode(picture, self._largest_face(picture))

    def generate(
        self,
        prompt: str,
        faces: Faces = (),
        options: GenerateOptions | None = None,
        *,
        image: PictureSource | None = None,
        mask: npt.NDArray[Any] | None = None,
        on_step: StepCallback | None = None,
        on_preview: OnPreview | None = None,
        preview_every: int = 0,
    ) -> Generation:
        """Pictures of a prompt in which people stand as "f l", "g l" (with the method mf2d "f", "g").

        faces  by placeholder ("f", "g"), or a list of people: each a photo, a list of photos, an identity, or tokens.
        image  to start from; mask (H, W) of it: 1 where it is to change.   on_step, on_preview: see diffusion.generate.
        Raises UsageError, NoFaceFound, ImageError, ModelNotFound, EmbeddingSpaceMismatch.
        """
        networks = self.diffusion
        people = people_of(prompt, faces, options or GenerateOptions(), networks, self._person)
        score = self._likeness(people)
        return generate(
            networks, prompt, people.tokens, people.options, image=None if image is None else read_image(image),
            mask=mask, score=score, on_step=on_step, on_preview=on_preview, preview_every=preview_every,
        )  # fmt: skip

    def inpaint(
        self,
        image: PictureSource,
        mask: npt.NDArray[Any],
        prompt: str,
        faces: Faces = (),
        options: GenerateOptions | None = None,
        *,
        on_step: StepCallback | None = None,
        on_preview: OnPreview | None = None,
        preview_every: int = 0,
    ) -> Generation:
        """The image with what its mask (H, W) marks by 1 drawn anew after the prompt; the rest as `generate`."""
        return self.generate(
            prompt, faces, options, image=image, mask=mask,
            on_step=on_step, on_preview=on_preview, preview_every=preview_every,
        )  # fmt: skip

    def face_tokens(
        self,
        images: PictureSource | Sequence[PictureSource],
        method: MethodChoice = "auto",
        expression: Floats | None = None,
    ) -> FaceTokens:
        """The person of a photo, or of a list of photos, as words of a prompt; raises as `encode`.

        expression  (64,) coefficients; None leaves it to the prompt.
        """
        return self.diffusion.face_tokens(self._person(images), method, expression)

    @property
    def diffusion(self) -> DiffusionNetworks:
        """The networks that draw after a prompt, opened at first use."""
        with self._lock:
            if self._diffusion is None:
                bundle = find_diffusion_bundle(self._store, self._diffusion_name)
                self._diffusion = DiffusionNetworks(
                    bundle, self._device, self._threads, precision=self._precision, resident=self._resident
                )
            return self._diffusion

    @property
    def synthesizer(self) -> Synthesizer:
        """The synthesis networks, opened at first use."""
        with self._lock:
            if self._synthesizer is None:
                bundle = find_synthesis_bundle(self._store, self._synthesizer_name)
                networks = SynthesisNetworks(bundle, self._device, self._threads, precision=self._precision)
                self._synthesizer = Synthesizer(networks)
            return self._synthesizer

    @property
    def swapper(self) -> Swapper:
        """The face swap networks, opened at first use."""
        with self._lock:
            if self._swapper is None:
                bundle = find_swap_bundle(self._store, self._swapper_name)
                self._swapper = Swapper(SwapNetworks(bundle, self._device, self._threads))
            return self._swapper

    @property
    def encoder(self) -> Encoder:
        """The identity encoder, opened at first use."""
        with self._lock:
            if self._encoder is None:
                bundle = find_bundle(self._store, self._encoder_name)
                self._encoder = Encoder(bundle, self._device, self._threads)
            return self._encoder

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
            parts = (self._annotator, self._encoder, self._swapper, self._synthesizer, self._diffusion)
            opened = [part for part in parts if part is not None]
            self._annotator = self._encoder = self._swapper = self._synthesizer = self._diffusion = None
        for part in opened:
            part.close()

    def __enter__(self) -> FaceSDK:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _largest_face(self, picture: Picture) -> Face:
        faces = self.annotate(picture)
        (largest,) = choose_faces(faces, "largest")
        if len(faces) > 1:
            log.warning("%d faces: the largest is taken, at %s", len(faces), largest.box.round().astype(int).tolist())
        return largest

    def _person(self, images: PictureSource | Sequence[PictureSource]) -> Identity:
        """Who is in a photo or in several, in the space that the words of prompts are made of."""
        several = cast(Sequence[PictureSource], images if isinstance(images, list | tuple) else [images])
        pictures = (read_image(image) for image in several)
        return self.diffusion.encoder.encode_many((picture, self._largest_face(picture)) for picture in pictures)

    def _likeness(self, people: People) -> Score | None:
        """What measures pictures against people; None without any, or where no faces can be found in pictures."""
        if not people.identities:
            return None
        try:
            self.annotator  # noqa: B018  a missing bundle is told before the work is done
        except ModelNotFound:
            if people.options.keep is not None:
                raise
            log.warning("no annotation bundle is installed: likeness is not measured")
            return None
        return likeness(people.identities, self.annotate, self.diffusion.encoder)

    def _synthesis_vector(self, source: Identity | PictureSource) -> Floats:
        identity = source if isinstance(source, Identity) else self.synthesis_identity(source)
        space = self.synthesizer.networks.encoder.space
        if identity.space != space:
            raise EmbeddingSpaceMismatch(
                "the generator understands identities of its own encoder alone",
                cause=f"it takes {space}; this one is of {identity.space}",
                remedy="give the photo itself, or FaceSDK.synthesis_identity(photo)",
            )
        return identity.vector

    def _open_annotator(self) -> Annotator:
        installed = [name for name in ANNOTATION_BUNDLES if self._store.path(name).is_dir()]
        if self._annotation is None and not installed:
            raise ModelNotFound("no annotation bundle is installed", remedy="facesdk models pull annotation")
        bundle = self._store.open(installed[0] if self._annotation is None else self._annotation)
        # task files lack the full-range detector that finds small faces; the wheel's bundle has it
        more = self._store.open("annotation") if "annotation" in installed else None
        return Annotator(bundle, self._device, 1 if self._threads is None else self._threads, more_detectors=more)
