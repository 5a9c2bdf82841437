"""Images as they are met: every kind of file that ImageNet holds, against Pillow."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg

from alexnet_jax.data import images

Image = pytest.importorskip("PIL.Image")


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, as photographs have."""
    rng = np.random.default_rng(seed)
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
    # As Photoshop writes it, and as ImageNet's 22 are.
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
    """The name of the file is never asked, so a PNG named JPEG is no special case."""
    data = CASES[kind](photo(61, 83))
    ours, theirs = images.decode(data), pillow(data)
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape == (61, 83, 3)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 3
    assert difference.mean() <= 1  # CMYK's rounding differs everywhere by one


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to see it upright
    data = encode(Image.fromarray(photo(40, 90)), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert images.decode(data).shape == (40, 90, 3)
    png = encode(Image.fromarray(photo(40, 90)), "PNG", exif=exif)
    assert images.decode(png).shape == (40, 90, 3)


def test_transparency_is_dropped():
    rgba = np.dstack([photo(20, 30), np.full((20, 30), 7, np.uint8)])
    data = encode(Image.fromarray(rgba, "RGBA"), "PNG")
    np.testing.assert_array_equal(images.decode(data), photo(20, 30))


def test_harmless_faults_in_a_jpeg_are_no_errors():
    """Some of ImageNet's files have bytes too many before a marker; every decoder reads them."""
    data = encode(Image.fromarray(photo(50, 60)), "JPEG")
    faulty = data[:-2] + b"\x00\x00" + data[-2:]
    np.testing.assert_array_equal(images.decode(faulty), images.decode(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"not a image", "cannot be decoded"),
        (encode(Image.fromarray(photo(200, 300)), "JPEG")[:2000], "cannot be decoded"),
        (encode(Image.fromarray(photo(200, 300)), "PNG")[:100], "cannot be decoded"),
    ],
)
def test_what_cannot_be_decoded(data, reason):
    with pytest.raises(ValueError, match=reason):
        images.decode(data)


def test_decompression_bombs():
    """20,000 x 20,000 black pixels fit into a few kilobytes."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = (
        struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    with pytest.raises(ValueError, match=r"20000x20000 pixels are more than 2\^28"):
        images.decode(b"\x89PNG\r\n\x1a\n" + chunk)
    jpeg = bytearray(encode(Image.fromarray(photo(8, 8)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 20_000, 20_000)
    with pytest.raises(ValueError, match=r"20000x20000 pixels are more than 2\^28"):
        images.decode(bytes(jpeg))


def by_pillow(image: np.ndarray, size: int, kernel) -> np.ndarray:
    """§2 to the letter: rescale the whole image, then cut its centre."""
    height, width, _ = image.shape
    scale = size / min(height, width)
    whole = Image.fromarray(image).resize((round(width * scale), round(height * scale)), kernel)
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    return np.asarray(whole.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
    "shape", [(400, 533), (533, 400), (256, 256), (256, 400), (100, 100), (56, 90), (2400, 1700)]
)
def test_centre_square(shape):
    image = photo(*shape)
    ours = images.centre_square(image, 256)
    assert ours.shape == (256, 256, 3)
    kernel = Image.Resampling.BOX if min(shape) > 256 else Image.Resampling.BICUBIC
    # Half a pixel of the original apart at most, which in smooth images is little.
    assert np.abs(ours.astype(int) - by_pillow(image, 256, kernel)).mean() < 1.5


def test_nothing_is_done_to_a_square_of_the_right_size():
    image = photo(64, 64)
    np.testing.assert_array_equal(images.centre_square(image, 64), image)
    wide = photo(64, 100)
    np.testing.assert_array_equal(images.centre_square(wide, 64), wide[:, 18:82])


def test_shrinking_does_not_alias():
    """Stripes of one pixel become grey; without averaging they would become wide stripes."""
    stripes = np.zeros((1000, 1000, 3), np.uint8)
    stripes[:, ::2] = 255
    small = images.centre_square(stripes, 90)
    np.testing.assert_allclose(small, 127.5, atol=12)


def test_extreme_shapes():
    for shape in ((10, 10_000), (10_000, 10), (1, 1), (1, 3)):
        square = images.centre_square(np.full((*shape, 3), 9, np.uint8), 256)
        np.testing.assert_array_equal(square, np.full((256, 256, 3), 9))


def test_large_image():
    data = encode(Image.fromarray(photo(6000, 9000)), "JPEG")
    assert images.centre_square(images.decode(data), 256).shape == (256, 256, 3)
