"""Folders of images: what is read, at which size and colours, what is left out and why."""

import numpy as np
import pytest
import torch
from PIL import Image

from fmcore.dataset import images
from fmcore.dataset.images import Images
from fmcore.settings import ReflowError

WIDE = Image.fromarray(np.arange(6 * 12 * 3, dtype=np.uint8).reshape(6, 12, 3))


def save(path, image=WIDE, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **settings)


def read(root, **settings):
    return Images(name="images", root=str(root), **settings).read(0)


def test_hidden_files_and_folders_are_never_classes_or_samples(tmp_path):
    for name in ("cat/a.png", "dog/b.png", ".ipynb_checkpoints/a.png", "__MACOSX/cat/a.png",
                 "cat/.ipynb_checkpoints/c.png"):  # fmt: skip
        save(tmp_path / name)
    (tmp_path / "cat" / "._a.png").write_bytes(b"\0\5\26\7")
    (tmp_path / ".DS_Store").touch()
    found = read(tmp_path)
    assert found.names == ("cat", "dog") and found.label.tolist() == [0, 1]
    assert len(found.skipped["hidden"]) == 5
    assert "cat/._a.png" in found.skipped["hidden"]


def test_what_is_left_out_has_its_name_and_a_reason(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.gif")
    save(tmp_path / "c.webp", save_all=True, append_images=[WIDE.rotate(180)])
    (tmp_path / "notes.txt").touch()
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    found = read(tmp_path)
    assert len(found.target) == 1
    assert found.skipped == {
        "GIF (data.frame)": ("b.gif",),
        "animations or several pages (data.frame)": ("c.webp",),
        "no image by its ending .txt": ("notes.txt",),
        "links to a folder": ("elsewhere",),
    }


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "tif"])
def test_one_frame_of_an_animation_by_choice(tmp_path, kind):
    frames = [Image.new("RGB", (4, 4), c) for c in ((0, 0, 0), (255, 255, 255), (0, 0, 0))]
    extra = {"lossless": True} if kind == "webp" else {}
    save(tmp_path / f"a.{kind}", frames[0], save_all=True, append_images=frames[1:], **extra)
    for frame in (0, 1):
        assert read(tmp_path, frame=frame).target.unique().tolist() == [2 * frame - 1]
    with pytest.raises(ReflowError, match=r"3 frames, so no frame 3"):
        read(tmp_path, frame=3)
    with pytest.raises(ReflowError, match=r"no image in it.*left out: 1 (GIF|animations)"):
        read(tmp_path)


def test_tiff_is_the_same_picture_as_png(tmp_path):
    save(tmp_path / "png" / "a.png")
    save(tmp_path / "tif" / "a.tif", compression="tiff_lzw")
    assert torch.equal(read(tmp_path / "png").target, read(tmp_path / "tif").target)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("held", range(1, 9))
def test_photos_are_upright_however_the_camera_was_held(tmp_path, kind, held):
    # Pixels as they lie in the file, by the EXIF standard: (rotation, mirrored first).
    seen = np.zeros((16, 32, 3), np.uint8)
    seen[:8, :16] = 255  # white is top left
    lies = {1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1],
            5: seen.transpose(1, 0, 2), 6: np.rot90(seen), 7: np.rot90(seen, 2).transpose(1, 0, 2),
            8: np.rot90(seen, -1)}[held]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = held
    extra = {"quality": 95} if kind == "jpg" else {"lossless": True} if kind == "webp" else {}
    extra |= {"tiffinfo": exif} if kind == "tif" else {"exif": exif}
    save(tmp_path / f"a.{kind}", Image.fromarray(np.ascontiguousarray(lies)), **extra)
    found = read(tmp_path)
    wanted = torch.tensor(seen / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)
    torch.testing.assert_close(found.target[0], wanted, atol=0.1, rtol=0)
    said = ("turned: 1 images, upright by their EXIF orientation",)
    assert found.notes == (said if held > 1 else ())


