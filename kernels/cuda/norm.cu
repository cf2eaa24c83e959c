// rms_norm:   out = x / sqrt(mean(x^2) + eps) * gain (* (1 + scale))        x, out [R, C]; gain, scale [C]
// layer_norm: out = (x - mean) / sqrt(var + eps) * gain + bias              bias [C]
// grid R blocks, one row each; a thread owns the columns threadIdx.x, + blockDim.x, ... of it, reading x once
// for each statistic and once for `out`, which may be x: a row fits the first-level cache, and has any width.
#include "primitives.cuh"

// at most 40 registers
extern "C" __global__ void __launch_bounds__(1024) rms_norm(float* out, const float* x, const float* gain,
                                                            const float* scale, float eps, int columns) {
  __shared__ float room[33];
  x += (size_t)blockIdx.x * columns;
  out += (size_t)blockIdx.x * columns;
  float squares = 0.f;
#pragma unroll 4
  for (int c = threadIdx.x; c < columns; c += blockDim.x) squares += x[c] * x[c];
  const float inverse = 1.f / sqrtf(block_sum(squares, room) / columns + eps);
#pragma unroll 4
  for (int c = threadIdx.x; c < columns; c += blockDim.x) {
    const float y = x[c] * inverse * gain[c];
    out[c] = scale ? y * (1.f + scale[c]) : y;
  }
}

// The squares are taken behind the mean, since mean(x^2) - mean^2 loses every digit of a row that lies far
// from zero. The rounded mean is itself off by then: the second pass measures by how much.
// at most 40 registers
extern "C" __global__ void __launch_bounds__(1024) layer_norm(float* out, const float* x, const float* gain,
                                                              const float* bias, float eps, int columns) {
  __shared__ float room[33];
  x += (size_t)blockIdx.x * columns;
  out += (size_t)blockIdx.x * columns;
  float sum = 0.f, rest = 0.f, squares = 0.f;
#pragma unroll 4
  for (int c = threadIdx.x; c < columns; c += blockDim.x) sum += x[c];
  const float mean = block_sum(sum, room) / columns;
#pragma unroll 4
  for (int c = threadIdx.x; c < columns; c += blockDim.x) {
    const float gap = x[c] - mean;
    rest += gap;
    squares += gap * gap;
  }
  const float off = block_sum(rest, room) / columns;
  const float variance = fmaxf(block_sum(squares, room) / columns - off * off, 0.f);
  const float inverse = 1.f / sqrtf(variance + eps);
#pragma unroll 4
  for (int c = threadIdx.x; c < columns; c += blockDim.x)
    out[c] = (x[c] - mean - off) * inverse * gain[c] + bias[c];
}
