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

// Two halves that x and y round to, and two more of what that left.
__device__ __forceinline__ void split_in_two(unsigned& high, unsigned& low, float x, float y) {
  high = word_of(kept_halves(x, y));
  float near[2];
  unpack(near, high);
  low = word_of(kept_halves(x - near[0], y - near[1]));
}

// The lower halves of two words, and the upper ones.
__device__ __forceinline__ unsigned lower(unsigned a, unsigned b) { return (a & 0xffffu) | b << 16; }
__device__ __forceinline__ unsigned upper(unsigned a, unsigned b) { return a >> 16 | (b & 0xffff0000u); }

__device__ __forceinline__ uint4 halves(uint4 bits, float) { return bits; }
__device__ __forceinline__ uint4 halves(uint2 bits, float by) {
  float x[8];
  unpack(x, bits);
  return make_uint4(word_of(kept_halves(x[0] * by, x[1] * by)), word_of(kept_halves(x[2] * by, x[3] * by)),
                    word_of(kept_halves(x[4] * by, x[5] * by)), word_of(kept_halves(x[6] * by, x[7] * by)));
}

// Keys at .. at + 63 into shared memory, zeros from `to` on: what lies there was perhaps never written. Bytes of keys
// are exact as halves, and their steps wait for the scores; values are multiplied out.
template <int D, class Kept>
__device__ __forceinline__ void stage(unsigned* keys, unsigned* values, float* steps, const Kept* k, const Kept* v,
                                      const half* k_scale, const half* v_scale, size_t stream, int start, int at,
                                      int to, int capacity) {
  typedef Staged<D> Room;
#pragma unroll 2
  for (int i = threadIdx.x; i < Room::KEYS / 2 * (D / 8); i += blockDim.x) {  // two keys, eight columns
    const int pair = i / (D / 8), d = i % (D / 8) * 8;
    uint4 mine[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int key = at + 2 * pair + e;
      int slot = start + min(key, to - 1);
      slot -= slot >= capacity ? capacity : 0;
      const size_t held = stream + slot;
      const bool there = key < to;
      const uint4 k_bits = halves(eight(k + held * D + d), 1.f);
      const uint4 v_bits = halves(eight(v + held * D + d), worth(step_of(v, v_scale, held)));
      if (sizeof(Kept) == 1 && d == 0) steps[2 * pair + e] = worth(step_of(k, k_scale, held));
      *(uint4*)(keys + (2 * pair + e) * Room::K_WORDS + d / 2) = there ? k_bits : make_uint4(0, 0, 0, 0);
      mine[e] = there ? v_bits : make_uint4(0, 0, 0, 0);
    }
    uint4* const zipped = (uint4*)(values + pair * Room::V_WORDS + d);
    zipped[0] = make_uint4(lower(mine[0].x, mine[1].x), upper(mine[0].x, mine[1].x),
                           lower(mine[0].y, mine[1].y), upper(mine[0].y, mine[1].y));
    zipped[1] = make_uint4(lower(mine[0].z, mine[1].z), upper(mine[0].z, mine[1].z),
                           lower(mine[0].w, mine[1].w), upper(mine[0].w, mine[1].w));
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
  float* const steps = (float*)(values + KEYS / 2 * Room::V_WORDS);  // [KEYS], of bytes alone
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
      split_in_two(high[s][r], low[s][r], four.x * (LOG2_E / sqrtf(D)), four.y * (LOG2_E / sqrtf(D)));
      split_in_two(high[s][r + 2], low[s][r + 2], four.z * (LOG2_E / sqrtf(D)), four.w * (LOG2_E / sqrtf(D)));
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n) mix[n][2 * r] = mix[n][2 * r + 1] = 0.f;
  }

  for (int at = from; at < to; at += KEYS) {
    __syncthreads();  // all have read what was there
    stage<D>(keys, values, steps, k, v, k_scale, v_scale, stream, tile.start, at, to, capacity);
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
        const float2 two = *(const float2*)(steps + 8 * n + 2 * t);
        score[n][0] *= two.x, score[n][1] *= two.y, score[n][2] *= two.x, score[n][3] *= two.y;
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
        float x[2];
        weight[n][r] = word_of(__floats2half2_rn(exp2f(score[n][2 * r] - top), exp2f(score[n][2 * r + 1] - top)));
        unpack(x, weight[n][r]);
        sum[r] += x[0] + x[1];
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
