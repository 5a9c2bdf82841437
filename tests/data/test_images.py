"""Decoding and centre squares against Pillow: five photos, and every kind of file in ImageNet."""

import io
import itertools
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg

from alexnet_jax.data import images
from tests.conftest import PHOTOS, photos

Image = pytest.importorskip("PIL.Image")


def smooth(height: int, width: int) -> np.ndarray:
    """Smooth colours, as in photos."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def encode(image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


CASES = {
    "RGB JPEG": lambda p: encode(Image.fromarray(p), "JPEG", quality=92),
    "progressive JPEG": lambda p: encode(Image.fromarray(p), "JPEG", progressive=True),
    "4:4:4 JPEG": lambda p: encode(Image.fromarray(p), "JPEG", subsampling=0),
    "grayscale JPEG": lambda p: encode(Image.fromarray(p).convert("L"), "JPEG"),
    "CMYK JPEG": lambda p: encode(Image.fromarray(p).convert("CMYK"), "JPEG", quality=92),
    # As Photoshop writes it; ImageNet has 22 of them.
    "YCCK JPEG": lambda p: simplejpeg.encode_jpeg(
        np.ascontiguousarray(255 - np.asarray(Image.fromarray(p).convert("CMYK"))), 92, "CMYK"
    ),
    "RGB PNG": lambda p: encode(Image.fromarray(p), "PNG"),
    "palette PNG": lambda p: encode(Image.fromarray(p).convert("P"), "PNG"),
    "grayscale PNG": lambda p: encode(Image.fromarray(p).convert("L"), "PNG"),
    "BMP": lambda p: encode(Image.fromarray(p), "BMP"),
    "WebP": lambda p: encode(Image.fromarray(p), "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", CASES)
def test_decodes_as_pillow_does(kind):
    """The file's name is never used, so a PNG with a JPEG's name is no special case."""
    data = CASES[kind](smooth(61, 83))
    ours, theirs = images.decode(data), pillow(data)
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape == (61, 83, 3)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 3
    assert difference.mean() <= 1  # CMYK is rounded differently everywhere


@pytest.mark.parametrize("path", sorted(PHOTOS.glob("*.jpg")), ids=lambda path: path.stem)
def test_photos_are_decoded_as_by_pillow(path):
    data = path.read_bytes()
    np.testing.assert_allclose(images.decode(data), pillow(data), atol=1)


def test_exif_orientation_is_ignored():
    upright = Image.open(PHOTOS / "hat.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by a quarter
    for kind in ("JPEG", "PNG"):
        data, plain = encode(upright, kind, exif=exif), encode(upright, kind)
        assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
        np.testing.assert_array_equal(images.decode(data), images.decode(plain))


def test_transparency_is_dropped():
    rgba = np.dstack([smooth(20, 30), np.full((20, 30), 7, np.uint8)])
    data = encode(Image.fromarray(rgba, "RGBA"), "PNG")
    np.testing.assert_array_equal(images.decode(data), smooth(20, 30))


def test_harmless_faults_in_a_jpeg_are_no_errors():
    """Some of ImageNet's files have extra bytes before a marker; every decoder reads them."""
    data = encode(Image.fromarray(smooth(50, 60)), "JPEG")
    faulty = data[:-2] + b"\x00\x00" + data[-2:]
    np.testing.assert_array_equal(images.decode(faulty), images.decode(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"not an image", r"^is not an image \(JPEG, PNG, \.\.\.\)$"),
        (
            encode(Image.fromarray(smooth(200, 300)), "JPEG")[:2000],
            "cannot be decoded: it is damaged",
        ),
        (
            encode(Image.fromarray(smooth(200, 300)), "PNG")[:100],
            "cannot be decoded: it is damaged",
        ),
    ],
)
def test_cannot_be_decoded(data, reason):
    with pytest.raises(ValueError, match=reason):
        images.decode(data)


