"""ModelConfig: what a model looks like: frozen, checked once."""

from dataclasses import dataclass
from enum import Enum

from engine.interface.errors import ConfigError


class RopeScaling(str, Enum):
    """How rotary frequencies are stretched for contexts longer than the pretrained one."""

    NONE = "none"
    LINEAR = "linear"  # every frequency divided by `factor`
    LLAMA3 = "llama3"  # low frequencies divided, high ones kept, a ramp between
    YARN = "yarn"  # arXiv 2309.00071; also scales attention by `attention_factor`


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding; the rotated halves are [0, d/2) and [d/2, d), as in GPT-NeoX."""

    theta: float = 10_000.0
    scaling: RopeScaling = RopeScaling.NONE
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: 0.1 * ln(factor) + 1
    freq_factors: tuple[float, ...] | None = None  # stored divisors, one per frequency (GGUF)


class Activation(str, Enum):
    """The non-linearity of the feed-forward layer."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"


class Norm(str, Enum):
    """How hidden states are normalised before each block and before the head."""

    RMS = "rms"  # RMSNorm, a weight alone (arXiv 1910.07467)
    LAYER = "layer"  # LayerNorm, weight and bias (arXiv 1607.06450)


MAX_NORM_EPS = 0.1
"""Ten thousand times what published models have; a larger one would flatten every hidden state."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder-only transformer, the same record whatever file it was read from."""

    architecture: str  # the family's name, for people: the other fields say how to compute
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float
    activation: Activation
    rope: RopeConfig | None  # None: learned positions
    tie_word_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm on each head's query and key before the rotation (Qwen3)
    norm: Norm = Norm.RMS
    is_gated: bool = True  # the MLP multiplies activation(gate) and up, else activation(up) alone
    has_qkv_proj: bool = False  # q, k and v are stored as one matrix

    def __post_init__(self) -> None:
        """Refuse shapes that no forward pass could run."""
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"model configuration: {name} must be at least 1, got {value}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model configuration: num_heads ({self.num_heads}) must be a multiple of "
                f"num_kv_heads ({self.num_kv_heads})"
            )
        if not 0.0 < self.norm_eps <= MAX_NORM_EPS:
            raise ConfigError(
                f"model configuration: norm_eps must be above 0 and at most {MAX_NORM_EPS}, "
                f"got {self.norm_eps}"
            )
        if self.rope is not None and self.head_dim % 2:
            raise ConfigError(f"model configuration: rotary head_dim must be even, got {self.head_dim}")
