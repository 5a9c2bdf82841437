"""From an image, in a file or in memory, to the centre square of §2."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import cv2
import jax
import numpy as np
import PIL.Image
import simplejpeg
from jaxtyping import UInt8

from alexnet_jax.config import Resize
from alexnet_jax.runtime.errors import UserError

ImageFile = str | os.PathLike[str] | bytes | PIL.Image.Image
"""A file's path, its bytes, or an image of PIL."""

Image = ImageFile | np.ndarray | jax.Array
"""Also an array: uint8 [height, width, 3] in RGB, or [height, width] in grey."""

Images = Image | Sequence[Image]
"""One or several; an array may hold several: uint8 [n, height, width, 3]."""

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
        raise ValueError(_fault(data))
    return image


def _fault(data: bytes) -> str:
    """Why no image could be decoded, in the words of all commands."""
    if not data:
        return "is empty"
    try:
        PIL.Image.open(io.BytesIO(data))  # reads no pixels
    except PIL.UnidentifiedImageError:
        return "is not an image (JPEG, PNG, ...)"
    except Exception:  # a damaged file may make it raise anything
        pass
    return "cannot be decoded: it is damaged, or of a kind that is not read"


def square(
    image: UInt8[np.ndarray, "height width 3"], size: int, resize: Resize
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """`image` as a square of `size` pixels, in one of three ways.

    area      the paper's: `centre_square`
    bilinear  torchvision's Resize(size) and centre crop: the shorter side is rescaled to `size` by
              Pillow's bilinear filter, which averages where it shrinks
    squeeze   that of Caffe's tools: the whole image, rescaled to size x size by OpenCV's bilinear
              filter of four pixels

    Args:
      image: uint8 [height, width, 3].
      size: pixels.
      resize: which.

    Returns:
      uint8 [size, size, 3].
    """
    if resize == "area":
        return centre_square(image, size)
    if resize == "squeeze":
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    image = _without_ends(image)
    side = min(image.shape[:2])
    height, width = (size * n // side for n in image.shape[:2])
    scaled = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR)
    top, left = (round((n - size) / 2) for n in (height, width))  # halves to the even number
    return np.asarray(scaled)[top : top + size, left : left + size]


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
    image, side = _without_ends(image), min(image.shape[:2])
    if side != size:
        height, width = (int(size / side * n + 0.5) for n in image.shape[:2])
        kernel = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
        image = cv2.resize(image, (width, height), interpolation=kernel)
    return _middle(image, size, size)


def read_image(image: Image) -> UInt8[np.ndarray, "height width 3"]:
    """An image of any kind, in RGB.

    Raises:
      UserError: the file is missing or cannot be decoded, or the array is no image.
    """
    if isinstance(image, str | os.PathLike):
        try:
            return decode(Path(image).read_bytes())
        except OSError as error:
            raise UserError(f"{os.fspath(image)} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{os.fspath(image)} {error}") from error
    try:
        if isinstance(image, bytes):
            return decode(image)
        if isinstance(image, PIL.Image.Image):
            return np.asarray(image.convert("RGB"))
    except (ValueError, OSError) as error:
        raise UserError(f"an image {error}") from error
    array = np.asarray(image)
    if array.dtype == np.uint8 and array.ndim == 2:
        array = np.stack([array] * 3, axis=-1)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise UserError(
            f"an image must be a file, its bytes, an image of PIL or an array uint8 [height, "
            f"width, 3] in RGB, 0 to 255; got {_kind(image, array)}"
        )
    return array


def _kind(image: object, array: np.ndarray) -> str:
    shape = list(array.shape)
    return f"{array.dtype} {shape}" if hasattr(image, "shape") else type(image).__name__


def read_images(
    images: Images, size: int, resize: Resize = "area"
) -> UInt8[np.ndarray, "n size size 3"]:
    """Each image as a `square`, as `prepare` makes the records.

    Args:
      images: one or several.
      size: pixels.
      resize: see `square`.

    Raises:
      UserError: see `read_image`; or there are none.
    """
    several: Sequence[Any] = images if are_several(images) else [images]
    if not len(several):
        raise UserError("there are no images: the list is empty")
    return np.stack([square(read_image(one), size, resize) for one in several])


def are_several(images: Images) -> TypeGuard[Sequence[Image]]:
    """Whether `images` are a list or an array of images, and not one image."""
    return isinstance(images, list | tuple) or getattr(images, "ndim", 3) == 4


def _without_ends(image: np.ndarray) -> np.ndarray:
    """An image that is not too long: as much is cut from both ends, an even number of pixels."""
    side = min(image.shape[:2])
    return _middle(image, *(min(n, LONGEST * side + n % 2) for n in image.shape[:2]))


def _middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