def test_decompression_bombs():
    """Some kilobytes can hold 40,000 x 40,000 black pixels: above any limit that OpenCV has."""
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100_000))),
        (b"IEND", b""),
    ):
        png += struct.pack(">I", len(body)) + kind + body
        png += struct.pack(">I", zlib.crc32(kind + body))
    with pytest.raises(ValueError, match="cannot be decoded: pixels <= CV_IO_MAX_IMAGE_PIXELS"):
        images.decode(png)
    jpeg = bytearray(encode(Image.fromarray(smooth(8, 8)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 20_000, 20_000)
    with pytest.raises(ValueError, match=r"20000x20000 pixels are more than 2\^28"):
        images.decode(bytes(jpeg))
    # A width of -5, which PIL takes for 2^32 - 5.
    head = struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, -5, 5, 1, 24, *[0] * 6)
    with pytest.raises(ValueError, match="cannot be decoded: it is damaged, or of a kind"):
        images.decode(b"BM" + head)


def by_pillow(image: np.ndarray, size: int, kernel) -> np.ndarray:
    """As §2 says: rescale the whole image, then cut its centre."""
    height, width, _ = image.shape
    scale = size / min(height, width)
    whole = Image.fromarray(image).resize((round(width * scale), round(height * scale)), kernel)
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    return np.asarray(whole.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
    "shape", [(400, 533), (533, 400), (256, 256), (256, 400), (100, 100), (56, 90), (2400, 1700)]
)
def test_centre_square(shape):
    image = smooth(*shape)
    ours = images.centre_square(image, 256)
    assert ours.shape == (256, 256, 3)
    kernel = Image.Resampling.BOX if min(shape) > 256 else Image.Resampling.BICUBIC
    assert np.abs(ours.astype(int) - by_pillow(image, 256, kernel)).mean() < 1.5


def area_weights(before: int, after: int) -> np.ndarray:
    """How much of each new pixel each old pixel covers: float64 [after, before], rows sum to 1."""
    edges = np.arange(after + 1) * before / after
    old = np.arange(before)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return overlap.clip(0) * after / before


def cubic_weights(before: int, after: int) -> np.ndarray:
    """How much each old pixel adds to each new one when a cubic enlarges: float64 [after, before].

    Keys' kernel with a = -0.75, as in OpenCV; the pixels at the edges are repeated beyond them.
    """
    places = (np.arange(after) + 0.5) * before / after - 0.5
    weights = np.zeros((after, before))
    for old in range(-2, before + 2):
        x = np.abs(places - old)
        near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        weights[:, np.clip(old, 0, before - 1)] += np.where(x <= 1, near, np.where(x < 2, far, 0))
    return weights


def scaled_then_cut(image: np.ndarray, size: int) -> np.ndarray:
    """§2 in float64: the whole image is rescaled, then its central square is cut out."""
    height, width, _ = image.shape
    side = min(height, width)
    of = area_weights if side > size else cubic_weights
    new = [int(np.floor(size * n / side + 0.5)) for n in (height, width)]
    rows, columns = (of(*sizes) for sizes in zip((height, width), new, strict=True))
    top, left = ((n - size) // 2 for n in new)
    rows, columns = rows[top : top + size], columns[left : left + size]
    return np.einsum("yh,xw,hwc->yxc", rows, columns, image, optimize=True).clip(0, 255)


@pytest.mark.parametrize(
    "shape",
    [
        # The excess of the photo is odd, that of the rescaled image even or odd, in both ways.
        *[(300, 401), (401, 300), (375, 500), (333, 500), (257, 600), (281, 500)],
        *[(100, 131), (131, 100), (61, 300), (61, 3000), (200, 255), (255, 301)],
    ],
)
def test_the_square_is_cut_after_scaling(shape):
    """Sharp random pixels: where the square lies half a source pixel off, they differ by far more.

    OpenCV rounds the cubic's weights to 1/2048, and both round once more.
    """
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected = scaled_then_cut(noise, 256)
    np.testing.assert_allclose(images.centre_square(noise, 256), expected, atol=1.5)


def test_of_an_image_that_is_very_long_the_ends_are_cut_off_first():
    """100 times as long as wide: the same centre, to a small part of a pixel."""
    image = smooth(20, 2001)
    expected = scaled_then_cut(image, 64)
    assert np.abs(images.centre_square(image, 64) - expected).max() < 2


def test_the_square_is_at_the_centre_to_half_a_pixel_of_the_result():
    """A ramp of grey tells by its mean where the square lies; small images and very long ones."""
    size, found = 64, set()
    sides = (9, 10, 20, 21, 61, 64, 101, 130)
    for side, length in itertools.product(sides, (131, 210, 211, 300, 401, 2000, 2001, 9999)):
        slope = 2 * round(100 / side)  # grey levels for each pixel of the image; even: no rounding
        away = np.arange(length) - (length - 1) / 2
        ramp = np.clip(128 + slope * away, 0, 255).astype(np.uint8)
        image = np.tile(ramp[None, :, None], (side, 1, 3))
        off = (images.centre_square(image, size).mean() - 128) / slope * size / side
        odd = (int(size / side * length + 0.5) - size) % 2
        if length <= 64 * side:  # of a longer one the ends are cut off, which may change `odd`
            assert off == pytest.approx(-odd / 2, abs=0.06), (side, length)
        assert min(abs(off), abs(off + 0.5)) < 0.06, (side, length)
        found.add(odd)
    assert found == {0, 1}


@pytest.mark.parametrize("size", [100, 224])
def test_shrinking_photos_averages_areas(size):
    """`photos` is also what other tests use."""
    for ours, path in zip(photos(size), sorted(PHOTOS.glob("*.jpg")), strict=True):
        averaged = scaled_then_cut(pillow(path.read_bytes()), size)
        np.testing.assert_allclose(ours, averaged, atol=2)  # two roundings, and that of decoding


def test_enlarging_photos():
    for ours, path in zip(photos(300), sorted(PHOTOS.glob("*.jpg")), strict=True):
        theirs = by_pillow(pillow(path.read_bytes()), 300, Image.Resampling.BICUBIC)
        assert np.abs(ours.astype(int) - theirs).mean() < 3.5


def test_a_square_of_the_right_size_stays_as_it_is():
    image = smooth(64, 64)
    np.testing.assert_array_equal(images.centre_square(image, 64), image)
    wide = smooth(64, 100)
    np.testing.assert_array_equal(images.centre_square(wide, 64), wide[:, 18:82])


def test_shrinking_does_not_alias():
    """Stripes of one pixel become grey; without averaging they would become wider stripes."""
    stripes = np.zeros((1000, 1000, 3), np.uint8)
    stripes[:, ::2] = 255
    small = images.centre_square(stripes, 90)
    np.testing.assert_allclose(small, 127.5, atol=12)


def test_extreme_shapes():
    for shape in ((10, 10_000), (10_000, 10), (1, 1), (1, 3)):
        square = images.centre_square(np.full((*shape, 3), 9, np.uint8), 256)
        np.testing.assert_array_equal(square, np.full((256, 256, 3), 9))


def test_large_image():
    data = encode(Image.fromarray(smooth(4000, 6000)), "JPEG")
    assert images.centre_square(images.decode(data), 256).shape == (256, 256, 3)


@pytest.mark.parametrize(("height", "width"), [(300, 401), (90, 61), (256, 256)])
@pytest.mark.parametrize("resize", ["bilinear", "squeeze"])
def test_others_squares_are_those_of_pytorchs_filters(height, width, resize):
    """With antialias PyTorch's filter is Pillow's, without it OpenCV's; both round differently."""
    torch = pytest.importorskip("torch")
    image, size = smooth(height, width), 64
    side = min(height, width)
    scaled = (size * height // side, size * width // side) if resize == "bilinear" else (size, size)
    whole = torch.nn.functional.interpolate(
        torch.tensor(image).permute(2, 0, 1)[None].float(),
        scaled,
        mode="bilinear",
        antialias=resize == "bilinear",
    )
    top, left = (round((n - size) / 2) for n in scaled)
    wanted = whole[0, :, top : top + size, left : left + size].permute(1, 2, 0).numpy()
    found = images.square(image, size, resize)
    assert found.shape == (size, size, 3)
    assert np.abs(found - wanted).max() < 1.01
    if height != width:
        assert np.abs(images.centre_square(image, size) - wanted).max() > 2
