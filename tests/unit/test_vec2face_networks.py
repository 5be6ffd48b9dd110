"""Vec2Face's networks: what is easily mistaken in the generator, its sizes, and Vec2Face+'s pose model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.errors import ConversionError
from facesdk.synthesis.masks import MaskLaw, token_masks

torch = pytest.importorskip("torch", reason="the export room needs torch")

from torch import Tensor, nn  # noqa: E402

from facesdk_export.checkpoints import Checkpoint, load_into, read_checkpoint  # noqa: E402
from facesdk_export.networks.vec2face import UNUSED, Generator, ImageDecoder, ResidualBlock  # noqa: E402
from facesdk_export.networks.vec2face_plus import PosedGenerator, fold_lora  # noqa: E402
from facesdk_export.networks.vec2face_sizes import generator_of  # noqa: E402

DIM = 96  # divided by the published 12 and 16 heads
SIZES = {
    "dim": DIM,
    "depth": 2,
    "heads": 12,
    "decoder_dim": DIM,
    "decoder_depth": 3,
    "decoder_heads": 16,
    "mlp_ratio": 2,
}
POSE_LAW = MaskLaw(0.8, 0.9, 0.85, 0.05)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def decoder() -> ImageDecoder:
    return ImageDecoder(z=24, ch=32, ch_mult=(1, 1, 2, 2, 3), blocks_per_level=1)


def small(kind: type[Generator] = Generator) -> Any:
    """A reduced network with every parameter away from its initial value."""
    network = kind(decoder(), **SIZES).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return network


def masks(law: MaskLaw, count: int = 2) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(1)
    found = token_masks(rng.random((count, 49)), np.linspace(law.minimum, law.maximum, count), law)
    return torch.from_numpy(found.keep), torch.from_numpy(found.masked)


# -- the generator --------------------------------------------------------------------------------------------


def test_where_the_width_changes_nothing_skips_the_block() -> None:
    """The published `nin_shortcut` has as many inputs as outputs and reads the branch's own output."""
    block = ResidualBlock(64, 32, 32, 1e-6).double()
    assert block.nin_shortcut.weight.shape == (32, 32, 1, 1)
    x = torch.randn(2, 64, 6, 6, dtype=torch.float64)
    branch = block.conv2(nn.functional.silu(block.norm2(block.conv1(nn.functional.silu(block.norm1(x))))))
    torch.testing.assert_close(block(x), branch + block.nin_shortcut(branch))
    # normalised at its entrance, a block without skip does not see the scale of x
    torch.testing.assert_close(block(1000 * x), block(x), rtol=1e-4, atol=1e-4)
    same = ResidualBlock(32, 32, 32, 1e-6).double()
    assert same.nin_shortcut is None
    assert (same(1000 * branch) - same(branch) - 999 * branch).abs().max() < 1e-2


def test_hidden_rows_do_not_matter_and_dropped_ones_are_not_seen() -> None:
    network = small().double()
    keep, masked = masks(MaskLaw())
    rows = network.rows(torch.randn(2, 512, dtype=torch.float64))
    other = torch.where(masked[..., None], torch.randn_like(rows), rows)
    latent = network.encode(rows, keep, masked)
    assert latent.shape == (2, 45, DIM)
    assert torch.equal(network.encode(other, keep, masked), latent)
    changed = rows.clone()
    changed[0, int(keep[0, masked[0].logical_not()[keep[0]]][-1])] += 1  # one that is kept and not hidden
    assert (network.encode(changed, keep, masked) != latent).any(2).any(1).tolist() == [True, False]


def test_entries_that_are_not_used_are_reported() -> None:
    network = small()
    entries = network.state_dict()
    published = {
        name: torch.zeros(1) for name in ("center_token.weight", "patch_embed.proj.bias", "token_emb.position_ids")
    }
    checkpoint = Checkpoint(Path("a.pth"), {**entries, **published, "extra.weight": torch.zeros(1)})
    report = load_into(small(), checkpoint)
    assert set(report.unused) == {*published, "extra.weight"}
    assert load_into(small(), checkpoint, ignore=UNUSED).unused == ("extra.weight",)
    assert report.loaded == set(entries)
    assert not any(name.startswith(UNUSED) for name in entries)


