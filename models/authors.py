"""Import of checkpoints that the authors' published code wrote (`model/lru.py` of LRURec).

Their file is a pickle, `{"model_state_dict": {name: tensor}}`, with complex projections. It is
opened with torch's `weights_only`, which builds tensors and nothing else.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.config import ModelConfig
from models.errors import CheckpointIncompatible
from models.lru import LinearRecurrentUnit
from models.recommender import Recommender

_BLOCK_NAME = re.compile(r"model\.lru_blocks\.(\d+)\.")


def import_authors_checkpoint(pth_path: Path, *, max_length: int = 50) -> Recommender:
    """Load a checkpoint of the published implementation; sizes are taken from its tensors.

    Args:
        pth_path: the file.
        max_length: positions that it was trained with; the checkpoint does not say. Dropout is
            likewise unknown, and keeps the default.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointIncompatible: the file cannot be read, or a tensor is missing, unknown, of the
            wrong shape or kind, or not finite.
    """
    weights = _read(pth_path)
    try:
        config = ModelConfig(
            n_items=_shape(weights, "embedding.token.weight", 2)[0] - 1,
            hidden_size=_shape(weights, "embedding.token.weight", 2)[1],
            state_size=_shape(weights, "model.lru_blocks.0.lru_layer.params_log", 2)[1],
            # Not the largest number and one: an absurd one would be expected block by block.
            n_blocks=len({match[1] for match in map(_BLOCK_NAME.match, weights) if match}),
            max_length=max_length,
        )
        _check(weights, _expected(config))
    except (CheckpointIncompatible, ValueError, RuntimeError) as exc:  # Runtime: no conversion
        msg = f"{pth_path}: {exc}"
        raise CheckpointIncompatible(msg) from exc
    with torch.device("meta"):
        recommender = Recommender(config)
    recommender.load_state_dict(_translate(weights, config), assign=True)
    _check_recurrences(pth_path, recommender)
    return recommender.eval()


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as exc:
        msg = f"{path}: cannot be read: {exc.strerror or exc}"
        raise CheckpointIncompatible(msg) from exc
    except Exception as exc:  # a damaged pickle makes torch.load raise nearly anything
        why = f"{type(exc).__name__}: {exc}"
        msg = f"{path}: expected a PyTorch checkpoint, torch cannot read it: {why}"
        raise CheckpointIncompatible(msg) from exc
    if not isinstance(checkpoint, Mapping) or "model_state_dict" not in checkpoint:
        got = [*checkpoint] if isinstance(checkpoint, Mapping) else _describe(checkpoint)
        msg = f"{path}: expected a mapping with the key model_state_dict, got {got}"
        raise CheckpointIncompatible(msg)
    weights: object = checkpoint["model_state_dict"]
    if not isinstance(weights, Mapping):
        msg = f"{path}: model_state_dict: expected a mapping, got {_describe(weights)}"
        raise CheckpointIncompatible(msg)
    for key in weights:
        if not isinstance(key, str):
            msg = f"{path}: model_state_dict: expected text as keys, got {key!r}"
            raise CheckpointIncompatible(msg)
    return weights


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int) -> torch.Size:
    tensor = weights.get(name)
    if not isinstance(tensor, Tensor) or tensor.ndim != dimensions:
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else tensor
        msg = f"{name}: expected a tensor of {dimensions} dimensions, got {got}"
        raise CheckpointIncompatible(msg)
    return tensor.shape


def _expected(config: ModelConfig) -> dict[str, tuple[bool, tuple[int, ...]]]:
    """Return what every key must hold: whether it is complex, and its shape."""
    v, d, c = config.n_items + 1, config.hidden_size, config.state_size
    expected: dict[str, tuple[bool, tuple[int, ...]]] = {
        "embedding.token.weight": (False, (v, d)),
        "embedding.layer_norm.weight": (False, (d,)),
        "embedding.layer_norm.bias": (False, (d,)),
        "model.bias": (False, (v,)),
    }
    for index in range(config.n_blocks):
        block = f"model.lru_blocks.{index}"
        expected |= {
            f"{block}.lru_layer.params_log": (False, (3, c)),
            f"{block}.lru_layer.in_proj.weight": (True, (c, d)),
            f"{block}.lru_layer.in_proj.bias": (True, (c,)),
            f"{block}.lru_layer.out_proj.weight": (True, (d, c)),
            f"{block}.lru_layer.out_proj.bias": (True, (d,)),
            f"{block}.lru_layer.layer_norm.weight": (False, (d,)),
            f"{block}.lru_layer.layer_norm.bias": (False, (d,)),
            f"{block}.feed_forward.w_1.weight": (False, (4 * d, d)),
            f"{block}.feed_forward.w_1.bias": (False, (4 * d,)),
            f"{block}.feed_forward.w_2.weight": (False, (d, 4 * d)),
            f"{block}.feed_forward.w_2.bias": (False, (d,)),
            f"{block}.feed_forward.layer_norm.weight": (False, (d,)),
            f"{block}.feed_forward.layer_norm.bias": (False, (d,)),
        }
    return expected


def _check(
    weights: Mapping[str, Tensor], expected: Mapping[str, tuple[bool, tuple[int, ...]]]
) -> None:
    unknown = sorted(weights.keys() - expected.keys())
    if unknown:
        msg = f"{unknown[0]}: expected no such key, got {_describe(weights[unknown[0]])}"
        raise CheckpointIncompatible(msg)
    for name, (is_complex, shape) in expected.items():
        kind = "complex" if is_complex else "real"
        got = _describe(weights.get(name))
        if got != f"{kind} {shape}":
            msg = f"{name}: expected {kind} {shape}, got {got}"
            raise CheckpointIncompatible(msg)
        if weights[name].layout != torch.strided:
            msg = f"{name}: expected a dense tensor, got {weights[name].layout}"
            raise CheckpointIncompatible(msg)
        # A view can have far more numbers than the file: with a step of 0 they take no room there.
        if weights[name].is_meta or weights[name].nbytes > weights[name].untyped_storage().nbytes():
            msg = f"{name}: expected all of its numbers to be in the file"
            raise CheckpointIncompatible(msg)
        narrow = weights[name].to(torch.complex64 if is_complex else torch.float32)
        if not narrow.isfinite().all():
            msg = f"{name}: expected finite numbers of 32 bits, got NaN, infinity or more than fits"
            raise CheckpointIncompatible(msg)


def _check_recurrences(path: Path, recommender: Recommender) -> None:
    """Refuse logarithms whose exponentials are no numbers of 32 bits."""
    units = [module for module in recommender.modules() if isinstance(module, LinearRecurrentUnit)]
    for index, lru in enumerate(units):
        if not (lru.eigenvalues().isfinite().all() and lru.gamma_log.exp().isfinite().all()):
            msg = (
                f"{path}: model.lru_blocks.{index}.lru_layer.params_log: expected logarithms "
                f"of finite numbers of 32 bits"
            )
            raise CheckpointIncompatible(msg)


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return "nothing" if value is None else type(value).__name__
    if not value.is_complex() and not value.is_floating_point():
        return f"{value.dtype} {tuple(value.shape)}"
    return f"{'complex' if value.is_complex() else 'real'} {tuple(value.shape)}"


def _translate(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename, and lay complex tensors out as `models.lru` wants them."""

    def parts(name: str) -> Tensor:
        return torch.view_as_real(weights[name].to(torch.complex64).resolve_conj().resolve_neg())

    def real(name: str) -> Tensor:
        return weights[name].to(torch.float32).resolve_neg().contiguous()

    ours = {
        "item_embedding": real("embedding.token.weight"),
        "item_bias": real("model.bias"),
        "embedding_norm.weight": real("embedding.layer_norm.weight"),
        "embedding_norm.bias": real("embedding.layer_norm.bias"),
    }
    for index in range(config.n_blocks):
        lru = f"model.lru_blocks.{index}.lru_layer"
        feed_forward = f"model.lru_blocks.{index}.feed_forward"
        nu_log, theta_log, gamma_log = real(f"{lru}.params_log")
        real_minus_imaginary = torch.tensor([1.0, -1.0])
        block = {
            "lru.nu_log": nu_log,
            "lru.theta_log": theta_log,
            "lru.gamma_log": gamma_log,
            "lru.in_weight": parts(f"{lru}.in_proj.weight").transpose(1, 2).flatten(0, 1),
            "lru.in_bias": parts(f"{lru}.in_proj.bias").flatten(),
            "lru.out_weight": (parts(f"{lru}.out_proj.weight") * real_minus_imaginary).flatten(1),
            "lru.out_bias": parts(f"{lru}.out_proj.bias")[:, 0],
            "lru.norm.weight": real(f"{lru}.layer_norm.weight"),
            "lru.norm.bias": real(f"{lru}.layer_norm.bias"),
            "feed_forward.weight_1": real(f"{feed_forward}.w_1.weight"),
            "feed_forward.bias_1": real(f"{feed_forward}.w_1.bias"),
            "feed_forward.weight_2": real(f"{feed_forward}.w_2.weight"),
            "feed_forward.bias_2": real(f"{feed_forward}.w_2.bias"),
            "feed_forward.norm.weight": real(f"{feed_forward}.layer_norm.weight"),
            "feed_forward.norm.bias": real(f"{feed_forward}.layer_norm.bias"),
        }
        ours |= {f"blocks.{index}.{name}": tensor.contiguous() for name, tensor in block.items()}
    return ours
