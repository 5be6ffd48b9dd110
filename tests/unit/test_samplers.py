"""Samplers as matrices: whole trajectories equal diffusers' schedulers, and what holds for all of them."""

from __future__ import annotations

import dataclasses
import importlib
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from facesdk.diffusion.samplers import Sampler, SamplerOptions, fast_blocks, run, sampler, single_step_fast, walk
from facesdk.diffusion.schedule import NoiseSchedule
from facesdk.errors import UsageError

#: scheduler -> module and class of diffusers
CLASSES = {
    "ddim": ("ddim", "DDIMScheduler"),
    "euler": ("euler_discrete", "EulerDiscreteScheduler"),
    "euler-ancestral": ("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
    "dpm++": ("dpmsolver_multistep", "DPMSolverMultistepScheduler"),
    "dpm++-single": ("dpmsolver_singlestep", "DPMSolverSinglestepScheduler"),
    "plms": ("pndm", "PNDMScheduler"),
    "lcm": ("lcm", "LCMScheduler"),
}
#: scheduler/scheduler_config.json of Stable Diffusion 1.4
SD14 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
SHAPE = (2, 3, 4)


class _Doubled:
    """A module whose float32 is its float64."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@contextmanager
def diffusers_module(scheduler: str, noise: Iterator[Any], dtype: type) -> Iterator[Any]:
    """The module of a scheduler, computing in `dtype` and drawing its noise from `noise`."""
    torch = pytest.importorskip("torch", reason="diffusers' schedulers need torch")
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        pytest.importorskip("diffusers", reason="the reference of these samplers")
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{CLASSES[scheduler][0]}")
        if hasattr(module, "logger"):
            patch.setattr(module.logger, "warning", lambda *_, **__: None)
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", lambda *_, **__: next(noise))
        if dtype is np.float64:
            patch.setattr(module, "torch", _Doubled(module.torch))
            patch.setattr(module, "np", _Doubled(module.np))
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64 if dtype is np.float64 else before)
        try:
            yield module
        finally:
            torch.set_default_dtype(before)


def network(x: np.ndarray, t: float) -> np.ndarray:
    """A nonlinear stand-in that depends on time and mixes channels."""
    return 0.8 * np.tanh(0.7 * x + 0.3 * x[:, ::-1] + np.sin(t / 90)) + 0.1 * np.cos(t / 70) * x[::-1]


def theirs(options: SamplerOptions, start: np.ndarray, noise: np.ndarray, settings: dict[str, Any]) -> dict[str, Any]:
    """What diffusers' class does: timesteps, initial factor, trajectory and predicted clean latents."""
    torch = pytest.importorskip("torch", reason="diffusers' schedulers need torch")
    draws = iter(map(torch.from_numpy, noise))
    with diffusers_module(options.scheduler, draws, start.dtype.type) as module:
        scheduler = getattr(module, CLASSES[options.scheduler][1]).from_config({**SD14, **settings})
        scheduler.set_timesteps(options.steps)
        initial = float(scheduler.init_noise_sigma)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(options.begin)
        extra = {"eta": options.eta} if options.scheduler == "ddim" else {}
        timesteps = scheduler.timesteps[options.begin :]
        latent, latents, cleans = torch.from_numpy(start), [start], []
        for t in timesteps:
            scaled = scheduler.scale_model_input(latent, t).numpy()
            output = network(scaled, float(t)).astype(start.dtype)
            stepped = scheduler.step(torch.from_numpy(output), t, latent, **extra)
            latent = stepped.prev_sample
            latents.append(latent.numpy())
            clean = stepped.get("pred_original_sample", stepped.get("denoised"))
            cleans.append(None if clean is None else clean.numpy())
    return {"timesteps": timesteps.numpy(), "initial": initial, "latents": np.stack(latents), "clean": cleans}


def settings_of(options: SamplerOptions) -> dict[str, Any]:
    """The same, in diffusers' words."""
    settings: dict[str, Any] = {"prediction_type": options.prediction}
    if options.spacing != "auto":
        settings["timestep_spacing"] = options.spacing
    if options.scheduler.startswith("dpm++"):
        settings |= {
            "solver_order": options.order, "solver_type": options.solver_type,
            "lower_order_final": options.lower_order_final,
        }  # fmt: skip
    if options.scheduler in ("dpm++", "dpm++-single", "euler"):
        settings |= {"use_karras_sigmas": options.karras_sigmas, "final_sigmas_type": options.final_sigma}
    if options.scheduler in ("ddim", "plms"):
        settings["set_alpha_to_one"] = options.set_alpha_to_one
    if options.scheduler == "lcm":
        settings["original_inference_steps"] = options.original_steps
    return settings | {"steps_offset": options.steps_offset}


def differences(options: SamplerOptions, settings: dict[str, Any], dtype: type) -> dict[str, float]:
    """Largest difference from diffusers' class, by quantity, relative to the largest value of the trajectory."""
    made = sampler(options)
    rng = np.random.default_rng(options.steps)
    start = (rng.standard_normal(SHAPE) * (made.initial if not options.begin else np.hypot(*made.levels[0]))).astype(
        dtype
    )
    noise = rng.standard_normal((len(made), *SHAPE)).astype(dtype)
    want = theirs(options, start, noise, settings)
    walked = list(walk(made, network, start, noise))
    scale = np.abs(want["latents"]).max()
    known = [(got, each) for (_, got), each in zip(walked, want["clean"], strict=True) if each is not None]
    return {
        "timesteps": float(np.abs(made.timesteps - want["timesteps"]).max()) / 1000,
        "initial": abs(made.initial - want["initial"]) / want["initial"],
        "latents": float(np.abs(run(made, network, start, noise) - want["latents"]).max() / scale),
        "clean": max((float(np.abs(got - each).max() / scale) for got, each in known), default=0.0),
    }


def drawn(scheduler: str, draw: random.Random) -> SamplerOptions:
    """Random options that the scheduler, and diffusers' class of it, knows."""
    steps = draw.choice([1, 2, 3, 4, 5, 7, 10, 14, 15, 16, 20, 23, 30, 31, 47])
    three = ["auto", "leading", "linspace", "trailing"]
    chosen: dict[str, Any] = {"spacing": draw.choice(three), "steps_offset": draw.choice([0, 1, 1, 3])}
    predictions = ["epsilon", "v_prediction", "sample"]
    if scheduler.startswith("dpm++"):
        chosen |= {
            "order": draw.choice([1, 2, 3]), "solver_type": draw.choice(["midpoint", "heun"]),
            "lower_order_final": draw.random() < 0.7,
        }  # fmt: skip
    if scheduler in ("dpm++", "dpm++-single", "euler"):
        chosen |= {"karras_sigmas": draw.random() < 0.3, "final_sigma": draw.choice(["zero", "zero", "sigma_min"])}
    if scheduler in ("ddim", "plms"):
        chosen["set_alpha_to_one"] = draw.random() < 0.3
    if scheduler == "ddim":
        chosen["eta"] = draw.choice([0.0, 0.3, 1.0, draw.random()])
    if scheduler == "dpm++-single":
        chosen["spacing"] = draw.choice(["auto", "linspace"])
    if scheduler == "lcm":
        chosen |= {"spacing": "auto", "original_steps": draw.choice([50, 100])}
    if scheduler in ("plms", "euler-ancestral"):
        predictions.remove("sample")
    begin = draw.choice([0, 0, 1, draw.randrange(steps)])
    return SamplerOptions(scheduler, steps, begin=min(begin, steps - 1), prediction=draw.choice(predictions), **chosen)


# -- against diffusers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", CLASSES)
@pytest.mark.parametrize("seed", range(40))
def test_a_trajectory_is_that_of_diffusers_in_float64(scheduler: str, seed: int) -> None:
    options = drawn(scheduler, random.Random(seed))
    found = differences(options, settings_of(options), np.float64)
    assert all(error <= 1e-12 for error in found.values()), (options, found)


@pytest.mark.parametrize("scheduler", CLASSES)
@pytest.mark.parametrize("seed", range(100, 115))
def test_a_trajectory_is_that_of_diffusers_in_float32(scheduler: str, seed: int) -> None:
    options = drawn(scheduler, random.Random(seed))
    found = differences(options, settings_of(options), np.float32)
    # float32's cumulative product of alphas alone moves diffusers' largest sigma
    assert found.pop("initial") <= 3e-5
    assert all(error <= 1e-5 for error in found.values()), (options, found)


@pytest.mark.parametrize("scheduler", CLASSES)
def test_defaults_are_what_diffusers_makes_of_the_published_file(scheduler: str) -> None:
    for steps in (4, 20, 50):
        options = SamplerOptions(scheduler, steps, eta=float(scheduler == "ddim"))
        assert all(error <= 1e-12 for error in differences(options, {}, np.float64).values())


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler-ancestral", "dpm++", "dpm++-single", "plms"])
@pytest.mark.parametrize("steps", [100, 333])
def test_many_steps_are_those_of_diffusers(scheduler: str, steps: int) -> None:
    options = SamplerOptions(scheduler, steps, order=3 if scheduler.startswith("dpm++") else 2)
    assert all(error <= 1e-12 for error in differences(options, settings_of(options), np.float64).values())


def test_a_schedule_of_other_betas_is_that_of_diffusers() -> None:
    other = {"num_train_timesteps": 400, "beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear"}
    options, schedule = SamplerOptions("dpm++", 12, order=3), NoiseSchedule(400, 0.001, 0.02, "linear")
    start = np.random.default_rng(0).standard_normal(SHAPE)
    want = theirs(options, start, np.zeros((12, *SHAPE)), settings_of(options) | other)["latents"]
    np.testing.assert_allclose(run(sampler(options, schedule), network, start), want, rtol=0, atol=1e-13)


# -- what holds for all ------------------------------------------------------------------------------------

ALL = [
    *(sampler(SamplerOptions(scheduler, 9)) for scheduler in CLASSES),
    *(sampler(SamplerOptions(scheduler, 20, begin=7)) for scheduler in CLASSES),
    *(sampler(SamplerOptions("dpm++", 20, order=order, solver_type="heun")) for order in (1, 3)),
    *(sampler(SamplerOptions("dpm++-single", 20, order=order, solver_type="heun")) for order in (1, 3)),
    sampler(SamplerOptions("ddim", 30, "ldm", eta=0.5)),
    single_step_fast(10),
    single_step_fast(7, 2),
]


@pytest.mark.parametrize("made", ALL)
def test_the_rows_fit_together(made: Sampler) -> None:
    n, slots, wide = made.matrices.shape
    assert wide == slots + 2
    assert made.timesteps.shape == made.scales.shape == (n,) == (len(made),)
    assert made.clean.shape == (n, slots + 2)
    assert made.levels.shape == (n + 1, 2)
    arrays = (made.timesteps, made.scales, made.matrices, made.clean, made.levels)
    assert {array.dtype for array in arrays} == {np.dtype(np.float64)}
    assert all(np.isfinite(array).all() for array in arrays)
    np.testing.assert_allclose(np.hypot(*made.levels[:-1].T) * made.scales, 1, rtol=1e-15)


@pytest.mark.parametrize("made", ALL)
def test_memory_is_not_read_before_it_is_written(made: Sampler) -> None:
    written = np.zeros(made.matrices.shape[1], bool)
    written[0] = True
    for matrix, clean in zip(made.matrices, made.clean, strict=True):
        read = matrix[:, :-2] != 0
        assert not clean[:-2][~written].any()
        # what is copied from an empty slot leaves the other empty
        written = ~(read & ~written).any(1)
        assert written[0]


# plms from a later step is told other timesteps than the latent's, as in diffusers
@pytest.mark.parametrize("made", [made for made in ALL if not made.noisy and len(made) != 14])
def test_a_network_that_knows_the_clean_latent_is_led_to_it(made: Sampler) -> None:
    rng = np.random.default_rng(0)
    clean, eps = rng.standard_normal((2, *SHAPE))
    signal, noise = made.levels[0]
    walked = list(walk(made, lambda x, t: eps, signal * clean + noise * eps, None))
    for (latent, predicted), (signal, noise) in zip(walked, made.levels[1:], strict=True):
        np.testing.assert_allclose(predicted, clean, rtol=0, atol=1e-12)
        np.testing.assert_allclose(latent, signal * clean + noise * eps, rtol=0, atol=1e-12)


def test_only_stochastic_samplers_are_noisy() -> None:
    noisy = {scheduler for scheduler in CLASSES if sampler(SamplerOptions(scheduler)).noisy}
    assert noisy == {"euler-ancestral", "lcm"}
    assert sampler(SamplerOptions("ddim", eta=0.1)).noisy
    assert not sampler(SamplerOptions()).matrices[-1, 0, -1]


def test_ldm_timesteps_are_those_of_diffusers_where_the_steps_divide_the_schedule() -> None:
    ours, theirs = (sampler(SamplerOptions("ddim", 50, spacing, eta=1.0)) for spacing in ("ldm", "leading"))
    for field in dataclasses.fields(Sampler):
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))
    assert len(sampler(SamplerOptions("ddim", 30, "ldm"))) == 31


