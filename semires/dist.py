"""Distributed process group: PyTorch DDP under torchrun, or a single process.

With one process every operation of a :class:`Group` is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from semires.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process's rank among ``world`` processes, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, the only process that writes files."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Synchronise gradients and batch statistics over the group.

        DDP waits for a gradient of every parameter that requires one at this call, so freeze
        parameters before it.
        """
        if self.world == 1:
            return model
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        else:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.__class__ = GroupBatchNorm  # the same parameters, buffers and names
        # Buffers need no broadcast: weights are equal, and so are the synchronised statistics.
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=devices, broadcast_buffers=False
        )

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over the processes; shapes are equal, the device is the group's."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def concat(self, values: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, of equal shape, concatenated in order of rank."""
        if self.world == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in order of rank, on every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is true in any process."""
        if self.world == 1:
            return list(flags)
        return [count > 0 for count in self.sum(torch.tensor(flags, device=self.device) * 1)]

    def share(self, items: Sequence[T], batch: int) -> list[T]:
        """This rank's part of the items: every ``world``-th batch of them, in order.

        The batches are those of a single process, so rounding does not depend on ``world``.
        """
        firsts = range(self.rank * batch, len(items), self.world * batch)
        return [item for first in firsts for item in items[first : first + batch]]

    def barrier(self) -> None:
        """Wait for every process."""
        if self.world > 1:
            dist.barrier()


def join_group() -> Group:
    """Read torchrun's environment and join its process group (nccl on GPUs, gloo on CPUs).

    Raises:
        ConfigError: ``WORLD_SIZE`` or ``RANK`` is not a number.
    """
    world, rank = _from_environment("WORLD_SIZE", 1), _from_environment("RANK", 0)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Group(rank, world, device)


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ConfigError(f"{name}: {value!r} in the environment is not a number; torchrun sets it")
    return int(value)


class GroupBatchNorm(nn.BatchNorm2d):
    """Batch norm over the samples of all processes, for CPUs; torch's SyncBatchNorm needs GPUs.

    Every process must have the same number of samples.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,C,H,W) to the same shape and dtype; statistics are at least float32."""
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean: torch.Tensor = _GroupMean.apply(wide.mean((0, 2, 3)))
        centred = wide - mean[:, None, None]
        variance: torch.Tensor = _GroupMean.apply(centred.square().mean((0, 2, 3)))
        self._track(mean.detach(), variance.detach(), x[:, 0].numel() * dist.get_world_size())
        scale = self.weight * (variance + self.eps).rsqrt()
        out: torch.Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return out.to(x.dtype)

    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Update the running statistics as `nn.BatchNorm2d` does, with the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)


class _GroupMean(torch.autograd.Function):
    """Mean over the processes; its gradient is the mean of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient / dist.get_world_size()
