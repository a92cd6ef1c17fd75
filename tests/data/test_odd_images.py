"""Odd kinds of images have the right pixel values, by arithmetic or by another library, or are refused in one line."""

import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.data.test_images import encoded, everything, noise, small
from trainkit.data import Images
from trainkit.data.smart_crop import smart_offset
from trainkit.data.square import is_upscaled, square
from trainkit.errors import DataError


def reopened(image: Image.Image, kind: str = "PNG", **settings: object) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, kind, **settings)))


def flat(image: Image.Image, **settings: Any) -> list[int]:
    pixels = square(image, 4, 3, **settings)
    assert (pixels == pixels[:, :1, :1]).all()
    return pixels[:, 0, 0].tolist()


def test_what_is_transparent_shows_the_background():
    for image in (Image.new("RGBA", (8, 8), (9, 9, 9, 0)), Image.new("LA", (8, 8), (9, 0))):
        assert flat(reopened(image), background="#102030") == [16, 32, 48]
    half = flat(reopened(Image.new("RGBA", (8, 8), (200, 100, 0, 51))), background="black")
    assert half == [40, 20, 0]  # 51 / 255 = 0.2
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([1, 2, 3, 50, 60, 70])
    assert flat(reopened(palette, transparency=0), background="red") == [50, 60, 70]
    assert flat(reopened(palette, transparency=1), background="red") == [255, 0, 0]
    assert flat(reopened(palette, transparency=bytes([255, 102])), background="black") == [20, 24, 28]
    grey = Image.fromarray(np.full((8, 8), 4660, np.uint16))
    file = encoded(grey)
    # tRNS in front of IDAT: Pillow writes none for 16 bits.
    chunk = b"tRNS" + (4660).to_bytes(2, "big")
    at = file.index(b"IDAT") - 4
    file = file[:at] + (2).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + file[at:]
    assert flat(Image.open(io.BytesIO(file)), background="blue") == [0, 0, 255]


def test_adobe_cmyk_is_not_inverted():
    # Photoshop stores the complement; Pillow writes the marker that says so.
    red = reopened(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(np.array(flat(red)) - [255, 0, 0]).max() <= 2


def test_a_colour_profile_is_applied():
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    own = Image.new("RGB", (8, 8), (10, 128, 200))
    assert flat(reopened(own, icc_profile=linear.tobytes())) == [10, 128, 200]
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # of other channels: it is ignored
    assert flat(reopened(own, icc_profile=lab)) == [10, 128, 200]
    assert flat(reopened(own, icc_profile=b"no profile")) == [10, 128, 200]


def red_for_blue() -> bytes:
    """A colour profile in which red and blue have changed places."""
    swapped = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    at = swapped.index(b"s\0R\0G\0B") if b"s\0R\0G\0B" in swapped else swapped.index(b"sRGB", 128)
    swapped[at : at + 1] = b"x"
    return bytes(swapped)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_profile_of_other_primaries_changes_the_colours(mode):
    image = Image.new("RGB", (8, 8), (250, 128, 20)).quantize(2) if mode == "P" else Image.new(mode, (8, 8), "#fa8014")
    found = flat(reopened(image, icc_profile=red_for_blue()))
    assert np.abs(np.array(found) - [20, 128, 250]).max() <= 2


def test_what_is_transparent_stays_so_with_a_profile():
    half = Image.new("RGBA", (8, 8), (250, 128, 20, 51))
    found = flat(reopened(half, icc_profile=red_for_blue()), background="black")
    assert np.abs(np.array(found) - [4, 26, 50]).max() <= 2  # 51 / 255 = 0.2
    keyed = reopened(Image.new("RGB", (8, 8), (250, 128, 20)), icc_profile=red_for_blue(), transparency=(250, 128, 20))
    assert flat(keyed, background="#010203") == [1, 2, 3]


def test_a_run_says_how_many_profiles_it_ignores(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, profile in enumerate((b"no profile", red_for_blue(), None)):
        noise(number).save(folder / f"{number}.png", icc_profile=profile)
    facts = small(folder, tmp_path, held_out=0.5).load(progress=False).facts
    assert str(facts["colour profiles ignored"]).startswith("1, which do not fit the pixels")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_give_the_first_frame_or_all(tmp_path, kind):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    frames = [Image.new("RGB", (8, 8), colour) for colour in colours]
    folder = tmp_path / "in"
    folder.mkdir()
    more = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(folder / f"a.{kind.lower()}", kind, save_all=True, append_images=frames[1:], duration=50, **more)
    noise(1).save(folder / "b.bmp")
    for setting, expected in (("first", colours[:1]), ("all", colours)):
        loaded = small(folder, tmp_path, frames=setting, held_out=0.5).load(progress=False)
        pixels = np.concatenate([everything(loaded.train), everything(loaded.held_out)])
        found = {tuple(image[:, 0, 0].tolist()) for image in pixels if (image == image[:, :1, :1]).all()}
        assert found == set(expected)
        assert loaded.facts["images"] == len(expected) + 1


def test_frames_of_more_pixels_than_allowed_are_refused(tmp_path):
    frames = [noise(number, (20, 20)) for number in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"20 x 20 pixels in each of 4 frames, and data\.max_pixels=1599"):
        small(tmp_path, tmp_path, frames="all", max_pixels=1599).load(progress=False)


def test_pad_keeps_all_of_an_image_on_the_background():
    wide = Image.new("RGB", (16, 8), (10, 20, 30))
    expected = np.zeros((3, 8, 8), np.uint8)
    expected[2] = 255
    expected[:, 2:6] = np.array([10, 20, 30], np.uint8)[:, None, None]
    assert np.array_equal(square(wide, 8, 3, "pad", "blue"), expected)
    assert np.array_equal(
        square(wide.transpose(Image.Transpose.ROTATE_90), 8, 3, "pad", "blue"), expected.transpose(0, 2, 1)
    )
    assert (square(Image.new("L", (1000, 1), 200), 8, 1, "pad", "black")[0, :, 0] == 200).sum() == 1


def test_stretch_averages_each_axis_by_its_own_factor():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32), np.uint8)
    expected = pixels.reshape(8, 2, 8, 4).mean((1, 3))
    assert np.abs(square(Image.fromarray(pixels), 8, 1, "stretch")[0] - expected).max() <= 1


