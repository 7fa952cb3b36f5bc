"""Training that reads and writes only the rows of an embedding table that a step names, whatever the size of the table.

`torch.nn.Embedding.sparse` is the switch: the gradient of such a table is a sparse tensor of the rows that were read. This module
has the rest of a step: the mean over processes, the norm, the clipping and the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from modeling_cllm4rec.core.processes import process_count
from modeling_cllm4rec.training.parameters import local_part
from modeling_cllm4rec.training.row_sharding import exchange, first_row, to_owners


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one step size for each row of a table: FBGEMM's and TorchRec's `EXACT_ROWWISE_ADAGRAD`.

    A step adds the mean square of a row's gradient to the row's sum, and moves the row by `-lr * gradient / (sqrt(sum) + eps)`. A
    row without a gradient, and a row whose gradient is zero, keeps its value and its sum. The state is one number for each row.

    Args:
        params: tables (rows, width), or groups of them; their gradients are coalesced sparse tensors. Of a table sharded by
            rows a process has the gradients, and the state, of its own rows.
        lr: learning rate.
        eps: keeps a row whose sum is zero where it is.

    Example:
        >>> table = torch.nn.Embedding(3, 2, sparse=True, _weight=torch.zeros(3, 2))
        >>> optimizer = RowwiseAdagrad([table.weight], lr=0.5)
        >>> (table(torch.tensor([1])) * torch.tensor([1.0, 7.0])).sum().backward()
        >>> average_over_processes([table.weight])
        >>> optimizer.step()
        >>> table.weight.tolist()  # the mean square is 25: row 1 moves by 0.5 / 5 times its gradient
        [[0.0, 0.0], [-0.10000000149011612, -0.699999988079071], [0.0, 0.0]]
    """

    def __init__(self, params: Any, lr: float = 1e-3, eps: float = 1e-10) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for table in group["params"]:
                self.state[table]["sum"] = torch.zeros_like(table.detach()[:, 0], dtype=torch.float32)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the rows that have a gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                rows, gradient = named_rows(table), table.grad.values()  # coalesced: each row once
                sums = local_part(self.state[table]["sum"])
                sums[rows] += gradient.float().square().mean(1)
                sizes = group["lr"] / (sums[rows].sqrt() + group["eps"])
                local_part(table)[rows] -= sizes[:, None].to(gradient.dtype) * gradient


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers as one, each with its own parameters, after TorchRec's class of this name.

    Groups and state are those of all parts, so that one schedule and one checkpoint serve them.

    Args:
        parts: optimizers without common parameters.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        for part in parts:
            self.state.update(part.state)
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step all parts."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: Any) -> None:
        """Load the state of all parts."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Give the parts the groups and the state of the whole, which loading replaces."""
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last


def sparse_tables(model: nn.Module) -> list[torch.Tensor]:
    """Return the trained tables of a model whose gradients are sparse."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module.sparse]
    return [table.weight for table in tables if table.weight.requires_grad]


@contextmanager
def held_back(tables: Iterable[torch.Tensor]) -> Iterator[None]:
    """Within the block the tables do not train, so that a wrapper for data parallelism that is made here leaves them alone.

    It would exchange their gradients whole. `average_over_processes` takes its place for them.
    """
    for table in tables:
        table.requires_grad_(False)
    try:
        yield
    finally:
        for table in tables:
            table.requires_grad_(True)


@torch.no_grad()
def average_over_processes(tables: Iterable[torch.Tensor]) -> None:
    """Replace the sparse gradients of all processes by their mean, coalesced; all processes must call this.

    Of a table sharded by rows each process gets the mean of its own rows alone.
    """
    for table in tables:
        if table.grad is not None:
            table.grad = table.grad.coalesce()
        if isinstance(table, DTensor):
            table.grad = _mean_at_owner(table)
        elif process_count() > 1:
            table.grad = _mean_gradient(table)


def named_rows(table: torch.Tensor) -> torch.Tensor:
    """Return the rows that a coalesced sparse gradient names, counted from the first row that this process holds."""
    assert table.grad is not None
    return table.grad.indices()[0] - first_row(table)


def _rows_and_values(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and the values of a coalesced gradient, none of them without a gradient."""
    if table.grad is not None:
        return table.grad.indices()[0], table.grad.values()
    rows = torch.empty(0, dtype=torch.long, device=table.device)
    return rows, torch.empty(0, table.shape[1], dtype=table.dtype, device=table.device)


def _mean_at_owner(table: DTensor) -> torch.Tensor | None:
    """Send the coalesced gradients of all processes to the owners of the rows; return the mean of the own rows, None if none."""
    rows, values = _rows_and_values(table)
    going, coming = to_owners(rows, table)
    # In the order of the processes, so that a sum has the same bits in each run.
    rows, values = (exchange(mine, going, coming) for mine in (rows, values))
    return _mean(rows, values, table) if len(rows) else None


def _mean(rows: torch.Tensor, values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    mean = torch.sparse_coo_tensor(rows[None], values / process_count(), table.shape, check_invariants=False)
    return mean.coalesce()


def _mean_gradient(table: torch.Tensor) -> torch.Tensor | None:
    """Return the mean of the coalesced gradients of a table, None where no process has one."""
    rows, values = _rows_and_values(table)
    counts = torch.zeros(process_count(), dtype=torch.long, device=table.device)
    distributed.all_gather_into_tensor(counts, torch.tensor([len(rows)], device=table.device))
    longest = int(counts.max())
    if not longest:
        return None
    gathered = []
    for mine in (rows, values):  # collectives exchange tensors of one shape
        padded = torch.cat([mine, mine.new_zeros(longest - len(mine), *mine.shape[1:])])
        everyone = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(everyone, padded)
        gathered.append(torch.cat([one[:count] for one, count in zip(everyone, counts.tolist(), strict=True)]))
    # The same order of terms on each process gives the same sums to the bit.
    return _mean(gathered[0], gathered[1], table)


@torch.no_grad()
def clip_gradients(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Clip gradients to a total norm, as `torch.nn.utils.clip_grad_norm_` does; sparse ones are read row by row.

    If a parameter is sharded, all processes must call this: the squares of their own parts add up.

    Args:
        parameters: with dense gradients, and coalesced sparse ones.
        max_norm: `inf` clips nothing.

    Returns:
        () the norm before clipping.
    """
    whole, parts, shared = list[torch.Tensor](), list[torch.Tensor](), None
    for parameter in parameters:
        if isinstance(parameter, DTensor) and shared is None:
            shared = torch.zeros((), device=parameter.device)
        if parameter.grad is not None:
            gradient = parameter.grad.values() if parameter.grad.is_sparse else local_part(parameter.grad)
            (parts if isinstance(parameter, DTensor) else whole).append(gradient)
    norm = get_total_norm(whole)
    if shared is not None:
        shared += get_total_norm(parts).square().to(shared.device)
        distributed.all_reduce(shared)
        norm = (norm.square().to(shared.device) + shared).sqrt()
    torch._foreach_mul_(whole + parts, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


__all__ = [
    "CombinedOptimizer",
    "RowwiseAdagrad",
    "average_over_processes",
    "clip_gradients",
    "held_back",
    "named_rows",
    "sparse_tables",
]
