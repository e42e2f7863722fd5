"""Process groups, and the network in DDP or FSDP2.

    torchrun --nproc-per-node 2 -m cover train recipes/sandbox/cotrain.yaml

Every loss is divided by the number of samples of the whole step, so gradients are *summed* over the ranks, not
averaged. Gradients, small Python objects and checkpoints each have a process group of their own, so that none of them
waits for another.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cover.errors import UserError
from cover.hardware import pick_device
from cover.machine import cores, default_workers, end_with_launcher
from cover.model.cover import CoVeR
from cover.model.lora import merged

# FSDP and distributed checkpoints are imported where they are used: their import takes half as long as that of torch.
if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class LocalStep:
    """Runs the network in one process. `DistributedStep` replaces it if there are several ranks."""

    def __init__(self, model: CoVeR) -> None:
        self.model = model

    def __call__(self, frames: Tensor, groups: Any, drop: Tensor | None, **options: Any) -> dict[str, Tensor]:
        """The logits of every head, as in `CoVeR.forward`, with its `options` if there are any."""
        logits: dict[str, Tensor] = self.model(frames, groups, drop, **options)
        return logits

    def part(self, last: bool) -> AbstractContextManager[None]:
        """A context for the forward and backward pass of a micro-batch.

        Gradients are summed over the ranks after the `last` micro-batch of a step.
        """
        return nullcontext()

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks."""
        return value


# --- process groups ---------------------------------------------------------------------------------------------------

T = TypeVar("T")
RENDEZVOUS_TIMEOUT = timedelta(minutes=1)  # how long a rank tries to reach torchrun
# Seconds before a rank other than 0 reports an error. If rank 0 has the same error, torchrun ends the other ranks
# before they repeat it.
ERROR_DELAY = 10.0


@dataclass(frozen=True)
class ProcessGroup:
    """This process among the processes that train together: `rank` of `ranks`, on `device`.

    A single process is a group too: every sum is then the value itself. `facts`: the group for Python objects.
    `background`: the group for checkpoints.
    """

    device: torch.device
    rank: int = 0
    ranks: int = 1
    facts: dist.ProcessGroup | None = None
    background: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints, which only rank 0 does."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks, in place, on its device. Every rank must call it."""
        if self.ranks > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in their order, on every rank. Every rank must call it."""
        if self.ranks == 1:
            return [value]
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value, group=self.facts)
        return values

    def once(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0; every rank returns its value or raises its `UserError`. Every rank must call it."""
        outcome: tuple[T | None, str | None] = (None, None)
        if self.leads:
            try:
                outcome = work(), None
            except UserError as error:
                outcome = None, str(error)
        value, problem = self.gather(outcome)[0]
        if problem is not None:
            raise UserError(problem)
        return value  # type: ignore[return-value]


@contextmanager
def process_group(timeout: float, device: str) -> Iterator[ProcessGroup]:
    """The processes that torchrun started, or this process alone.

    `timeout`: minutes that a rank waits for the others. `device`: as in a recipe. Raises `UserError` if a rank has no
    device of its own.
    """
    if not started_by_torchrun():
        yield ProcessGroup(pick_device(device))
        return
    end_with_launcher()
    own = own_device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    # A rank may have to wait while another one writes, evaluates or starts, longer than torch's default of ten minutes.
    patience = timedelta(minutes=timeout)
    store, rank, ranks = _rendezvous(patience)
    backend = "nccl" if own.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)
    facts, background = (dist.new_group(backend="gloo", timeout=patience) for _ in range(2))
    if dist.get_rank():
        from cover.console import be_silent  # imported here, so that a training step does not need rich

        be_silent()
    try:
        yield ProcessGroup(own, dist.get_rank(), dist.get_world_size(), facts, background)
    except UserError as error:
        if dist.get_rank():
            time.sleep(ERROR_DELAY)
            raise UserError(f"rank {dist.get_rank()}: {error}") from None
        raise
    # All ranks exit together, so the group can be destroyed. After any other error some ranks may be in the middle of
    # a message; torchrun ends them.
    except SystemExit:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _rendezvous(patience: timedelta) -> tuple[dist.Store, int, int]:
    """The store in which the ranks exchange addresses, the rank of this process and the number of ranks."""
    # The store of torchrun exists before its ranks start. A rank that cannot reach it has lost its torchrun.
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    timeout = min(patience, RENDEZVOUS_TIMEOUT) if by_agent else patience
    store, rank, ranks = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(patience)
    # After a restart, the ranks use the same store. A prefix for each start hides the addresses of the dead ranks.
    return dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store), rank, ranks


def started_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ and "MASTER_ADDR" in os.environ


