// conv1d as a product: out [B, T / stride, N] = patches [B * T / stride, C * taps] @ w [N, C * taps]^T, by linear.cu.
// heard = tail [B, taps - stride, C], then x [B, T, C]; patch (b, s) has heard[b, s * stride + tap, c] at [c, tap]
//   patches     grid (T / stride, B, C / 128), one patch each; a thread owns one channel of it
//   keep_tail   grid (C / 128, B); a thread owns one channel of one lane
#include "primitives.cuh"

__device__ __forceinline__ float heard(const float* tail, const float* x, int i, int kept, int channels, int c) {
  return i < kept ? tail[(size_t)i * channels + c] : x[(size_t)(i - kept) * channels + c];
}

// at most 48 registers
extern "C" __global__ void __launch_bounds__(128) patches(
    float* out, const float* tail, const float* x, int items, int channels, int taps, int stride) {
  const int kept = taps - stride;
  tail += (size_t)blockIdx.y * kept * channels;
  x += (size_t)blockIdx.y * items * channels;
  const int c = blockIdx.z * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  out += (((size_t)blockIdx.y * gridDim.x + blockIdx.x) * channels + c) * taps;
  for (int first = 0; first < taps; first += 4) {
    float v[4];  // read before anything is written, so that no load waits for another
#pragma unroll
    for (int u = 0; u < 4; ++u)
      v[u] = heard(tail, x, blockIdx.x * stride + min(first + u, taps - 1), kept, channels, c);
#pragma unroll
    for (int u = 0; u < 4; ++u)
      if (first + u < taps) out[first + u] = v[u];
  }
}

// tail = the last `kept` of heard. Where x is shorter the tail moves within itself: forwards, each item read before
// the one that takes its place is written, and by the only thread that touches its channel.
// at most 48 registers
extern "C" __global__ void __launch_bounds__(128) keep_tail(
    float* tail, const float* x, const int* active, int items, int channels, int kept) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= channels || !active[blockIdx.y]) return;
  tail += (size_t)blockIdx.y * kept * channels;
  x += (size_t)blockIdx.y * items * channels;
  for (int i = 0; i < kept; ++i) tail[(size_t)i * channels + c] = heard(tail, x, i + items, kept, channels, c);
}
