"""HifiFace's networks: the forms that become engines equal the published ones; what training needs behaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from tests.parity.reference import ROOT

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from facesdk.annotation import deep3d_alignment  # noqa: E402
from facesdk.errors import UsageError  # noqa: E402
from facesdk_export import hififace_dataset  # noqa: E402
from facesdk_export.networks.deep3d import Deep3DRecon  # noqa: E402
from facesdk_export.networks.face_model import rotation  # noqa: E402
from facesdk_export.networks.hififace import (  # noqa: E402
    Decoder,
    Encoder,
    Generator,
    IdentityExtractor,
    SemanticFacialFusion,
    Traits,
    interpolated_vector,
    published_generator,
)
from facesdk_export.networks.hififace_blocks import ResBlock  # noqa: E402
from facesdk_export.networks.hififace_discriminators import Discriminator, XuehyDiscriminator  # noqa: E402
from facesdk_export.networks.hififace_engines import (  # noqa: E402
    FoldedDownsampling,
    IdentityEncoder,
    ShapeEncoder,
    SwapDecoder,
    TargetEncoder,
    fold_downsampling,
)
from facesdk_export.networks.hififace_losses import (  # noqa: E402
    GeneratorLoss,
    discriminator_hinge,
    generator_hinge,
    segmentation_loss,
)
from facesdk_export.networks.hififace_xuehy import XuehyFacialFusion, xuehy_generator  # noqa: E402
from facesdk_export.networks.iresnet import IResNet  # noqa: E402
from facesdk_export.networks.lpips import LPIPS  # noqa: E402

VECTOR = 769


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float(((got - want).abs().max() / want.abs().max()).detach())


def small_generator(kind: str) -> Generator:
    """Either system with narrow layers; the two frozen networks are stand-ins."""
    f_3d = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(3 * 36, 257))
    f_id = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(3 * 36, 512))
    widths = (4, 6, 8, 10, 10, 10, 10, 10)
    encoder, decoder = Encoder(widths), Decoder((10, 10, 10, 10, 10, 8))
    if kind == "xuehy":
        return Generator(IdentityExtractor(f_3d, f_id, "bicubic"), encoder, decoder, XuehyFacialFusion(8)).eval()
    final = ((8, 6, "up"), (6, 5, "up"), (5, 5, "none"), (5, 4, "none"))
    fusion = SemanticFacialFusion((8, 8), (8, 1), (8, 11), final)
    return Generator(IdentityExtractor(f_3d, f_id), encoder, decoder, fusion).eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (32, 32)])
def test_folded_downsampling_equals_the_block(size: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    block, x = ResBlock(6, 10, "down").to(dtype), torch.randn(2, 6, *size, dtype=dtype) + 3
    folded = fold_downsampling(block)
    assert isinstance(folded, FoldedDownsampling)
    assert relative(folded(x), block(x)) <= tolerance


def test_folding_leaves_other_blocks_alone() -> None:
    block = ResBlock(6, 10)
    assert fold_downsampling(block) is block


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["published", "xuehy"])
def test_engines_in_a_row_equal_the_generator(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    generator = small_generator(kind).to(dtype)
    source, target = torch.rand(2, 2, 3, 128, 128, dtype=dtype)
    want = generator(source, target)
    identity = IdentityEncoder.from_generator(generator)(source)
    of_source, of_target = (ShapeEncoder.from_generator(generator)(face) for face in (source, target))
    vector = torch.cat([of_source[:, :80], of_target[:, 80:], identity], 1)
    skip, bottleneck = TargetEncoder.from_generator(generator)(target)
    picture, mask = SwapDecoder.from_generator(generator)(target, skip, bottleneck, vector)
    assert skip.shape[2:] == (32, 32)
    assert bottleneck.shape[2:] == (4, 4)
    assert relative(picture, want.picture) <= tolerance
    assert relative(mask, want.mask) <= tolerance


@pytest.mark.parametrize("kind", ["published", "xuehy"])
def test_engines_leave_the_generator_as_it_was(kind: str) -> None:
    generator = small_generator(kind)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    TargetEncoder.from_generator(generator)
    SwapDecoder.from_generator(generator)
    after = generator.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_faces_of_a_batch_do_not_see_each_other() -> None:
    generator = small_generator("published").double()
    faces = torch.rand(3, 3, 96, 96, dtype=torch.float64)
    vectors = torch.randn(3, VECTOR, dtype=torch.float64)
    skip, bottleneck = TargetEncoder.from_generator(generator)(faces)
    decoder = SwapDecoder.from_generator(generator)
    together = decoder(faces, skip, bottleneck, vectors)[0]
    alone = decoder(faces[1:2], skip[1:2], bottleneck[1:2], vectors[1:2])[0]
    assert relative(together[1:2], alone) <= 1e-12


def test_low_resolution_picture_costs_the_swap_decoder_nothing() -> None:
    generator = small_generator("published")
    block = SwapDecoder.from_generator(generator).fusing[0]
    assert generator.sff_module.z_fuse_block.main_path2[1].out_channels == 11
    assert block.second.weight.shape[0] == block.second.out_channels == block.side.out_channels == 8


@pytest.mark.parametrize(("mode", "same"), [("identity", slice(0, 257)), ("3d", slice(257, 769)), ("all", slice(0))])
def test_interpolation_moves_only_what_the_mode_names(mode: str, same: slice) -> None:
    def traits() -> Traits:
        return Traits(torch.randn(1, 257), nn.functional.normalize(torch.randn(1, 512)))

    first, second, target = traits(), traits(), torch.randn(1, 257)
    ends = [interpolated_vector(first, second, target, rate, mode) for rate in (1.0, 0.0)]
    middle = interpolated_vector(first, second, target, 0.3, mode)
    assert torch.equal(ends[0][:, same], middle[:, same])
    assert torch.equal(middle[:, 80:257], target[:, 80:])
    assert torch.allclose(middle[:, 257:].norm(), torch.ones(()))
    assert not torch.equal(ends[0], ends[1])


class Published(nn.Module):
    """Everything that the HifiFace checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = published_generator(Deep3DRecon(), IResNet())
        self.discriminator = Discriminator()
        self.g_loss = GeneratorLoss(Deep3DRecon(), IResNet(), nn.Identity())


