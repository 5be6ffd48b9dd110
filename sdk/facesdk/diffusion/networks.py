"""Stable Diffusion on engines: words and faces become conditions, noise becomes latents, latents become pictures."""

from __future__ import annotations

import collections
import functools
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..card import Card
from ..encoder import Encoder
from ..engine import Arrays, Device, Engine, Precision, StepCallback
from ..errors import EmbeddingSpaceMismatch, UsageError
from ..identity import Identity
from ..store import Store
from . import autoencoder
from .engines import Engines
from .face_tokens import FaceTokens, Method, TokenSpace
from .settings import MAPPINGS, TOKENIZER, DiffusionSettings, FaceSettings, remedy_of
from .signatures import signatures
from .tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
Pictures = npt.NDArray[np.uint8]
Context = dict[str, Floats]  # input of the step engine -> keys or values (rows, tokens, channels)

SYSTEMS = ("face2diffusion", "stable-diffusion")
_TEXTS = 8  # contexts of plain text that are kept


def find_bundle(store: Store, name_or_path: str | Path | None = None) -> Bundle:
    """The diffusion bundle of that name or folder, else the only one in the store; raises as `Store.only`.

    Bundles that know faces come first: they do what the others do.
    """
    system = next((system for system in SYSTEMS if store.of_system(system)), SYSTEMS[0])
    how = "make one: facesdk export stable-diffusion --stable-diffusion FOLDER -o BUNDLE; facesdk models add BUNDLE"
    return store.only(system, name_or_path, what="diffusion", argument="diffusion", option="--bundle", how=how)


