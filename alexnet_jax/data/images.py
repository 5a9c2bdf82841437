"""From the bytes of an image file to the centre square of §2."""

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

LONGEST = 64  # of a longer image, so many times as long as wide, the ends are cut off first
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
    """`image` with its shorter side rescaled to `size`, and of that the central square (§2).

    The whole image is rescaled and then cut, as in the paper and in cuda-convnet2, the authors'
    later code, whose kernels and rounding these are. So the middle of the square is that of the
    image where the rescaled image exceeds it by an even number of pixels; by an odd number, it is
    half a pixel of the result before it. Shrinking averages areas, so it does not alias; enlarging
    is bicubic. Of an image that is more than 64 times as long as wide the middle is cut out first,
    so that one of 10 x 10,000 pixels needs little memory.

    Args:
      image: uint8 [height, width, 3].
      size: pixels.

    Returns:
      uint8 [size, size, 3].
    """
    side = min(image.shape[:2])
    # As much from both ends, an even number of pixels in all.
    image = _middle(image, *(min(n, LONGEST * side + n % 2) for n in image.shape[:2]))
    if side != size:
        height, width = (int(size / side * n + 0.5) for n in image.shape[:2])
        kernel = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
        image = cv2.resize(image, (width, height), interpolation=kernel)
    return _middle(image, size, size)


def _middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