def restarted() -> bool:
    """Whether torchrun has restarted this process after a rank failed."""
    return started_by_torchrun() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def own_device(name: str) -> torch.device:
    """The device of this rank: a GPU of its own, or the CPU. Raises `UserError` if there are too few GPUs."""
    device = pick_device(name)
    if device.type != "cuda":
        return device
    local, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device.index is not None and int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
        raise UserError(
            f"device: {name} names one GPU for several ranks; leave it at cuda, and every rank takes its own"
        )
    if local >= available:
        raise UserError(
            f"torchrun: --nproc-per-node is {os.environ['LOCAL_WORLD_SIZE']}, but this machine has {available} GPUs"
        )
    return torch.device("cuda", local if device.index is None else device.index)


def workers_of_a_rank(wanted: int) -> int:
    """The number of reading processes of this rank: `wanted`, or if negative its part of the cores, at most 16."""
    if wanted >= 0:
        return wanted
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if started_by_torchrun() else 1
    return max(1, min(default_workers(), cores() // local))


# --- DDP and FSDP2 ----------------------------------------------------------------------------------------------------


class _Replica(nn.Module):
    """The network in the form that DDP calls. Without frames it returns a zero that depends on every parameter."""

    def __init__(self, network: CoVeR) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, frames: Tensor | None = None, groups: Any = (), drop: Tensor | None = None, **options: Any
    ) -> Any:
        if frames is None:
            return torch.stack([p.flatten()[0] * 0 for p in self.network.parameters() if p.requires_grad]).sum()
        return self.network(frames, groups, drop, **options)


class DistributedStep(LocalStep):
    """Runs the network on several ranks. The last backward pass of a step sums the gradients of all ranks.

    `strategy`: `ddp` for a whole copy on every rank; `fsdp` (FSDP2) for a shard of every parameter on each rank, where
    a stage is whole only while it computes.
    """

    def __init__(self, model: CoVeR, group: ProcessGroup, strategy: str) -> None:
        super().__init__(model)
        self.group = group
        self.ddp: DistributedDataParallel | None = None
        self.sharded = group.ranks > 1 and strategy == "fsdp"
        if self.sharded:
            shard(model)
        elif group.ranks > 1:
            self.ddp = replicate(model)

    def __call__(self, frames: Tensor, groups: Any, drop: Tensor | None, **options: Any) -> dict[str, Tensor]:
        logits: dict[str, Tensor] = (self.ddp or self.model)(frames, groups, drop, **options)
        return logits

    def total(self, value: Tensor) -> Tensor:
        return self.group.total(value)

    def whole(self) -> CoVeR:
        """A network that one process can use: the network, or a copy from all shards. Every rank must call it."""
        if not self.sharded:
            return self.model
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        weights: Mapping[str, Any] = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True))
        copy = CoVeR(self.model.config, self.model.head_list).to(next(self.model.parameters()).device)
        copy.load_state_dict(merged(self.model, cast(dict[str, Tensor], weights)))
        return copy

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """As `LocalStep.part`: the ranks communicate only after the `last` micro-batch."""
        if self.sharded:
            cast("FSDPModule", self.model).set_requires_gradient_sync(last)
        if self.ddp is None or last:
            yield
            return
        with self.ddp.no_sync():
            yield


def replicate(model: CoVeR) -> DistributedDataParallel:
    """`model` in DDP, with gradients that are summed instead of averaged.

    Every parameter takes part in every step, so DDP need not search for unused parameters.
    """
    devices = [p.device for p in model.parameters()][:1] if next(model.parameters()).device.type == "cuda" else None
    with warnings.catch_warnings():
        # torch 2.13 renames `broadcast_buffers`; buffers are constants, so they need not be sent at every step.
        warnings.simplefilter("ignore", FutureWarning)
        ddp = DistributedDataParallel(
            _Replica(model), device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    # DDP checks that annotations are types. `from __future__ import annotations` made them strings.
    _sum.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[Tensor]}
    ddp.register_comm_hook(None, _sum)
    # After its first backward pass, DDP distributes the gradients over new buckets, and the order of a sum over ranks
    # depends on the place in a bucket. This pass in advance makes the first step after a resume equal to the same step
    # of an uninterrupted run, bit for bit.
    ddp().backward()
    model.zero_grad(set_to_none=True)
    return ddp


def _sum(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The communication hook of DDP: a sum. The default hook divides by the number of ranks."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def shard(model: CoVeR) -> None:
    """Shard `model` with FSDP2, stage by stage, in place. Gradients are summed."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for stage in model.backbone.stages():
        fully_shard(stage)
    fully_shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