@pytest.mark.parametrize(
    ("file", "build"),
    [
        ("hififace_opensouce_299999.ckpt", Published),
        ("xuehy/generator_<step>.pth", lambda: xuehy_generator(Deep3DRecon(), IResNet())),
        ("xuehy/discriminator_<step>.pth", XuehyDiscriminator),
    ],
)
def test_entries_are_those_of_the_published_file(file: str, build: Callable[[], nn.Module]) -> None:
    manifest = ROOT / "hififace" / "state_dict.json"
    if not manifest.is_file():
        pytest.skip(f"no {manifest}; set FACESDK_REFERENCE")
    wanted = json.loads(manifest.read_text())[file]["entries"]
    with torch.device("meta"):
        entries = {name: list(value.shape) for name, value in build().state_dict().items()}
    assert entries == wanted


def test_discriminator_scores_shrink_with_the_picture() -> None:
    shapes = [tuple(score.shape) for score in Discriminator(base_channels=4)(torch.rand(1, 3, 256, 256))]
    assert shapes == [(1, 1, 35, 35), (1, 1, 19, 19), (1, 1, 11, 11)]


def test_hinge_losses_are_zero_beyond_the_margin_and_push_the_right_way() -> None:
    real, fake = [torch.full((1, 1, 2, 2), 2.0)], [torch.full((1, 1, 2, 2), -2.0)]
    assert [float(loss) for loss in discriminator_hinge(real, fake)] == [0.0, 0.0]
    assert [float(loss) for loss in discriminator_hinge(fake, real)] == [3.0, 3.0]
    fake[0].requires_grad_()
    generator_hinge(fake).backward()
    assert (fake[0].grad < 0).all()


