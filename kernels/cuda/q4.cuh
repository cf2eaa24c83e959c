// Q4_0 [N, K] times up to 64 rows of x through the tensor cores, exact to f32. linear.cu and fused.cu share it.
//
// Weights, in fragment order: tiles of 16 rows x 64 columns, one after another along K (a "step" is 64 columns).
// A warp reads a step as 32 lanes x 16 bytes. With g = lane / 4, t = lane % 4, word 2b + p of a lane has rows g
// and g + 8, columns 32b + 8t + 4p + (0..3):
//     bits 0-3   row g, column 0      4-7   row g + 8, column 0      8-11   row g, column 2      12-15   row g + 8,
//     column 2; the upper half the same for columns 1 and 3
// so that one `and` gives both halves of a fragment register. Inside a block of 32 the order of columns is free as
// long as x follows it: here a lane's eight are neighbours, and x is read 16 bytes at a time. Scales are
// [tile][step][g][4] halves: rows g and g + 8 of the first 32 columns, then of the second. What pads N to 16 and
// K to 64 has scale 0.
//
// Activations are two halves each, hi + lo = x * 2^e: hi in column 2m of the 8-wide operand, lo in column 2m + 1;
// their sums meet in one thread. 22 bits and two signs: 1e-7. The power of two belongs to the row, takes its
// largest magnitude to 2^14..2^15 and is undone at the end: without it 70000 would be infinite in half, and a lo
// under 6e-8 would be lost. With it every finite row works, and what half cannot hold is 2^-39 of the largest.
//
// How to build a kernel of it (`q4_staged` in linear.cu is the shortest):
//     q4_product<1, 1>(tiles, steps, rows, share, partial,                   // one matrix, 8 columns: 4 rows of x
//         [&](int tile, int) { return w.tile(tile); },                       // weights: a Q4 standing at a tile
//         [&] { return q4_stage_here(terms, partial, rows, columns, PlainRows{x, columns}); },  // activations
//         [&](int row, int m, const float2 (&y)[1]) { ... });                // y of rows `row` (even), `row` + 1
// MATRICES = 2 runs the same tile of two matrices (gate and up) and gives both to the epilogue; several matrices
// side by side (q, k, v) are one product whose first functor picks the matrix by tile. `row` counts over all
// tiles of the product, includes padding (compare with N), and is always even, so that a rotated pair is one call.
// NormedRows instead of PlainRows norms x on the way in. More than 4 rows: launch q4_split first, q4_from after.
#pragma once
#include "primitives.cuh"

struct Q4 {
  const uint4* nibbles;  // [tiles, steps, 32]
  const uint2* scales;   // [tiles, steps, 8]
  int steps;
  __device__ __forceinline__ Q4 tile(int i) const {
    return {nibbles + (size_t)i * steps * 32, scales + (size_t)i * steps * 8, steps};
  }
};

struct Q4Step {
  uint4 nibbles;
  uint2 scales;
};

// One lane's place in a tile. Weights are read once, by one warp: the loads say so, and leave the cache to x.
struct Q4Lane {
  const uint4* nibbles;
  const uint2* scales;
  __device__ __forceinline__ Q4Lane() {}
  __device__ __forceinline__ Q4Lane(const Q4& w, int step)
      : nibbles(w.nibbles + step * 32 + (threadIdx.x & 31)), scales(w.scales + step * 8 + (threadIdx.x >> 2 & 7)) {}
  __device__ __forceinline__ Q4Step load() const { return {__ldcs(nibbles), __ldcs(scales)}; }
  __device__ __forceinline__ void move(int steps) { nibbles += steps * 32, scales += steps * 8; }
};

__device__ __forceinline__ half2 as_half2(unsigned bits) { return *reinterpret_cast<const half2*>(&bits); }
__device__ __forceinline__ unsigned as_bits(half2 pair) { return *reinterpret_cast<const unsigned*>(&pair); }

// Nibbles to q - 8, exact in half: (1024 + q) - 1032, and (1024 + 16 q) / 16 - 72.
__device__ __forceinline__ unsigned q4_low(unsigned bits) {
  return as_bits(__hsub2(as_half2(nibbles(bits, 0x000f000fu)), __floats2half2_rn(1032.f, 1032.f)));
}

