// What a benchmark asks of the device itself: how fast memory is read and copied, what a launch costs, random bits.
// Not an op: nothing of a model runs here.
#include "primitives.cuh"

// found[block] = exclusive or of the words that the block's threads read of x [n]. Any grid; a thread reads every
// (threads of the grid)-th 16 bytes, four of them in flight. Loads only: what memory gives when nothing is written.
// at most 48 registers
extern "C" __global__ void __launch_bounds__(512) read_only(const uint4* x, unsigned* found, unsigned long long n) {
  __shared__ unsigned room[16];
  const size_t step = (size_t)gridDim.x * blockDim.x;
  size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  unsigned bits = 0;
  for (; i + 3 * step < n; i += 4 * step) {
    const uint4 a = x[i], b = x[i + step], c = x[i + 2 * step], d = x[i + 3 * step];
    bits ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
    bits ^= c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  for (; i < n; i += step) {
    const uint4 a = x[i];
    bits ^= a.x ^ a.y ^ a.z ^ a.w;
  }
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
  for (int half = 16; half > 0; half >>= 1) bits ^= __shfl_xor_sync(0xffffffffu, bits, half);
  if (lane == 0) room[warp] = bits;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < warps; ++w) bits ^= room[w];
    found[blockIdx.x] = bits;
  }
}

// out [n] = x [n], 16 bytes at a time; grid and threads as above.
// at most 48 registers
extern "C" __global__ void __launch_bounds__(512) read_write(const uint4* x, uint4* out, unsigned long long n) {
  const size_t step = (size_t)gridDim.x * blockDim.x;
  size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 3 * step < n; i += 4 * step) {
    const uint4 a = x[i], b = x[i + step], c = x[i + 2 * step], d = x[i + 3 * step];
    out[i] = a;
    out[i + step] = b;
    out[i + 2 * step] = c;
    out[i + 3 * step] = d;
  }
  for (; i < n; i += step) out[i] = x[i];
}

// out [n] = (random & mask) | set: the masks make the bits integers, or floats of a given size. The word at i
// depends on i and `seed` alone. Any grid; a thread writes every (threads of the grid)-th word.
// at most 24 registers
extern "C" __global__ void __launch_bounds__(256) random_words(
    unsigned* out, unsigned long long n, unsigned seed, unsigned mask, unsigned set) {
  const size_t step = (size_t)gridDim.x * blockDim.x;
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
    unsigned h = (unsigned)i ^ (unsigned)(i >> 32) * 0x9e3779b9u ^ seed * 0x85ebca6bu;
    h = (h ^ h >> 16) * 0x7feb352du;  // two rounds of multiply and shift: lowbias32 of Wellons' hash search
    h = (h ^ h >> 15) * 0x846ca68bu;
    out[i] = ((h ^ h >> 16) & mask) | set;
  }
}

// Nothing at all, with no, 4 and 10 arguments: what a launch costs its caller, and one kernel behind another.
// at most 8 registers
extern "C" __global__ void __launch_bounds__(32) empty0() {}

// at most 8 registers
extern "C" __global__ void __launch_bounds__(32) empty4(const float* a, const float* b, int c, int d) {}

// at most 8 registers
extern "C" __global__ void __launch_bounds__(32) empty10(
    const float* a, const float* b, const float* c, const float* d, const float* e, const float* f, int g, int h,
    int i, int j) {}
