// Activations of one f32, each without cancellation or overflow anywhere on its line.
#pragma once

// gelu(x) = x / 2 * (1 + erf(x / sqrt(2))); 1 + erf(-z) is erfc(z), which keeps the left tail
__device__ __forceinline__ float gelu_of(float x) { return 0.5f * x * erfcf(x * -0.707106781f); }

__device__ __forceinline__ float elu_of(float x) { return x > 0.f ? x : expm1f(x); }

// silu(x) = x * sigmoid(x); exp is taken of what is not positive
__device__ __forceinline__ float silu_of(float x) {
  const float e = expf(-fabsf(x));
  return x * ((x < 0.f ? e : 1.f) / (1.f + e));
}