__device__ __forceinline__ unsigned q4_high(unsigned bits) {
  return as_bits(__hfma2(as_half2(nibbles(bits, 0x00f000f0u)), __floats2half2_rn(0.0625f, 0.0625f),
                         __floats2half2_rn(-72.f, -72.f)));
}

// Activations as `q4_stage` leaves them, in shared or global memory, seen from one lane.
struct Q4Columns {
  const uint4* terms;    // [blocks of 32][columns of the operand][t]: eight halves; this lane's first one
  int stride;            // uint4s from one block of 32 to the next
  const float* unscale;  // [rows]: what undoes the power of two, times the norm's factor
};

// Of the two blocks of 32 in a step. For Blackwell the compiler would load both blocks' x at once, up to 64 vectors,
// and leave room for half as many warps.
__device__ constexpr int q4_blocks_at_once(int tiles) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  return tiles > 4 ? 1 : 2;
#else
  return 2;
#endif
}

// sum += one step of 16 rows x 64 columns, for 8 * TILES columns of the operand; x and stride as in Q4Columns, x at
// this step. A block's scale is applied in f32 after its two products, which started from zero.
template <int TILES>
__device__ __forceinline__ void q4_multiply(float (&sum)[TILES][4], const Q4Step& w, const uint4* x, int stride) {
  unsigned words[2] = {w.nibbles.x, w.nibbles.y}, scales = w.scales.x;
#pragma unroll(q4_blocks_at_once(TILES))
  for (int b = 0; b < 2; ++b) {
    unsigned a[2][4];
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const unsigned bits = words[p], upper = bits >> 8;
      a[p][0] = q4_low(bits), a[p][1] = q4_high(bits), a[p][2] = q4_low(upper), a[p][3] = q4_high(upper);
    }
    const float2 scale = __half22float2(as_half2(scales));  // of rows g and g + 8
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
      const uint4 v = x[b * stride + 32 * j];
      const unsigned front[2] = {v.x, v.y}, back[2] = {v.z, v.w};
      float c[4] = {0.f, 0.f, 0.f, 0.f};
      mma(c, a[0], front);
      mma(c, a[1], back);
      sum[j][0] += scale.x * c[0], sum[j][1] += scale.x * c[1];
      sum[j][2] += scale.y * c[2], sum[j][3] += scale.y * c[3];
    }
    words[0] = w.nibbles.z, words[1] = w.nibbles.w, scales = w.scales.y;
  }
}

// 16-byte loads a thread keeps in flight. Three times 1024 threads are 48 KB, what an H200 needs to stay busy, in 64
// registers each. A product of many columns has more to do per load and more to hold, and so has Turing, whose
// tensor cores take a block in four steps. For Blackwell the compiler holds more beside them, and would spill.
__device__ constexpr int q4_ahead(int matrices, int tiles) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return 2;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  return tiles < 8 ? 2 : 1;
#else
  return tiles > 1 || matrices > 1 ? 2 : 3;
#endif
}

// The whole product. A block's warps work in groups of `share`, a group on one tile at a time, its warps taking
// every share-th step; their sums meet in `partial` [warps][MATRICES][rows][16] floats of shared memory, in the
// same order whatever the schedule. The first loads leave before x is touched, and before a tile's sums are added.
template <int MATRICES, int TILES, int AHEAD = q4_ahead(MATRICES, TILES), class Weights, class Activations,
          class Epilogue>
