"""What a generation needs in memory, stage by stage, told before it starts."""

from __future__ import annotations

import dataclasses
import math

from ..engine import GPUS
from ..graph import Graph
from .networks import DiffusionNetworks
from .options import GenerateOptions, course
from .picture_conditions import asked_size
from .settings import MAPPINGS

_FLOAT = 4
_MB = 1e6


@dataclasses.dataclass(frozen=True)
class StageMemory:
    """One stage: its engines, megabytes of their files with weights, and of the arrays that the host makes for them.

    What a backend needs to compute, and how it packs the weights, is not in it.
    """

    stage: str
    engines: tuple[str, ...]
    files_mb: float
    arrays_mb: float


def plan(
    networks: DiffusionNetworks, options: GenerateOptions | None = None, people: int = 0, *, picture: bool = False
) -> list[StageMemory]:
    """The stages of a generation in their order; opens no engine.

    picture  whether it starts from one.  Networks that are not resident need the largest stage, others the sum.
    Raises UsageError for options that the generation would refuse.
    """
    options, settings = options or GenerateOptions(), networks.settings
    method = networks.face_settings().method(options.method, people) if people else None
    way = course(options, settings, method, people, picture=picture)
    width, height = asked_size(options.width, options.height, settings)
    latent = settings.latent_channels * (height // settings.cell) * (width // settings.cell)
    context = (1 if way.guidance == 1 else 2) * _context_row(networks)
    bank, noises = way.sampler.matrices.shape[1], len(way.sampler) if way.sampler.noisy else 1
    batch = pictures_at_once(options, networks.device)
    pixels = 3 * width * height
    counts = {
        "faces": (("encoder", MAPPINGS[method]) if method else (), people * settings.width),
        "text": (("embedding", "text", "context", "time"), context + 2 * settings.tokens * settings.width),
        "encode": (("vae_encoder",) if picture else (), options.images * latent + pixels / _FLOAT),
        # the bank and its successor; known latents, their noise and the mask at most
        "denoise": (("step",), context + batch * latent * (2 * bank + noises + 3)),
        "decode": (("vae_decoder",), options.images * (latent + pixels / _FLOAT) + pixels),
    }
    rows = ((stage, engines, math.ceil(count) * _FLOAT / _MB) for stage, (engines, count) in counts.items() if engines)
    return [StageMemory(stage, engines, sum(map(networks.engines.file_mb, engines)), mb) for stage, engines, mb in rows]


def pictures_at_once(options: GenerateOptions, device: str) -> int:
    """How many pictures are denoised together: as many as asked for, else all on a GPU and one on processors.

    The step engine may take fewer in a call: see Engine.at_most.
    """
    return options.batch or (options.images if device in GPUS else 1)


def _context_row(networks: DiffusionNetworks) -> int:
    """Values of all keys and values of one condition."""
    step = Graph.read(networks.bundle.forms("step")["default"])
    shapes = [value.shape for value in step.inputs if value.name.startswith(("key_", "value_"))]
    return sum(networks.settings.tokens * size for *_, size in shapes if isinstance(size, int))
