"""Of which tensors a layout was made, to know when it has to be made again."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor

from .._compat import version_of


class Source:
    """A weight and its scale, as they are now.

    What cannot be seen: what torch does not count, which is writes through or to `.data`, into shared memory, and to tensors made
    under `torch.inference_mode`.

    Args:
        gone: called with `weight`'s weak reference once `weight` is freed.
    """

    def __init__(self, weight: Tensor, weight_scale: Tensor, gone: Callable[[weakref.ref], None] | None = None):
        self.weight, self._scale = weakref.ref(weight, gone), weakref.ref(weight_scale)
        self._versions = self._count(weight, weight_scale)

    @staticmethod
    def _count(weight: Tensor, weight_scale: Tensor) -> int | None:
        # (Versions only ever grow.)
        if weight.is_inference() or weight_scale.is_inference():
            return None
        return version_of(weight) + version_of(weight_scale)

    def is_still(self, weight: Tensor, weight_scale: Tensor) -> bool:
        """Whether these are the same two tensors, and nothing was written to them."""
        if self.weight() is not weight or self._scale() is not weight_scale:
            return False
        return self._versions is None or self._versions == version_of(weight) + version_of(weight_scale)
