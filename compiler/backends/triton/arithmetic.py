"""Arithmetic that Triton lacks or defines as C does: floors, remainders, roundings, as torch computes them."""

import triton
import triton.language as tl


@triton.jit
def floor_div(a, b):
    """Integers, rounded down. Triton's own `//` rounds toward zero."""
    quotient = a // b
    rest = a - quotient * b
    return quotient - ((rest != 0) & ((rest < 0) != (b < 0))).to(quotient.dtype)


@triton.jit
def floor_mod(a, b):
    """Integers, with the divisor's sign."""
    rest = a - (a // b) * b
    return rest + tl.where((rest != 0) & ((rest < 0) != (b < 0)), b, 0)


@triton.jit
def divide(a, b):
    """Floats, rounded to nearest. Triton's own `/` on 32 bits is approximate."""
    quotient = a / b
    if quotient.dtype == tl.float32:
        quotient = tl.div_rn(tl.cast(a, tl.float32), tl.cast(b, tl.float32))
    return quotient


@triton.jit
def root(x):
    """The square root of a float, rounded to nearest."""
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def rest_of(a, b):
    """What a division of floats leaves, with the dividend's sign: torch.fmod. Exact for 32 bits while the quotient has
    fewer than 29: 64 bits hold its product with `b`.
    """
    quotient = trunc(tl.cast(a, tl.float64) / tl.cast(b, tl.float64))
    rest = tl.cast(a, tl.float64) - quotient * tl.cast(b, tl.float64)
    return tl.where(quotient == 0, a, tl.cast(rest, (a + b).dtype))  # an infinite `b` leaves `a`


@triton.jit
def float_mod(a, b):
    """Floats, with the divisor's sign: torch.remainder."""
    rest = rest_of(a, b)
    return rest + tl.where((rest != 0) & ((rest < 0) != (b < 0)), b, 0.0)


@triton.jit
def float_floor_div(a, b):
    """torch.floor_divide, step by step, so that it rounds alike."""
    rest = rest_of(a, b)
    quotient = divide(a - rest, b) - tl.where((rest != 0) & ((rest < 0) != (b < 0)), 1.0, 0.0)
    low = tl.floor(quotient)
    return tl.where(b == 0, divide(a, b), tl.where(quotient - low > 0.5, low + 1, low))


@triton.jit
def trunc(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def round_even(x):
    """To the nearest integer, halves to the even one: torch.round."""
    low = tl.floor(x)
    rest = x - low
    up = (rest > 0.5) | ((rest == 0.5) & (low - 2 * tl.floor(low * 0.5) != 0))
    return tl.where(up, low + 1, low)


@triton.jit
def sign(x):
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def tanh(x):
    far = tl.exp(-2 * tl.abs(x))
    return tl.where(x < 0, far - 1, 1 - far) / (1 + far)


@triton.jit
def power(a, b):
    """torch.pow on floats: a negative base takes whole exponents."""
    size = tl.exp2(b * tl.log2(tl.abs(a)))
    whole = tl.floor(b) == b
    odd = tl.floor(b * 0.5) * 2 != b
    signed = tl.where(a < 0, tl.where(whole, tl.where(odd, -size, size), float("nan")), size)
    return tl.where((b == 0) | (a == 1), 1.0, signed)


@triton.jit
def only(x, keep):
    """`x` where kept, else 0, also where `x` is no number; all of it where `keep` is None."""
    if keep is not None:
        x = tl.where(keep, x, 0.0)
    return x


@triton.jit
def add_to(at, x):
    """Add a tile to the places `at`, summed along an axis on which all its pairs have one place."""
    at = at + tl.zeros([1, 1], tl.int32)
    if at.shape[0] == 1:
        x = tl.sum(x, 0, keep_dims=True)
    if at.shape[1] == 1:
        x = tl.sum(x, 1, keep_dims=True)
    tl.atomic_add(at, x, sem="relaxed")  # other programs add to the same places
