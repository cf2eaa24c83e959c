// Arithmetic and memory intrinsics. Fast-math forms are computed exactly: their error is a GPU's own affair.
#pragma once
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstring>
#include <type_traits>

using std::isfinite;
using std::isinf;
using std::isnan;

// --- loads and fences

template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline T __ldcg(const T* p) { return *p; }
template <class T> static inline T __ldca(const T* p) { return *p; }
template <class T> static inline void __stcs(T* p, T v) { *p = v; }
template <class T> static inline void __stcg(T* p, T v) { *p = v; }
static inline void __threadfence() { emulated_fence(); }
static inline void __threadfence_block() { emulated_fence(); }
static inline void __threadfence_system() { emulated_fence(); }
static inline void __nanosleep(unsigned) {}

// --- atomics: whole numbers, and the exchange of floats, which no order of sums depends on

template <class T> using EmulatedWord = typename std::enable_if<std::is_integral<T>::value, T>::type;

template <class T> static inline T atomicAdd(T* p, EmulatedWord<T> v) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicSub(T* p, EmulatedWord<T> v) {
  return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicOr(T* p, EmulatedWord<T> v) {
  return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicAnd(T* p, EmulatedWord<T> v) {
  return __atomic_fetch_and(p, v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicMax(T* p, EmulatedWord<T> v) {  // fibers never interrupt each other
  const T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  if (old < v) __atomic_store_n(p, v, __ATOMIC_RELAXED);
  return old;
}
template <class T> static inline T atomicMin(T* p, EmulatedWord<T> v) {
  const T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  if (v < old) __atomic_store_n(p, v, __ATOMIC_RELAXED);
  return old;
}
template <class T> static inline T atomicCAS(T* p, EmulatedWord<T> expected, EmulatedWord<T> v) {
  const T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  if (old == expected) __atomic_store_n(p, v, __ATOMIC_RELAXED);
  return old;
}
static inline unsigned atomicInc(unsigned* p, unsigned last) {  // 0 .. last, round and round
  const unsigned old = __atomic_load_n(p, __ATOMIC_RELAXED);
  __atomic_store_n(p, old >= last ? 0 : old + 1, __ATOMIC_RELAXED);
  return old;
}
template <class T> static inline T atomicExch(T* p, EmulatedWord<T> v) {
  return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);
}

// --- bits

template <class To, class From> static inline To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits, named otherwise");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
static inline unsigned __float_as_uint(float a) { return emulated_bits<unsigned>(a); }
static inline float __uint_as_float(unsigned a) { return emulated_bits<float>(a); }
static inline int __float_as_int(float a) { return emulated_bits<int>(a); }
static inline float __int_as_float(int a) { return emulated_bits<float>(a); }
static inline long long __double_as_longlong(double a) { return emulated_bits<long long>(a); }
static inline double __longlong_as_double(long long a) { return emulated_bits<double>(a); }
static inline float atomicExch(float* p, float v) { return __int_as_float(atomicExch((int*)p, __float_as_int(v))); }

static inline int __popc(unsigned a) { return __builtin_popcount(a); }
static inline int __clz(int a) { return a ? __builtin_clz((unsigned)a) : 32; }
static inline int __ffs(int a) { return __builtin_ffs(a); }
static inline unsigned __brev(unsigned a) {
  unsigned out = 0;
  for (int i = 0; i < 32; i++) out |= (a >> i & 1u) << (31 - i);
  return out;
}
static inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += (int)(int8_t)(a >> 8 * i) * (int)(int8_t)(b >> 8 * i);
  return c;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; i++) c += (a >> 8 * i & 255u) * (b >> 8 * i & 255u);
  return c;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = (uint64_t)b << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned choice = selector >> 4 * i & 15, byte = bytes >> 8 * (choice & 7) & 255;
    out |= (choice & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return out;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }

// --- the smaller and the larger; mixed signs meet in unsigned, as in CUDA

#define EMULATED_MIN_MAX(type, a_type, b_type)                                                   \
  static inline type min(a_type a, b_type b) { return (type)b < (type)a ? (type)b : (type)a; }   \
  static inline type max(a_type a, b_type b) { return (type)a < (type)b ? (type)b : (type)a; }
EMULATED_MIN_MAX(int, int, int)
EMULATED_MIN_MAX(unsigned, unsigned, unsigned)
EMULATED_MIN_MAX(unsigned, int, unsigned)
EMULATED_MIN_MAX(unsigned, unsigned, int)
EMULATED_MIN_MAX(long, long, long)
EMULATED_MIN_MAX(unsigned long, unsigned long, unsigned long)  // size_t
EMULATED_MIN_MAX(unsigned long, unsigned long, int)
EMULATED_MIN_MAX(unsigned long, int, unsigned long)
EMULATED_MIN_MAX(unsigned long, unsigned long, unsigned)
EMULATED_MIN_MAX(unsigned long, unsigned, unsigned long)
EMULATED_MIN_MAX(long long, long long, long long)
EMULATED_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

// --- floats

static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.f / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frsqrt_rn(float a) { return 1.f / sqrtf(a); }
static inline float __saturatef(float a) { return a > 0.f ? (a < 1.f ? a : 1.f) : 0.f; }

// A C library may own these names, now or one day, so they are spelled otherwise.
#define __expf expf
#define __exp2f exp2f
#define __logf logf
#define __log2f log2f
#define __sinf sinf
#define __cosf cosf
#define __sincosf sincosf
#define rsqrtf emulated_rsqrtf
#define rsqrt emulated_rsqrt
#define sinpi emulated_sinpi
#define cospi emulated_cospi
#define sincospi emulated_sincospi
#define sinpif(a) ((float)emulated_sinpi(a))
#define cospif(a) ((float)emulated_cospi(a))
#define sincospif emulated_sincospif
static inline float rsqrtf(float a) { return 1.f / sqrtf(a); }
static inline double rsqrt(double a) { return 1. / sqrt(a); }
static inline double sinpi(double a) { return sin(M_PI * fmod(a, 2.)); }
static inline double cospi(double a) { return cos(M_PI * fmod(a, 2.)); }
static inline void sincospi(double a, double* s, double* c) { *s = sinpi(a), *c = cospi(a); }
static inline void sincospif(float a, float* s, float* c) { *s = sinpif(a), *c = cospif(a); }

// Conversions saturate, and take NaN to 0, where C++ leaves them undefined.
static inline int emulated_int(double a) {
  return a != a ? 0 : a >= 2147483647. ? INT_MAX : a <= -2147483648. ? INT_MIN : (int)a;
}
static inline int __float2int_rn(float a) { return emulated_int(nearbyint(a)); }
static inline int __float2int_rz(float a) { return emulated_int(a); }
static inline int __float2int_rd(float a) { return emulated_int(floor(a)); }
static inline int __float2int_ru(float a) { return emulated_int(ceil(a)); }
static inline int __double2int_rn(double a) { return emulated_int(nearbyint(a)); }
static inline float __int2float_rn(int a) { return (float)a; }
static inline float __uint2float_rn(unsigned a) { return (float)a; }
static inline float __double2float_rn(double a) { return (float)a; }
