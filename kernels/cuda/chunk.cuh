// attend, many queries: a block takes 64 queries of one key head over one range of keys, 64 of them at a time.
// A warp owns 16 queries. Scores are q k^T by tensor cores, q as two halves hi + lo, so that they are as good as
// f32; weights are rounded to half before they meet the values, and their sum is that of the rounded ones.
// Fragments as `mma` has them, g = lane / 4, t = lane % 4. Which column of q and k is called which inside a product
// is free, as long as both agree, and so is which of v's: chosen here so that a lane's words lie side by side.
#pragma once
#include "attention.cuh"

template <int D>
struct Staged {
  static constexpr int KEYS = 64;
  static constexpr int K_WORDS = (D + 16) / 2;  // a key, two columns to a word; the padding keeps banks apart
  static constexpr int V_WORDS = D + 8;         // a column of two keys to a word
};

// Keys at .. at + 63 into shared memory, zeros from `to` on: what lies there was perhaps never written. Bytes are
// exact as halves; their steps wait in `steps` for the scores and the weights.
template <int D, class Kept>
__device__ __forceinline__ void fill(unsigned* keys, unsigned* values, float* steps, const Kept* k, const Kept* v,
                                     const half* k_scale, const half* v_scale, size_t stream, const Tile& tile,
                                     int at, int to, int capacity) {
  typedef Staged<D> Room;
  typedef typename Bits<sizeof(Kept) * 8>::type Load;
#pragma unroll 2
  for (int i = threadIdx.x; i < Room::KEYS / 2 * (D / 8); i += blockDim.x) {  // two keys, eight columns
    const int pair = i / (D / 8), d = i % (D / 8) * 8;
    unsigned k_word[2][4], v_word[2][4];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int key = at + 2 * pair + e;
      const size_t slot = stream + slot_of(tile, min(key, to - 1), capacity);
      halves_of(k_word[e], *(const Load*)(k + slot * D + d));
      halves_of(v_word[e], *(const Load*)(v + slot * D + d));
      if (sizeof(Kept) == 1 && d == 0) {
        const float step = step_of(v, v_scale, slot);
        steps[2 * pair + e] = step_of(k, k_scale, slot);
        steps[Room::KEYS + 2 * pair + e] = steps_more(step);
        steps[2 * Room::KEYS + 2 * pair + e] = steps_less(step);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (key >= to) k_word[e][j] = v_word[e][j] = 0;
      }
      *(uint4*)(keys + (2 * pair + e) * Room::K_WORDS + d / 2) =
          make_uint4(k_word[e][0], k_word[e][1], k_word[e][2], k_word[e][3]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j)
      *(uint4*)(values + pair * Room::V_WORDS + d + 4 * j) =
          make_uint4(lower(v_word[0][2 * j], v_word[1][2 * j]), upper(v_word[0][2 * j], v_word[1][2 * j]),
                     lower(v_word[0][2 * j + 1], v_word[1][2 * j + 1]),
                     upper(v_word[0][2 * j + 1], v_word[1][2 * j + 1]));
  }
}

