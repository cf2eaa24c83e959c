// Keywords, indices and vector types of CUDA C++.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#define threadIdx (emulated_thread->index)
#define blockIdx emulated_block_at
#define blockDim emulated_block_size
#define gridDim emulated_grid_size
#define warpSize 32

#define EMULATED_VECTOR2(name, type)                      \
  struct __attribute__((aligned(2 * sizeof(type)))) name { \
    type x, y;                                            \
  };                                                      \
  static inline name make_##name(type x, type y) { return name{x, y}; }
#define EMULATED_VECTOR4(name, type, bytes)               \
  struct __attribute__((aligned(bytes))) name {           \
    type x, y, z, w;                                      \
  };                                                      \
  static inline name make_##name(type x, type y, type z, type w) { return name{x, y, z, w}; }

EMULATED_VECTOR2(char2, signed char)
EMULATED_VECTOR2(uchar2, unsigned char)
EMULATED_VECTOR2(short2, short)
EMULATED_VECTOR2(ushort2, unsigned short)
EMULATED_VECTOR2(int2, int)
EMULATED_VECTOR2(uint2, unsigned)
EMULATED_VECTOR2(float2, float)
EMULATED_VECTOR2(double2, double)
EMULATED_VECTOR4(char4, signed char, 4)
EMULATED_VECTOR4(uchar4, unsigned char, 4)
EMULATED_VECTOR4(short4, short, 8)
EMULATED_VECTOR4(ushort4, unsigned short, 8)
EMULATED_VECTOR4(int4, int, 16)
EMULATED_VECTOR4(uint4, unsigned, 16)
EMULATED_VECTOR4(float4, float, 16)
