"""From a image file's bytes to the centre square of §2."""

import struct

import cv2
import numpy as np
import simplejpeg

MOST_PIXELS = 2**28  # more is taken for a decompression bomb
_PNG = b"\x89PNG\r\n\x1a\n"


def decode(data: bytes) -> np.ndarray:
    """The image in a JPEG, PNG or other common file, whatever its name says.

    Grayscale and CMYK become RGB; transparency is dropped. EXIF orientation is ignored, as TFDS and
    the authors' tools ignored it: the pixels are taken as they are stored.

    Returns:
      uint8 [height, width, 3] in RGB.

    Raises:
      ValueError: it cannot be decoded, is truncated, or has more than `MOST_PIXELS` pixels.
    """
    height, width, rgb_jpeg = _header(data)
    if height * width > MOST_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than 2^28")
    if rgb_jpeg:
        try:
            return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            pass  # some harmless faults are errors to it; cv2 knows them from real ones
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise ValueError(f"cannot be decoded: {error.err}") from error
    if image is None:
        raise ValueError("cannot be decoded" if data else "is empty")
    return image


def centre_square(image: np.ndarray, size: int) -> np.ndarray:
    """The central square of a image whose shorter side is rescaled to `size` (§2).

    It is cut first, which gives the same to within half a pixel, and does not blow up a image of
    10 x 10,000 pixels. Shrinking averages areas, so it does not alias; enlarging is bicubic.

    Args:
      image: uint8 [height, width, 3].
      size: pixels.

    Returns:
      uint8 [size, size, 3].
    """
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    kernel = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return cv2.resize(square, (size, size), interpolation=kernel)


def _header(data: bytes) -> tuple[int, int, bool]:
    """Height and width as far as known without decoding, and whether it is a JPEG but not CMYK."""
    if data.startswith(_PNG) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width, False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return 0, 0, False
    return height, width, colours not in ("CMYK", "YCCK")
