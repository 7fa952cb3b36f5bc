"""ID tables whose rows are shared out over the processes, and are never gathered: a step asks for the rows that it names.

Process p of n holds rows [p * ceil(J / n), (p + 1) * ceil(J / n)) as its part of a DTensor. In the forward pass each process
sends the ids that it needs to their owners, which send the rows back. In the backward pass nothing is sent: gradients of rows
stay, as a sparse tensor, where they arise, until `sparse_rows.average_over_processes` sends them to the owners at the end of the
step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


class RowShardedEmbedding(nn.Embedding):
    """An embedding whose weight is a DTensor sharded by rows; all processes must call it equally often.

    A trained one has sparse gradients. The class takes the place of the module's own, see `shard_rows`.
    """

    weight: Any

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return rows (..., K) of ids (...), which differ between the processes."""
        rows: torch.Tensor = _Lookup.apply(self.weight, input)
        return rows


def shard_rows(table: nn.Embedding, mesh: DeviceMesh, device: torch.device) -> None:
    """Keep of a table, whole and the same on each process, the rows of this process, on its device; changed in place."""
    weight = table.weight
    first = mesh.get_local_rank() * rows_each(len(weight), mesh.size())
    # A copy of the rows, or the memory of the whole table would stay.
    local = weight.detach()[first : first + rows_each(len(weight), mesh.size())].clone().to(device)
    rows = DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=weight.shape, stride=weight.stride())
    table.weight = nn.Parameter(rows, requires_grad=weight.requires_grad)
    table.__class__ = RowShardedEmbedding


def rows_each(num_rows: int, processes: int) -> int:
    """Return the number of rows of each process but the last ones, which may have fewer.

    Example:
        >>> rows_each(5, 2)
        3
    """
    return -(-num_rows // processes)


def first_row(table: torch.Tensor) -> int:
    """Return the number of the first row that this process holds: 0 unless the table is sharded."""
    if not isinstance(table, DTensor):
        return 0
    return table.device_mesh.get_local_rank() * rows_each(len(table), table.device_mesh.size())


def to_owners(rows: torch.Tensor, table: Any) -> tuple[list[int], list[int]]:
    """Return how many of the sorted (R,) rows go to each process, their owner, and how many come from each."""
    processes = table.device_mesh.size()
    counts = torch.bincount(rows // rows_each(len(table), processes), minlength=processes)
    coming = torch.empty_like(counts)
    distributed.all_to_all_single(coming, counts)
    return counts.tolist(), coming.tolist()


def exchange(values: torch.Tensor, going: list[int], coming: list[int]) -> torch.Tensor:
    """Send each process its share of (R, ...) values, in the order of the processes, and return what comes from them."""
    received = values.new_empty(sum(coming), *values.shape[1:])
    distributed.all_to_all_single(received, values.contiguous(), coming, going)
    return received


class _Lookup(torch.autograd.Function):
    """Rows of a sharded table; each distinct one is sent once."""

    @staticmethod
    def forward(ctx: Any, table: Any, ids: torch.Tensor) -> torch.Tensor:
        rows, places = ids.unique(return_inverse=True)
        going, coming = to_owners(rows, table)
        asked = exchange(rows, going, coming) - first_row(table)
        found = exchange(table.to_local()[asked], coming, going)
        ctx.save_for_backward(rows, places)
        ctx.shape = table.shape
        return found[places]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        rows, places = ctx.saved_tensors
        gradient = grad_outputs[0].flatten(end_dim=-2)
        summed = gradient.new_zeros(len(rows), gradient.shape[-1]).index_add(0, places.flatten(), gradient)
        return torch.sparse_coo_tensor(rows[None], summed, ctx.shape, check_invariants=False), None


__all__ = ["RowShardedEmbedding", "exchange", "first_row", "rows_each", "shard_rows", "to_owners"]
