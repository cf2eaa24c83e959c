"""Functions of one number, without a C library: plain arithmetic that LLVM vectorises inside a loop.

Named constants are typed, because a bare 0.5 would make numba widen everything to f64.
"""

from __future__ import annotations

from numpy import float32, float64

from kernels.cpu.native.words import (
    as_f32,
    as_word,
    exact,
    nearest_whole,
    nearest_whole_f64,
    power_of_two,
    strict,
    u16,
)
from kernels.portable.pointwise import ERF_END, ERF_P, ERF_Q

ZERO, HALF_F32, ONE = float32(0), float32(0.5), float32(1)

EXP_LEAST, EXP_MOST = float32(-87.3), float32(88.0)  # beyond: 0, and 1.6e38, with 2^n still a normal number
LOG2_E = float32(1.4426950408889634)
LN2_FRONT, LN2_REST = float32(0.693359375), float32(-2.12194440e-4)  # the front has 9 bits: n * it is exact
E2, E3, E4, E5, E6, E7 = (float32(1 / n) for n in (2, 6, 24, 120, 720, 5040))

ERF_LIMIT = float32(ERF_END)
P0, P1, P2, P3, P4, P5, P6 = (float32(value) for value in ERF_P)
Q0, Q1, Q2, Q3, Q4 = (float32(value) for value in ERF_Q)

# pi / 2 in three parts of 22 bits and a rest: k * part is exact for k under 2^31
QUARTER = (1.570796012878418, 3.139164164167596e-07, 6.223371969669989e-14, 2.0222662487959506e-21)
TURN0, TURN1, TURN2, TURN3 = (float64(part) for part in QUARTER)
TWO_OVER_PI = float64(0.6366197723675814)
# sine and cosine up to pi / 4, errors under 1e-16. Source: fdlibm, k_sin.c and k_cos.c
S1, S2, S3, S4, S5, S6 = (
    float64(c)
    for c in (
        -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
        2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10,
    )
)  # fmt: skip
C1, C2, C3, C4, C5, C6 = (
    float64(c)
    for c in (
        4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
        -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11,
    )
)  # fmt: skip


@exact
def expm1_parts(x):
    """(p, e) with exp(x) - 1 = p * e + (p - 1), x in [EXP_LEAST, EXP_MOST]: p a power of two, e small."""
    n = nearest_whole(x * LOG2_E)
    r = (x - n * LN2_FRONT) - n * LN2_REST
    e = r + r * r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * (E6 + r * E7)))))
    return power_of_two(n), e


@exact
def exp(x):
    """e^x; relative error 1e-7, 0 from EXP_LEAST down, e^EXP_MOST from there up."""
    inside = EXP_LEAST if x < EXP_LEAST else x
    inside = EXP_MOST if inside > EXP_MOST else inside
    p, e = expm1_parts(inside)
    return ZERO if x < EXP_LEAST else p + p * e


@exact
def expm1(x):
    """e^x - 1 without cancellation, for x up to EXP_MOST."""
    p, e = expm1_parts(EXP_LEAST if x < EXP_LEAST else x)
    return p * e + (p - ONE)


@exact
def erf(x):
    """The error function, relative error 4e-7: see the portable backend."""
    z = x * x
    p = P0 + z * (P1 + z * (P2 + z * (P3 + z * (P4 + z * (P5 + z * P6)))))
    y = x * p / (Q0 + z * (Q1 + z * (Q2 + z * (Q3 + z * Q4))))
    y = -ONE if x < -ERF_LIMIT else y
    return ONE if x > ERF_LIMIT else y


@exact
def silu(x):
    """x / (1 + e^-x)."""
    return x / (ONE + exp(-x))


@strict
def turn(angle):
    """(cosine, sine) of an f64 angle in [0, 2^31), as f32; the error of both is their last f32 bit."""
    k = nearest_whole_f64(angle * TWO_OVER_PI)
    r = ((angle - k * TURN0) - k * TURN1) - k * TURN2 - k * TURN3
    z = r * r
    s = r + r * z * (S1 + z * (S2 + z * (S3 + z * (S4 + z * (S5 + z * S6)))))
    c = float64(1) - float64(0.5) * z + z * z * (C1 + z * (C2 + z * (C3 + z * (C4 + z * (C5 + z * C6)))))
    quarter = int(k) & 3
    cosine, sine = (s, c) if quarter & 1 else (c, s)
    cosine = -cosine if quarter == 1 or quarter == 2 else cosine
    return float32(cosine), float32(-sine if quarter > 1 else sine)


F16_BIAS = float32(2.0**112)  # exponents count from 15 in f16 and from 127 in f32
F16_OVERFLOW, F16_LEAST_NORMAL, F16_ROUND = 143 << 23, 113 << 23, float32(0.5)


@exact
def half_bits(value):
    """An f32 as the bits of an f16, to nearest even. Source: F. Giesen, float_to_half_fast3_rtne."""
    word = as_word(value)
    sign = word & 0x80000000
    word ^= sign
    if word >= F16_OVERFLOW:
        bits = 0x7E00 if word > 0x7F800000 else 0x7C00
    elif word < F16_LEAST_NORMAL:
        bits = as_word(as_f32(word) + F16_ROUND) - 0x3F000000  # the addition rounds at the last f16 bit
    else:
        bits = (word - (112 << 23) + 0xFFF + ((word >> 13) & 1)) >> 13
    return bits | (sign >> 16)


@exact
def from_half_bits(bits):
    """The f32 with the value of an f16."""
    magnitude = (bits & 0x7FFF) << 13
    word = as_word(as_f32(magnitude) * F16_BIAS)  # exact, and what was subnormal is normal now
    if magnitude >= 0x7C00 << 13:
        word = magnitude | 0x7F800000
    return as_f32(word | (bits & 0x8000) << 16)


@exact
def f16(address, index):
    """The f16 there, as f32."""
    return from_half_bits(u16(address, index))