def test_exif_that_cannot_be_read_turns_nothing(tmp_path):
    save(tmp_path / "a.jpg", exif=b"Exif\0\0no TIFF at all")
    assert read(tmp_path).target.shape == (1, 3, 6, 12)


def test_mode_makes_gray_and_rgb_alike(tmp_path):
    save(tmp_path / "a.png", Image.new("L", (4, 4), 51))
    save(tmp_path / "b.png", Image.new("RGB", (4, 4), (51, 51, 51)))
    save(tmp_path / "c.png", Image.new("RGBA", (4, 4), (51, 51, 51, 255)))
    with pytest.raises(ReflowError, match=r"b\.png: size 4x4 RGB.*set data\.resize or data\.mode"):
        read(tmp_path)
    for mode, channels in (("rgb", 3), ("gray", 1)):
        found = read(tmp_path, mode=mode).target
        assert found.shape == (3, channels, 4, 4)
        torch.testing.assert_close(found, torch.full_like(found, 51 / 127.5 - 1))


def test_gray_stays_gray_with_transparent_pixels_and_as_bilevel(tmp_path):
    save(tmp_path / "a.png", Image.new("L", (4, 4), 51))
    save(tmp_path / "b.png", Image.new("L", (4, 4), 51), transparency=0)
    save(tmp_path / "c.png", Image.new("LA", (4, 4), (51, 255)))
    save(tmp_path / "d.png", Image.new("1", (4, 4), 1))
    save(tmp_path / "e.png", Image.new("L", (4, 4), 51), transparency=51)
    found = read(tmp_path).target
    assert found.shape == (5, 1, 4, 4)
    expected = torch.tensor([51, 51, 51, 255, 255]) / 127.5 - 1
    torch.testing.assert_close(found[:, 0, 0, 0], expected)
    dark = read(tmp_path, background="black").target
    assert float(dark[4].max()) == -1


def test_resize_and_crop(tmp_path):
    save(
        tmp_path / "a.png",
        Image.fromarray(np.repeat(np.uint8([[0] * 3 + [255] * 6 + [0] * 3]), 6, 0)),
    )
    save(tmp_path / "b.png", Image.new("L", (9, 9)))
    whole = read(tmp_path, resize=6).target
    assert whole.shape == (2, 1, 6, 6) and whole[0].min() < 0 < whole[0].max()
    middle = read(tmp_path, resize=6, crop="centre").target
    assert torch.equal(middle[0], torch.ones(1, 6, 6)), "the middle 6 x 6 pixels are white"
    assert read(tmp_path, resize=[8, 4], crop="centre").target.shape == (2, 1, 4, 8)
    save(tmp_path / "b.png", Image.new("L", (6, 7)))
    assert read(tmp_path, crop="centre").target.shape == (2, 1, 6, 6)


def test_only_the_decoder_of_the_ending_is_started(tmp_path, monkeypatch):
    """Pillow gives an EPS file to Ghostscript, whatever its name is."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **_: started.append(a))
    for ending in images.FORMATS:
        (tmp_path / f"a{ending}").write_bytes(eps)
        with pytest.raises(ReflowError, match=rf"a\{ending}: not an image that can be read"):
            read(tmp_path, frame=0)
        (tmp_path / f"a{ending}").unlink()
    (tmp_path / "a.png").write_bytes(eps)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.format == "EPS", "so it would have been one"
    assert not started


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_an_image_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, side):
    save(tmp_path / "a.png", Image.new("1", (4, 4)))
    whole = bytearray((tmp_path / "a.png").read_bytes())
    whole[16:24] = side.to_bytes(4, "big") * 2  # width and height of the header
    import zlib

    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(whole)
    with pytest.raises(ReflowError, match=r"a\.png: (10000x10000 pixels|not an image.*bomb)"):
        read(tmp_path)