# -- the authors' single-step solver -----------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_fast_single_step_solver_converges_with_its_order(order: int) -> None:
    schedule, spread, ends = NoiseSchedule(), 0.3, (1.0, 0.1)
    deviations = [np.hypot(np.exp(schedule.log_alpha(t)) * spread, schedule.sigma(t)) for t in ends]

    def exact_eps(x: np.ndarray, timestep: float) -> np.ndarray:
        """Noise in x where the clean latents are N(0, spread^2)."""
        alpha, sigma = np.exp(schedule.log_alpha(timestep / 1000)), schedule.sigma(timestep / 1000)
        return sigma * x / (alpha**2 * spread**2 + sigma**2)

    errors = []
    # blocks of order 3 that end on one of 2, or of 2 alone: an end of order 1 would hide the others'
    for steps in (62, 122):
        made = single_step_fast(steps, order, schedule, t_start=ends[0], t_end=ends[1])
        errors.append(abs(run(made, exact_eps, np.ones(1))[-1, 0] - deviations[1] / deviations[0]))
    assert np.log2(errors[0] / errors[1]) > order - 0.3


def test_blocks_use_the_evaluations_asked_for() -> None:
    assert [fast_blocks(steps, 3) for steps in (1, 2, 3, 4, 5, 6)] == [[1], [2], [2, 1], [3, 1], [3, 2], [3, 2, 1]]
    assert [fast_blocks(steps, 2) for steps in (1, 4, 5)] == [[1], [2, 2], [2, 2, 1]]
    assert all(sum(fast_blocks(steps, order)) == steps for steps in range(1, 50) for order in (1, 2, 3))
    np.testing.assert_allclose(single_step_fast(40).timesteps, 1000 - 24.975 * np.arange(40))


