"""`facesdk generate`: files, marks, reports, exit statuses; what fails writes nothing."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk import cli
from facesdk.bundle import Bundle
from facesdk.diffusion.face_tokens import FaceTokens, Method, interpolate
from facesdk.diffusion.networks import DiffusionNetworks
from facesdk.image import read_image, write_image
from facesdk.provenance import PictureFile
from tests.bundles import DATA
from tests.diffusion_bundle import NAME, PLAIN_NAME, SIZE, WIDTH, write_diffusion_bundle
from tests.photos import stranger

PHOTO, NO_FACE = DATA / "astronaut.png", DATA / "no_face.png"
Ran = subprocess.CompletedProcess[str]
Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the diffusion bundle alone."""
    folder = tmp_path_factory.mktemp("home")
    write_diffusion_bundle(folder / "bundles" / NAME)
    return folder


@pytest.fixture(scope="module")
def home_of_photos(home: Path, bundle_478: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that has the annotation of 478 points too."""
    folder = tmp_path_factory.mktemp("home")
    for bundle in (home / "bundles" / NAME, bundle_478.folder):
        shutil.copytree(bundle, folder / "bundles" / bundle.name)
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """`facesdk generate` with these words, in this process."""
    own = home

    def call(*words: object, home: Path = own) -> Ran:
        monkeypatch.setenv("FACESDK_HOME", str(home))
        try:
            status = cli.main(["generate", "--device", "cpu", "--threads", "1", *map(str, words)])
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return subprocess.CompletedProcess([], status, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def tokens(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The face-token file of a made-up person."""
    folder = tmp_path_factory.mktemp("tokens")

    def made(seed: int = 0, method: Method = "f2d") -> Path:
        rows = np.random.default_rng(seed).normal(size=(2, WIDTH)).astype(np.float32)
        with DiffusionNetworks(Bundle(home / "bundles" / NAME), "cpu") as networks:
            space = networks.token_space(method)
        FaceTokens(rows[0], rows[1] if method == "f2d" else None, space).save(folder / f"{method}-{seed}.npz")
        return folder / f"{method}-{seed}.npz"

    return made


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "bob.png"
    write_image(path, stranger())
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- without a face -------------------------------------------------------------------------------------------


def test_from_a_prompt_to_a_picture(home: Path, tmp_path: Path) -> None:
    """In a process of its own, with nothing but a store."""
    out = tmp_path / "new" / "beach.png"
    command = [sys.executable, "-m", "facesdk.cli", "generate", "a photo of the beach", "-o", out]
    environment = {**os.environ, "FACESDK_HOME": str(home), "FACESDK_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{out}: 1 picture(s) of euler-ancestral, 6 steps, guidance 3" in done.stdout
    assert read_image(out).shape == (SIZE, SIZE, 3)
    assert list(files(tmp_path)) == ["new/beach.png"]


def test_a_folder_is_a_strip_and_a_grid(run: Run, tmp_path: Path) -> None:
    words = ["a photo", "--images", "3", "--seed", "5"]
    done = run(*words, "-o", tmp_path / "many", "--grid", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["files"] == [str(tmp_path / "many" / f"000{i}.png") for i in range(3)]
    assert report["grid"] == str(tmp_path / "many" / "grid.png")
    assert report["seeds"] == [5, 6, 7]
    assert run(*words, "-o", tmp_path / "strip.png").returncode == 0
    assert run(*words, "-o", tmp_path / "grid.webp", "--grid").returncode == 0
    singles = [read_image(file) for file in report["files"]]
    assert len({single.tobytes() for single in singles}) == 3
    np.testing.assert_array_equal(read_image(tmp_path / "strip.png"), np.concatenate(singles, axis=1))
    sheet = read_image(report["grid"])
    assert sheet.shape == (2 * (SIZE + 2) + 2,) * 2 + (3,) == read_image(tmp_path / "grid.webp").shape
    np.testing.assert_array_equal(sheet[SIZE + 4 : -2, 2 : SIZE + 2], singles[2])


def test_same_seed_same_bytes(run: Run, tmp_path: Path) -> None:
    """Alone, in a batch, by its own number."""
    for folder, words in (("a", ["--images", "4"]), ("b", ["--images", "4", "--batch", "3"])):
        assert run("a photo", *words, "-o", tmp_path / folder).returncode == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert run("a photo", "--seed", "2", "-o", tmp_path / "c.png").returncode == 0
    assert (tmp_path / "c.png").read_bytes() == files(tmp_path / "a")["0002.png"]
    assert run("a photo", "--seed", "9", "-o", tmp_path / "d.png").returncode == 0
    assert (tmp_path / "c.png").read_bytes() != (tmp_path / "d.png").read_bytes()


def test_json(run: Run, tmp_path: Path) -> None:
    words = ["--scheduler", "dpm++", "--steps", "4", "--guidance", "2.5", "--width", "96", "--height", "72"]
    done = run("happy", *words, "-o", tmp_path / "a.jpg", "--json", "--profile")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report.pop("timings_ms").keys() == {"text", "denoise", "decode"}
    profile = report.pop("profile")
    assert profile["engines_mb"].keys() >= {"step", "vae_decoder", "text"}
    assert profile["peak_mb"] is None or profile["peak_mb"] > 10
    assert report == {
        "prompt": "happy", "files": [str(tmp_path / "a.jpg")], "seeds": [0], "similarity": None, "faces": [],
        "method": None, "scheduler": "dpm++", "steps": 4, "guidance": 2.5,
    }  # fmt: skip
    assert read_image(tmp_path / "a.jpg").shape == (72, 96, 3)


def test_profile_in_words(run: Run, tmp_path: Path) -> None:
    done = run("a photo", "-o", tmp_path / "a.png", "--profile")
    assert "denoise 0." in done.stdout
    assert "vae_decoder" in done.stdout


def test_marks(run: Run, tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp"):
        assert run("a photo", "-o", tmp_path / f"a.{suffix}").returncode == 0
        mark = PictureFile.read(tmp_path / f"a.{suffix}").provenance
        assert (mark["bundle"], mark["DigitalSourceType"].rsplit("/")[-1]) == (NAME, "trainedAlgorithmicMedia")
    assert run("a photo", "-o", tmp_path / "b.png", "--no-mark").returncode == 0
    assert PictureFile.read(tmp_path / "b.png").provenance == {}


def test_previews(run: Run, tmp_path: Path) -> None:
    """They show what is still on its way, and change nothing of the result."""
    for output, preview in (("a.png", "a.preview.png"), ("folder", "folder/preview.png")):
        assert run("a photo", "-o", tmp_path / output, "--preview-every", "2").returncode == 0
        assert read_image(tmp_path / preview).shape == (SIZE, SIZE, 3)
    assert run("a photo", "-o", tmp_path / "b.png").returncode == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "a.preview.png").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for another process")
def test_an_interruption_leaves_nothing_half_written(home: Path, tmp_path: Path) -> None:
    words = ["a photo", "-o", tmp_path / "out", "--images", "1000", "--steps", "200", "--preview-every", "1"]
    command = [sys.executable, "-m", "facesdk.cli", "generate", *map(str, words)]
    environment = {**os.environ, "FACESDK_HOME": str(home), "FACESDK_OFFLINE": "1"}
    # what a shell runs in the background ignores SIGINT, and so would this process's children
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    while process.poll() is None and not (tmp_path / "out" / "preview.png").is_file():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted"
    assert list(files(tmp_path)) == ["out/preview.png"]
    assert read_image(tmp_path / "out" / "preview.png").shape == (SIZE, SIZE, 3)


# -- faces ----------------------------------------------------------------------------------------------------


def test_a_photo_becomes_a_face_and_a_file(run: Run, home_of_photos: Path, tmp_path: Path) -> None:
    """The file gives the same picture, in a store that has no annotation."""
    words = ["f l eating bread", "--seed", "3", "--steps", "4", "--json"]
    saved = ["--save-tokens", tmp_path / "ann.npz"]
    done = run(*words, "--face", PHOTO, *saved, "-o", tmp_path / "a.png", home=home_of_photos)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["method"], report["faces"], report["guidance"]) == ("f2d", ["f"], 7)
    assert report["tokens"] == [str(tmp_path / "ann.npz")]
    assert report["similarity"] == [None]  # these networks draw no faces
    assert report["timings_ms"].keys() == {"text", "denoise", "decode", "score"}
    done = run(*words, "--face", f"f={tmp_path / 'ann.npz'}", "-o", tmp_path / "b.png")
    assert (done.returncode, json.loads(done.stdout)["similarity"]) == (0, None)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert run("a person eating bread", *words[1:], "-o", tmp_path / "c.png").returncode == 0
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_photos_of_one_person_are_averaged(run: Run, home_of_photos: Path, bob: Path, tmp_path: Path) -> None:
    words = ["f l happy", "--steps", "3"]
    given = {"a": [f"f={PHOTO},{bob}"], "b": [f"f={PHOTO}", f"f={bob}"], "c": [f"f={PHOTO}"]}
    for name, faces in given.items():
        options = [word for face in faces for word in ("--face", face)]
        saved = ["--save-tokens", tmp_path / f"{name}.npz"]
        assert run(*words, *options, *saved, "-o", tmp_path / f"{name}.png", home=home_of_photos).returncode == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()
    assert [FaceTokens.load(tmp_path / f"{name}.npz").photos for name in given] == [2, 2, 1]


def test_two_people(run: Run, home_of_photos: Path, bob: Path, tmp_path: Path) -> None:
    """Of themselves one token each, by MF2D; with names or in their order."""
    words = ["f and g reading a book", "--steps", "3", "--json"]
    named = ["--face", f"g={bob}", "--face", f"f={PHOTO}"]
    done = run(*words, *named, "--save-tokens", tmp_path / "p.npz", "-o", tmp_path / "a.png", home=home_of_photos)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["method"], sorted(report["faces"]), report["guidance"]) == ("mf2d", ["f", "g"], 10)
    assert sorted(report["tokens"]) == [str(tmp_path / f"p-{name}.npz") for name in "fg"]
    stored = ["--face", tmp_path / "p-f.npz", "--face", tmp_path / "p-g.npz"]
    assert run(*words, *stored, "-o", tmp_path / "b.png").returncode == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    alone = ["f happy", "--method", "mf2d", "--steps", "3", "--face", bob, "--save-tokens", tmp_path / "bob.npz"]
    assert run(*alone, "-o", tmp_path / "c.png", home=home_of_photos).returncode == 0
    of_bob = FaceTokens.load(tmp_path / "bob.npz").rows
    np.testing.assert_array_equal(FaceTokens.load(tmp_path / "p-g.npz").rows, of_bob)
    assert (FaceTokens.load(tmp_path / "p-f.npz").rows != of_bob).any()


def test_two_people_of_two_tokens(run: Run, tokens: Callable[..., Path], tmp_path: Path) -> None:
    """Files of tokens decide the method."""
    words = ["f l and g l on the beach", "--face", tokens(0), "--face", tokens(1), "--steps", "3", "--json"]
    done = run(*words, "-o", tmp_path / "a.png")
    assert (done.returncode, json.loads(done.stdout)["method"]) == (0, "f2d")


def test_between_two_people(run: Run, tokens: Callable[..., Path], tmp_path: Path) -> None:
    words = ["f l happy", "--steps", "3", "--face", tokens(0), "--blend", tokens(1)]
    saved = ["--save-tokens", tmp_path / "m.npz"]
    assert run(*words, "--amount", "0.25", *saved, "-o", tmp_path / "a.png").returncode == 0
    wanted = interpolate(FaceTokens.load(tokens(0)), FaceTokens.load(tokens(1)), 0.25)
    np.testing.assert_array_equal(FaceTokens.load(tmp_path / "m.npz").rows, wanted.rows)
    assert run(*words, "--amount", "0", "-o", tmp_path / "b.png").returncode == 0
    assert run(*words[:5], "-o", tmp_path / "c.png").returncode == 0
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_the_method_of_stored_faces_is_that_of_a_photo_beside_them(
    run: Run, home_of_photos: Path, tokens: Callable[..., Path], tmp_path: Path
) -> None:
    words = ["f l and g l happy", "--steps", "2", "--face", tokens(0), "--face", tokens(1), "--blend", f"g={PHOTO}"]
    done = run(*words, "-o", tmp_path / "a.png", "--json", home=home_of_photos)
    assert (done.returncode, json.loads(done.stdout)["method"]) == (0, "f2d")


def test_a_file_whose_name_looks_like_a_list(
    run: Run, tokens: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.npz", "f=a.npz"):
        shutil.copy(tokens(0), name)
        done = run("f l happy", "--steps", "2", "--face", name, "-o", "a.png")
        assert (done.returncode, done.stderr) == (0, "")


# -- pictures as conditions -----------------------------------------------------------------------------------


def test_inpainting_keeps_what_is_black(run: Run, tokens: Callable[..., Path], tmp_path: Path) -> None:
    photo, mask = read_image(PHOTO)[:100, :124], np.zeros((100, 124), np.uint8)
    mask[30:60, 40:80] = 255
    write_image(tmp_path / "photo.png", photo)
    write_image(tmp_path / "mask.png", mask)
    given = ["--image", tmp_path / "photo.png", "--mask", tmp_path / "mask.png"]
    done = run("f l happy", "--face", tokens(0), *given, "--steps", "4", "-o", tmp_path / "out" / "a.png")
    assert (done.returncode, done.stderr) == (0, "")
    changed = (read_image(tmp_path / "out" / "a.png") != photo).any(axis=2)
    assert changed[mask > 0].mean() > 0.9
    assert not changed[:16].any()
    assert not changed[:, 100:].any()
    mark = PictureFile.read(tmp_path / "out" / "a.png").provenance["DigitalSourceType"]
    assert mark.rsplit("/")[-1] == "compositeWithTrainedAlgorithmicMedia"


def test_those_most_like_the_photo_are_kept(run: Run, home_of_photos: Path, tmp_path: Path) -> None:
    """Measured on faces: here the photo's own, beside which something is drawn."""
    mask = np.zeros((512, 512), np.uint8)
    mask[400:480, 16:80] = 255
    write_image(tmp_path / "mask.png", mask)
    words = ["f l happy", "--face", PHOTO, "--image", PHOTO, "--mask", tmp_path / "mask.png", "--steps", "2"]
    done = run(*words, "--images", "3", "--keep", "2", "-o", tmp_path / "out", "--json", home=home_of_photos)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert sorted(files(tmp_path / "out")) == ["0000.png", "0001.png"]
    assert len(set(report["seeds"])) == 2
    assert report["similarity"] == sorted(report["similarity"], reverse=True)
    assert report["similarity"][1] > 0.99
    done = run(*words, "-o", tmp_path / "a.png", home=home_of_photos)
    assert "seed 0: cosine to the photos +" in done.stdout


def test_image_to_image(run: Run, tmp_path: Path) -> None:
    """The less it is denoised the nearer to the photo."""
    photo = read_image(PHOTO)[:64, :64]
    write_image(tmp_path / "photo.png", photo)
    far = []
    for share in ("0.2", "1"):
        words = ["--image", tmp_path / "photo.png", "--denoise", share, "--guidance", "1", "--steps", "10"]
        assert run("happy", *words, "-o", tmp_path / f"{share}.png").returncode == 0
        far.append(np.abs(read_image(tmp_path / f"{share}.png").astype(int) - photo).mean())
    assert far[0] < far[1]


# -- what cannot be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a photo on the beach", "has no 'f l'"),  # no placeholder
        ("f l and f l on the beach", "2 times"),
        ("f eating bread", "f l"),  # half of one
        ("f l " + "happy " * 500, "75"),  # 500 words
    ],
)
def test_wrong_prompts(run: Run, tokens: Callable[..., Path], tmp_path: Path, prompt: str, says: str) -> None:
    done = run(prompt, "--face", tokens(0), "-o", tmp_path / "out" / "a.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "remedy" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--width", "513"], "512 or 520"),
        (["--height", "8"], "height is 8"),
        (["--steps", "0"], "steps is 0"),
        (["--steps", "2.5"], "--steps"),
        (["--guidance", "nan"], "guidance is nan"),
        (["--guidance", "-1"], "guidance is -1"),
        (["--images", "0"], "images is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--scheduler", "magic"], "--scheduler"),
        (["--keep", "2"], "keep is 2"),
        (["--denoise", "0.5"], "image"),
        (["--mask", NO_FACE], "--image"),
        (["--preview-every", "-1"], "--preview-every is -1"),
        (["--blend", "a.jpg"], "--face"),
        (["--save-tokens", "a.npz"], "--face"),
        (["--face", "a.npz,"], "FILE"),
        (["--face", "a.npz"], "a.npz does not exist"),
        (["--face", "a.npz", "--save-tokens", "a.txt"], ".npz"),
        (["--face", "a.npz", "--face", "b.npz", "--face", "c.npz"], "3 of 3"),
        (["--face", "f=a.npz", "--face", "b.npz"], "1 of 2"),
        (["--face", "a.npz", "--amount", "2"], "--amount is 2"),
        (["--images", "600"], f"{600 * SIZE} x {SIZE}"),
    ],
)
def test_wrong_usage(run: Run, tmp_path: Path, words: list[object], says: str) -> None:
    done = run("a photo", *words, "-o", tmp_path / "a.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_one_file_holds_is_reckoned_in_the_pictures_own_size(run: Run, tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", np.full((64, 128, 3), 127, np.uint8))
    words = ["happy", "--image", tmp_path / "photo.png", "--images", "80", "--height", "256", "--steps", "2"]
    done = run(*words, "-o", tmp_path / "a.png")  # as wide as 512 px each
    assert (done.returncode, f"{80 * 512} x 256" in done.stderr) == (2, True)


