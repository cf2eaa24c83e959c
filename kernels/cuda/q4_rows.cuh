// Q4_0 [N, K] times up to 4 rows of x by dp4a: the challenger of the fragment product. linear.cu has the wrapper.
//
// Weights by rows: a block's 16 nibble bytes as in the file, [N, K / 32] uint4, and its scales, [N, K / 32] half.
// Activations are two bytes each with a step per block of 32, x = step * (hi + lo / 254): an error of 2e-5, where
// one byte has 5e-3. All sums of a block are whole numbers under 2^24, so only its two factors round.
#pragma once
#include "primitives.cuh"

// A row of x in shared memory, as planes over its blocks, so that neighbouring lanes read neighbouring vectors.
struct Q8Terms {
  uint4* terms;   // [4][blocks]: hi of columns 0-15, hi of 16-31, lo of 0-15, lo of 16-31
  float2* steps;  // [blocks]: step / 254, and -8 * (254 * sum of hi + sum of lo), a whole number
};

// Of `rows` rows in room, 72 bytes a block: the vectors of all of them lie first, for they want to be aligned.
__device__ __forceinline__ Q8Terms q8_terms(float* room, int row, int rows, int blocks) {
  return {reinterpret_cast<uint4*>(room) + 4 * row * blocks,
          reinterpret_cast<float2*>(room + 16 * rows * blocks) + row * blocks};
}

// Eight neighbouring lanes bring a block of 32, four columns each; all lanes of a warp come, and those without a block
// have -1. Under 1e-36 a block counts as zeros: 127 / largest would be infinite.
__device__ __forceinline__ void q8_quantise(const Q8Terms& to, float4 v, int block, int blocks) {
  const int part = threadIdx.x & 7;
  float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))), sum = 0.f;
#pragma unroll
  for (int step = 4; step > 0; step >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  const float inverse = largest > 1e-36f ? 127.f / largest : 0.f, four[4] = {v.x, v.y, v.z, v.w};
  unsigned his = 0, los = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const float scaled = four[c] * inverse, hi = rintf(scaled), lo = rintf((scaled - hi) * 254.f);
    his |= ((unsigned)(int)hi & 255) << 8 * c, los |= ((unsigned)(int)lo & 255) << 8 * c;
    sum += 254.f * hi + lo;
  }
#pragma unroll
  for (int step = 4; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (block < 0) return;
  uint4* const plane = to.terms + (part < 4 ? 0 : blocks) + block;
  reinterpret_cast<unsigned*>(plane)[part & 3] = his;
  reinterpret_cast<unsigned*>(plane + 2 * blocks)[part & 3] = los;
  if (part == 0) to.steps[block] = make_float2(largest / (127.f * 254.f), -8.f * sum);
}

__device__ __forceinline__ int dot_nibbles(const uint4& q, const uint4& front, const uint4& back, int sum) {
  const unsigned words[4] = {q.x, q.y, q.z, q.w}, low[4] = {front.x, front.y, front.z, front.w};
  const unsigned high[4] = {back.x, back.y, back.z, back.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum = dp4a((int)(words[i] & 0x0f0f0f0fu), (int)low[i], sum);
    sum = dp4a((int)(words[i] >> 4 & 0x0f0f0f0fu), (int)high[i], sum);
  }
  return sum;
}

// out [rows, outputs] += bias: a warp owns OUTS neighbouring outputs at a time, a lane every 32nd block of them.
template <int ROWS, int OUTS>
__device__ __forceinline__ void q4_rows_product(float* out, const float* x, const uint4* nibbles,
                                                const half* scales, const float* bias, float* room, int outputs,
                                                int columns) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, blocks = columns / 32;
  for (int start = 4 * warp; start < ROWS * blocks; start += 4 * warps) {
    const int i = start + (lane >> 3);
    const bool real = i < ROWS * blocks;
    const float4 none = make_float4(0.f, 0.f, 0.f, 0.f);
    const float4 v = real ? *reinterpret_cast<const float4*>(x + (size_t)i * 32 + 4 * (lane & 7)) : none;
    q8_quantise(q8_terms(room, i / blocks, ROWS, blocks), v, real ? i % blocks : -1, blocks);
  }
  __syncthreads();
  for (int first = (blockIdx.x * warps + warp) * OUTS; first < outputs; first += gridDim.x * warps * OUTS) {
    float sum[ROWS][OUTS] = {};
#pragma unroll 1
    for (int b = lane; b < blocks; b += 32) {
      uint4 q[OUTS];
      float scale[OUTS];
#pragma unroll
      for (int o = 0; o < OUTS; ++o) {
        const size_t at = (size_t)min(first + o, outputs - 1) * blocks + b;
        q[o] = __ldcs(nibbles + at), scale[o] = __half2float(__ldcs(scales + at));
      }
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const Q8Terms from = q8_terms(room, r, ROWS, blocks);
        const uint4 hi[2] = {from.terms[b], from.terms[blocks + b]};
        const uint4 lo[2] = {from.terms[2 * blocks + b], from.terms[3 * blocks + b]};
        const float2 step = from.steps[b];
#pragma unroll
        for (int o = 0; o < OUTS; ++o) {
          const int whole = 254 * dot_nibbles(q[o], hi[0], hi[1], 0) + dot_nibbles(q[o], lo[0], lo[1], (int)step.y);
          sum[r][o] += scale[o] * step.x * (float)whole;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int o = 0; o < OUTS; ++o) {
        const float y = warp_sum(sum[r][o]);
        const int n = first + o;
        if (lane == r * OUTS + o && n < outputs) out[(size_t)r * outputs + n] = bias ? y + bias[n] : y;
      }
  }
}
