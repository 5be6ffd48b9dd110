"""A bundle of several published files: which are asked for, and which engine says that it is made of which."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.errors import ModelNotFound, ToleranceExceeded, UsageError
from facesdk.files import sha256

torch = pytest.importorskip("torch", reason="the export room needs torch")
pytest.importorskip("onnxscript", reason="the export room needs onnxscript")

from torch import nn  # noqa: E402

from facesdk_export import cli, recipes  # noqa: E402
from facesdk_export.bundles import Recipe, export  # noqa: E402
from facesdk_export.checkpoints import Checkpoint  # noqa: E402
from facesdk_export.onnx_export import Part  # noqa: E402


class Scale(nn.Module):
    def __init__(self, factor: Any) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: Any) -> Any:
        return x * self.factor


def part(*checkpoints: Checkpoint, **facts: Any) -> Part:
    factor = sum(checkpoint.entries["factor"] for checkpoint in checkpoints)
    card = Card(about="scaled", inputs={"x": "anything"}, outputs={"y": "scaled"}, licence=facts.pop("licence", ""))
    return Part(Scale(factor), {"x": torch.arange(6.0).reshape(2, 3)}, ("y",), card, **facts)


def parts(main: Checkpoint, second: Checkpoint, extra_file: Checkpoint | None = None) -> Mapping[str, Part]:
    found = {
        "both": part(main, second),
        "one": part(second, files=("second",), half=False, constants={"one": {"size": 3}}),
    }
    if extra_file is not None:
        found["extra"] = part(extra_file, files=("main", "extra_file"), licence="LicenseRef-own")
    return found


FILES = {"main": "a.pth", "second": "b.pth", "extra_file": "c.pth"}
SEVERAL = Recipe("several", "scales", "MIT", "yes", parts, {"all": {"count": 1}}, FILES, ("extra_file",))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for number, file in enumerate(FILES.values()):
        torch.save({"factor": torch.full((3,), number + 1.0)}, tmp_path / file)
    return {name: tmp_path / file for name, file in FILES.items()}


def card_of(bundle: Bundle, engine: str) -> Card:
    return Card.read(bundle.forms(engine)["default"])


def without(table: Mapping[str, Path], *names: str) -> dict[str, Path]:
    return {name: path for name, path in table.items() if name not in names}


def test_each_engine_names_its_own_files(files: dict[str, Path], tmp_path: Path) -> None:
    backwards = dict(reversed(files.items()))  # the recipe's order counts
    export(SEVERAL, backwards, tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    bundle.verify()
    a, b, c = (sha256(path) for path in files.values())
    assert (bundle.name, bundle.about["recipe"]) == ("several", "several 1")
    assert (bundle.about["source"], bundle.about["source_sha256"]) == ("a.pth + b.pth + c.pth", f"{a} + {b} + {c}")
    told = {
        engine: (card_of(bundle, engine).source, card_of(bundle, engine).source_sha256)
        for engine in bundle.engine_names
    }
    assert told == {
        "both": ("a.pth + b.pth + c.pth", f"{a} + {b} + {c}"),
        "one": ("b.pth", b),
        "extra": ("a.pth + c.pth", f"{a} + {c}"),
    }
    with bundle.open("both", "cpu") as engine:
        assert engine(x=torch.ones(1, 3).numpy())["y"].tolist() == [[3, 3, 3]]


def test_licences_and_constants_of_engines_are_the_bundle_s(files: dict[str, Path], tmp_path: Path) -> None:
    export(SEVERAL, files, tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    assert bundle.about["licence"] == "MIT AND LicenseRef-own"
    assert [card_of(bundle, engine).licence for engine in bundle.engine_names] == ["MIT", "MIT", "LicenseRef-own"]
    assert bundle.constants == {"all": {"count": 1}, "one": {"size": 3}}
    export(SEVERAL, without(files, "extra_file"), tmp_path / "less")
    less = Bundle(tmp_path / "less")
    assert (less.about["licence"], less.engine_names) == ("MIT", ("both", "one"))
    assert less.about["source"] == card_of(less, "both").source == "a.pth + b.pth"


def test_an_engine_without_fp16_form(files: dict[str, Path], tmp_path: Path) -> None:
    found = export(SEVERAL, without(files, "extra_file"), tmp_path / "bundle", fp16=True)
    assert list(found) == ["both", "both (fp16)", "one"]
    bundle = Bundle(tmp_path / "bundle")
    assert [set(bundle.forms(engine)) for engine in bundle.engine_names] == [{"default", "fp16"}, {"default"}]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["main", "extra_file"], "several needs --second"),
        ([], "several needs --main, --second"),
        (["main", "second", "checkpoint"], "several has no --checkpoint"),
        (["checkpoint"], "several needs --main, --second and has no --checkpoint"),
    ],
)
def test_wrong_files(files: dict[str, Path], tmp_path: Path, given: list[str], says: str) -> None:
    given_files = {name: files.get(name, tmp_path / "a.pth") for name in given}
    with pytest.raises(UsageError) as caught:
        export(SEVERAL, given_files, tmp_path / "bundle")
    assert caught.value.fact == says
    assert "--extra-file (c.pth)" in caught.value.cause
    assert caught.value.remedy == "facesdk export several --main FILE --second FILE [--extra-file FILE] -o FOLDER"
    assert not (tmp_path / "bundle").exists()


def test_one_path_is_the_checkpoint(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no --checkpoint"):
        export(SEVERAL, files["main"], tmp_path / "bundle")
    one = Recipe("scale", "a scale", "MIT", "yes", lambda checkpoint: {"scale": part(checkpoint)}, {})
    for number, given in enumerate((files["main"], {"checkpoint": files["main"]})):
        export(one, given, tmp_path / str(number))
    assert Bundle(tmp_path / "0").about == Bundle(tmp_path / "1").about


def test_a_file_that_is_not_there(files: dict[str, Path], tmp_path: Path) -> None:
    files["second"].unlink()
    with pytest.raises(ModelNotFound, match=r"b\.pth"):
        export(SEVERAL, files, tmp_path / "bundle")


def test_the_command_knows_the_files_of_every_recipe() -> None:
    assert {name for recipe in recipes.RECIPES.values() for name in recipe.files} == set(cli.FILES)
    assert all(set(recipe.optional) < set(recipe.files) for recipe in recipes.RECIPES.values())


# -- what an engine is held against ---------------------------------------------------------------------------


def recipe_of(**facts: Any) -> Recipe:
    return Recipe("scale", "a scale", "MIT", "yes", lambda checkpoint: {"scale": part(checkpoint, **facts)}, {})


def test_another_form_is_held_against_the_reference(files: dict[str, Path], tmp_path: Path) -> None:
    ones = torch.ones(3)
    ((same,),) = export(recipe_of(reference=Scale(ones)), files["main"], tmp_path / "same").values()
    assert same.max_abs == 0
    with pytest.raises(ToleranceExceeded, match="engine scale differs from torch"):
        export(recipe_of(reference=Scale(1.01 * ones)), files["main"], tmp_path / "other")
    ((found,),) = export(
        recipe_of(reference=Scale(1.01 * ones), tolerances={"y": 0.05}), files["main"], tmp_path / "tolerated"
    ).values()  # fmt: skip
    assert found.max_in_std == pytest.approx(0.05 / (1.01 * 35**0.5 / 12**0.5), rel=1e-3)  # 5 * 0.01 of that deviation
    assert card_of(Bundle(tmp_path / "tolerated"), "scale").deviation["y"] == found.max_in_std


def test_tolerances_are_per_output(files: dict[str, Path], tmp_path: Path) -> None:
    reference = Scale(1.01 * torch.ones(3))
    for tolerances in ({"z": 1.0}, {"y": 0.01}):
        with pytest.raises(ToleranceExceeded, match="in y") as caught:
            export(recipe_of(reference=reference, tolerances=tolerances), files["main"], tmp_path / "bundle")
        assert f"the limit is {tolerances.get('y', 1e-3):g}" in caught.value.cause


class Slope(nn.Module):
    """Differentiates, as the reference of a step does."""

    def forward(self, x: Any) -> Any:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad((x**2 / 2).sum(), x)
        return gradient


def test_a_reference_may_differentiate(files: dict[str, Path], tmp_path: Path) -> None:
    ((found,),) = export(recipe_of(reference=Slope()), files["main"], tmp_path / "bundle").values()
    assert found.max_abs == 0


def test_a_recipe_that_is_changed_in_python(files: dict[str, Path], tmp_path: Path) -> None:
    mine = dataclasses.replace(SEVERAL, parts=lambda **given: {"mine": part(*given.values())})
    export(mine, files, tmp_path / "bundle", "own")
    assert (Bundle(tmp_path / "bundle").name, Bundle(tmp_path / "bundle").engine_names) == ("own", ("mine",))
