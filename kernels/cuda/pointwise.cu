// out[i] = f(x[i], y[i]) for i < n; n may be anything, 0 aside; `out` may be x or y.
// add: x + y        gelu: x / 2 * (1 + erf(x / sqrt(2)))        elu: x > 0 ? x : exp(x) - 1
// silu_mul: gate * sigmoid(gate) * up
// grid: as many blocks of 256 as keep the device busy; a thread owns every (blocks * 256)th float4, or float
// where an array does not start at a multiple of 16 bytes, and one of the last n % 4.
#include "pointwise.cuh"
#include "primitives.cuh"

template <class Function>
__device__ __forceinline__ void each(float* out, const float* x, const float* y, size_t n, Function f) {
  const size_t first = (size_t)blockIdx.x * blockDim.x + threadIdx.x, stride = (size_t)gridDim.x * blockDim.x;
  const bool aligned = (((size_t)out | (size_t)x | (size_t)y) & 15) == 0;
  const size_t fours = aligned ? n / 4 : 0;
  for (size_t i = first; i < fours; i += stride) {
    const float4 a = ((const float4*)x)[i], b = ((const float4*)y)[i];
    ((float4*)out)[i] = make_float4(f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w));
  }
  for (size_t i = 4 * fours + first; i < n; i += stride) out[i] = f(x[i], y[i]);
}

// at most 48 registers
extern "C" __global__ void __launch_bounds__(256) add(float* out, const float* x, const float* y, size_t n) {
  each(out, x, y, n, [](float a, float b) { return a + b; });
}

// at most 48 registers
extern "C" __global__ void __launch_bounds__(256) gelu(float* out, const float* x, size_t n) {
  each(out, x, x, n, [](float a, float) { return gelu_of(a); });
}

// at most 48 registers
extern "C" __global__ void __launch_bounds__(256) elu(float* out, const float* x, size_t n) {
  each(out, x, x, n, [](float a, float) { return elu_of(a); });
}

// at most 48 registers
extern "C" __global__ void __launch_bounds__(256) silu_mul(float* out, const float* gate, const float* up,
                                                           size_t n) {
  each(out, gate, up, n, [](float a, float b) { return silu_of(a) * b; });
}
