// Choosing the largest of many, by blocks that finish in any order: keys that may be compared in any order,
// and the last block, which sees what the others left.
#pragma once
#include "primitives.cuh"

// The bits of an f32, put in the order of its value, above the complement of its index: of two keys the
// larger is the choice, the first on ties (-0 and 0 tie). Every key is above 0.
typedef unsigned long long Key;

__device__ __forceinline__ Key key_of(float value, int index) {
  unsigned bits = __float_as_uint(value);
  if (bits == 0x80000000u) bits = 0;  // -0
  return (Key)(bits >> 31 ? ~bits : bits | 0x80000000u) << 32 | ~(unsigned)index;
}

__device__ __forceinline__ int index_of(Key key) { return (int)~(unsigned)key; }

__device__ __forceinline__ Key warp_best(Key key) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) {
    const Key other = __shfl_xor_sync(0xffffffffu, key, step);
    key = other > key ? other : key;
  }
  return key;
}

// The best of a block of whole warps, in all its threads. `room` is 32 keys of shared memory; two calls in a
// row may share it.
__device__ __forceinline__ Key block_best(Key key, Key* room) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  key = warp_best(key);
  __syncthreads();
  if (lane == 0) room[warp] = key;
  __syncthreads();
  return warp_best(lane < warps ? room[lane] : 0);
}

// Whether this is the last of `blocks` blocks to come here, said to all its threads; it then sees all that
// the others wrote before. `ticket` is 0 before the launch and again after it.
__device__ __forceinline__ bool last_to_come(unsigned* ticket, unsigned blocks) {
  bool last = false;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // what the barrier has shown this thread, all of the device sees before its ticket
    last = atomicAdd(ticket, 1u) == blocks - 1;
    if (last) {
      __threadfence();  // empties the first-level cache: nobody reads from it what others have written since
      atomicExch(ticket, 0u);
    }
  }
  return __syncthreads_or(last);
}

// The best of the keys that `blocks` blocks left in parts[0 .. blocks), in all threads of this one.
__device__ __forceinline__ Key best_of_parts(const Key* parts, int blocks, Key* room) {
  Key best = 0;
  for (int i = threadIdx.x; i < blocks; i += blockDim.x) {
    const Key other = ((const volatile Key*)parts)[i];  // not from the first-level cache: others wrote it
    best = other > best ? other : best;
  }
  return block_best(best, room);
}

// What is taken off the logit of `blank` after `run` blanks: in f64 and then rounded, as on the host.
__device__ __forceinline__ float blank_penalty(int run, int patience, double slope, double limit) {
  return run > patience ? (float)fmin(limit, slope * (run - patience)) : 0.f;
}