__device__ __forceinline__ void q4_product(int tiles, int steps, int rows, int share, float* partial,
                                           const Weights& weights, const Activations& activations,
                                           const Epilogue& done) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, groups = (blockDim.x >> 5) / share;
  const int group = warp / share, part = warp % share, mine = (steps - part + share - 1) / share;
  Q4Lane at[MATRICES];  // AHEAD loads before the step that is multiplied
  Q4Step ahead[MATRICES][AHEAD];
  auto begin = [&](int tile) {
#pragma unroll
    for (int i = 0; i < MATRICES; ++i) {
      at[i] = Q4Lane(weights(tile, i), part);
#pragma unroll
      for (int u = 0; u < AHEAD; ++u) {
        if (u < mine) ahead[i][u] = at[i].load();
        at[i].move(share);
      }
    }
  };
  int first = blockIdx.x * groups;  // the same in all threads of a block: there are barriers inside
  if (first + group < tiles) begin(first + group);
  const Q4Columns x = activations();
  const int hop = 2 * share * x.stride;
  for (; first < tiles; first += gridDim.x * groups) {
    float sum[MATRICES][TILES][4] = {};
    const int tile = first + group, next = tile + gridDim.x * groups;
    const uint4* from = x.terms + 2 * part * x.stride;
    for (int left = tile < tiles ? mine : 0; left > 0; left -= AHEAD) {
#pragma unroll
      for (int u = 0; u < AHEAD; ++u) {
        if (left > u) {
#pragma unroll
          for (int i = 0; i < MATRICES; ++i) {
            q4_multiply(sum[i], ahead[i][u], from, x.stride);
            if (left > u + AHEAD) ahead[i][u] = at[i].load();
            at[i].move(share);
          }
          from += hop;
        }
      }
    }
    if (next < tiles) begin(next);
#pragma unroll
    for (int i = 0; i < MATRICES; ++i) {
      float* const to = partial + ((warp * MATRICES + i) * rows + (lane & 3)) * 16 + (lane >> 2);
#pragma unroll
      for (int j = 0; j < TILES; ++j)
        if (4 * j + (lane & 3) < rows)
          to[64 * j] = sum[i][j][0] + sum[i][j][1], to[64 * j + 8] = sum[i][j][2] + sum[i][j][3];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < groups * rows * 8; i += blockDim.x) {
      const int pair = i & 7, m = (i >> 3) % rows, owner = (i >> 3) / rows;
      if (first + owner >= tiles) break;
      float2 y[MATRICES];
#pragma unroll
      for (int k = 0; k < MATRICES; ++k) {
        y[k] = make_float2(0.f, 0.f);
        const float* kept = partial + ((owner * share * MATRICES + k) * rows + m) * 16 + 2 * pair;
        for (int p = 0; p < share; ++p, kept += MATRICES * rows * 16) y[k].x += kept[0], y[k].y += kept[1];
        y[k].x *= x.unscale[m], y[k].y *= x.unscale[m];
      }
      done((first + owner) * 16 + 2 * pair, m, y);
    }
    __syncthreads();
  }
}

// Four neighbours of x [rows, columns]; `squares` collects what the norm needs, `factor` is the norm's. A thread has
// LOADS of x on their way at once, with what comes beside them.
struct PlainRows {
  static constexpr int LOADS = 3;
  const float* x;
  int columns;
  __device__ __forceinline__ float4 read(int m, int k, float&) const {
    return *reinterpret_cast<const float4*>(x + (size_t)m * columns + k);
  }
  __device__ __forceinline__ float factor(float) const { return 1.f; }
};

// x / sqrt(mean(x^2) + eps) * gain * (1 + scale); the root is a factor of the whole row and comes in at the end
struct NormedRows {
  static constexpr int LOADS = 2;
  const float* x;
  int columns;
  const float* gain;
  const float* scale;  // or NULL
  float eps;
  __device__ __forceinline__ float4 read(int m, int k, float& squares) const {
    float4 v = *reinterpret_cast<const float4*>(x + (size_t)m * columns + k);
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    const float4 by = *reinterpret_cast<const float4*>(gain + k);
    v.x *= by.x, v.y *= by.y, v.z *= by.z, v.w *= by.w;
    if (scale) {
      const float4 more = *reinterpret_cast<const float4*>(scale + k);
      v.x *= 1.f + more.x, v.y *= 1.f + more.y, v.z *= 1.f + more.z, v.w *= 1.f + more.w;
    }
    return v;
  }
  __device__ __forceinline__ float factor(float squares) const { return 1.f / sqrtf(squares / columns + eps); }
};