class DiffusionNetworks:
    """The engines of a diffusion bundle, each opened when it is first needed.  Safe to use from several threads.

    settings   constants of the bundle.   faces  how faces enter, None in a bundle without.
    precision  "fp16": of all engines that have such a form, `step` at least; "bf16": of `step`.
    resident   False frees every engine but the encoder when its stage is over: memory is then that of the largest
               stage, and every generation opens its engines anew.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device = "auto",
        threads: int | None = None,
        *,
        precision: Precision = "fp32",
        resident: bool = True,
    ) -> None:
        """Opens nothing.  Raises BundleError where the bundle is of another kind."""
        self.settings, self.faces = DiffusionSettings.of(bundle), FaceSettings.of(bundle)
        self.bundle, self.device = bundle, device
        self.engines = Engines(bundle, signatures(self.settings), device, threads, precision, resident)
        self._texts: collections.OrderedDict[bytes, Context] = collections.OrderedDict()
        self._lock = threading.Lock()

    @property
    def step(self) -> Engine:
        """The denoising step, opened."""
        return self.engines["step"]

    @property
    def encoder(self) -> Encoder:
        """The encoder whose vectors the mapping networks understand; stays open until `close`."""
        self.face_settings()
        return self.engines.encoder

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        return Tokenizer.load(self.bundle.folder / TOKENIZER)

    def stage(self, *names: str) -> AbstractContextManager[None]:
        """See Engines.stage."""
        return self.engines.stage(*names)

    def close(self) -> None:
        """Free all engines; later calls raise EngineClosed."""
        with self._lock:
            self.engines.close()
            self._texts.clear()

    def __enter__(self) -> DiffusionNetworks:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- text -------------------------------------------------------------------------------------------------

    def embed(self, ids: npt.NDArray[np.int64]) -> Floats:
        """(n, tokens, width) embeddings of (n, tokens) ids, position embeddings added."""
        return np.asarray(self.engines.run("embedding", ids=ids)["embeddings"])

    def hidden(self, embeddings: Floats) -> Floats:
        """(n, tokens, width) output of the text encoder."""
        return np.asarray(self.engines.run("text", embeddings=embeddings)["hidden"])

    def context(self, hidden: Floats) -> Context:
        """Keys and values of the network's cross-attentions, n rows each, by the name of the step's input."""
        return self.engines.run("context", text=hidden)

    def text_context(self, ids: npt.NDArray[np.int64]) -> Context:
        """`context` of the (tokens,) ids of a prompt without faces; those used last are kept."""
        key = ids.tobytes()
        with self._lock:
            if key in self._texts:
                self._texts.move_to_end(key)
                return self._texts[key]
        made = self.context(self.hidden(self.embed(ids[None])))
        with self._lock:
            self._texts[key] = made
            while len(self._texts) > _TEXTS:
                self._texts.popitem(last=False)
        return made

    # -- denoising and pictures -------------------------------------------------------------------------------

    def time_rows(self, timesteps: npt.NDArray[np.floating]) -> Floats:
        """(steps, time_width) of (steps,) time steps."""
        return np.asarray(self.engines.run("time", timestep=np.asarray(timesteps, np.float32))["rows"])

    def scan(self, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Any]:
        """The bank after running `step` once per row of xs; see Engine.scan."""
        return self.engines.scan("step", carry, xs, constants, on_step)

    def decode(self, latents: Floats, tile: int | None = None) -> Pictures:
        """(n, H, W, 3) RGB of (n, 4, h, w), one at a time, in fp32 where fp16 fails; see `autoencoder.decode`."""

        def network(latent: Floats) -> Floats:
            return np.asarray(self.engines.run_again("vae_decoder", latent=latent[None])["image"][0])

        with self.stage("vae_decoder"):
            return np.stack([autoencoder.decode(network, latent, self.settings.cell, tile) for latent in latents])

    def moments(self, picture: Pictures, tile: int | None = None) -> tuple[Floats, Floats]:
        """Mean and log variance (4, h, w) of the latent of a (H, W, 3) picture; see `autoencoder.moments`."""
        self.check_encodes()

        def network(picture: Pictures) -> Floats:
            made = self.engines.run("vae_encoder", image=picture[None])
            return np.concatenate([made["mean"][0], made["logvar"][0]])

        with self.stage("vae_encoder"):
            return autoencoder.moments(network, picture, self.settings.cell, tile)

    def check_encodes(self) -> None:
        """Raise UsageError in a bundle that cannot turn pictures into latents."""
        if "vae_encoder" not in self.bundle.engine_names:
            raise UsageError(
                f"{self.bundle.name} cannot start from an image",
                cause="it has no engine vae_encoder",
                remedy=f"leave the image out, or {remedy_of(self.bundle)}",
            )

    # -- faces ------------------------------------------------------------------------------------------------

    def face_settings(self) -> FaceSettings:
        """How faces enter; raises UsageError in a bundle that knows none."""
        if self.faces is None:
            raise UsageError(
                f"{self.bundle.name} knows no faces",
                cause="it was exported without the networks that turn a face into words",
                remedy="take a bundle of facesdk export face2diffusion, or leave the faces out",
            )
        return self.faces

    def map_faces(self, identity: Floats, expression: Floats, given: Floats, method: Method) -> tuple[Floats, Floats]:
        """First and last word (n, width) of n faces.

        identity  (n, d).   expression  (n, 64) coefficients.   given  (n,): 1 where they count, 0 for the neutral ones.
        """
        engine = MAPPINGS[method]
        made = self.engines.run(engine, identity=identity, expression=expression, given=given)
        return made["first"], made["last"]

    def face_tokens(self, identity: Identity, method: str = "auto", expression: Floats | None = None) -> FaceTokens:
        """A person as the words of a prompt.

        method      see FaceSettings.method.   expression  (64,) coefficients; None: the learned neutral one.
        Raises EmbeddingSpaceMismatch for an identity of another encoder, UsageError.
        """
        chosen = self.face_settings().method(method)
        if identity.space != self.encoder.space:
            raise EmbeddingSpaceMismatch(
                f"the identity does not fit {self.bundle.name}",
                cause=f"it is of {identity.space}, and {self.encoder.space} is wanted",
                remedy="encode the photos with this bundle: sdk.face_tokens(photos)",
            )
        with self.stage(MAPPINGS[chosen]):
            values = self._expression(expression, chosen)
            given = np.array([expression is not None], np.float32)
            first, last = self.map_faces(identity.vector[None], values[None], given, chosen)
        space = self.token_space(chosen)
        return FaceTokens(first[0], last[0] if space.tokens == 2 else None, space, identity.photos)

    def token_space(self, method: Method) -> TokenSpace:
        """The space of this bundle's face tokens; opens no engine."""
        card = Card.read(self.bundle.forms(MAPPINGS[method])["default"])
        model = "-".join(filter(None, (str(self.bundle.about["system"]), card.source_sha256[:8])))
        return TokenSpace(model, method, self.settings.width)

    def _expression(self, expression: Floats | None, method: Method) -> Floats:
        """(64,) coefficients, zeros where there are none."""
        shapes = {tensor.name: tensor.shape for tensor in self.engines[MAPPINGS[method]].inputs}
        width = int(shapes["expression"][1] or 0)
        values = np.zeros(width) if expression is None else np.asarray(expression)
        if values.shape != (width,) or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise UsageError(
                f"the expression is {values.dtype} of shape {values.shape}, not {width} finite floats",
                remedy=f"give coefficients ({width},), or none for the neutral expression",
            )
        return values.astype(np.float32)
