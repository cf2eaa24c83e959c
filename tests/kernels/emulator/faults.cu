// One kernel per mistake that the emulator is there to catch: right with `faulty` 0, wrong with 1.
// All take y [64], x [64] with x [i] = i, 64 threads and 256 bytes of dynamic shared memory; right ones write all of
// y, finite. Those of two blocks may take work [192], zeros.
#include <cuda_fp16.h>

extern "C" __global__ void global_bounds(float* y, const float* x, int faulty) {
  y[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x == 0) y[64 * faulty] = x[0];
}

extern "C" __global__ void unwritten_memory(float* y, const float* x, int faulty) {
  if (!faulty || threadIdx.x < 63) y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void static_bounds(float* y, const float* x, int faulty) {
  __shared__ float held[64];
  held[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x == 0) held[64 * faulty] = x[0];
  __syncthreads();
  y[threadIdx.x] = held[threadIdx.x ^ 32];
}

extern "C" __global__ void dynamic_bounds(float* y, const float* x, int faulty) {
  extern __shared__ float room[];
  room[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x == 0) room[64 * faulty] = x[0];
  __syncthreads();
  y[threadIdx.x] = room[threadIdx.x ^ 32];
}

extern "C" __global__ void misaligned_load(float* y, const float* x, int faulty) {
  const float4 four = *(const float4*)(x + threadIdx.x / 16 * 4 + faulty);
  y[threadIdx.x] = four.x - faulty;  // x [i] is i
}

extern "C" __global__ void unwritten_static(float* y, const float* x, int faulty) {
  __shared__ float held[64];
  if (!faulty || threadIdx.x != 5) held[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = held[threadIdx.x ^ 32];
}

extern "C" __global__ void unwritten_dynamic(float* y, const float* x, int faulty) {
  extern __shared__ float room[];
  if (!faulty || threadIdx.x != 5) room[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = room[threadIdx.x ^ 32];
}

extern "C" __global__ void missing_barrier(float* y, const float* x, int faulty) {
  __shared__ float held[64];
  held[threadIdx.x] = x[threadIdx.x];
  if (!faulty) __syncthreads();
  y[threadIdx.x] = held[threadIdx.x ^ 32];
}

// What one round reads, the next overwrites.
extern "C" __global__ void missing_second_barrier(float* y, const float* x, int faulty) {
  __shared__ float held[64];
  float sum = 0.f;
  for (int round = 0; round < 3; round++) {
    held[threadIdx.x] = x[threadIdx.x] + round;
    __syncthreads();
    sum += held[threadIdx.x ^ 32];
    if (!faulty) __syncthreads();
  }
  y[threadIdx.x] = sum;
}

extern "C" __global__ void shuffle_for_a_barrier(float* y, const float* x, int faulty) {
  __shared__ float held[64];
  held[threadIdx.x] = x[threadIdx.x];
  const float other = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);  // carries a value, orders no memory
  if (!faulty) __syncwarp();
  y[threadIdx.x] = held[threadIdx.x ^ 1] + other;
}

extern "C" __global__ void two_barriers_as_one(float* y, const float* x, int faulty) {
  y[threadIdx.x] = x[threadIdx.x];
  if (faulty && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

extern "C" __global__ void divergent_barrier(float* y, const float* x, int faulty) {
  y[threadIdx.x] = x[threadIdx.x];
  if (!faulty || threadIdx.x != 0) __syncwarp();
  __syncthreads();
}

extern "C" __global__ void returned_lane(float* y, const float* x, int faulty) {
  y[threadIdx.x] = x[threadIdx.x];
  if (faulty && threadIdx.x == 40) return;
  y[threadIdx.x] += __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
}

extern "C" __global__ void lane_outside_its_mask(float* y, const float* x, int faulty) {
  y[threadIdx.x] = x[threadIdx.x];
  if ((threadIdx.x & 31) < (faulty ? 17 : 16)) __syncwarp(0x0000ffffu);
}

extern "C" __global__ void shuffle_from_outside_the_mask(float* y, const float* x, int faulty) {
  y[threadIdx.x] = x[threadIdx.x];
  if ((threadIdx.x & 31) < 16) y[threadIdx.x] += __shfl_xor_sync(0x0000ffffu, x[threadIdx.x], faulty ? 16 : 8);
}

extern "C" __global__ void mixed_collectives(float* y, const float* x, int faulty) {
  if (faulty && threadIdx.x % 2) {
    y[threadIdx.x] = (float)__ballot_sync(0xffffffffu, 1);
  } else {
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
  }
}

// Two blocks, in no promised order.
extern "C" __global__ void order_of_blocks(float* y, const float* x, int faulty) {
  if (faulty) {
    if (blockIdx.x == 0) y[threadIdx.x] = x[threadIdx.x];
    if (blockIdx.x == 1) y[threadIdx.x] = 2.f * y[threadIdx.x];
  } else if (blockIdx.x == threadIdx.x / 32) {
    y[threadIdx.x] = 2.f * x[threadIdx.x];
  }
}

// Two blocks; the one that comes last adds up what both left.
extern "C" __global__ void ticket_without_a_barrier(float* y, const float* x, float* work, int faulty) {
  __shared__ int last;
  work[64 + 64 * blockIdx.x + threadIdx.x] = x[threadIdx.x];
  if (!faulty) __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd((unsigned*)work, 1u) == 1;
    __threadfence();
  }
  __syncthreads();
  if (last) y[threadIdx.x] = work[64 + (threadIdx.x ^ 1)] + work[128 + (threadIdx.x ^ 1)];
}

extern "C" __global__ void ticket_without_a_fence(float* y, const float* x, float* work, int faulty) {
  __shared__ int last;
  work[64 + 64 * blockIdx.x + threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    if (!faulty) __threadfence();
    last = atomicAdd((unsigned*)work, 1u) == 1;
    if (!faulty) __threadfence();
  }
  __syncthreads();
  if (last) y[threadIdx.x] = work[64 + (threadIdx.x ^ 1)] + work[128 + (threadIdx.x ^ 1)];
}

// Not a fault: parameters of several kinds, for the launcher's own checks.
extern "C" __global__ void __launch_bounds__(64) many_kinds(
    float* y, const half* x, const unsigned short* bits, const uint4* vectors, int n, float f, size_t wide) {
  if (threadIdx.x < n) y[threadIdx.x] = f * __half2float(x[threadIdx.x]) + (wide == 1 ? 0.f : 1.f);
}