template <int D, class Kept>
__device__ __forceinline__ void chunk(float* out, unsigned* tickets, float2* sums, float* parts, const float* q,
                                      const Kept* k, const Kept* v, const half* k_scale, const half* v_scale,
                                      const int* count, int items, int group, int capacity, int window) {
  typedef Staged<D> Room;
  constexpr int ROWS = 64, KEYS = Room::KEYS;
  extern __shared__ float4 room[];
  unsigned* const keys = (unsigned*)room;                  // [KEYS, K_WORDS]
  unsigned* const values = keys + KEYS * Room::K_WORDS;    // [KEYS / 2, V_WORDS]
  float* const steps = (float*)(values + KEYS / 2 * Room::V_WORDS);  // [3, KEYS], of bytes alone
  const Tile tile = tile_of<ROWS, KEYS>(count[blockIdx.z], items, group, capacity, window, gridDim.y);
  if (blockIdx.y >= tile.live) return;
  const int from = blockIdx.y * tile.keys, to = min(from + tile.keys, tile.seen);
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, mine = (threadIdx.x >> 5) * 16;
  const size_t stream = ((size_t)blockIdx.z * tile.heads + tile.head) * capacity;
  const int oldest = tile.own + (tile.first + min(mine, tile.rows - 1)) / group;  // of this warp's queries
  const int newest = tile.own + (tile.first + min(mine + 15, tile.rows - 1)) / group;

  unsigned high[D / 16][4], low[D / 16][4];
  float mix[D / 8][4], most[2], sum[2];
  int own[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = tile.first + min(mine + g + 8 * r, tile.rows - 1);  // queries that are not there repeat the last
    const float* const x = q + head_of(tile, row, items, group) * D + 4 * t;
    own[r] = tile.own + row / group;
    most[r] = LOWEST;
    sum[r] = 0.f;
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
      const float4 four = *(const float4*)(x + 16 * s);
      halve(high[s][r], low[s][r], four.x * (LOG2_E / sqrtf(D)), four.y * (LOG2_E / sqrtf(D)));
      halve(high[s][r + 2], low[s][r + 2], four.z * (LOG2_E / sqrtf(D)), four.w * (LOG2_E / sqrtf(D)));
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n) mix[n][2 * r] = mix[n][2 * r + 1] = 0.f;
  }

  for (int at = from; at < to; at += KEYS) {
    __syncthreads();  // all have read what was there
    fill<D>(keys, values, steps, k, v, k_scale, v_scale, stream, tile, at, to, capacity);
    __syncthreads();
    if (mine >= tile.rows || at > newest || at + KEYS <= oldest - window + 1) continue;
    float score[KEYS / 8][4];
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
      score[n][0] = score[n][1] = score[n][2] = score[n][3] = 0.f;
#pragma unroll
      for (int s = 0; s < D / 16; ++s) {
        const uint2 words = *(const uint2*)(keys + (8 * n + g) * Room::K_WORDS + 8 * s + 2 * t);
        const unsigned b[2] = {words.x, words.y};
        mma(score[n], high[s], b);
        mma(score[n], low[s], b);
      }
      if (sizeof(Kept) == 1) {
        const float2 by = *(const float2*)(steps + 8 * n + 2 * t);
        const float2 more = *(const float2*)(steps + KEYS + 8 * n + 2 * t);
#pragma unroll
        for (int i = 0; i < 4; ++i) score[n][i] = score[n][i] * (i % 2 ? by.y : by.x) + (i % 2 ? more.y : more.x);
      }
    }
    if (at + KEYS > to || at + KEYS - 1 > oldest || at <= newest - window) {  // some queries do not see all keys
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = at + 8 * n + 2 * t + i % 2;
          if (key >= to || !sees(own[i / 2], key, window)) score[n][i] = NOTHING;
        }
    }
    unsigned weight[KEYS / 8][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = most[r];
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) top = fmaxf(top, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float keep = exp2f(most[r] - top);
      most[r] = top;
      sum[r] *= keep;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) mix[n][2 * r] *= keep, mix[n][2 * r + 1] *= keep;
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
        const half2 two = __floats2half2_rn(exp2f(score[n][2 * r] - (top - HEADROOM)),
                                            exp2f(score[n][2 * r + 1] - (top - HEADROOM)));
        const float2 near = __half22float2(two);
        weight[n][r] = word_of(two);
        if (sizeof(Kept) == 1) {
          const float2 by = *(const float2*)(steps + 2 * KEYS + 8 * n + 2 * t);
          sum[r] += near.x * by.x + near.y * by.y;
        } else {
          sum[r] += near.x + near.y;
        }
      }
    }
#pragma unroll
    for (int s = 0; s < KEYS / 16; ++s) {
      const unsigned a[4] = {weight[2 * s][0], weight[2 * s][1], weight[2 * s + 1][0], weight[2 * s + 1][1]};
#pragma unroll
      for (int j = 0; j < D / 16; ++j) {  // of sixteen columns the even ones, and the odd ones
        const uint2 first = *(const uint2*)(values + (8 * s + t) * Room::V_WORDS + 16 * j + 2 * g);
        const uint2 second = *(const uint2*)(values + (8 * s + t + 4) * Room::V_WORDS + 16 * j + 2 * g);
        const unsigned even[2] = {first.x, second.x}, odd[2] = {first.y, second.y};
        mma(mix[2 * j], a, even);
        mma(mix[2 * j + 1], a, odd);
      }
    }
  }

  const bool alone = tile.live == 1;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float whole = sum[r] + __shfl_xor_sync(0xffffffffu, sum[r], 1);
    whole += __shfl_xor_sync(0xffffffffu, whole, 2);
    if (mine + g + 8 * r >= tile.rows) continue;
    const int row = tile.first + mine + g + 8 * r;
    const size_t part = part_of(tile, blockIdx.y, row, items * group, gridDim.y);
    float* const to_row = (alone ? out + head_of(tile, row, items, group) * D : parts + part * D) + 4 * t;
    const float gain = !alone ? 1.f : whole > 0.f ? 1.f / whole : 0.f;
    if (!alone && t == 0) sums[part] = make_float2(most[r], whole);
#pragma unroll
    for (int j = 0; j < D / 16; ++j)
      *(float4*)(to_row + 16 * j) = make_float4(mix[2 * j][2 * r] * gain, mix[2 * j + 1][2 * r] * gain,
                                                mix[2 * j][2 * r + 1] * gain, mix[2 * j + 1][2 * r + 1] * gain);
  }
  if (!alone) finish<D>(out, tickets, sums, parts, tile, items, group);
}
