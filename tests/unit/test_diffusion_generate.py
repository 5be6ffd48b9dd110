"""Pictures of a prompt: foretold in plain numpy, whatever the sampler, the guidance, the faces, the batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.diffusion import seeds
from facesdk.diffusion.conditioning import read_prompt
from facesdk.diffusion.face_tokens import FaceTokens
from facesdk.diffusion.generate import Generation, generate
from facesdk.diffusion.networks import DiffusionNetworks
from facesdk.diffusion.options import GenerateOptions, course
from facesdk.diffusion.samplers import SamplerOptions, run, sampler, walk
from facesdk.errors import EmbeddingSpaceMismatch, UsageError
from tests.diffusion_bundle import answer, embedded, hidden, painted, tokens_of, told

PROMPT, NEGATIVE = "a man eating", "very man"
SHAPE = (4, 8, 8)
SCHEDULERS = ("ddim", "euler", "euler-ancestral", "dpm++", "dpm++-single", "plms", "lcm")


@pytest.fixture(scope="module")
def networks(diffusion_bundle: Bundle) -> Iterator[DiffusionNetworks]:
    with DiffusionNetworks(diffusion_bundle, "cpu") as opened:
        yield opened


def rows_of(networks: DiffusionNetworks, text: str) -> np.ndarray:
    """(77, WIDTH) input of the text encoder."""
    return embedded(networks.tokenizer.encode(text))[0]


def foretold(
    networks: DiffusionNetworks, options: GenerateOptions, conditions: np.ndarray, seed: int, guidance: float = 3.0
) -> np.ndarray:
    """(N + 1, *SHAPE) latents of one picture; conditions (N, 2, 4): what each step is told, negative and prompt."""
    way = course(options, networks.settings, None).sampler
    step = iter(range(len(way)))

    def network(latent: np.ndarray, timestep: float) -> np.ndarray:
        negative, positive = (answer(latent, timestep, condition) for condition in conditions[next(step)])
        return negative + guidance * (positive - negative)

    start = way.initial * seeds.start(seed, SHAPE).astype(np.float64)
    return run(way, network, start, seeds.step_noise(seed, len(way), SHAPE).astype(np.float64))


def told_by(networks: DiffusionNetworks, *texts: str) -> np.ndarray:
    """(texts, 4)."""
    return np.concatenate([told(hidden(rows_of(networks, text)[None])) for text in texts])


def differ(one: Generation, other: Generation) -> bool:
    return bool((one.latents != other.latents).any())


# -- the loop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_latents_are_those_of_the_sampler(networks: DiffusionNetworks, scheduler: Any) -> None:
    options = GenerateOptions(scheduler=scheduler, steps=5, negative=NEGATIVE, seed=3, images=2)
    made = generate(networks, PROMPT, options=options)
    conditions = np.tile(told_by(networks, NEGATIVE, PROMPT), (6, 1, 1))
    for number in range(2):
        expected = foretold(networks, options, conditions, 3 + number)[-1]
        np.testing.assert_allclose(made.latents[number], expected, rtol=1e-4, atol=1e-4)
        painting = painted(made.latents[number].astype(np.float64))
        assert np.abs(made.images[number].astype(int) - painting).max() <= 1
        assert painting.std() > 2  # else it would say nothing
    assert (made.scheduler, made.steps, made.guidance) == (scheduler, 5, 3.0)
    assert made.seeds.tolist() == [3, 4]


def test_defaults_are_the_bundles(networks: DiffusionNetworks) -> None:
    made = generate(networks, PROMPT)
    conditions = np.tile(told_by(networks, "", PROMPT), (6, 1, 1))
    np.testing.assert_allclose(made.latents[0], foretold(networks, GenerateOptions(), conditions, 0)[-1], atol=1e-5)
    assert made.images.shape == (1, 64, 64, 3)
    assert (made.scheduler, made.steps, made.guidance) == ("euler-ancestral", 6, 3.0)
    assert (made.method, made.fusion, made.faces, made.similarity) == (None, None, (), None)
    assert set(made.timings_ms) == {"text", "denoise", "decode"}


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_weighs_the_prompt_against_the_negative_one(networks: DiffusionNetworks, guidance: float) -> None:
    options = GenerateOptions(guidance=guidance, negative=NEGATIVE, steps=4)
    made = generate(networks, PROMPT, options=options)
    conditions = np.tile(told_by(networks, NEGATIVE, PROMPT), (4, 1, 1))
    np.testing.assert_allclose(
        made.latents[0], foretold(networks, options, conditions, 0, guidance)[-1], rtol=1e-4, atol=1e-4
    )
    assert made.guidance == guidance


def test_guidance_1_runs_one_condition_only(networks: DiffusionNetworks, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    scan = networks.scan

    def spy(carry: Any, xs: Any, constants: Any, on_step: Any) -> Any:
        weights.append((constants["weights"].tolist(), len(constants["key_00"])))
        return scan(carry, xs, constants, on_step)

    monkeypatch.setattr(networks, "scan", spy)
    for guidance in (1.0, 3.0):
        generate(networks, PROMPT, options=GenerateOptions(guidance=guidance, steps=2))
    assert weights == [([1.0], 1), ([-2.0, 3.0], 2)]


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_a_picture_has_the_same_bits_in_any_batch(networks: DiffusionNetworks, batch: int) -> None:
    options = GenerateOptions(images=4, batch=batch, steps=3, seed=40)
    made = generate(networks, PROMPT, options=options)
    for number in range(4):
        alone = generate(networks, PROMPT, options=GenerateOptions(steps=3, seed=40 + number))
        np.testing.assert_array_equal(made.latents[number], alone.latents[0])
        np.testing.assert_array_equal(made.images[number], alone.images[0])
    assert len({latent.tobytes() for latent in made.latents}) == 4


@pytest.mark.parametrize(
    ("device", "sizes"),
    [("cpu", [1, 1, 1]), ("openvino", [1, 1, 1]), ("cuda", [3]), ("tensorrt", [3]), ("tensorrt-rtx", [3])],
)
def test_all_pictures_go_at_once_on_gpus_only(
    networks: DiffusionNetworks, monkeypatch: pytest.MonkeyPatch, device: str, sizes: list[int]
) -> None:
    seen, scan = [], networks.scan

    def spy(carry: Any, *others: Any) -> Any:
        seen.append(len(carry["bank"]))
        return scan(carry, *others)

    monkeypatch.setattr(networks, "scan", spy)
    monkeypatch.setattr(networks.step, "device", device)
    generate(networks, PROMPT, options=GenerateOptions(images=3, steps=1))
    assert seen == sizes


def test_given_latents_and_noise_replace_the_seeds_own(networks: DiffusionNetworks) -> None:
    options = GenerateOptions(images=2, steps=4, seed=9)
    own = generate(networks, PROMPT, options=options)
    latents = np.stack([seeds.start(seed, SHAPE) for seed in (9, 10)])
    noise = np.stack([seeds.step_noise(seed, 4, SHAPE) for seed in (9, 10)], axis=1)
    elsewhere = dataclasses.replace(options, seed=100)
    same = generate(networks, PROMPT, options=elsewhere, latents=latents, noise=noise)
    np.testing.assert_array_equal(same.latents, own.latents)
    assert differ(generate(networks, PROMPT, options=elsewhere, latents=latents), own)
    assert differ(generate(networks, PROMPT, options=elsewhere, noise=noise), own)


def test_sizes_other_than_the_bundles(networks: DiffusionNetworks) -> None:
    made = generate(networks, PROMPT, options=GenerateOptions(width=72, height=104, steps=2))
    assert made.images.shape == (1, 104, 72, 3)
    assert made.latents.shape == (1, 4, 13, 9)


# -- faces ----------------------------------------------------------------------------------------------------


def test_a_face_takes_the_place_of_its_words(networks: DiffusionNetworks) -> None:
    face, options = tokens_of(networks, 1), GenerateOptions(steps=5)
    made = generate(networks, "photo and f l eating", {"f": face}, options)
    rows = rows_of(networks, "photo and f l eating")
    at = 1 + networks.tokenizer.ids("photo and f l eating").index(325)
    rows[at : at + 2] = face.rows
    conditions = np.tile(np.concatenate([told_by(networks, ""), told(hidden(rows[None]))]), (5, 1, 1))
    np.testing.assert_allclose(
        made.latents[0], foretold(networks, options, conditions, 0, 7.0)[-1], rtol=1e-4, atol=1e-4
    )
    assert (made.faces, made.method, made.fusion, made.guidance) == (("f",), "f2d", "input-replace", 7.0)


@pytest.mark.parametrize(("strength", "delay"), [(0.5, 0), (1.5, 0), (0.0, 0), (1.0, 2), (0.7, 3)])
def test_class_words_hold_faces_back(networks: DiffusionNetworks, strength: float, delay: int) -> None:
    face = tokens_of(networks, 2)
    options = GenerateOptions(steps=5, strength=strength, delay=delay, class_words="very man", guidance=3.0)
    made = generate(networks, "f l eating", {"f": face}, options)
    rows, words = rows_of(networks, "f l eating"), rows_of(networks, "very man eating")
    rows[1:3] = (1 - strength) * words[1:3] + strength * face.rows
    both = np.concatenate([told_by(networks, ""), told(hidden(rows[None]))])
    plain = told_by(networks, "", "very man eating")
    conditions = np.stack([plain if step < delay else both for step in range(5)])
    np.testing.assert_allclose(made.latents[0], foretold(networks, options, conditions, 0)[-1], rtol=1e-4, atol=1e-4)


def test_strength_0_is_the_class_words(networks: DiffusionNetworks) -> None:
    face, options = tokens_of(networks, 2), GenerateOptions(steps=3, strength=0.0)
    held = generate(networks, "f l eating", {"f": face}, options)
    # the placeholder's ids are overwritten with the class words' rows, which have their own places
    plain = generate(networks, "a person eating", options=GenerateOptions(steps=3, guidance=7.0))
    np.testing.assert_allclose(held.latents, plain.latents, rtol=1e-5, atol=1e-5)


def test_two_people_as_one_token_each(networks: DiffusionNetworks) -> None:
    faces = {"f": tokens_of(networks, 1, "mf2d"), "g": tokens_of(networks, 2, "mf2d")}
    options = GenerateOptions(steps=4)
    made = generate(networks, "f and g eating", faces, options)
    rows = rows_of(networks, "f and g eating")
    rows[1], rows[3] = faces["f"].first, faces["g"].first
    conditions = np.tile(np.concatenate([told_by(networks, ""), told(hidden(rows[None]))]), (4, 1, 1))
    np.testing.assert_allclose(
        made.latents[0], foretold(networks, options, conditions, 0, 10.0)[-1], rtol=1e-4, atol=1e-4
    )
    assert (made.faces, made.method) == (("f", "g"), "mf2d")


def test_faces_may_be_added_to_the_output_of_the_text_encoder(networks: DiffusionNetworks) -> None:
    face = tokens_of(networks, 3, "mf2d")
    options = GenerateOptions(steps=4, fusion="output-add", strength=0.5, guidance=3.0)
    made = generate(networks, "f eating", {"f": face}, options)
    rows = hidden(rows_of(networks, "person eating"))
    rows[1] += 0.5 * face.first
    conditions = np.tile(np.concatenate([told_by(networks, ""), told(rows[None])]), (4, 1, 1))
    np.testing.assert_allclose(made.latents[0], foretold(networks, options, conditions, 0)[-1], rtol=1e-4, atol=1e-4)
    assert made.fusion == "output-add"


@pytest.mark.parametrize(
    ("method", "people", "steps", "guidance"), [("f2d", 1, 30, 7.0), ("f2d", 2, 30, 10.0), ("mf2d", 2, 50, 10.0)]
)
def test_published_settings(networks: DiffusionNetworks, method: Any, people: int, steps: int, guidance: float) -> None:
    way = course(GenerateOptions(), networks.settings, method, people)
    assert (way.steps, way.guidance, way.scheduler) == (steps, guidance, "euler-ancestral")
    published = sampler(SamplerOptions(steps=steps, spacing="linspace"))
    np.testing.assert_array_equal(way.sampler.matrices, published.matrices)


def test_spacing_is_the_bundles_for_its_own_scheduler_only(networks: DiffusionNetworks) -> None:
    settings = dataclasses.replace(networks.settings, spacing="trailing")

    def times(**options: Any) -> list[float]:
        return list(course(GenerateOptions(steps=5, **options), settings, None).sampler.timesteps)

    def expected(scheduler: Any, spacing: Any) -> list[float]:
        return list(sampler(SamplerOptions(scheduler, 5, spacing)).timesteps)

    assert times() == expected("euler-ancestral", "trailing")
    assert times(scheduler="euler-ancestral") == expected("euler-ancestral", "trailing")
    assert times(spacing="leading") == expected("euler-ancestral", "leading")
    assert times(scheduler="ddim") == expected("ddim", "leading")
    assert times() != expected("euler-ancestral", "linspace")


# -- the best of many -----------------------------------------------------------------------------------------


def test_the_best_are_kept_best_first(networks: DiffusionNetworks) -> None:
    scores = iter([0.1, None, 0.7, 0.4])
    options = GenerateOptions(images=4, steps=2, keep=2)
    made = generate(networks, PROMPT, options=options, score=lambda picture: next(scores))
    everything = generate(networks, PROMPT, options=dataclasses.replace(options, keep=None))
    assert made.seeds.tolist() == [2, 3]
    assert made.similarity is not None
    np.testing.assert_allclose(made.similarity, [0.7, 0.4])
    np.testing.assert_array_equal(made.images, everything.images[2:])
    np.testing.assert_array_equal(made.latents, everything.latents[2:])


def test_scores_alone_change_no_order_and_pictures_without_a_face_come_last(networks: DiffusionNetworks) -> None:
    options = GenerateOptions(images=3, steps=2)

    def scored(**changes: Any) -> Generation:
        scores = iter([None, -0.5, 0.5])
        changed = dataclasses.replace(options, **changes)
        return generate(networks, PROMPT, options=changed, score=lambda picture: next(scores))

    made, kept = scored(), scored(keep=3)
    assert made.seeds.tolist() == [0, 1, 2]
    assert made.similarity is not None
    assert math.isnan(made.similarity[0])
    assert kept.seeds.tolist() == [2, 1, 0]
    assert "score" in made.timings_ms


# -- who watches ----------------------------------------------------------------------------------------------


def test_steps_are_counted_over_all_batches(networks: DiffusionNetworks) -> None:
    seen: list[tuple[int, int]] = []
    options = GenerateOptions(images=3, batch=2, steps=4)
    face = tokens_of(networks, 1)
    delayed = dataclasses.replace(options, delay=1)
    generate(networks, "f l eating", {"f": face}, delayed, on_step=lambda step, steps: seen.append((step, steps)))
    assert seen == [(step, 8) for step in range(1, 9)]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_previews_are_the_clean_pictures_that_steps_predict(networks: DiffusionNetworks, scheduler: Any) -> None:
    shown: list[tuple[int, np.ndarray]] = []
    options = GenerateOptions(steps=5, scheduler=scheduler, guidance=1.0)
    made = generate(networks, PROMPT, options=options, on_preview=lambda *given: shown.append(given), preview_every=2)
    unseen = generate(networks, PROMPT, options=options)
    np.testing.assert_allclose(made.latents, unseen.latents, rtol=1e-5, atol=1e-6)
    way, condition = course(options, networks.settings, None).sampler, told_by(networks, PROMPT)[0]
    start, noise = way.initial * seeds.start(0, SHAPE), seeds.step_noise(0, len(way), SHAPE)
    steps = list(walk(way, lambda x, t: answer(x, t, condition), start.astype(np.float64), noise))
    assert [step for step, _ in shown] == list(range(2, len(way), 2))
    for step, pictures in shown:
        assert pictures.shape == (1, 64, 64, 3)
        assert np.abs(pictures[0].astype(int) - painted(steps[step - 1][1])).max() <= 1


def test_previews_of_several_batches(networks: DiffusionNetworks) -> None:
    shown: list[tuple[int, tuple[int, ...]]] = []
    options = GenerateOptions(images=3, batch=2, steps=3)
    generate(
        networks, PROMPT, options=options, preview_every=2,
        on_preview=lambda step, pictures: shown.append((step, pictures.shape)),
    )  # fmt: skip
    assert shown == [(2, (2, 64, 64, 3)), (5, (1, 64, 64, 3))]


@pytest.mark.parametrize("resident", [True, False])
def test_an_exception_ends_it_all_and_leaves_the_networks_usable(diffusion_bundle: Bundle, resident: bool) -> None:
    def stop(step: int, steps: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with DiffusionNetworks(diffusion_bundle, "cpu", resident=resident) as networks:
        before = generate(networks, PROMPT)
        with pytest.raises(KeyboardInterrupt):
            generate(networks, PROMPT, options=GenerateOptions(images=2), on_step=stop)
        after = generate(networks, PROMPT)
    np.testing.assert_array_equal(before.images, after.images)


# -- what is refused, before any engine opens -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": math.inf}, "guidance is inf"),
        ({"guidance": -1.0}, "give 0 to 100"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": "4"}, "steps is '4'\n  remedy: give a whole number, 1 to 1000"),
        ({"guidance": "7"}, "guidance is '7'\n  remedy: give 0 to 100"),
        ({"strength": None}, "strength is None"),
        ({"images": True}, "images is True"),
        ({"width": 64.0}, "width is 64.0"),
        ({"images": 0}, "images is 0"),
        ({"images": 2, "keep": 3}, "keep is 3 of 2"),
        ({"keep": 0}, "keep is 0"),
        ({"seed": -1}, "the seed is -1"),
        ({"seed": (1 << 63) - 1, "images": 2}, "2\\*\\*63"),
        ({"seed": 1.5}, "the seed is 1.5"),
        ({"strength": math.nan}, "strength is nan"),
        ({"delay": -1}, "delay is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"denoise": 0.0}, "would not change"),
        ({"denoise": 1.5}, "denoise is 1.5"),
        ({"eta": 2.0}, "eta is 2"),
        ({"method": "other"}, "choose one of: auto, f2d, mf2d"),
        ({"fusion": "other"}, "input-replace, output-add"),
        ({"scheduler": "other"}, "euler-ancestral"),
        ({"spacing": "other"}, "trailing"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        GenerateOptions(**options)


def test_options_are_numbers_of_numpy_too(networks: DiffusionNetworks) -> None:
    asked = {"steps": np.int64(3), "width": np.int32(72), "guidance": np.float32(2), "strength": np.float64(0.5)}
    made = generate(networks, PROMPT, options=GenerateOptions(**asked))  # type: ignore[arg-type]
    own = generate(networks, PROMPT, options=GenerateOptions(steps=3, width=72, guidance=2.0, strength=0.5))
    np.testing.assert_array_equal(made.images, own.images)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 100}, "width of 96 or 104"),
        ({"height": 60}, "height is 60 px"),
        ({"width": 71}, "width of 64 or 72"),
        ({"width": 0}, "width is 0 px"),
        ({"width": 1 << 20}, "give a width of 64 to 8192"),
        ({"tile": 60}, "multiple of 8, 64 or more"),
        ({"tile": 100}, "multiple of 8"),
        ({"steps": 4, "delay": 4}, "delay is 4 of 4 steps"),
        ({"scheduler": "lcm", "steps": 100}, "1 to 50 steps"),
        ({"eta": 0.5}, "eta"),
        ({"denoise": 0.5}, "denoise is of an image"),
        ({"keep": 1}, "nothing to choose pictures by"),
        ({"negative": "x " * 80}, "the negative prompt has 80 tokens"),
        ({"negative": None}, "a prompt is a NoneType"),
    ],
)
def test_nothing_opens_for_what_cannot_be(
    diffusion_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(Bundle, "open", lambda self, engine, *args, **more: pytest.fail(f"{engine} was opened"))
    with DiffusionNetworks(diffusion_bundle, "cpu") as networks, pytest.raises(UsageError, match=words):
        generate(networks, PROMPT, options=GenerateOptions(**options))


def test_other_arguments_that_cannot_be(networks: DiffusionNetworks) -> None:
    with pytest.raises(UsageError, match=r"latents are float64 of shape \(1, 4, 8, 9\)"):
        generate(networks, PROMPT, latents=np.zeros((1, 4, 8, 9)))
    with pytest.raises(UsageError, match="noise are"):
        generate(networks, PROMPT, noise=np.full((6, 1, *SHAPE), np.nan))
    with pytest.raises(UsageError, match="preview_every is -1"):
        generate(networks, PROMPT, preview_every=-1)
    with pytest.raises(UsageError, match=r"preview_every is 1\.5"):
        generate(networks, PROMPT, preview_every=1.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a prompt is a int"):
        generate(networks, 5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the prompt has 80 tokens, 75 fit"):
        generate(networks, "x " * 80)
    cut = generate(networks, "x " * 80, options=GenerateOptions(truncate=True, steps=1))
    assert cut.images.shape == (1, 64, 64, 3)


def test_faces_that_do_not_fit(networks: DiffusionNetworks, plain_diffusion_bundle: Bundle) -> None:
    face, single = tokens_of(networks, 1), tokens_of(networks, 1, "mf2d")
    options = GenerateOptions()
    with pytest.raises(UsageError, match="no 'f l'"):
        generate(networks, "a man eating", {"f": face})
    with pytest.raises(UsageError, match="name them: f, g"):
        generate(networks, "h l eating", {"h": face})
    with pytest.raises(EmbeddingSpaceMismatch, match="method='mf2d'"):
        read_prompt(networks, "f eating", {"f": face}, dataclasses.replace(options, method="mf2d"))
    with pytest.raises(EmbeddingSpaceMismatch):
        read_prompt(networks, "f and g eating", {"f": face, "g": single}, options)
    alien = FaceTokens(face.first, face.last, dataclasses.replace(face.space, model="another"))
    with pytest.raises(EmbeddingSpaceMismatch, match="another"):
        generate(networks, "f l eating", {"f": alien})
    with pytest.raises(UsageError, match="3 tokens, a placeholder 2"):
        generate(networks, "f l eating", {"f": face}, GenerateOptions(class_words="very very man", delay=1))
    with DiffusionNetworks(plain_diffusion_bundle, "cpu") as plain, pytest.raises(UsageError, match="knows no faces"):
        generate(plain, "f l eating", {"f": face})


def test_a_face_that_was_forgotten(networks: DiffusionNetworks, plain_diffusion_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="has 'g l', but no face was given for it") as caught:
        generate(networks, "a man and g l eating")
    assert "--face g=PHOTO" in caught.value.remedy
    assert "'a man and a person eating'" in caught.value.remedy
    with DiffusionNetworks(plain_diffusion_bundle, "cpu") as plain:  # where these are words like any other
        assert generate(plain, "a man and g l eating").images.any()


def test_what_is_cut_is_said_once(networks: DiffusionNetworks, caplog: pytest.LogCaptureFixture) -> None:
    options = GenerateOptions(truncate=True, steps=3, delay=1, strength=0.5, negative="man " * 80)
    generate(networks, "f l " + "very " * 80, {"f": tokens_of(networks, 1)}, options)
    said = [record.getMessage().partition(" has ")[0] for record in caplog.records]
    assert sorted(said) == ["the negative prompt", "the prompt"]
