// rope: pairs (2i, 2i + 1) of x [B, T, H, D] turn by p * theta^(-2i / D), in place; p = position[b] + t
// grid (T, B), a block owns one item of one lane: its D / 2 cosines and sines first, once for all heads and some
// fifty f64 instructions each; then a thread owns the pairs threadIdx.x, + blockDim.x, ...
#include "primitives.cuh"
#include "rope.cuh"

// at most 40 registers
extern "C" __global__ void __launch_bounds__(1024) rope(float2* x, const int* position, double log2_step,
                                                        int heads, int width) {
  extern __shared__ float2 by[];  // [D / 2]
  const int pairs = width / 2;
  const double p = (double)position[blockIdx.y] + blockIdx.x;
  for (int i = threadIdx.x; i < pairs; i += blockDim.x) by[i] = turn_at(p, i, log2_step);
  __syncthreads();
  x += ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * heads * pairs;
#pragma unroll 4
  for (int i = threadIdx.x; i < heads * pairs; i += blockDim.x) x[i] = turned(x[i], by[i % pairs]);
}