__device__ __forceinline__ float largest(float4 v) {
  return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

// Biased exponent of the power of two that takes a row's largest magnitude to 2^14..2^15. Held to 1..253, so that
// the power and its reciprocal, 254 - e, are both normal numbers; a row of zeros stays one.
__device__ __forceinline__ int row_exponent(float most) {
  return min(max(268 - (int)(__float_as_uint(most) >> 23), 1), 253);
}

__device__ __forceinline__ float power_of_two(int biased) { return __uint_as_float((unsigned)biased << 23); }

__device__ __forceinline__ void two_terms(half2& hi, half2& lo, float a, float b) {
  hi = __floats2half2_rn(a, b);
  const float2 back = __half22float2(hi);
  lo = __floats2half2_rn(a - back.x, b - back.y);
}

// Rows of x into `terms` [blocks of 32][width][4] uint4, hi of row m in column 2m, lo in 2m + 1; and `unscale`.
// The whole block works on it, each row has as many warps, and all meet at the end. The row is another kernel's and
// far away, so loads do not wait for each other: what would lie behind its end repeats its last four.
// room: 64 floats of shared memory; rows <= 4, and there are as many warps.
template <class Rows>
__device__ __forceinline__ void q4_stage(uint4* terms, int width, float* unscale, float* room, int rows, int columns,
                                         const Rows& from) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, each = (blockDim.x >> 5) / rows;
  const int m = warp / each, first = threadIdx.x - 32 * m * each, threads = 32 * each;  // of this row
  float most = 0.f, squares = 0.f;
#pragma unroll 1
  for (int k = m < rows ? 4 * first : columns; k < columns; k += 4 * Rows::LOADS * threads) {
#pragma unroll
    for (int u = 0; u < Rows::LOADS; ++u) {
      const int at = k + 4 * u * threads;
      float some = 0.f;
      most = fmaxf(most, largest(from.read(m, min(at, columns - 4), some)));
      squares += at < columns ? some : 0.f;
    }
  }
  most = warp_max(most), squares = warp_sum(squares);
  if (lane == 0) room[warp] = most, room[32 + warp] = squares;
  __syncthreads();
  if (m < rows) {
    const int e = row_exponent(warp_max(lane < each ? room[m * each + lane] : 0.f));
    squares = warp_sum(lane < each ? room[32 + m * each + lane] : 0.f);
    const float up = power_of_two(e);
    if (first == 0) unscale[m] = power_of_two(254 - e) * from.factor(squares);
    const int units = (columns + 63) / 64 * 8;  // of eight neighbours: (block of 32, t)
#pragma unroll 1
    for (int unit = first; unit < units; unit += threads) {
      float4 v = make_float4(0.f, 0.f, 0.f, 0.f), u = v;
      float unused = 0.f;
      if (8 * unit < columns) v = from.read(m, 8 * unit, unused), u = from.read(m, 8 * unit + 4, unused);
      half2 hi[4], lo[4];
      two_terms(hi[0], lo[0], v.x * up, v.y * up), two_terms(hi[1], lo[1], v.z * up, v.w * up);
      two_terms(hi[2], lo[2], u.x * up, u.y * up), two_terms(hi[3], lo[3], u.z * up, u.w * up);
      uint4* at = terms + ((unit >> 2) * width + 2 * m) * 4 + (unit & 3);
      at[0] = make_uint4(as_bits(hi[0]), as_bits(hi[1]), as_bits(hi[2]), as_bits(hi[3]));
      at[4] = make_uint4(as_bits(lo[0]), as_bits(lo[1]), as_bits(lo[2]), as_bits(lo[3]));
    }
  }
  __syncthreads();
}

// Up to 4 rows, staged by the block itself into `terms`: 256 * rows * steps bytes of shared memory, then 4 floats.
// Lanes whose column of the operand no row owns read the last one: their sums are not looked at.
template <class Rows>
__device__ __forceinline__ Q4Columns q4_stage_here(uint4* terms, float* room, int rows, int columns,
                                                   const Rows& from) {
  float* unscale = reinterpret_cast<float*>(terms + (columns + 63) / 64 * 16 * rows);
  q4_stage(terms, 2 * rows, unscale, room, rows, columns, from);
  const int lane = threadIdx.x & 31;
  return {terms + min(lane >> 2, 2 * rows - 1) * 4 + (lane & 3), 8 * rows, unscale};
}

// Up to 4 * TILES rows that an earlier launch of q4_split left in global memory. Columns past the last row hold
// anything, and give sums that are not looked at.
template <int TILES>
__device__ __forceinline__ Q4Columns q4_from(const uint4* terms, const float* unscale) {
  return {terms + (threadIdx.x & 31), 32 * TILES, unscale};
}
