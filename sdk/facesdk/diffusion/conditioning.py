"""What the network is told: prompt, faces and negative prompt as weighted conditions, step by step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..errors import EmbeddingSpaceMismatch, UsageError
from .face_tokens import TOKENS, FaceTokens, Method, add_to_output, inject
from .networks import Context, DiffusionNetworks
from .options import GenerateOptions
from .prompt import Placement, place, with_class_words

Floats = npt.NDArray[np.float32]

ENGINES = ("embedding", "text", "context")


@dataclasses.dataclass(frozen=True, eq=False)
class Conditioning:
    """What the network is told in each step.

    weights   (C,) of the conditions: eps = sum of weight * network(condition).
    segments  number of a step that is run -> keys and values (C, tokens, channels) from there on; rising from 0.
    """

    weights: Floats
    segments: tuple[tuple[int, Context], ...]

    def at(self, step: int) -> Context:
        """The keys and values of a step."""
        return next(context for first, context in reversed(self.segments) if first <= step)


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """A prompt that was read and found to fit its faces.

    class_text  the prompt with class words for the faces; the prompt itself where there is no face.
    """

    text: str
    class_text: str
    placement: Placement | None
    faces: Mapping[str, FaceTokens]
    method: Method | None


def read_prompt(
    networks: DiffusionNetworks, prompt: str, faces: Mapping[str, FaceTokens], options: GenerateOptions
) -> Reading:
    """The prompt with each face in its place; opens no engine.  Raises UsageError, EmbeddingSpaceMismatch."""
    tokenizer = networks.tokenizer
    tokenizer.encode(options.negative, options.truncate)
    if not faces:
        tokenizer.encode(prompt, options.truncate)
        return Reading(prompt, prompt, None, {}, None)
    settings, method = networks.face_settings(), _method(networks, faces, options)
    unknown = [name for name in faces if name not in settings.identifiers]
    if unknown:
        raise UsageError(
            f"no face is called {', '.join(unknown)}", remedy=f"name them: {', '.join(settings.identifiers)}"
        )
    names, count, second = list(faces), TOKENS[method], settings.second
    placement = place(tokenizer, prompt, names, count, options.truncate, second=second, known=settings.identifiers)
    class_text = with_class_words(tokenizer, prompt, names, count, options.words(method), second=second)
    return Reading(prompt, class_text, placement, dict(faces), method)


def condition(
    networks: DiffusionNetworks, reading: Reading, options: GenerateOptions, guidance: float, begin: int = 0
) -> Conditioning:
    """The conditions of a prompt; with guidance 1 the negative one is left out.

    In the first `options.delay` steps the class words stand in for the faces: FastComposer's delayed conditioning,
    whose start_merge_step s is a delay of s + 1.  `begin` steps of the schedule are not run and count among them.
    """
    truncate, delay = options.truncate, max(options.delay - begin, 0)
    with networks.stage(*ENGINES):
        negative = [] if guidance == 1 else [networks.text_context(options.negative, truncate=truncate)]
        segments = []
        if reading.placement is None or delay:
            plain = networks.text_context(reading.class_text, truncate=truncate)
            segments.append((0, stacked([*negative, plain])))
        if reading.placement is not None:
            faces = networks.context(hidden_states(networks, reading, options))
            segments.append((delay, stacked([*negative, faces])))
    weights = (1.0,) if guidance == 1 else (1 - guidance, guidance)
    return Conditioning(np.array(weights, np.float32), tuple(segments))


def hidden_states(networks: DiffusionNetworks, reading: Reading, options: GenerateOptions) -> Floats:
    """(1, tokens, width) output of the text encoder for a prompt with its faces."""
    placement = reading.placement
    if placement is None:
        raise UsageError("the prompt has no faces", remedy="use the networks' text_context")
    class_ids = networks.tokenizer.encode(reading.class_text, options.truncate)
    if options.fusion == "output-add":  # MF2D was trained on captions whose nouns these words stand for
        hidden = networks.hidden(networks.embed(class_ids))[0]
        return add_to_output(hidden, placement, reading.faces, options.strength)[None]
    embeddings = networks.embed(placement.ids[None])[0]
    words = None if options.strength == 1 else networks.embed(class_ids)[0]
    return networks.hidden(inject(embeddings, placement, reading.faces, options.strength, words)[None])


def stacked(contexts: list[Context]) -> Context:
    """One context with the rows of all, in order."""
    return {name: np.concatenate([context[name] for context in contexts]) for name in contexts[0]}


def cuts(conditioning: Conditioning, steps: int, every: int = 0) -> list[tuple[int, int]]:
    """The runs of steps, (first, past the last), that share their conditions and end where a preview is due."""
    places = {0, steps, *(first for first, _ in conditioning.segments if first < steps)}
    places |= set(range(every, steps, every)) if every else set()
    return list(itertools.pairwise(sorted(places)))


def _method(networks: DiffusionNetworks, faces: Mapping[str, FaceTokens], options: GenerateOptions) -> Method:
    """The method that the faces were made for, which must be the one asked for, if any."""
    made = {face.space.method for face in faces.values()}
    method = made.pop() if len(made) == 1 and options.method == "auto" else options.method
    chosen = networks.face_settings().method(method, len(faces))
    for name, face in faces.items():
        expected = networks.token_space(chosen)
        if face.space != expected:
            raise EmbeddingSpaceMismatch(
                f"the tokens of face {name!r} do not fit {networks.bundle.name}",
                cause=f"they are of {face.space}, and {expected} is wanted",
                remedy=f"make them again with this bundle: sdk.face_tokens(photos, method={chosen!r})",
            )
    return chosen
