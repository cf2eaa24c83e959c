// What CUDA C++ has no words for, one small function each with its twin for the emulator that tests run on, and
// the reductions every kernel uses. All inline PTX of this folder stands here.
#pragma once
#include <cuda_fp16.h>

typedef unsigned short bf16;  // its bits; the upper half of an f32

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(half x) { return __half2float(x); }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((unsigned)x << 16); }

// c [16 x 8] += a [16 x 16] @ b [16 x 8]: half inputs, f32 sums, fragments as the PTX manual lays them out:
// lane l has g = l / 4, t = l % 4; a: (g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..); b: (2t.., g),
// (2t + 8.., g); c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef EMULATED
  emulated_mma(c, a, b);
#elif __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // Turing has it by halves
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

// (bits & mask) | 0x64006400: two nibbles become the halves 1024 + q (or 1024 + 16 q), in one instruction
__device__ __forceinline__ unsigned nibbles(unsigned bits, unsigned mask) {
#ifdef EMULATED
  return (bits & mask) | 0x64006400u;
#else
  unsigned out;
  asm("lop3.b32 %0, %1, %2, 0x64006400, 0xea;" : "=r"(out) : "r"(bits), "r"(mask));
  return out;
#endif
}

// sum + the four products of the signed bytes of a and b; NVRTC before 12.3 declares __dp4a and does not have it
__device__ __forceinline__ int dp4a(int a, int b, int sum) {
#ifdef EMULATED
  return __dp4a(a, b, sum);
#else
  int out;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
  return out;
#endif
}

// Sum, or largest, of the 32 lanes of a warp, in all of them.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}

// The same over a block of up to 1024 threads, whole warps, in all of them. `room` is 33 floats of shared
// memory; two calls in a row may share it.
__device__ __forceinline__ float block_sum(float v, float* room) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_sum(v);
  __syncthreads();
  if (lane == 0) room[warp] = v;
  __syncthreads();
  return warp_sum(lane < warps ? room[lane] : 0.f);
}

__device__ __forceinline__ float block_max(float v, float* room) {  // of what is not negative
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_max(v);
  __syncthreads();
  if (lane == 0) room[warp] = v;
  __syncthreads();
  return warp_max(lane < warps ? room[lane] : 0.f);
}