# -- sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Generator, PosedGenerator])
def test_sizes_are_read_off_the_entries(kind: type[Generator]) -> None:
    entries = small(kind).state_dict()
    network = generator_of(entries, kind)
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in entries.items()
    }
    assert (network.blocks[0].attn.heads, network.decoder_blocks[0].attn.heads) == (12, 16)
    assert all(value.is_meta for value in (*network.parameters(), *network.buffers()))


def test_what_entries_do_not_say_has_the_published_size() -> None:
    network = generator_of({}, Generator)
    with torch.device("meta"):
        published = Generator(ImageDecoder())
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in published.state_dict().items()
    }
    assert network.im_decoder.up[4].block[0].conv1.weight.shape == (512, 512, 3, 3)


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1280, 16)])
def test_heads_of_the_known_widths(width: int, heads: int) -> None:
    entries = {"latent_prior_proj_f.weight": torch.empty((width, 512), device="meta")}
    network = generator_of(entries, Generator)
    assert [block.attn.heads for block in network.blocks] == [heads] * 12


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("latent_prior_proj_f.weight", (100, 512)),
        ("decoder_norm.weight", (120,)),
        ("im_decoder.up.0.block.0.conv2.weight", (40, 40, 3, 3)),
    ],
)
def test_widths_that_do_not_divide(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConversionError, match=f"width {shape[0]}") as caught:
        generator_of({name: torch.empty(shape, device="meta")}, Generator)
    assert caught.value.remedy


def test_a_file_of_another_network_is_named_as_such() -> None:
    checkpoint = Checkpoint(
        Path("arcface.pth"), {"conv1.weight": torch.zeros(64, 3, 3, 3), "fc.bias": torch.zeros(512)}
    )
    with pytest.raises(ConversionError, match=r"arcface.pth does not fit[\s\S]*begin with: conv1, fc"):
        load_into(generator_of(checkpoint.entries, Generator), checkpoint)


# -- low-rank updates -----------------------------------------------------------------------------------------


