"""The endless order of training: epoch after epoch, and in which epochs only a part is used."""

from collections.abc import Iterator
from typing import NamedTuple

from alexnet_jax.config import Plateau, Schedule
from alexnet_jax.runtime.errors import UserError


class Part(NamedTuple):
    """Epochs in a row that have the same images."""

    place: int  # images seen before
    epoch: int  # epochs done before
    images: int  # in each of these epochs: the first so many of the split


class Stretch(NamedTuple):
    """Images in a row that belong to one epoch."""

    epoch: int  # its number
    images: int  # that it has
    places: range  # in the epoch


class Epochs:
    """Where each epoch lies in the endless row of training images, which begins at place 0."""

    def __init__(self, images: int, policy: Plateau | Schedule | None = None) -> None:
        """`images` are those of the training split; None stands for epochs of all of them.

        Raises:
          UserError: a phase of the policy asks for more images than there are.
        """
        phases = policy.phases if isinstance(policy, Schedule) else ()
        self._parts = [Part(0, 0, images)]
        for number, phase in enumerate(phases):
            if phase.images > images:
                raise UserError(
                    f"config.policy.phases[{number}].images={phase.images}: "
                    f"the training split has {images} images; 0 stands for all"
                )
            before, epoch = self._parts[-1], int(phase.epoch)
            place = before.place + (epoch - before.epoch) * before.images
            part = Part(place, epoch, phase.images or images)
            if part.place == before.place:
                self._parts[-1] = part
            elif part.images != before.images:
                self._parts.append(part)

    def done(self, place: int) -> float:
        """The epochs that are done, in part or whole, when `place` images were seen."""
        part = self._part(place)
        return part.epoch + (place - part.place) / part.images

    def whole(self, place: int) -> int:
        """The epochs that are wholly done when `place` images were seen."""
        part = self._part(place)
        return part.epoch + (place - part.place) // part.images

    def place(self, epochs: int) -> int:
        """The images in so many epochs."""
        part = [part for part in self._parts if part.epoch <= epochs][-1]
        return part.place + (epochs - part.epoch) * part.images

    def stretches(self, start: int, count: int) -> Iterator[Stretch]:
        """The places `start` to `start + count`, epoch by epoch."""
        end = start + count
        while start < end:
            epoch, part = self.whole(start), self._part(start)
            first = (start - part.place) % part.images
            last = min(part.images, first + end - start)
            yield Stretch(epoch, part.images, range(first, last))
            start += last - first

    def _part(self, place: int) -> Part:
        return [part for part in self._parts if part.place <= place][-1]
