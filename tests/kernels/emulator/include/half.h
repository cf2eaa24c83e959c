// half and half2: stored as bits, computed in f32, rounded to nearest even after every operation as a GPU does.
#pragma once
#include <cmath>
#include <cstring>

namespace emulated {

inline float widened(uint16_t bits) {
  const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  uint32_t wide;
  float value;
  if (exponent == 31) {
    wide = sign | 0x7f800000u | fraction << 13;
  } else if (exponent) {
    wide = sign | (exponent + 112) << 23 | fraction << 13;
  } else {  // zero and subnormals are multiples of 2^-24
    value = (float)fraction * 5.9604644775390625e-8f;
    memcpy(&wide, &value, 4);
    wide |= sign;
  }
  memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t narrowed(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return (uint16_t)0x7fff;                    // NaN, as the hardware writes it
  if (bits >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);          // 65520 and up round to infinity
  if (bits < 0x38800000u)                                             // below 2^-14: multiples of 2^-24
    return (uint16_t)(sign | (uint16_t)nearbyintf(fabsf(value) * 16777216.f));
  bits += 0xfffu + (bits >> 13 & 1);
  return (uint16_t)(sign | (bits - 0x38000000u) >> 13);
}

}  // namespace emulated

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float value) : bits(emulated::narrowed(value)) {}
  operator float() const { return emulated::widened(bits); }
};
struct __attribute__((aligned(4))) __half2 {
  __half x, y;
};
typedef __half half;
typedef __half2 half2;

static inline half operator+(half a, half b) { return half((float)a + (float)b); }
static inline half operator-(half a, half b) { return half((float)a - (float)b); }
static inline half operator*(half a, half b) { return half((float)a * (float)b); }
static inline half operator/(half a, half b) { return half((float)a / (float)b); }

static inline float __half2float(half a) { return a; }
static inline half __float2half(float a) { return half(a); }
static inline half __float2half_rn(float a) { return half(a); }
static inline half __ushort_as_half(unsigned short bits) {
  half a;
  a.bits = bits;
  return a;
}
static inline unsigned short __half_as_ushort(half a) { return a.bits; }
static inline half __hadd(half a, half b) { return a + b; }
static inline half __hsub(half a, half b) { return a - b; }
static inline half __hmul(half a, half b) { return a * b; }
static inline half __hfma(half a, half b, half c) {  // products of halves are exact in double
  return half((float)((double)(float)a * (double)(float)b + (double)(float)c));
}

static inline half2 make_half2(half a, half b) { return half2{a, b}; }
static inline half2 __halves2half2(half a, half b) { return half2{a, b}; }
static inline half2 __half2half2(half a) { return half2{a, a}; }
static inline half2 __float2half2_rn(float a) { return half2{half(a), half(a)}; }
static inline half2 __floats2half2_rn(float a, float b) { return half2{half(a), half(b)}; }
static inline half2 __float22half2_rn(float2 a) { return half2{half(a.x), half(a.y)}; }
static inline float2 __half22float2(half2 a) { return make_float2(a.x, a.y); }
static inline half __low2half(half2 a) { return a.x; }
static inline half __high2half(half2 a) { return a.y; }
static inline float __low2float(half2 a) { return a.x; }
static inline float __high2float(half2 a) { return a.y; }
static inline half2 __hadd2(half2 a, half2 b) { return half2{a.x + b.x, a.y + b.y}; }
static inline half2 __hsub2(half2 a, half2 b) { return half2{a.x - b.x, a.y - b.y}; }
static inline half2 __hmul2(half2 a, half2 b) { return half2{a.x * b.x, a.y * b.y}; }
static inline half2 __hfma2(half2 a, half2 b, half2 c) {
  return half2{__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