class LoRA(nn.Module):
    """A linear layer and its low-rank update, as Vec2Face+ trains them."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.A = nn.Parameter(torch.randn(rank, base.in_features))
        self.B = nn.Parameter(torch.randn(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.A.T) @ self.B.T


def with_lora(network: Any, rank: int = 8) -> Any:
    for block in itertools.chain(network.blocks, network.decoder_blocks):
        for name in ("qkv", "proj"):
            setattr(block.attn, name, LoRA(getattr(block.attn, name), rank, 32))
    return network


@pytest.mark.parametrize("rank", [4, 8])
def test_folded_updates_compute_the_same(rank: int) -> None:
    explicit = with_lora(small(), rank).double()
    folded = small().double()
    folded.load_state_dict(fold_lora(explicit.state_dict()))
    keep, masked = masks(MaskLaw())
    vector = torch.randn(2, 512, dtype=torch.float64)
    want = explicit(vector, keep, masked)
    torch.testing.assert_close(folded(vector, keep, masked), want, rtol=1e-9, atol=1e-9)
    folded.blocks[0].attn.qkv.weight.data.sub_(explicit.blocks[0].attn.qkv.scale * 1e-3)
    assert (folded(vector, keep, masked) - want).abs().max() > 1e-6


def test_folding_keeps_the_type_and_everything_else() -> None:
    entries = {name: value.half() for name, value in with_lora(small()).state_dict().items()}
    folded = fold_lora(entries)
    assert set(folded) == set(small().state_dict())
    assert {value.dtype for value in folded.values()} == {torch.float16}
    assert all(folded[name] is entries[name] for name in folded if name in entries)
    want = entries["blocks.0.attn.proj.base.weight"].double() + 32 / 8 * (
        entries["blocks.0.attn.proj.B"].double() @ entries["blocks.0.attn.proj.A"].double()
    )
    assert torch.equal(folded["blocks.0.attn.proj.weight"], want.half())


@pytest.mark.parametrize("fault", ["no B", "no base", "other rank", "other width", "rank 0", "three axes"])
def test_an_update_that_does_not_fit_is_not_folded(fault: str) -> None:
    """Loading then names what is missing."""
    entries = with_lora(small()).state_dict()
    root = "blocks.1.attn.qkv"
    a, b = entries[f"{root}.A"], entries[f"{root}.B"]
    spoiled = {
        "no B": {"B": None}, "no base": {"base.weight": None}, "other rank": {"A": a[:4]},
        "other width": {"A": a[:, :50]}, "rank 0": {"A": a[:0], "B": b[:, :0]}, "three axes": {"A": a[None]},
    }[fault]  # fmt: skip
    entries = {**entries, **{f"{root}.{name}": value for name, value in spoiled.items()}}
    entries = {name: value for name, value in entries.items() if value is not None}
    folded = fold_lora(entries)
    assert {name for name in entries if name.startswith(root)} <= set(folded)
    with pytest.raises(ConversionError, match=f"are missing: {root}.weight"):
        load_into(small(), Checkpoint(Path("a.pth"), folded))


# -- the pose model -------------------------------------------------------------------------------------------


def test_hidden_rows_reach_the_decoder_as_the_pose() -> None:
    network = small(PosedGenerator).double()
    keep, masked = masks(POSE_LAW)
    assert keep.shape == (2, 10)
    landmarks, latent = torch.randn(2, 3, 112, 112, dtype=torch.float64), torch.randn(2, 10, DIM, dtype=torch.float64)
    seen: list[Tensor] = []
    network.decoder_blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.decode(latent, keep, masked, landmarks)
    rows = seen[0] - network.decoder_pos_embed_learned
    pose = network.pose_model(landmarks)
    for i in range(2):
        torch.testing.assert_close(rows[i, masked[i]], pose[i].expand(int(masked[i].sum()), -1))
        clear = [k for k, row in enumerate(keep[i].tolist()) if not masked[i, row]]
        torch.testing.assert_close(rows[i, keep[i, clear]], latent[i, clear])  # without `decoder_embed`


def test_the_pose_changes_the_picture_and_rows_do_not_see_each_other() -> None:
    network = small(PosedGenerator).double()
    keep, masked = masks(POSE_LAW)
    vector = torch.randn(2, 512, dtype=torch.float64)
    first, second = torch.rand(2, 2, 3, 112, 112, dtype=torch.float64) * 2 - 1
    mixed = torch.stack((first[0], second[1]))
    pictures = network(vector, keep, masked, first)
    assert pictures.shape == (2, 3, 112, 112)
    changed = network(vector, keep, masked, mixed)
    torch.testing.assert_close(changed[0], pictures[0])
    assert (changed[1] - pictures[1]).abs().max() > 1e-3


def test_two_networks_of_one_file(tmp_path: Path) -> None:
    network = small(PosedGenerator)
    prefix = "pose_model."
    entries = network.state_dict()
    pose = {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}
    face = {name: value for name, value in entries.items() if not name.startswith(prefix)}
    torch.save({"model_vec2face": face, "pose_model": pose, "epoch": 3}, tmp_path / "pose_model.pth")
    default = read_checkpoint(tmp_path / "pose_model.pth")
    assert (default.container, set(default.entries)) == ("model_vec2face", set(face))
    assert set(default.others) == {"pose_model", "epoch"}
    other = read_checkpoint(tmp_path / "pose_model.pth", container="pose_model")
    assert set(other.entries) == set(pose)
