"""One rank of a distributed save and load: python dcp_worker.py RANK WORLD RENDEZVOUS TARGET."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


def state(mesh: object, fill: bool) -> dict[str, torch.Tensor]:
    """Return a sharded and a replicated tensor: as they were saved, or zeros to load into."""
    sharded = torch.arange(64 * 1024, dtype=torch.float32).reshape(256, 256)
    replicated = torch.linspace(0, 1, 5000)
    if not fill:
        sharded, replicated = torch.zeros_like(sharded), torch.zeros_like(replicated)
    return {"sharded": distribute_tensor(sharded, mesh, [Shard(0)]), "replicated": replicated}


def main(rank: int, world: int, rendezvous: Path, target: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    saved = state(mesh, fill=True)
    dcp.save(saved, checkpoint_id=target)
    loaded = state(mesh, fill=False)
    dcp.load(loaded, checkpoint_id=target)
    assert isinstance(loaded["sharded"], DTensor)
    assert torch.equal(loaded["sharded"].to_local(), saved["sharded"].to_local())
    assert torch.equal(loaded["replicated"], saved["replicated"])
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
