"""PagedKVStorage: keys and values on the device, in the layout that its kernels read."""

import torch


class PagedKVStorage:
    """Keys and values of every layer: [num_blocks + 1, num_kv_heads, block_size, head_dim] each.

    A head's positions of a block lie together, for they are read together. The last block is the null block,
    which padding reads and writes; it holds zeros.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        shape = (num_layers, 2, num_blocks + 1, num_kv_heads, block_size, head_dim)
        self._storage = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = [(layer[0], layer[1]) for layer in self._storage]
        self.num_bytes = self._storage.numel() * self._storage.element_size()

    @property
    def null_block(self) -> int:
        """The block of padding."""
        return self.num_blocks

    def copy_block(self, source: int, target: int) -> None:
        """Give the block `target` the keys and values of the block `source`."""
        self._storage[:, :, target].copy_(self._storage[:, :, source])

    def read_block(self, block_id: int) -> bytes:
        """Return a copy of a block's bytes."""
        block = self._storage[:, :, block_id].contiguous().cpu()
        return block.view(-1).view(torch.uint8).numpy().tobytes()

    def write_block(self, block_id: int, content: bytes) -> None:
        """Give a block the bytes that read_block() returned."""
        block = self._storage[:, :, block_id]
        values = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(block.dtype)
        block.copy_(values.view(block.shape))
