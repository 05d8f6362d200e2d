"""TiledKVStorage: keys and values as the CPU kernels read them."""

import ctypes

from engine.kernels.cpu.library import KVKind, KVTiles, require_library
from engine.kernels.cpu.packing import Arena

TILE_POSITIONS = 16


class TiledKVStorage:
    """KV memory of a model in tiles of 16 positions; only the kernels look inside.

    Backed by memory only as it is first used; what was never written is zero.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        kind: KVKind,
    ) -> None:
        self.num_blocks = num_blocks
        self.kind = kind
        head_stride = tile_bytes(kind, head_dim)
        layer_stride = num_kv_heads * head_stride
        tile_stride = num_layers * layer_stride
        tiles_per_block = block_size // TILE_POSITIONS
        self.num_bytes = num_blocks * tiles_per_block * tile_stride
        self._arena = Arena()
        self.tiles = KVTiles(
            base=self._arena.allocate(self.num_bytes),
            tile_stride=tile_stride,
            layer_stride=layer_stride,
            head_stride=head_stride,
            kind=kind,
            tiles_per_block=tiles_per_block,
        )
        self._block_bytes = tiles_per_block * tile_stride

    def copy_block(self, source: int, target: int) -> None:
        """Give the block `target` the keys and values of the block `source`."""
        base, size = self.tiles.base, self._block_bytes
        ctypes.memmove(base + target * size, base + source * size, size)

    def read_block(self, block_id: int) -> bytes:
        """Return a copy of a block's bytes."""
        return ctypes.string_at(self.tiles.base + block_id * self._block_bytes, self._block_bytes)

    def write_block(self, block_id: int, content: bytes) -> None:
        """Give a block the bytes that read_block() returned."""
        if len(content) != self._block_bytes:
            raise ValueError(f"a block has {self._block_bytes} bytes, got {len(content)}")
        ctypes.memmove(self.tiles.base + block_id * self._block_bytes, content, self._block_bytes)


def tile_bytes(kind: KVKind, head_dim: int) -> int:
    """Return the bytes of the keys and values of 16 positions of one head."""
    num_bytes: int = require_library().draftline_kv_tile_bytes(kind, head_dim)
    return num_bytes


def tiled_kv_bytes_per_block(
    *, num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, kind: KVKind
) -> int:
    """Return the bytes that one block takes over all layers."""
    return num_layers * num_kv_heads * (block_size // TILE_POSITIONS) * tile_bytes(kind, head_dim)
