"""How one program holds one row, and the scale under which a row fills the range of an fp8 format."""

import triton
import triton.language as tl


def row_parts(C: int) -> tuple[int, int, int]:
    """The two power-of-two parts of a row, and the warps that hold it at 8 to 16 values a lane."""
    head = 1 << (C.bit_length() - 1)
    tail = triton.next_power_of_2(C - head) if head < C else 0
    return head, tail, min(max(head // 256, 1), 16)


@triton.jit
def fp8_scale(peak, largest):
    """Divisor of a row whose largest size is `peak`: of 1e-12 at least, so that a row of zeros stays zeros."""
    return tl.maximum(peak, 1e-12) / largest
