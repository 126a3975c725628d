"""A model's `config.json`, parsed once into what memory depends on: layers, widths, dtype and quantization."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AttentionKind(StrEnum):
    """How a layer remembers the tokens before."""

    FULL = "full"
    SLIDING = "sliding"
    CHUNKED = "chunked"
    LATENT = "latent"
    """MLA: one compressed vector a token, the same on every rank."""
    STATE = "state"
    """Mamba, gated delta net and the like: a state of fixed size per sequence."""


class QKNorm(StrEnum):
    """Which norms stand on queries and keys."""

    NONE = "none"
    HEAD = "head"
    """One vector of a head's width each."""
    FULL = "full"
    """As wide as all heads together."""


@dataclass(frozen=True, slots=True)
class Latent:
    """Ranks and widths of multi-head latent attention."""

    query_rank: int
    """0 = queries are projected straight from the hidden state."""
    kv_rank: int
    rope: int
    """Width of the part of a head that carries the position."""
    nope: int
    value: int


@dataclass(frozen=True, slots=True)
class State:
    """Widths of a state-space or linear-attention layer."""

    projected: int
    """Columns of the projection into the layer."""
    inner: int
    """Rows of the projection out of it."""
    channels: int
    """Channels of the short convolution."""
    kernel: int
    heads: int
    norm: int
    """Parameters of the norm inside."""
    elements: int
    """Numbers of the recurrent state of one sequence."""
    state_bytes: int
    """Bytes of one such number."""


@dataclass(frozen=True, slots=True)
class Attention:
    """What one layer does with the past."""

    kind: AttentionKind
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    window: int = 0
    """Tokens a sliding or chunked layer sees; 0 for the others."""
    bias: bool = False
    out_bias: bool = False
    norm: QKNorm = QKNorm.NONE
    gated: bool = False
    """Queries are projected twice as wide: one half gates the output."""
    sinks: bool = False
    latent: Latent | None = None
    state: State | None = None
    shared: bool = False
    """Reads the cache of an earlier layer and has none of its own."""


@dataclass(frozen=True, slots=True)
class Mlp:
    """What one layer does with each token."""

    intermediate: int = 0
    """Width of the dense part, or of all shared experts together."""
    gated: bool = True
    bias: bool = False
    experts: int = 0
    expert_intermediate: int = 0
    active: int = 0
    """Experts a token goes through."""
    shared_gate: bool = False
    router_bias: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """`count` equal layers."""

    count: int
    attention: Attention
    mlp: Mlp


@dataclass(frozen=True, slots=True)
class Tower:
    """The part that sees: a vision tower with its projector."""

    hidden: int
    intermediate: int
    parameters: int
    patch: int = 14
    """Pixels along the side of a patch."""
    patches: int = 0
    """Patches of the largest image it takes; 0 = unknown."""
    merged: int = 4
    """Patches that become one token of the language model."""
    known: bool = True
    """False = counted by a generic vision transformer's rules."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the checkpoint stores its linear layers. Bits are per weight, scales and zero points included."""

    method: str
    bits: float
    experts_only: bool = False
    """Everything but the experts stays in the model's dtype."""
    kv_cache_fp8: bool = False
    exact: bool = True
    """False = a method known by name only: the bits are a guess."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a model's memory depends on."""

    architecture: str
    """As the config names it: `LlamaForCausalLM`."""
    known: bool
    """False = counted by a generic decoder's rules: a wide error bar."""
    hidden: int
    vocab: int
    tied: bool
    """The output layer is the embedding."""
    max_position: int
    dtype_bytes: int
    blocks: tuple[Block, ...]
    norms_per_layer: int = 2
    norm_bias: bool = False
    norm_parameters: bool = True
    """False = norms without parameters (OLMo)."""
    head_bias: bool = False
    learned_positions: int = 0
    rotary_dim: int = 0
    """Width of the cosines and sines kept for a position; 0 = no rotary positions."""
    rotary_rows: int = 0
    """Positions in all tables of them together."""
    tower: Tower | None = None
    quantization: Quantization | None = None
    checkpoint_bytes: int | None = None
    """Bytes of the tensors in the checkpoint's files, where they were read."""
    source: str = "config.json"
    """Where the numbers come from, for people."""
    notes: tuple[str, ...] = ()
    """What the estimate leaves out or guesses."""

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return sum(block.count for block in self.blocks)

    @property
    def multimodal(self) -> bool:
        """The model takes more than text."""
        return self.tower is not None
