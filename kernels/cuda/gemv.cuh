// A few rows of x times a dense or 8-bit matrix, in f32 FMAs: exact to f32. linear.cu has the wrappers.
#pragma once
#include "primitives.cuh"

// Rows of w by kind: `vector` widens LENGTH neighbours that one 16-byte load brings, `scalar` one weight.
struct F32Rows {
  static constexpr int LENGTH = 4;
  const float* w;
  int columns;
  __device__ __forceinline__ void vector(float (&out)[LENGTH], int n, int k) const {
    const float4 v = __ldg(reinterpret_cast<const float4*>(w + (size_t)n * columns + k));
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
  }
  __device__ __forceinline__ float scalar(int n, int k) const { return __ldg(w + (size_t)n * columns + k); }
};

__device__ __forceinline__ void widen_pair(float& low, float& high, unsigned bits, half) {
  const float2 pair = __half22float2(*reinterpret_cast<const half2*>(&bits));
  low = pair.x, high = pair.y;
}

__device__ __forceinline__ void widen_pair(float& low, float& high, unsigned bits, bf16) {
  low = __uint_as_float(bits << 16), high = __uint_as_float(bits & 0xffff0000u);
}

template <class T>
struct HalfRows {  // f16 or bf16
  static constexpr int LENGTH = 8;
  const T* w;
  int columns;
  __device__ __forceinline__ void vector(float (&out)[LENGTH], int n, int k) const {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(w + (size_t)n * columns + k));
    const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) widen_pair(out[2 * i], out[2 * i + 1], words[i], T());
  }
  __device__ __forceinline__ float scalar(int n, int k) const { return widen(w[(size_t)n * columns + k]); }
};

struct Q8Rows {
  static constexpr int LENGTH = 16;  // half a block
  const signed char* q;
  const half* scales;  // [N, columns / 32]
  int columns;
  __device__ __forceinline__ void vector(float (&out)[LENGTH], int n, int k) const {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(q + (size_t)n * columns + k));
    const float scale = scale_of(n, k);
    const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 16; ++i) out[i] = scale * (float)(signed char)(words[i / 4] >> 8 * (i % 4) & 255);
  }
  __device__ __forceinline__ float scalar(int n, int k) const {
    return scale_of(n, k) * (float)q[(size_t)n * columns + k];
  }
  __device__ __forceinline__ float scale_of(int n, int k) const {
    return __half2float(scales[(size_t)n * (columns / 32) + k / 32]);
  }
};

// out [rows, outputs] = x [rows, columns] @ w^T + bias for up to R rows. A warp owns OUTS neighbouring outputs of
// every row, a lane every 32nd vector of columns; the order of a sum does not depend on R. Rows whose length is
// not whole vectors go one weight at a time. Loads past the last row or output repeat it, and are not stored.
template <int R, int OUTS, class Rows>
__device__ __forceinline__ void gemv(float* out, const float* x, const Rows& w, const float* bias, int rows,
                                     int outputs, int columns) {
  constexpr int LENGTH = Rows::LENGTH;
  const int lane = threadIdx.x & 31, first = (blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5)) * OUTS;
  const int whole = columns % LENGTH == 0 ? columns : 0;
  float sum[R][OUTS] = {};
  for (int k = lane * LENGTH; k < whole; k += 32 * LENGTH) {
    float v[OUTS][LENGTH];
#pragma unroll
    for (int o = 0; o < OUTS; ++o) w.vector(v[o], min(first + o, outputs - 1), k);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float* from = x + (size_t)min(r, rows - 1) * columns + k;
#pragma unroll
      for (int e = 0; e < LENGTH; e += 4) {
        const float4 u = *reinterpret_cast<const float4*>(from + e);
#pragma unroll
        for (int o = 0; o < OUTS; ++o) {
          sum[r][o] = fmaf(u.x, v[o][e], sum[r][o]), sum[r][o] = fmaf(u.y, v[o][e + 1], sum[r][o]);
          sum[r][o] = fmaf(u.z, v[o][e + 2], sum[r][o]), sum[r][o] = fmaf(u.w, v[o][e + 3], sum[r][o]);
        }
      }
    }
  }
  for (int k = whole + lane; k < columns; k += 32) {
#pragma unroll
    for (int o = 0; o < OUTS; ++o) {
      const float v = w.scalar(min(first + o, outputs - 1), k);
#pragma unroll
      for (int r = 0; r < R; ++r) sum[r][o] = fmaf(x[(size_t)min(r, rows - 1) * columns + k], v, sum[r][o]);
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int o = 0; o < OUTS; ++o) {
      const float y = warp_sum(sum[r][o]);
      const int n = first + o;
      if (lane == r * OUTS + o && r < rows && n < outputs) out[(size_t)r * outputs + n] = bias ? y + bias[n] : y;
    }
}
