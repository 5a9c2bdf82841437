"""From the bytes of an image file to the centre square of §2."""

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

MAX_PIXELS = 2**28  # a larger JPEG is treated as a decompression bomb; for cv2 see __init__.py


def decode(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes a JPEG, PNG or other common image file. The file's name plays no role.

    Grayscale and CMYK become RGB; transparency is dropped. EXIF orientation is ignored, as in TFDS
    and in the authors' tools: the pixels are taken as they are stored.

    Returns:
      uint8 [height, width, 3] in RGB.

    Raises:
      ValueError: the image cannot be decoded, is truncated, or has too many pixels.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # no JPEG
        height, width, colours = 0, 0, ""
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than 2^28")
    if colours in ("RGB", "YCbCr", "Gray"):
        try:
            return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            pass  # simplejpeg also refuses files with harmless faults; cv2 reads those
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise ValueError(f"cannot be decoded: {error.err}") from error
    if image is None:
        raise ValueError("cannot be decoded" if data else "is empty")
    return image


def centre_square(
    image: UInt8[np.ndarray, "height width 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The central square of `image`, with its side rescaled to `size` (§2).

    The paper rescales the whole image and then cuts. Here the square is cut first, so that an image
    of 10 x 10,000 pixels needs little memory. The results differ slightly: if the sides differ by
    an odd number, the square lies half a source pixel off the centre; and at the cut edges no
    pixels beyond the square are used. Shrinking averages areas, so it does not alias; enlarging is
    bicubic.

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