def test_smart_crop_finds_the_detail():
    pixels = np.full((40, 200), 128, np.uint8)
    pixels[:, 150:190] = np.random.default_rng(0).integers(0, 256, (40, 40))
    image = Image.fromarray(pixels)
    left, top = smart_offset(image)
    assert top == 0 and abs(left - 150) <= 1
    left, top = smart_offset(image.transpose(Image.Transpose.TRANSPOSE))
    assert left == 0 and abs(top - 150) <= 1
    assert smart_offset(Image.new("L", (200, 40), 7)) == (80, 0)  # no detail: the centre
    assert smart_offset(Image.new("L", (41, 40), 7)) in ((0, 0), (1, 0))
    assert smart_offset(Image.new("L", (1, 1))) == (0, 0)
    assert smart_offset(Image.new("L", (1, 50_000)))[0] == 0
    assert square(image, 8, 1, "smart").std() > square(image, 8, 1).std() == 0


@pytest.mark.parametrize("fit", ["crop", "smart", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (3, 2)])
def test_tiny_and_extreme_shapes_keep_their_colour(fit, size):
    pixels = square(Image.new("RGB", size, (1, 2, 3)), 16, 3, fit, "#010203")
    assert (pixels == np.array([1, 2, 3], np.uint8)[:, None, None]).all()


def test_what_is_scaled_up_and_few_images_are_said(tmp_path, capsys):
    for number in range(6):
        noise(number, (24, 6 if number < 2 else 16)).save(tmp_path / f"{number}.png")
    loaded = small(tmp_path, tmp_path).load()
    assert (
        loaded.facts["upscaled images"]
        == "2 of 6, from fewer than 8 pixels, so they are blurred; set data.resolution=4"
    )
    said = capsys.readouterr().err
    assert "upscaled images: 2 of 6" in said
    assert "few training images: " in said and "data.augment=ada" in said and "weights=RUN" in said
    small(tmp_path, tmp_path, augment="ada").load()
    assert "few training images" not in capsys.readouterr().err
    assert not is_upscaled((24, 6), 8, "pad")


@pytest.mark.parametrize(("key", "value"), [("fit", "squeeze"), ("frames", "last"), ("background", "no colour")])
def test_wrong_choices_are_named(key, value):
    with pytest.raises(DataError, match=rf"data\.{key}={value}: must be"):
        Images(**{key: value})
