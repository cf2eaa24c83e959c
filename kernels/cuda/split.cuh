// attend, few queries: a block takes four queries of one key head over one range of keys.
// A key is read by D / 8 lanes, eight columns each; a thread owns those columns of all four queries, their scores
// and their sums in registers, and has four keys and values on their way at once. Warps take keys in turn.
#pragma once
#include "attention.cuh"

template <int D, class Kept>
__device__ __forceinline__ void split(float* out, unsigned* tickets, float2* sums, float* parts, const float* q,
                                      const Kept* k, const Kept* v, const half* k_scale, const half* v_scale,
                                      const int* count, int items, int group, int capacity, int window) {
  constexpr int ROWS = 4, WARPS = 8, LANES = D / 8, KEYS = 32 / LANES, DEEP = D < 64 ? 2 : 4, GRAIN = WARPS * KEYS;
  extern __shared__ float4 room[];  // [WARPS, ROWS, D], then (largest, sum) [WARPS, ROWS]
  const Tile tile = tile_of<ROWS, GRAIN>(count[blockIdx.z], items, group, capacity, window, gridDim.y);
  if (blockIdx.y >= tile.live) return;
  const int from = blockIdx.y * tile.keys, to = min(from + tile.keys, tile.seen);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, d = lane % LANES * 8;
  const size_t stream = ((size_t)blockIdx.z * tile.heads + tile.head) * capacity;
  k += stream * D + d;
  v += stream * D + d;

  float query[ROWS][8], mix[ROWS][8], most[ROWS], sum[ROWS];
  int own[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int row = tile.first + min(r, tile.rows - 1);  // queries that are not there repeat the last
    const float4* from_q = (const float4*)(q + head_of(tile, row, items, group) * D + d);
    const float4 low = from_q[0], high = from_q[1];
    const float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      query[r][i] = x[i] * (LOG2_E / sqrtf(D));
      mix[r][i] = 0.f;
    }
    own[r] = tile.own + row / group;
    most[r] = LOWEST;
    sum[r] = 0.f;
  }

  for (int at = from; at < to; at += DEEP * GRAIN) {
    decltype(eight(k)) keys[DEEP], values[DEEP];
    decltype(step_of(k, k_scale, 0)) k_step[DEEP], v_step[DEEP];
#pragma unroll
    for (int u = 0; u < DEEP; ++u) {
      int slot = tile.start + min(at + (u * WARPS + warp) * KEYS + lane / LANES, to - 1);
      slot -= slot >= capacity ? capacity : 0;
      keys[u] = eight(k + (size_t)slot * D);
      values[u] = eight(v + (size_t)slot * D);
      k_step[u] = step_of(k, k_scale, stream + slot);
      v_step[u] = step_of(v, v_scale, stream + slot);
    }
    float score[ROWS][DEEP];
#pragma unroll
    for (int u = 0; u < DEEP; ++u) {
      float x[8];
      unpack(x, keys[u]);
      const int key = at + (u * WARPS + warp) * KEYS + lane / LANES;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        float dot = 0.f;
#pragma unroll
        for (int i = 0; i < 8; ++i) dot += query[r][i] * x[i];
#pragma unroll
        for (int step = LANES / 2; step > 0; step >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, step);
        score[r][u] = key < to && sees(own[r], key, window) ? dot * worth(k_step[u]) : NOTHING;
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float top = most[r];
#pragma unroll
      for (int u = 0; u < DEEP; ++u) top = fmaxf(top, score[r][u]);
      const float keep = exp2f(most[r] - top);
      most[r] = top;
      sum[r] *= keep;
#pragma unroll
      for (int i = 0; i < 8; ++i) mix[r][i] *= keep;
#pragma unroll
      for (int u = 0; u < DEEP; ++u) {
        score[r][u] = exp2f(score[r][u] - top);
        sum[r] += score[r][u];
      }
    }
#pragma unroll
    for (int u = 0; u < DEEP; ++u) {
      float x[8];
      unpack(x, values[u]);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const float weight = score[r][u] * worth(v_step[u]);
#pragma unroll
        for (int i = 0; i < 8; ++i) mix[r][i] += weight * x[i];
      }
    }
  }

  float* const mixes = (float*)room;
  float2* const ends = (float2*)(mixes + WARPS * ROWS * D);
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {  // the keys of a warp, then its warps
#pragma unroll
    for (int step = LANES; step < 32; step <<= 1) {
      const float other = __shfl_xor_sync(0xffffffffu, most[r], step), top = fmaxf(most[r], other);
      const float keep = exp2f(most[r] - top), gain = exp2f(other - top);
      most[r] = top;
      sum[r] = sum[r] * keep + __shfl_xor_sync(0xffffffffu, sum[r], step) * gain;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        mix[r][i] = mix[r][i] * keep + __shfl_xor_sync(0xffffffffu, mix[r][i], step) * gain;
    }
    if (lane >= LANES) continue;
    float4* const to_room = room + ((warp * ROWS + r) * D + d) / 4;
    to_room[0] = make_float4(mix[r][0], mix[r][1], mix[r][2], mix[r][3]);
    to_room[1] = make_float4(mix[r][4], mix[r][5], mix[r][6], mix[r][7]);
    if (lane == 0) ends[warp * ROWS + r] = make_float2(most[r], sum[r]);
  }
  __syncthreads();

  const bool alone = tile.live == 1;  // then this is the answer
  for (int x = threadIdx.x; x < tile.rows * D; x += blockDim.x) {
    const int r = x / D, row = tile.first + r;
    float top = LOWEST, whole = 0.f, mixed = 0.f;
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, ends[w * ROWS + r].x);
    for (int w = 0; w < WARPS; ++w) {
      const float2 end = ends[w * ROWS + r];
      const float gain = exp2f(end.x - top);
      whole += end.y * gain;
      mixed += mixes[(w * ROWS + r) * D + x % D] * gain;
    }
    const size_t part = part_of(tile, blockIdx.y, row, items * group, gridDim.y);
    if (alone) {
      out[head_of(tile, row, items, group) * D + x % D] = whole > 0.f ? mixed / whole : 0.f;
    } else {
      parts[part * D + x % D] = mixed;
      if (x % D == 0) sums[part] = make_float2(top, whole);
    }
  }
  if (!alone) finish<D>(out, tickets, sums, parts, tile, items, group);
}
