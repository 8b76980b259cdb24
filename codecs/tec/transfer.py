"""Between a GPU and the processor: through pinned memory, and waiting once for all that a step of
an autoregression needs."""

from __future__ import annotations

import numpy as np
import torch


def to_host(*tensors: torch.Tensor) -> list[np.ndarray]:
    """As arrays, which on the processor are the same memory."""
    if not tensors[0].is_cuda:
        return [tensor.detach().cpu().numpy() for tensor in tensors]
    staged = []
    for tensor in tensors:  # torch keeps pinned memory, and gives it out again once a copy is done
        there = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        staged.append(there.copy_(tensor.detach(), non_blocking=True))
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [tensor.numpy() for tensor in staged]


def to_device(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """As a tensor of the dtype and on the device of ``like``, where it arrives before whatever is
    asked for next."""
    tensor = torch.from_numpy(values)
    if like.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(like, non_blocking=True)
