"""What the network is told: prompt, faces and negative prompt as weighted conditions, step by step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..errors import EmbeddingSpaceMismatch, UsageError
from .face_tokens import TOKEN_COUNTS, FaceTokens, Method, add_to_output, inject
from .networks import Context, DiffusionNetworks
from .options import GenerateOptions
from .people import method_of, placed
from .prompt import SECOND, Placement, class_ids, place
from .tokenizer import Ids

Floats = npt.NDArray[np.float32]


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
class PlacedPrompt:
    """A prompt that was read and found to fit its faces.

    negative, plain  (tokens,) ids of the negative prompt, and of the prompt with class words for its faces.
    placement        where the faces stand in it; None without any.
    """

    negative: Ids
    plain: Ids
    placement: Placement | None
    faces: Mapping[str, FaceTokens]
    method: Method | None


def read_prompt(
    networks: DiffusionNetworks, prompt: str, faces: Mapping[str, FaceTokens], options: GenerateOptions
) -> PlacedPrompt:
    """The prompt with each face in its place; opens no engine.  Raises UsageError, EmbeddingSpaceMismatch."""
    tokenizer, truncate = networks.tokenizer, options.truncate
    negative = tokenizer.encode([options.negative], truncate, what="the negative prompt")[0]
    if not faces:
        known, second = (networks.faces.identifiers, networks.faces.second) if networks.faces else ((), SECOND)
        ids = place(tokenizer, prompt, (), 2, truncate, second=second, known=known).ids
        return PlacedPrompt(negative, ids, None, {}, None)
    method = method_of(options.method, faces.values(), networks.face_settings())
    placement = placed(networks, prompt, list(faces), method, truncate)
    _check_spaces(networks, faces, method)
    plain = class_ids(tokenizer, placement, TOKEN_COUNTS[method], options.words(method))
    return PlacedPrompt(negative, plain, placement, dict(faces), method)


def condition(
    networks: DiffusionNetworks, prompt: PlacedPrompt, options: GenerateOptions, guidance: float, begin: int = 0
) -> Conditioning:
    """The conditions of a prompt; with guidance 1 the negative one is left out.

    In the first `options.delay` steps the class words stand in for the faces: FastComposer's delayed conditioning,
    whose start_merge_step s is a delay of s + 1.  `begin` steps of the schedule are not run and count among them.
    """
    delay = max(options.delay - begin, 0)
    with networks.stage("embedding", "text", "context"):
        negative = [] if guidance == 1 else [networks.text_context(prompt.negative)]
        segments = []
        if prompt.placement is None or delay:
            segments.append((0, stacked([*negative, networks.text_context(prompt.plain)])))
        if prompt.placement is not None:
            faces = networks.context(hidden_states(networks, prompt, options))
            segments.append((delay, stacked([*negative, faces])))
    weights = (1.0,) if guidance == 1 else (1 - guidance, guidance)
    return Conditioning(np.array(weights, np.float32), tuple(segments))


def hidden_states(networks: DiffusionNetworks, prompt: PlacedPrompt, options: GenerateOptions) -> Floats:
    """(1, tokens, width) output of the text encoder for a prompt with its faces."""
    placement = prompt.placement
    if placement is None:
        raise UsageError("the prompt has no faces", remedy="use the networks' text_context")
    if options.fusion == "output-add":  # MF2D was trained on captions whose nouns these words stand for
        hidden = networks.hidden(networks.embed(prompt.plain[None]))[0]
        return add_to_output(hidden, placement, prompt.faces, options.strength)[None]
    embeddings = networks.embed(placement.ids[None])[0]
    words = None if options.strength == 1 else networks.embed(prompt.plain[None])[0]
    return networks.hidden(inject(embeddings, placement, prompt.faces, options.strength, words)[None])


def stacked(contexts: list[Context]) -> Context:
    """One context with the rows of all, in order."""
    return {name: np.concatenate([context[name] for context in contexts]) for name in contexts[0]}


def cuts(conditioning: Conditioning, steps: int, every: int = 0) -> list[tuple[int, int]]:
    """The runs of steps, (first, past the last), that share their conditions and end where a preview is due."""
    places = {0, steps, *(first for first, _ in conditioning.segments if first < steps)}
    places |= set(range(every, steps, every)) if every else set()
    return list(itertools.pairwise(sorted(places)))


def _check_spaces(networks: DiffusionNetworks, faces: Mapping[str, FaceTokens], method: Method) -> None:
    """Raise EmbeddingSpaceMismatch for face tokens of another bundle or method."""
    expected = networks.token_space(method)
    for name, face in faces.items():
        if face.space != expected:
            raise EmbeddingSpaceMismatch(
                f"the tokens of face {name!r} do not fit {networks.bundle.name}",
                cause=f"they are of {face.space}, and {expected} is wanted",
                remedy=f"make them again with this bundle: sdk.face_tokens(photos, method={method!r}), on the command "
                f"line --face PHOTO --method {method} --save-tokens FILE",
            )
