"""Numbers that the kernels share with Python and C++: columns of the geometry table, flags, terms, domains."""

import triton.language as tl

W = tl.constexpr(0)
W0 = tl.constexpr(1)
LO = tl.constexpr(2)
ROWS = tl.constexpr(3)
COLS = tl.constexpr(4)
W_STRIDE = tl.constexpr(5)
W0_STRIDE = tl.constexpr(6)
LO_STRIDE = tl.constexpr(7)
G_STRIDE = tl.constexpr(8)
START = tl.constexpr(9)
GLOBAL_STRIDE = tl.constexpr(10)
KEY = tl.constexpr(11)
TENSOR_ID = tl.constexpr(12)
VECTORS_PER_ROW = tl.constexpr(13)
# factor | shift << 32, so that i // VECTORS_PER_ROW = i * factor >> shift, or 0
RECIPROCAL = tl.constexpr(14)
FLAGS = tl.constexpr(15)
AUX = tl.constexpr(16)
AUX_STRIDE = tl.constexpr(17)
XI = tl.constexpr(18)
MASK = tl.constexpr(19)
MASK_START = tl.constexpr(20)
MASK_STRIDE = tl.constexpr(21)
SLOT = tl.constexpr(22)  # for these kernels: where the sums of the tile's chunks begin
COLUMNS = tl.constexpr(24)

ALIGNED = tl.constexpr(1)  # vectors lie at multiples of 16 bytes in every operand but the gradient
FULL = tl.constexpr(2)  # and none is cut by the end of a row

WEIGHT_DECAY = tl.constexpr(1)  # terms
LOCALIZATION = tl.constexpr(2)
NOISE = tl.constexpr(4)
BOX = tl.constexpr(8)

ROUNDING = tl.constexpr(1)  # a domain of the noise

SUMS = tl.constexpr(24)  # columns of a table of sums
