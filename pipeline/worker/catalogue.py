"""What the catalogue topic says about items: titles, and which may not be recommended now."""

import threading

import msgspec
import numpy as np
import torch
from torch import Tensor

from models.transfers import to_device
from models.vocabulary import item_hash
from pipeline.worker.served_model import ServedModel


class CatalogueItem(msgspec.Struct, frozen=True):
    """The value of a record on the items topic; its key is the item id in UTF-8."""

    title: str | None = None
    available: bool = True


class Catalogue:
    """Items that may not be recommended now. Any thread may update it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unavailable: set[int] = set()
        self._revision = 0
        self._mask: Tensor | None = None
        self._mask_of: tuple[int, int] | None = None

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take one record of the items topic; None as value withdraws the item.

        Raises:
            ValueError: The key is no UTF-8 text or the value is no catalogue item.
            RecursionError: The value is nested too deeply.
        """
        if key is None:
            msg = "catalogue record: expected the item id as key, got none"
            raise ValueError(msg)
        item = item_hash(key.decode())
        available = value is not None and msgspec.json.decode(value, type=CatalogueItem).available
        with self._lock:
            if available == (item in self._unavailable):
                self._unavailable ^= {item}
                self._revision += 1

    def unavailable_hashes(self) -> frozenset[int]:
        """Return the hashes of the items to leave out, whether a release knows them or not."""
        with self._lock:
            return frozenset(self._unavailable)

    def unavailable(self, model: ServedModel) -> Tensor | None:
        """Return bool (n_items + 1,), true for items to leave out; None where there are none."""
        with self._lock:
            wanted = (model.weights_id, self._revision)
            if self._mask_of != wanted:
                hashes = np.fromiter(self._unavailable, np.uint64, len(self._unavailable))
                index = model.release.vocabulary.indices_of_hashes(hashes)
                index = index[index > 0]
                self._mask = None
                if len(index):
                    mask = torch.zeros(len(model.hashes), dtype=torch.bool)
                    mask[torch.from_numpy(index)] = True
                    self._mask = to_device(mask, model.serving.device)
                self._mask_of = wanted
            return self._mask
