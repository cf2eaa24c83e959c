// rms_norm:   out = x / sqrt(mean(x^2) + eps) * gain (* (1 + scale))        x, out [R, C]; gain, scale [C]
// layer_norm: out = (x - mean) / sqrt(var + eps) * gain + bias              bias [C]
// grid R blocks, one row each; a thread owns the columns threadIdx.x, + blockDim.x, ... of it, reading x once
// for each statistic and once for `out`, which may be x: a row fits the first-level cache, and has any width.
#include "primitives.cuh"

constexpr int LOADS = 4;  // on their way at once; for columns that are not there a thread's own first one, unused

// Sum of f(x[c]) over a thread's columns.
template <class Function>
__device__ __forceinline__ float sum_of(const float* x, int columns, const Function& f) {
  float sum = 0.f;
  for (int c = threadIdx.x; c < columns; c += LOADS * blockDim.x) {
#pragma unroll
    for (int u = 0; u < LOADS; ++u) {
      const int at = c + u * (int)blockDim.x;
      const float v = f(x[at < columns ? at : c]);
      sum += at < columns ? v : 0.f;
    }
  }
  return sum;
}

// out[c] = f(c) of a thread's columns; f reads before anything is written.
template <class Function>
__device__ __forceinline__ void write_all(float* out, int columns, const Function& f) {
  for (int c = threadIdx.x; c < columns; c += LOADS * blockDim.x) {
    float y[LOADS];
#pragma unroll
    for (int u = 0; u < LOADS; ++u) {
      const int at = c + u * (int)blockDim.x;
      y[u] = f(at < columns ? at : c);
    }
#pragma unroll
    for (int u = 0; u < LOADS; ++u) {
      const int at = c + u * (int)blockDim.x;
      if (at < columns) out[at] = y[u];
    }
  }
}

// at most 48 registers
extern "C" __global__ void __launch_bounds__(1024) rms_norm(float* out, const float* x, const float* gain,
                                                            const float* scale, float eps, int columns) {
  __shared__ float room[33];
  x += (size_t)blockIdx.x * columns;
  out += (size_t)blockIdx.x * columns;
  const float squares = block_sum(sum_of(x, columns, [](float v) { return v * v; }), room);
  const float inverse = 1.f / sqrtf(squares / columns + eps);
  write_all(out, columns, [&](int c) {
    const float y = x[c] * inverse * gain[c];
    return scale ? y * (1.f + scale[c]) : y;
  });
}

// The squares are taken behind the mean, since mean(x^2) - mean^2 loses every digit of a row that lies far
// from zero. The rounded mean is itself off by then: another sum measures by how much.
// at most 48 registers
extern "C" __global__ void __launch_bounds__(1024) layer_norm(float* out, const float* x, const float* gain,
                                                              const float* bias, float eps, int columns) {
  __shared__ float room[33];
  x += (size_t)blockIdx.x * columns;
  out += (size_t)blockIdx.x * columns;
  const float mean = block_sum(sum_of(x, columns, [](float v) { return v; }), room) / columns;
  const float off = block_sum(sum_of(x, columns, [&](float v) { return v - mean; }), room) / columns;
  const float squares = block_sum(sum_of(x, columns, [&](float v) { return (v - mean) * (v - mean); }), room);
  const float inverse = 1.f / sqrtf(fmaxf(squares / columns - off * off, 0.f) + eps);
  write_all(out, columns, [&](int c) { return (x[c] - mean - off) * inverse * gain[c] + bias[c]; });
}
