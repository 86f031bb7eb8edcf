"""A release made ready to serve, and the place where the next one waits for its turn."""

import logging
import threading
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.native_build import NativeUnavailable
from models.release import Release, load_serving
from models.serving.model import ServingModel
from models.serving.native import NativeServing, load_native_serving
from pipeline.errors import SwapRejected
from pipeline.setting_checks import check
from pipeline.settings import WorkerSettings
from pipeline.worker.room import layout_of_release
from state.row import RowLayout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """Everything that has to change together when a release does.

    Attributes:
        release: Vocabulary, version and identity of the weights.
        serving: The folded weights on their device.
        index_of: Item id to index in the vocabulary.
        item_json: Per index the beginning of a recommended item in JSON, up to the score.
        layout: Sizes of the state rows under this release.
    """

    release: Release
    serving: ServingModel
    index_of: dict[str, int]
    item_json: list[str]
    layout: RowLayout

    @property
    def version(self) -> int:
        """The release's version."""
        return self.release.version

    @property
    def weights_id(self) -> int:
        """Identity of weights, vocabulary and configuration together."""
        return self.release.weights_id

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """uint64 (n_items + 1,): item hash of each index."""
        return self.release.vocabulary.hashes

    @property
    def cold_start(self) -> Tensor:
        """float32 (d,): the output of a user without history."""
        return self.serving.cold_start()


def prepare(
    release: Release,
    *,
    device: str,
    top_k: int,
    ring: int | None,
    native: NativeServing | None = None,
    hot_rows: int = 0,
) -> ServedModel:
    """Load a release for serving and try it once.

    Args:
        release: As read, with its digests verified.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        top_k: Items in a recommendation.
        ring: Items that a state row remembers; None: the release's window.
        native: The compiled form, see `fastest_serving`.
        hot_rows: State rows that must fit into memory together.

    Raises:
        SwapRejected: The weights give scores that are not finite, or there is no room for rows.
        models.errors.ReleaseError: The release is damaged or of another format.
    """
    chosen = choose_device(device)
    layout = layout_of_release(
        release, top_k=top_k, ring=ring, hot_rows=hot_rows, is_hidden_here=chosen.type == "cpu"
    )
    serving = load_serving(release, chosen, native)
    vocabulary = release.vocabulary
    model = ServedModel(
        release=release,
        serving=serving,
        index_of={item_id: i + 1 for i, item_id in enumerate(vocabulary.item_ids)},
        item_json=["", *map(item_json, vocabulary.item_ids)],
        layout=layout,
    )
    items = torch.ones(1, dtype=torch.int64)
    _, outputs = serving.advance(serving.init_state(1), items, torch.ones_like(items))
    scores = serving.scores(torch.cat([outputs, model.cold_start[None]]))
    if not bool(scores.isfinite().all()):
        msg = f"release {release.version} at {release.path}: expected finite scores"
        raise SwapRejected(msg)
    return model


def choose_device(name: str, setting: str = "device") -> torch.device:
    """Return the device of that name; `auto` is CUDA where there is one, else the CPU.

    Products of float32 matrices are whole ones from then on, not TF32's: states and lists are held
    to that by tests and `verify`, and the environment could say otherwise.

    Args:
        name: What a setting says.
        setting: The setting, for the message.

    Raises:
        SettingsInvalid: There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        count = torch.cuda.device_count()
        is_there = (device.index or 0) < count
        check(is_there, setting, f"one of the {count} CUDA devices that PyTorch finds here", name)
    return device


def fastest_serving(worker: WorkerSettings) -> NativeServing | None:
    """Return the compiled form for the CPU, None where torch serves; a line of the log says which.

    The first worker on a machine compiles it, in a second or two.
    """
    device = choose_device(worker.device, "worker.device")
    native, why = None, ""
    if device.type == "cpu" and worker.form == "torch":
        why = " (worker.form)"
    elif device.type == "cpu":
        try:
            native = load_native_serving(worker.cache_dir)
        except NativeUnavailable as error:
            why = f" ({error})"
    name = "torch" if native is None else "native"
    logger.info("serving on %s; form of steps and lists: %s%s", device, name, why)
    return native


def item_json(item_id: str) -> str:
    """Return the beginning of a recommended item in JSON, up to its score."""
    return f'{{"item_id":{msgspec.json.encode(item_id).decode()},"score":'


class ModelHolder:
    """The model that serves and the one that will; they change between two micro-batches."""

    def __init__(self, model: ServedModel | None = None) -> None:
        self.current = model
        self._next: ServedModel | None = None
        self._lock = threading.Lock()

    def offer(self, model: ServedModel) -> None:
        """Make this model the next to serve; one that was waiting is passed over."""
        with self._lock:
            self._next = model

    def take_next(self) -> ServedModel | None:
        """Return the model to change over to, once; None where there is none."""
        with self._lock:
            model, self._next = self._next, None
        if model is not None:
            self.current = model
        return model
