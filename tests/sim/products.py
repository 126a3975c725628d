"""The GPU products the simulator knows, with the memory that NVML v2 reports."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Product:
    """One GPU product. Bytes, as NVML v2 reports them: CUDA sees `total - reserved`."""

    label: str
    """As GPU feature discovery writes it into `nvidia.com/gpu.product`."""
    name: str
    """As NVML says it."""
    total: int
    reserved: int
    batched_tokens: int = 8192
    """vLLM's own default of max_num_batched_tokens on this card: 16384 from 160 GiB, 8192 from 70 GiB, else 2048."""

    @property
    def usable(self) -> int:
        """T: the bytes CUDA calls total."""
        return self.total - self.reserved


# H200: measured (driver 580.159.04, 2026-11-21). The others: total as nvidia-smi prints it, reserved from the
# difference to the "total capacity" of public torch logs of that card.
_ALL = (
    Product("NVIDIA-H200", "NVIDIA H200", 150_754_820_096, 644_939_776),
    Product("NVIDIA-RTX-PRO-6000-Blackwell", "NVIDIA RTX PRO 6000 Blackwell", 97_887 * MIB, 597 * MIB),
    Product("NVIDIA-H100-80GB-HBM3", "NVIDIA H100 80GB HBM3", 81_559 * MIB, 469 * MIB),
    Product("NVIDIA-A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", 81_920 * MIB, 870 * MIB),
    Product("NVIDIA-L40S", "NVIDIA L40S", 46_068 * MIB, 613 * MIB, batched_tokens=2048),
)
PRODUCTS = {product.label: product for product in _ALL}


def product(label: str) -> Product:
    """The product with this label; ValueError names the known ones."""
    if label not in PRODUCTS:
        raise ValueError(f'unknown GPU product "{label}"; the simulator knows {", ".join(sorted(PRODUCTS))}')
    return PRODUCTS[label]
