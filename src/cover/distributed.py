"""Process groups, and DDP or FSDP2 around the network.

    torchrun --nproc-per-node 2 -m cover train recipes/sandbox/cotrain.yaml

Every loss is divided by the samples of the whole step, so gradients are *summed* over the ranks, not averaged. Three
kinds of messages use three channels, so that none waits for another: gradients, small Python objects, and what a
checkpoint writes in the background.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from cover.errors import UserError
from cover.hardware import pick_device
from cover.machine import cores, default_workers, end_with_launcher
from cover.model.cover import CoVeR


class LocalStep:
    """How one process calls the network and adds up a step. With several ranks, `distributed.DistributedStep` stands in
    its place.
    """

    def __init__(self, model: CoVeR) -> None:
        self.model = model

    def __call__(self, frames: Tensor, groups: Any, drop: Tensor | None) -> dict[str, Tensor]:
        """The logits of every head, as `CoVeR.forward`."""
        logits: dict[str, Tensor] = self.model(frames, groups, drop)
        return logits

    def part(self, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a micro-batch; gradients are added up over the ranks at the `last`
        one.
        """
        return nullcontext()

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks."""
        return value


T = TypeVar("T")
RENDEZVOUS_TIMEOUT = timedelta(minutes=1)  # that a rank tries to reach torchrun
# seconds after which a rank tells of its error: if rank 0 has the same, torchrun ends the others before they repeat it
ERROR_DELAY = 10.0


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, as one of them sees it: `rank` of `ranks`, on `device`. Alone, every sum is
    the value itself.

    `facts` and `background` are the channels of Python objects and of checkpoints.
    """

    device: torch.device
    rank: int = 0
    ranks: int = 1
    facts: dist.ProcessGroup | None = None
    background: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks, in place, on its device. Every rank has to call it."""
        if self.ranks > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank. Every rank has to call it."""
        if self.ranks == 1:
            return [value]
        results: list[Any] = [None] * self.ranks
        dist.all_gather_object(results, value, group=self.facts)
        return results

    def once(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, the only one that does it, or the `UserError` that it raises; on every rank."""
        record: tuple[T | None, str | None] = (None, None)
        if self.leads:
            try:
                record = work(), None
            except UserError as error:
                record = None, str(error)
        value, problem = self.gather(record)[0]
        if problem is not None:
            raise UserError(problem)
        return value  # type: ignore[return-value]


@contextmanager
def process_group(timeout: float, device: str) -> Iterator[ProcessGroup]:
    """The team that torchrun's environment describes, or one process. Raises `UserError` where a rank finds no device
    of its own.
    """
    if not started_by_torchrun():
        yield ProcessGroup(pick_device(device))
        return
    end_with_launcher()
    mine = own_device(device)
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    # A rank may wait as long as another writes, evaluates or starts: the default of ten minutes is none of our affair.
    patience = timedelta(minutes=timeout)
    # torchrun's ranks meet again in the same store after a restart: without a part of their own they would read the
    # dead ones' addresses. torchrun's own store is there before its ranks are: a rank that cannot reach it has lost its
    # torchrun.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store, rank, ranks = next(
        dist.rendezvous("env://", timeout=min(patience, RENDEZVOUS_TIMEOUT) if agent else patience)
    )
    store.set_timeout(patience)
    store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if mine.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)
    facts, background = (dist.new_group(backend="gloo", timeout=patience) for _ in range(2))
    if dist.get_rank():
        from cover.console import be_silent  # here, so that a training step can be imported without rich

        be_silent()
    try:
        yield ProcessGroup(mine, dist.get_rank(), dist.get_world_size(), facts, background)
    except UserError as error:
        if dist.get_rank():
            time.sleep(ERROR_DELAY)
            raise UserError(f"rank {dist.get_rank()}: {error}") from None
        raise
    # every rank leaves; after any other error some may be in the middle of a message, and torchrun ends them
    except SystemExit:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def started_by_torchrun() -> bool:
    """Whether this process is one of a torchrun's ranks."""
    return "LOCAL_RANK" in os.environ and "MASTER_ADDR" in os.environ


def restarted() -> bool:
    """Whether torchrun has started this process anew after one of its ranks failed."""
    return started_by_torchrun() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def own_device(name: str) -> torch.device:
    """The device of this rank: a GPU of its own, or the CPU. Raises `UserError`."""
    device = pick_device(name)
    if device.type != "cuda":
        return device
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device.index is not None and int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
        raise UserError(
            f"device: {name} names one GPU for several ranks; leave it at cuda, and every rank takes its own"
        )
    if local >= there:
        raise UserError(
            f"torchrun: --nproc-per-node is {os.environ['LOCAL_WORLD_SIZE']}, but this machine has {there} GPUs"
        )
    return torch.device("cuda", local if device.index is None else device.index)


def workers_of_a_rank(wanted: int) -> int:
    """Reading processes of this rank: as wanted, or its share of the machine's cores, at most 16."""
    if wanted >= 0:
        return wanted
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if started_by_torchrun() else 1
    return max(1, min(default_workers(), cores() // local))


# --- the engines ------------------------------------------------------------------------------------------------------


class _Replica(nn.Module):
    """The network as DDP calls it. Without frames: a zero made of every trained parameter, in their order."""

    def __init__(self, network: CoVeR) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor | None = None, groups: Any = (), drop: Tensor | None = None) -> Any:
        if frames is None:
            return torch.stack([p.flatten()[0] * 0 for p in self.network.parameters() if p.requires_grad]).sum()
        return self.network(frames, groups, drop)


class DistributedStep(LocalStep):
    """The network as a step of several ranks calls it, whose last backward pass adds up the gradients of all of them.

    `ddp`: a whole copy on every rank. `fsdp`: FSDP2, a part of every parameter on each, whole only while its stage
    computes.
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

    def __call__(self, frames: Tensor, groups: Any, drop: Tensor | None) -> dict[str, Tensor]:
        logits: dict[str, Tensor] = (self.ddp or self.model)(frames, groups, drop)
        return logits

    def total(self, value: Tensor) -> Tensor:
        return self.group.total(value)

    def whole(self) -> CoVeR:
        """The network as one process can use it: itself, or a copy put together of its shards. Every rank has to call
        it.
        """
        if not self.sharded:
            return self.model
        weights = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True))
        copy = CoVeR(self.model.config, self.model.head_list).to(next(self.model.parameters()).device)
        copy.load_state_dict(weights)
        return copy

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """Around the forward and backward pass of one micro-batch: only after the `last` one do the ranks talk."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        if self.ddp is None or last:
            yield
            return
        with self.ddp.no_sync():
            yield


def replicate(model: CoVeR) -> DistributedDataParallel:
    """`model` in DDP, which sums instead of averaging. Every parameter takes part in every step, so none is looked for."""
    devices = [p.device for p in model.parameters()][:1] if next(model.parameters()).device.type == "cuda" else None
    with warnings.catch_warnings():
        # torch 2.13 has another name for not sending constants at every step
        warnings.simplefilter("ignore", FutureWarning)
        ddp = DistributedDataParallel(
            _Replica(model), device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    # DDP reads types, not their names
    _sum.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[Tensor]}
    ddp.register_comm_hook(None, _sum)
    # Between its first and its second pass DDP shares the gradients out anew, and a ring of ranks adds each up in an
    # order that depends on its place. With a pass made here, the first step after a resume adds as every other step
    # does, to the last bit.
    ddp().backward()
    model.zero_grad(set_to_none=True)
    return ddp


def _sum(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def shard(model: CoVeR) -> None:
    """FSDP2, stage by stage, in place; gradients are summed."""
    for stage in model.backbone.stages():
        fully_shard(stage)
    fully_shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