def test_segmentation_loss_is_zero_for_the_mask_itself() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8, :] = 1
    low = mask[..., ::4, ::4]
    assert float(segmentation_loss(mask, mask, low)) == 0
    assert float(segmentation_loss(mask, 1 - mask, low)) == 1


def test_lpips_is_a_distance_and_names_its_heads_twice() -> None:
    network = LPIPS().eval()
    a, b = torch.rand(2, 1, 3, 32, 32)
    with torch.no_grad():
        assert float(network(a, a)) == 0
        assert torch.allclose(network(a, b), network(b, a))
    entries = network.state_dict()
    assert all(entries[f"lin{i}.model.1.weight"] is not None for i in range(5))
    assert torch.equal(entries["lin3.model.1.weight"], entries["lins.3.model.1.weight"])
    assert len([*network.parameters()]) == 13 * 2 + 5


def test_rotation_about_z_turns_x_to_y() -> None:
    matrix = rotation(torch.tensor([[0.0, 0.0, np.pi / 2]]))[0]
    assert torch.allclose(torch.tensor([1.0, 0, 0]) @ matrix, torch.tensor([0.0, 1, 0]), atol=1e-6)
    several = rotation(torch.randn(5, 3))
    assert torch.allclose(several @ several.transpose(1, 2), torch.eye(3).expand(5, 3, 3), atol=1e-5)


def five_points(size: float, x: float, y: float) -> np.ndarray:
    """Five points in pixels, y down, of a frontal face `size` pixels large at (x, y)."""
    return deep3d_alignment.STANDARD_POINTS[:, :2] * [size, -size] + [x, y]


def test_deep3d_crop_brings_faces_to_one_size_and_the_middle() -> None:
    picture = np.full((300, 260, 3), 200, np.uint8)
    crops = [deep3d_alignment.align(picture, five_points(size, x, 150)) for size, x in ((60, 80), (120, 140))]
    for crop in crops:
        assert crop.picture.shape == (224, 224, 3)
        assert np.allclose(crop.five_points_px, five_points(102, 112, 111), atol=1.5)
    assert np.isclose(crops[0].scale, 102 / 60)
    edge = deep3d_alignment.align(picture, five_points(60, 5, 150)).picture
    assert (edge[:, 0] == 0).all()
    assert (edge[112, -1] == 200).all()


@pytest.mark.parametrize(
    "points",
    [np.full((5, 2), 7.0), np.zeros((4, 2)), np.full((5, 2), np.nan), five_points(0.01, 50, 50)],
    ids=["coincide", "four", "nan", "tiny"],
)
def test_deep3d_crop_refuses_points_that_are_no_face(points: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"points|face"):
        deep3d_alignment.align(np.zeros((2000, 2000, 3), np.uint8), points)


def test_five_points_of_68() -> None:
    points = np.stack([np.arange(68.0), -np.arange(68.0)], 1)
    assert deep3d_alignment.five_points(points)[:, 0].tolist() == [37.5, 43.5, 30, 48, 54]
    with pytest.raises(UsageError, match="68"):
        deep3d_alignment.five_points(points[:5])


def test_face_mask_takes_exact_colours_only() -> None:
    parsing = np.zeros((2, 3, 3), np.uint8)
    parsing[0] = hififace_dataset.FACE_COLOURS[[0, 3, 10]]
    parsing[1, 0] = hififace_dataset.FACE_COLOURS[0] + 1
    mask = hififace_dataset.face_mask(parsing)
    assert mask.tolist() == [[1, 1, 1], [0, 0, 0]]
    resized = hififace_dataset.resized_mask(mask, 8)
    assert resized.shape == (1, 8, 8)
    assert resized.min() >= 0
    assert all(above >= below for above, below in pairwise(resized[0, :, 0]))


def test_picture_sizes() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 21, 3), np.uint8)
    assert hififace_dataset.square_picture(picture, 16).shape == (3, 16, 16)
    assert hififace_dataset.short_side_picture(picture, 16).shape == (3, 22, 16)
    assert hififace_dataset.short_side_picture(picture.transpose(1, 0, 2), 16).shape == (3, 16, 22)
