// Rotary positions: the pair (2i, 2i + 1) of a head of D columns at position p turns by p * theta^(-2i / D).
#pragma once

// Cosine and sine of it; log2_step is log2(theta^(-2 / D)), what a pair turns less than the one before. The angle is
// float64 and counted in turns, and only what is left of whole turns becomes f32: exact at any position that an i32
// holds.
__device__ __forceinline__ float2 turn_at(double p, int i, double log2_step) {
  const double turns = p * exp2(i * log2_step) * 0.15915494309189533577;  // 1 / (2 pi)
  float2 by;
  sincospif((float)(2. * (turns - rint(turns))), &by.y, &by.x);
  return by;
}

__device__ __forceinline__ float2 turned(float2 pair, float2 by) {
  return make_float2(pair.x * by.x - pair.y * by.y, pair.x * by.y + pair.y * by.x);
}

__device__ __forceinline__ float2 turn(float2 pair, double p, int i, double log2_step) {
  return turned(pair, turn_at(p, i, log2_step));
}
