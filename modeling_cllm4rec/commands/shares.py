"""The share of a process, and of a machine, in the parts of a folder of recommendations."""

from __future__ import annotations

import dataclasses
import re

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.launches import launched_processes

__all__ = ["Share", "share_of"]


@dataclasses.dataclass(frozen=True)
class Share:
    """The parts that one process writes.

    Attributes:
        shard, shards: number of the shard, from 0, and how many there are.
        process, processes: the same for the processes of the shard.

    Example:
        >>> share = Share(shard=1, shards=2, process=0, processes=2)
        >>> [part for part in range(10) if share.has(part)]
        [1, 5, 9]
    """

    shard: int = 0
    shards: int = 1
    process: int = 0
    processes: int = 1

    def has(self, part: int) -> bool:
        """Return whether this process writes a part."""
        return part % self.shards == self.shard and part // self.shards % self.processes == self.process


def share_of(shard: str | None) -> Share:
    """Return the share of this process of a launch in a shard such as `2/4`, the second of four; None is the only shard.

    Raises:
        InputError: no such shard.

    Example:
        >>> share_of("2/4")
        Share(shard=1, shards=4, process=0, processes=1)
    """
    process, processes = launched_processes()
    if shard is None:
        return Share(process=process, processes=processes)
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"shard is {shard!r}; give the number of this shard and of all shards, from 1/4 to 4/4 for four")
    return Share(int(found[1]) - 1, int(found[2]), process, processes)