# -- misuse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scheduler": "heun"}, "the scheduler is 'heun'"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": True}, "steps is True"),
        ({"begin": -1}, "begin is -1"),
        ({"begin": 30}, "begin is 30 of 30"),
        ({"steps": 1001}, "1001 steps of a noise schedule of 1000"),
        ({"scheduler": "dpm++", "steps": 1000}, "1000 steps of dpm++"),
        ({"scheduler": "ddim", "steps": 1000}, "reach timestep 1000"),
        ({"scheduler": "ddim", "spacing": "ldm", "steps": 27}, "reach timestep 1000"),
        ({"scheduler": "ddim", "eta": float("nan")}, "eta is nan"),
        ({"scheduler": "ddim", "eta": 1.1}, "eta is 1.1"),
        ({"eta": 0.5}, "eta is 0.5, which euler-ancestral does not know"),
        ({"scheduler": "euler", "order": 3}, "choose the scheduler dpm"),
        ({"scheduler": "dpm++", "order": 4}, "order is 4"),
        ({"karras_sigmas": True}, "karras_sigmas is True, which euler-ancestral"),
        ({"spacing": "ldm"}, "spacing of euler-ancestral is 'ldm'"),
        ({"scheduler": "dpm++-single", "spacing": "trailing"}, "spacing of dpm\\+\\+-single"),
        ({"scheduler": "plms", "prediction": "sample"}, "prediction of plms is 'sample'"),
        ({"scheduler": "lcm", "steps": 51}, "51 steps of lcm"),
        ({"scheduler": "dpm++", "solver_type": "bh2"}, "solver_type"),
    ],
)
def test_options_that_make_no_sampler_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("dpm++", r"dpm\+\+")):
        sampler(SamplerOptions(**wrong))


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"order": 4}, {"t_end": 0.0}, {"t_end": 1e-6}, {"t_start": 1.5}, {"t_end": float("nan")}]
)
def test_times_that_make_no_solver_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="remedy"):
        single_step_fast(**{"steps": 10, **wrong})


def test_a_noisy_sampler_wants_its_noise() -> None:
    start = np.zeros(SHAPE, np.float32)
    with pytest.raises(UsageError, match="fresh noise"):
        run(sampler(), network, start)
    with pytest.raises(UsageError, match=r"\(30, 2, 3, 4\)"):
        run(sampler(), network, start, np.zeros((29, *SHAPE), np.float32))
    assert run(sampler(), network, start, np.zeros((30, *SHAPE))).dtype == np.float32
