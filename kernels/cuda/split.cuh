// attend, few queries: a block takes 8 queries of one key head over one range of keys, a warp 16 or 32 keys at a time.
// Tensor cores do it, since what 4 queries ask of a key in f32 takes a processor longer than the key takes to come:
// scores are k q^T, keys as rows; answers are v^T w^T, columns of v as rows. q and w are two halves hi + lo each, and
// products begin at zero and are added up outside in f32, so that all of it is as good as f32.
// A lane loads the very words that it will multiply, all of a step before the first use. Which column of q and k is
// called which inside a product is free, and so is which of v's: chosen so that a lane's lie side by side.
// Fragments as `mma` has them, g = lane / 4, t = lane % 4.
#pragma once
#include "attention.cuh"

template <int D, class Kept>
__device__ __forceinline__ void split(float* out, unsigned* tickets, float2* sums, float* parts, const float* q,
                                      const Kept* k, const Kept* v, const half* k_scale, const half* v_scale,
                                      const int* count, int items, int group, int capacity, int window) {
  constexpr int ROWS = 8, WARPS = 4, SETS = 128 / D, STEP = 16 * SETS, GRAIN = WARPS * STEP;
  constexpr int WIDE = sizeof(Kept) == 1 && D == 128 ? 16 : 8;  // columns that a lane takes at once
  constexpr int K_LOADS = D / WIDE / 4, V_LOADS = D / WIDE / 8, WORDS = WIDE / 2;
  constexpr bool BYTES = sizeof(Kept) == 1;
  typedef typename Bits<sizeof(Kept) * WIDE>::type Load;
  extern __shared__ float4 room[];  // [WARPS, ROWS, D], then (largest, sum) [WARPS, ROWS]
  const Tile tile = tile_of<ROWS, GRAIN>(count[blockIdx.z], items, group, capacity, window, gridDim.y);
  if (blockIdx.y >= tile.live) return;
  const int from = blockIdx.y * tile.keys, to = min(from + tile.keys, tile.seen);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
  const size_t stream = ((size_t)blockIdx.z * tile.heads + tile.head) * capacity;

  unsigned high[D / 16][2], low[D / 16][2];
  {
    const int row = tile.first + min(g, tile.rows - 1);  // queries that are not there repeat the last
    const float* const x = q + head_of(tile, row, items, group) * D + t * WIDE;
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
      const float4 four = *(const float4*)(x + s / (WIDE / 4) * 4 * WIDE + s % (WIDE / 4) * 4);
      halve(high[s][0], low[s][0], four.x * (LOG2_E / sqrtf(D)), four.y * (LOG2_E / sqrtf(D)));
      halve(high[s][1], low[s][1], four.z * (LOG2_E / sqrtf(D)), four.w * (LOG2_E / sqrtf(D)));
    }
  }
  float mix[D / 16][4], most[2], sum[2];
  int own[2];  // of queries 2t and 2t + 1
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    own[e] = tile.own + (tile.first + min(2 * t + e, tile.rows - 1)) / group;
    most[e] = LOWEST;
    sum[e] = 0.f;
#pragma unroll
    for (int n = 0; n < D / 16; ++n) mix[n][e] = mix[n][e + 2] = 0.f;
  }

  for (int at = from + warp * STEP; at < to; at += GRAIN) {
    Load keys[SETS][2][K_LOADS], values[SETS][4][V_LOADS];
    float k_step[SETS][2], v_step[SETS][2];  // of keys g and g + 8
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const size_t slot = stream + slot_of(tile, min(at + 16 * set + g + 8 * r, to - 1), capacity);
#pragma unroll
        for (int c = 0; c < K_LOADS; ++c) keys[set][r][c] = *(const Load*)(k + slot * D + (4 * c + t) * WIDE);
        k_step[set][r] = step_of(k, k_scale, slot);
        v_step[set][r] = step_of(v, v_scale, slot);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int key = at + 16 * set + 2 * t + r % 2 + r / 2 * 8;
        const size_t slot = stream + slot_of(tile, min(key, to - 1), capacity);
#pragma unroll
        for (int c = 0; c < V_LOADS; ++c) values[set][r][c] = *(const Load*)(v + slot * D + (8 * c + g) * WIDE);
      }
    }

    float score[SETS][2][2], top[2] = {most[0], most[1]};  // of keys g and g + 8, queries 2t and 2t + 1
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
      float part[4][4] = {};  // apart, for shorter sums and shorter waits