def test_nothing_to_choose_pictures_by(run: Run, tokens: Callable[..., Path], tmp_path: Path) -> None:
    done = run("f l happy", "--face", tokens(0), "--keep", "1", "-o", tmp_path / "a.png")
    assert (done.returncode, "give a photo as a face" in done.stderr) == (2, True)


def test_wrong_names(run: Run, tokens: Callable[..., Path], tmp_path: Path) -> None:
    for words, says in (
        (["--face", f"x={tokens(0)}"], "no face is called x"),
        (["--face", tokens(0), "--blend", f"g={tokens(1)}"], "--blend is of 'g'"),
    ):
        done = run("f l happy", *words, "-o", tmp_path / "a.png")
        assert (done.returncode, says in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_tokens_of_another_method_or_bundle(run: Run, tokens: Callable[..., Path], tmp_path: Path) -> None:
    for words in (["--face", tokens(0, "mf2d"), "--method", "f2d"], ["--face", f"{tokens(0)},{tokens(0, 'mf2d')}"]):
        done = run("f l happy", *words, "-o", tmp_path / "a.png", "--json")
        assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (1, "embedding-space")
    assert list(tmp_path.iterdir()) == []


def test_a_mask_of_another_size(run: Run, tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", read_image(PHOTO)[:64, :64])
    for shape, says in (((64, 72), "72 x 64"), ((64, 64), "0 everywhere")):
        write_image(tmp_path / "mask.png", np.zeros(shape, np.uint8))
        given = ["--image", tmp_path / "photo.png", "--mask", tmp_path / "mask.png"]
        done = run("happy", *given, "-o", tmp_path / "out" / "a.png")
        assert (done.returncode, says in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_photos_that_cannot_be_used(run: Run, home_of_photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    for photo, status, code in (
        (NO_FACE, 3, "no-face"),
        (tmp_path / "broken.jpg", 1, "image-unreadable"),
        (tmp_path / "absent.jpg", 1, "image-unreadable"),
    ):
        words = ["f l happy", "--face", photo, "-o", tmp_path / "out", "--json"]
        done = run(*words, home=home_of_photos)
        assert (done.returncode, done.stderr) == (status, "")
        assert json.loads(done.stdout)["error"]["code"] == code
    assert run("f l happy", "--face", PHOTO, "-o", tmp_path / "out").returncode == 4  # no annotation bundle
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_knows_no_faces(run: Run, tokens: Callable[..., Path], tmp_path: Path) -> None:
    bundle = write_diffusion_bundle(tmp_path / PLAIN_NAME, faces=False)
    done = run("f l happy", "--face", tokens(0), "--bundle", bundle, "-o", tmp_path / "a.png")
    assert (done.returncode, "knows no faces" in done.stderr) == (2, True)
    assert not (tmp_path / "a.png").exists()
    assert run("happy", "--bundle", bundle, "-o", tmp_path / "a.png").returncode == 0


def test_networks_that_fail_write_nothing(run: Run, tmp_path: Path) -> None:
    bundle = write_diffusion_bundle(tmp_path / NAME, broken="next_bank")
    done = run("happy", "--bundle", bundle, "-o", tmp_path / "out", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (1, "engine")
    assert not (tmp_path / "out").exists()


def test_outputs_that_cannot_be_written_are_found_before_the_work(run: Run, tmp_path: Path) -> None:
    """Before a bundle is looked for."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    outputs = {"file": 1, "file/a.png": 1, "folder.png": 1, "a.gif": 2, "a.npz": 2}
    for output, status in outputs.items():
        done = run("happy", "--bundle", "absent", "-o", tmp_path / output)
        assert (done.returncode, "remedy" in done.stderr) == (status, True), output
    (tmp_path / "folder.npz").mkdir()
    for saved in ("file/a.npz", "folder.npz"):
        words = ["--face", "a.jpg", "--save-tokens", tmp_path / saved, "-o", tmp_path / "a.png"]
        done = run("happy", "--bundle", "absent", *words)
        assert (done.returncode, "another place with --save-tokens" in done.stderr) == (1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.npz", "folder.png"]
    assert run("happy", "--bundle", "absent", "-o", tmp_path / "a.png").returncode == 4
