"""Pictures as data: class folders, archives of them, and tables of paths; and what bad ones get."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from edgekit import runtimes
from edgekit.build import data
from edgekit.build.data import Stored, Truth, Wanted, images
from edgekit.bundle.model import Affine, Image, TensorSpec
from edgekit.errors import DataError
from edgekit.runtimes._preprocess import to_engine

SHARED = Path(__file__).parents[4] / "shared" / "data"
NCHW, NHWC = TensorSpec("x", "FP32", (-1, 3, 8, 8)), TensorSpec("x", "FP32", (1, 8, 8, 3))
GREY = TensorSpec("x", "UINT8", (-1, 8, 8, 1))
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(color: Any = RED, size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Pillow.new(mode, size, color).save(buffer, kind)
    return buffer.getvalue()


def tree(folder: Path) -> Path:
    """Three classes of unequal size."""
    for name, color, count in (("red", RED, 3), ("green", GREEN, 2), ("blue", BLUE, 1)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(picture(color))
        (folder / name / "notes.txt").write_text("no picture")
    return folder


def read(
    text: Path | str,
    spec: TensorSpec = NCHW,
    how: str = "",
    truth: Truth = "class",
    names: tuple[str, ...] = (),
) -> Stored:
    wanted = Wanted((spec,), truth=truth, image=images.parse(how), label_names=names)
    return data.read(str(text), wanted)


def refused(text: Path | str, words: str, **how: Any) -> None:
    with pytest.raises(DataError, match=words) as refusal:
        read(text, **how)
    assert "\n" not in refusal.value.message
    assert len(refusal.value.message) < 500


def tarred(folder: Path, target: Path, mode: str = "w") -> Path:
    with tarfile.open(target, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, "top")
    return target


def zipped(folder: Path, target: Path) -> Path:
    return Path(shutil.make_archive(str(target.with_suffix("")), "zip", folder))


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "tar.xz", "zip"])
def test_rows_go_round_the_classes_and_names_are_sorted(tmp_path: Path, kind: str) -> None:
    folder = tree(tmp_path / "data")
    place = folder
    if kind.startswith("tar"):
        place = tarred(folder, tmp_path / "data.bin", f"w:{kind[4:]}" if "." in kind else "w")
    if kind == "zip":
        place = zipped(folder, tmp_path / "data")
    found = read(place)
    assert found.label_names == ("blue", "green", "red")
    assert found.truth is not None
    assert found.truth.tolist() == [0, 1, 2, 1, 2, 2]
    assert found.inputs["x"].shape == (6, 3, 8, 8)
    assert found.inputs["x"].dtype == np.uint8
    assert found.inputs["x"][:, :, 0, 0].tolist() == [list(c) for c in (BLUE, GREEN, RED, GREEN, RED, RED)]
    part = read(f"{place}[1:3]")
    assert part.truth is not None
    assert part.truth.tolist() == [1, 2]
    np.testing.assert_array_equal(part.inputs["x"], found.inputs["x"][1:3])


def test_the_names_given_decide_the_classes(tmp_path: Path) -> None:
    folder = tree(tmp_path / "data")
    found = read(folder, names=("red", "yellow", "green", "blue"))
    assert found.truth is not None
    assert found.truth.tolist() == [0, 2, 3, 0, 2, 0]
    refused(folder, "the label 'blue', the classes are red, green", names=("red", "green"))
    for name in ("10", "9", "2"):
        (tmp_path / "numbers" / name).mkdir(parents=True)
        (tmp_path / "numbers" / name / "a.png").write_bytes(picture())
    assert read(tmp_path / "numbers").label_names == ("2", "9", "10")


def test_pictures_without_classes_calibrate_but_do_not_evaluate(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture())
    assert read(tmp_path, truth="none").rows == 3
    assert read(tmp_path, truth="maybe").truth is None
    refused(tmp_path, "no pictures in class folders")


def test_a_table_of_paths(tmp_path: Path) -> None:
    tree(tmp_path / "data")
    table = tmp_path / "rows.csv"
    table.write_text('Path,label\ndata/red/0.png,red\n"data/blue/0.png",blue\n\ndata/red/1.png,red\n')
    found = read(table)
    assert found.label_names == ("blue", "red")
    assert found.truth is not None
    assert found.truth.tolist() == [1, 0, 1]
    assert found.inputs["x"][:, :, 0, 0].tolist() == [list(RED), list(BLUE), list(RED)]
    part = read(f"{table}[0:1]")
    assert part.label_names == ("blue", "red")  # a slice does not renumber the classes
    table.write_text("data/red/0.png;7\ndata/blue/0.png;3\n")
    plain = read(f"{table}[1:]")
    assert plain.truth is not None
    assert plain.truth.tolist() == [3]
    table.write_text("file\ttext\ndata/red/0.png\tred it is\n")
    wanted = Wanted((NCHW,), data.Naming(labels="text"), "value")
    said = data.read(str(table), wanted).truth
    assert said is not None
    assert said.tolist() == ["red it is"]


BAD_TABLES: dict[str, tuple[str, str]] = {
    "outside": ("path,label\n../secret.png,1\n", "line 2: ../secret.png: outside the table's folder"),
    "absolute": ("path,label\n/etc/hostname.png,1\n", "line 2: /etc/hostname.png: outside"),
    "link": ("path,label\nlink.png,1\n", "line 2: link.png: outside"),
    "absent": ("path,label\n\nno.png,1\n", "line 3: no.png: .*no such file"),
    "folder": ("path,label\n.,1\n", "not a file"),
    "zero byte": ("path,label\na\0.png,1\n", "not a NumPy|line 2"),
    "ragged": ("path,label\na.png,1,2\n", "line 2 has 3 cells, the header has 2"),
    "no rows": ("path,label\n", "0 of 0 rows selected"),
    "no labels": ("path,kind\na.png,x\n", "no labels .column 'labels'"),
    "two names": ("path,a,a\na.png,1,2\n", "two columns are called 'a'"),
    "open quote": ('path,label\n"a.png,1\n', "line 2: unexpected end of data"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_of_paths(tmp_path: Path, case: str) -> None:
    text, words = BAD_TABLES[case]
    (tmp_path / "secret.png").write_bytes(picture())
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "rows.csv").write_text(text)
    refused(folder / "rows.csv", words)


def _bomb() -> bytes:
    """A PNG that claims 20,000 x 20,000 pixels."""
    content = bytearray(picture(mode="L", color=0))
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def _noise(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Pillow.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


BAD_PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "1.png: not a sound picture: of no known format"),
    "text": (lambda: b"hello", "1.png: not a sound picture: of no known format"),
    "truncated png": (lambda: _noise("PNG")[:3000], "1.png: not a sound picture"),
    "truncated jpeg": (lambda: _noise("JPEG")[:2000], "1.png: not a sound picture: image file is truncated"),
    "bomb": (_bomb, "1.png: .*20000 x 20000|decompression bomb"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "of no known format"),
    "16 bits": (lambda: picture(7, mode="I;16"), "I;16 pixels, not 8 bits per channel"),
}


@pytest.mark.parametrize("case", BAD_PICTURES)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_pictures_are_named(tmp_path: Path, case: str, packed: bool) -> None:
    make, words = BAD_PICTURES[case]
    folder = tree(tmp_path / "data")
    (folder / "red" / "1.png").write_bytes(make())
    refused(tarred(folder, tmp_path / "data.tar") if packed else folder, words)
    assert read(f"{folder}[0:4]").rows == 4  # what is not selected is not read


def test_bad_folders_and_archives(tmp_path: Path) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    refused(tmp_path / "empty", "no pictures in class folders")
    folder = tree(tmp_path / "data")
    refused(f"{folder}[9:]", "0 of 6 rows selected")
    os.mkfifo(folder / "red" / "9.png")
    refused(folder, "9.png: not a file")
    (folder / "red" / "9.png").unlink()
    whole = tarred(folder, tmp_path / "whole.tar.gz", "w:gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.tar.gz", "damaged archive|no pictures|not a NumPy|not a sound")
    packed = zipped(folder, tmp_path / "whole.zip").read_bytes()
    at = packed.index(b"red/1.png") + 20  # inside the compressed picture
    (tmp_path / "bad.zip").write_bytes(packed[:at] + b"XXXX" + packed[at + 4 :])
    refused(tmp_path / "bad.zip", "bad.zip: a damaged archive")


def test_a_member_with_a_path_out_of_the_archive_is_only_a_name(tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("../../red/0.png", "/etc/green/1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture())
            archive.addfile(info, io.BytesIO(picture()))
        link = tarfile.TarInfo("red/2.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert read(path).rows == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.tar"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6), st.integers(1, 255), st.booleans(), st.sampled_from(["tar", "gz", "zip", "csv"])
)
def test_whatever_a_disk_does_to_the_data(
    tmp_path: Path, place: int, flip: int, cut: bool, kind: str
) -> None:
    """A changed byte or a cut: rows, or one line; never another exception."""
    originals = tmp_path / "originals"
    if not originals.exists():
        folder = tree(tmp_path / "data")
        originals.mkdir()
        tarred(folder, originals / "tar")
        tarred(folder, originals / "gz", "w:gz")
        zipped(folder, originals / "zip.zip").rename(originals / "zip")
        (originals / "csv").write_text("path,label\n../data/red/0.png,1\n" + "data/red/1.png,2\n" * 9)
    content = bytearray((originals / kind).read_bytes())
    place %= len(content)
    content[place] ^= flip
    (tmp_path / "bad").write_bytes(content if flip else content[:place])
    try:
        read(tmp_path / "bad")
    except DataError as refusal:
        assert "bad" in refusal.message
        assert "\n" not in refusal.message


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")), st.data())
def test_whatever_a_disk_does_to_a_picture(kind: str, draw: st.DataObject) -> None:
    content = bytearray(_noise(kind))
    place = draw.draw(st.integers(0, len(content) - 1) | st.integers(0, 60))
    content[place] ^= draw.draw(st.integers(0, 255))
    if draw.draw(st.booleans()):
        content = content[:place]
    made = images.frame("data", (NHWC,), images.parse(""))
    try:
        pixels = images.decode("one.png", bytes(content), made, images.parse(""))
    except DataError as refusal:
        assert "one.png" in refusal.message
        assert "\n" not in refusal.message
    else:
        assert pixels.shape == (8, 8, 3)


def test_resizing(tmp_path: Path) -> None:
    """A picture of 16 x 8: left half red, right half blue."""
    wide = Pillow.new("RGB", (16, 8), RED)
    wide.paste(BLUE, (8, 0, 16, 8))
    (tmp_path / "a").mkdir()
    wide.save(tmp_path / "a" / "wide.png")
    stretched = read(tmp_path, NHWC).inputs["x"][0]
    assert stretched[0, 0].tolist() == list(RED)
    assert stretched[7, 7].tolist() == list(BLUE)
    boxed = read(tmp_path, NHWC, "letterbox").inputs["x"][0]
    assert boxed[0, 0].tolist() == boxed[7, 7].tolist() == [114] * 3
    assert boxed[2, 0].tolist() == list(RED)
    cropped = read(tmp_path, NHWC, "crop").inputs["x"][0]
    assert cropped[:, :4].reshape(-1, 3).tolist() == [list(RED)] * 32
    assert cropped[:, 4:].reshape(-1, 3).tolist() == [list(BLUE)] * 32
    swapped = read(tmp_path, NHWC, "crop bgr").inputs["x"][0]
    np.testing.assert_array_equal(swapped, cropped[:, :, ::-1])
    grey = read(tmp_path, GREY, "crop").inputs["x"][0]
    assert grey[0, :, 0].tolist() == [76] * 4 + [29] * 4  # ITU-R 601: 0.299 R, 0.114 B


def test_center_crop_is_torchvisions(tmp_path: Path) -> None:
    """Resize(256), CenterCrop(224) of a 300 x 400 picture: 256 x 341, from column 16, row 58."""
    (tmp_path / "a").mkdir()
    source = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8))
    source.save(tmp_path / "a" / "a.png")
    mine = read(tmp_path, TensorSpec("x", "FP32", (1, 224, 224, 3)), "crop=0.875").inputs["x"][0]
    known = source.resize((256, 341), Pillow.Resampling.BILINEAR).crop((16, 58, 240, 282))
    np.testing.assert_array_equal(mine, np.asarray(known))


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "CMYK", "LA"])
def test_every_usual_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    kind = "TIFF" if mode in ("CMYK",) else "PNG"
    Pillow.new("RGB", (9, 7), (255, 255, 255)).convert(mode).save(tmp_path / "a" / "a.png", kind)
    assert read(tmp_path).inputs["x"].min() == 255


def test_the_scales_are_those_of_training(tmp_path: Path) -> None:
    found = read(tree(tmp_path / "data"), how="imagenet")
    wanted = Wanted((NCHW,), image=images.parse("imagenet"))
    steps = data.preprocessing([], wanted, found, found, image_given=True)
    assert steps.image == (Image("x", "NCHW", "RGB", "stretch"),)
    real = to_engine(found.inputs, [NCHW], steps)["x"]
    mean, std = (np.array(part, np.float32).reshape(3, 1, 1) for part in images.IMAGENET)
    np.testing.assert_allclose(real, (found.inputs["x"] / np.float32(255) - mean) / std, atol=2e-6)
    assert images.parse(images.words(steps.image[0])).color == "RGB"


def test_one_scale_for_all_and_none_for_models_that_read_pixels() -> None:
    made = images.frame("data", (NHWC,), images.parse(""))
    assert images.affine(made, NHWC, images.parse("")) == Affine("x", "UINT8", 1 / 255, 0.0)
    assert images.affine(made, NHWC, images.parse("raw mean=127.5 std=127.5")) == Affine(
        "x", "UINT8", 1 / 127.5, 127.5
    )
    assert images.affine(images.frame("data", (GREY,), images.parse("")), GREY, images.parse("")) is None
    int8 = TensorSpec("x", "INT8", (-1, 8, 8, 1))
    grey = images.frame("data", (int8,), images.parse(""))
    with pytest.raises(DataError, match="how do pixels from 0 to 255 become it"):
        images.affine(grey, int8, images.parse(""))
    step = images.affine(grey, int8, images.parse("raw mean=128"))
    assert step is not None
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    from edgekit.runtimes._preprocess import apply

    np.testing.assert_array_equal(apply(step, pixels, "INT8"), pixels.astype(int) - 128)


@pytest.mark.parametrize(
    ("how", "spec", "words"),
    [
        ("blue", NCHW, "'blue' is not known"),
        ("crop=2", NCHW, "crop=2 is no share"),
        ("std=0", NCHW, "std must not be 0"),
        ("mean=1,2", NCHW, "one number, or three"),
        ("mean=nan", NCHW, "one number, or three"),
        ("gray", NCHW, "L pictures for 3 channels"),
        ("rgb", GREY, "RGB pictures for 1 channels"),
        ("nhwc", NCHW, "do not fit input 'x'"),
        ("", TensorSpec("x", "FP32", (-1, 64)), "do not fit input 'x'"),
        ("", TensorSpec("x", "FP32", (-1, 9, 8, 8)), "do not fit input 'x'"),
    ],
)
def test_what_does_not_fit_the_model(tmp_path: Path, how: str, spec: TensorSpec, words: str) -> None:
    refused(tree(tmp_path / "data"), words, spec=spec, how=how)


def test_more_pictures_than_memory_are_refused_unread(tmp_path: Path) -> None:
    huge = TensorSpec("x", "FP32", (-1, 3, 200_000, 200_000))
    refused(tree(tmp_path / "data"), "pictures need .* MiB, this machine has", spec=huge)


def test_two_inputs_and_affine_do_not_go_with_pictures(tmp_path: Path) -> None:
    folder = tree(tmp_path / "data")
    with pytest.raises(DataError, match="pictures feed one input, the model has x, y"):
        data.read(str(folder), Wanted((NCHW, TensorSpec("y", "FP32", (-1, 1)))))
    rows = read(folder)
    with pytest.raises(DataError, match="pictures are scaled by --image"):
        data.preprocessing(["1,0"], Wanted((NCHW,)), rows, rows, image_given=False)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no example data beside the repository")
def test_resnet20_reaches_on_the_tar_what_its_readme_measured() -> None:
    spec = TensorSpec("x", "FP32", (-1, 3, 32, 32))
    wanted = Wanted((spec,), truth="class", image=images.parse("imagenet"))
    rows = data.read(str(SHARED / "cifar10-jpeg" / "test_2000.tar"), wanted)
    assert rows.label_names[:3] == ("airplane", "automobile", "bird")
    steps = data.preprocessing([], wanted, rows, rows, image_given=True)
    fitted = data.fit(rows, (spec,), steps)
    model = (SHARED / "cifar10-resnet20" / "resnet20.onnx").read_bytes()
    session = runtimes.get("onnxruntime").load({"model.onnx": model}, {})
    (said,) = session.run({"input": fitted.inputs["x"]}).values()
    assert (said.argmax(1) == fitted.truth).mean() == pytest.approx(0.8135, abs=0.001)


def test_a_zip_of_pictures_is_no_npz(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("__MACOSX/red/0.png", b"rubbish")
        archive.writestr("set/red/0.png", picture())
        archive.writestr("set/red/._0.png", b"rubbish")
    assert read(tmp_path / "a.zip").rows == 1