#pragma unroll
      for (int c = 0; c < K_LOADS; ++c) {
        unsigned first[WORDS], second[WORDS];
        halves_of(first, keys[set][0][c]);
        halves_of(second, keys[set][1][c]);
#pragma unroll
        for (int j = 0; j < WIDE / 4; ++j) {
          const unsigned a[4] = {first[2 * j], second[2 * j], first[2 * j + 1], second[2 * j + 1]};
          mma(part[j % 2], a, high[c * (WIDE / 4) + j]);
          mma(part[2 + j % 2], a, low[c * (WIDE / 4) + j]);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int i = 2 * r + e, key = at + 16 * set + g + 8 * r;
          float x = part[0][i] + part[1][i] + (part[2][i] + part[3][i]);
          if (BYTES) x = x * k_step[set][r] + steps_more(v_step[set][r]);
          score[set][r][e] = key < to && sees(own[e], key, window) ? x : NOTHING;
          top[e] = fmaxf(top[e], score[set][r][e]);
        }
    }

    float keep[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int step = 4; step < 32; step <<= 1) top[e] = fmaxf(top[e], __shfl_xor_sync(0xffffffffu, top[e], step));
      keep[e] = exp2f(most[e] - top[e]);
      most[e] = top[e];
      sum[e] *= keep[e];
    }
    unsigned weight[SETS][2][2];  // hi and lo of query g at keys 2t, 2t + 1 and at 2t + 8, 2t + 9
#pragma unroll
    for (int set = 0; set < SETS; ++set)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float x[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          x[e] = exp2f(score[set][r][e] - (top[e] - HEADROOM));
          sum[e] += BYTES ? x[e] * steps_less(v_step[set][r]) : x[e];
        }
        unsigned two[2];
        halve(two[0], two[1], x[0], x[1]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {  // from lanes that hold a key to lanes that hold a query
          const unsigned even = __shfl_sync(0xffffffffu, two[i], 8 * t + g / 2);
          const unsigned odd = __shfl_sync(0xffffffffu, two[i], 8 * t + 4 + g / 2);
          weight[set][i][r] = __byte_perm(even, odd, g % 2 ? 0x7632 : 0x5410);
        }
      }
#pragma unroll
    for (int c = 0; c < V_LOADS; ++c) {
      unsigned word[SETS][4][WORDS];
#pragma unroll
      for (int set = 0; set < SETS; ++set)
#pragma unroll
        for (int r = 0; r < 4; ++r) halves_of(word[set][r], values[set][r][c]);
#pragma unroll
      for (int j = 0; j < WORDS; ++j) {  // columns 2j and 2j + 1 of the lane's
        float part[4] = {};
#pragma unroll
        for (int set = 0; set < SETS; ++set) {
          const unsigned a[4] = {lower(word[set][0][j], word[set][1][j]), upper(word[set][0][j], word[set][1][j]),
                                 lower(word[set][2][j], word[set][3][j]), upper(word[set][2][j], word[set][3][j])};
          mma(part, a, weight[set][0]);
          mma(part, a, weight[set][1]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) mix[c * WORDS + j][i] = mix[c * WORDS + j][i] * keep[i % 2] + part[i];
      }
    }
  }

  float* const mixes = (float*)room;
  float2* const ends = (float2*)(mixes + WARPS * ROWS * D);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
#pragma unroll
    for (int step = 4; step < 32; step <<= 1) sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], step);
    if (g == 0) ends[warp * ROWS + 2 * t + e] = make_float2(most[e], sum[e]);
    float* const to_room = mixes + (warp * ROWS + 2 * t + e) * D + g * WIDE;
#pragma unroll
    for (int n = 0; n < D / 16; ++n)
      *(float2*)(to_room + n / WORDS * 8 * WIDE + n % WORDS * 2) = make_float2(mix[n][e], mix[n][e + 2]);
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
