"""Stable Diffusion's denoising step and decoder on engines beside diffusers in torch's eager mode, alternating.

    python benchmarks/generate.py [--full] [--threads 2] [--cases step vae tricks]

step: UNet with guidance and one step of Euler's sampler, 64 x 64 latents, one picture.  vae: the decoder at 512 px.
tricks: what each of them is worth by itself, on ONNX Runtime.  Weights are random; the UNet has half the published
channels, with --full all of them; the autoencoder is the published one in every width.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from harness import ROOT, Worker, alternate, save, statistics_of

WORKERS = Path(__file__).parent / "workers"
#: case -> rounds
CASES = {"step": 8, "vae": 4}
#: trick -> (the graph with it, the graph without)
TRICKS = {
    "keys, values and time rows once": ("keys.openvino", "text.openvino"),
    "attention operator": ("keys", "keys.openvino"),
    "guidance and update in the graph": ("step.openvino", "keys.openvino"),
    "Winograd's convolutions": ("step.cpu", "step"),
    "all": ("step.cpu", "text.openvino"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a UNet of the published widths")
    parser.add_argument("--cases", nargs="+", default=[*CASES, "tricks"], choices=[*CASES, "tricks"])
    parser.add_argument("--weights", type=Path, help="folder to make the files in, or that has them")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.weights or Path(scratch) / "generate").resolve()
        published = random_weights(folder / "published", 320 if options.full else 160)
        bundle = exported(published, folder / "bundle")
        rows = []
        for case in (each for each in CASES if each in options.cases):
            rows += beside_torch(case, published, bundle, options)
        if "tricks" in options.cases:
            rows += tricks(published, bundle, folder / "graphs", options.threads)
    print(f"-> {save('generate full' if options.full else 'generate', rows).relative_to(ROOT)}")
    return 0


# -- beside torch -----------------------------------------------------------------------------------------


def beside_torch(case: str, published: Path, bundle: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per system; the workers are gone before the next case's start."""
    variants = [("cpu", "fp32")]
    if importlib.util.find_spec("openvino"):
        variants += [("openvino", precision) for precision in ("fp32", "bf16")]
    name = case if case == "vae" else f"{case} {'full' if options.full else 'half'} width"
    # networks of the published size do not fit into memory together: each is held against torch by itself
    groups = [[variant] for variant in variants] if options.full else [variants]
    rows = []
    for group in groups:
        words = [sys.executable, WORKERS / "torch_generate.py", published, case, str(options.threads)]
        workers = [Worker("torch eager", words)]
        for device, precision in group:
            words = [sys.executable, WORKERS / "facesdk_generate.py", bundle, case, device, precision]
            workers.append(Worker(f"FaceSDK {device} {precision}", [*words, str(options.threads)]))
        rows += compare(workers, name, CASES[case], options.threads)
        for worker in workers:
            worker.close()
    return rows


def compare(workers: list[Worker], case: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Statistics, the ratio of medians to the first worker's, and how far the output is from its."""
    times = alternate(workers, {"do": "run"}, rounds, 1)
    results = {worker.name: np.array(worker.ask({"do": "output"})) for worker in workers}
    figures = {name: statistics_of(measured) for name, measured in times.items()}
    print(f"{case}: {rounds} calls, {threads} threads")
    first = workers[0].name
    rows, exact = [], results[first]
    for worker in workers:
        name, median = worker.name, figures[worker.name]["median_ms"]
        ratio = round(median / figures[first]["median_ms"], 3)
        error = float(np.sqrt(np.mean((results[name] - exact) ** 2)) / exact.std())
        peak = round(worker.ask({"do": "memory"}))
        print(
            f"  {name:50} median {median:9.1f} ms  {ratio:.3f}x  rms error {error:.1e}  peak {peak} MB  {worker.about}"
        )
        row = {"case": case, "system": name, "versions": worker.about, "threads": threads, **figures[name]}
        rows.append(row | {"ratio": ratio, "calls": rounds, "rms_error": float(f"{error:.3g}"), "peak_mb": peak})
    return rows


# -- what each trick is worth -----------------------------------------------------------------------------


def tricks(published: Path, bundle: Path, graphs: Path, threads: int) -> list[dict[str, Any]]:
    """Two rows per trick, without it and with it, each pair alternating in a run of its own."""
    write_graphs(published, bundle, graphs)
    rows = []
    for trick, pair in TRICKS.items():
        workers = []
        for name, graph in zip(("with", "without"), pair, strict=True):
            file = (bundle if graph.startswith("step") else graphs) / f"{graph}.onnx"
            words = [sys.executable, WORKERS / "facesdk_generate.py", bundle, file, "cpu", "fp32", str(threads)]
            workers.insert(0, Worker(f"{name}: {trick}", words))
        rows += compare(workers, "tricks", CASES["step"], threads)
        for worker in workers:
            worker.close()
    return rows


def write_graphs(published: Path, bundle: Path, folder: Path) -> None:
    """The UNet alone in two forms, guidance and update left to the host, each with its own and with plain attention.

    text: everything in the graph, as `unet(latent, time, text)`.  keys: time rows, keys and values are inputs.
    """
    if folder.exists():
        return
    import torch
    from torch import nn

    from facesdk.card import Card
    from facesdk_export.networks.denoising_step import ContextKeys, Denoiser, TimeRows, context_names
    from facesdk_export.onnx_export import Part, write_part
    from facesdk_export.stable_diffusion import read_stable_diffusion

    unet = read_stable_diffusion(published).unet.requires_grad_(False)
    folder.mkdir()

    class FromText(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.rows, self.keys = Denoiser(unet), TimeRows(unet), ContextKeys(unet)

        def forward(self, x: Any, timestep: Any, text: Any) -> Any:
            return self.network(x, self.rows(timestep)[0], self.keys(text))

    class FromKeys(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Denoiser(unet)

        def forward(self, x: Any, time: Any, *context: Any) -> Any:
            return self.network(x, time, context)

    x, text = torch.randn(2, 4, 16, 24), torch.randn(2, 77, 768)
    timestep = torch.tensor([500.0])
    context = dict(zip(context_names(unet), ContextKeys(unet)(text), strict=True))
    inputs = {
        "text": (FromText(), {"x": x, "timestep": timestep, "text": text}),
        "keys": (FromKeys(), {"x": x, "time": TimeRows(unet)(timestep)[0], **context}),
    }
    free = {"x": {2: "height", 3: "width"}}
    for name, (module, arrays) in inputs.items():
        card = Card(system="stable-diffusion", engine=name, about="for a benchmark", licence="Apache-2.0")
        write_part(Part(module, arrays, ("prediction",), card, free), folder / f"{name}.onnx")


# -- files of random weights ------------------------------------------------------------------------------


def random_weights(folder: Path, width: int) -> Path:
    """The folder, of diffusers' layout, with seeded random weights; the text encoder has one layer."""
    if folder.exists():
        return folder
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=64, block_out_channels=(width, 2 * width, 4 * width, 4 * width), cross_attention_dim=768,
        attention_head_dim=8,
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=1)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(betas))
    return folder


def exported(published: Path, bundle: Path) -> Path:
    if not bundle.exists():
        from facesdk_export.bundles import export

        export("stable-diffusion", {"stable_diffusion": published}, bundle)
    return bundle


if __name__ == "__main__":
    sys.exit(main())
