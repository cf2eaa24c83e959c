// What every attention kernel shares: which keys a tile of queries sees, how the kept ones are read, and how what
// several blocks found becomes one answer.
//
// R = G * T queries read the stream of one key head: T items, G = H / K heads each; query r is item r / G, head r % G
// of its group. A block takes a tile of them (grid.x: K * tiles) and one of S ranges of keys (grid.y) in one lane
// (grid.z). Positions are counted from the oldest one that the tile sees, so that they stay small for ever.
#pragma once
#include "select.cuh"

constexpr float LOWEST = -1e30f;  // where a maximum starts: below any score, and its difference to one is finite
constexpr float LOG2_E = 1.44269504088896340736f;  // scores are kept as powers of two
constexpr float HEADROOM = 12.f;  // weights go up to 2^12, so that halves have digits for the small ones too
constexpr float LEAST_HALF = 5.9604644775390625e-8f;  // what a step of zero is taken for
constexpr int LEAST_KEYS = 64;    // per split; fewer would leave loads too few to hide how long each takes

// What a query scores where it may not look. Not a constant: 1 / 0 is none to this compiler.
#define NOTHING __uint_as_float(0xff800000u)

struct Tile {
  int head, heads;   // key head, and of how many
  int first, rows;   // its queries
  int own;           // position of item 0; negative where the lane is shorter than the step
  int seen, start;   // how many positions its queries see together, and the slot of the first
  int keys, live;    // positions per split, and how many splits have any (at least one, which then writes zeros)
};

template <int ROWS, int GRAIN>
__device__ __forceinline__ Tile tile_of(int count, int items, int group, int capacity, int window, int splits) {
  Tile tile;
  const int all = items * group, tiles = (all + ROWS - 1) / ROWS;
  tile.heads = gridDim.x / tiles;
  tile.head = blockIdx.x / tiles;
  tile.first = blockIdx.x % tiles * ROWS;
  tile.rows = min(ROWS, all - tile.first);
  const int oldest = max(0, count - items + tile.first / group - window + 1);
  tile.own = count - items - oldest;
  tile.seen = max(0, tile.own + (tile.first + tile.rows - 1) / group + 1);
  tile.start = oldest % capacity;
  const int even = max((tile.seen + splits - 1) / splits, LEAST_KEYS);
  tile.keys = (even + GRAIN - 1) / GRAIN * GRAIN;
  tile.live = max(1, (tile.seen + tile.keys - 1) / tile.keys);
  return tile;
}

__device__ __forceinline__ bool sees(int own, int at, int window) { return (unsigned)(own - at) < (unsigned)window; }

// Where query `row` of the key head lies in q and out [B, T, H, D], in heads.
__device__ __forceinline__ size_t head_of(const Tile& tile, int row, int items, int group) {
  return ((size_t)blockIdx.z * items + row / group) * tile.heads * group + tile.head * group + row % group;
}

// The slot of a position, counted from the oldest one that the tile sees.
__device__ __forceinline__ int slot_of(const Tile& tile, int at, int capacity) {
  const int slot = tile.start + at;
  return slot < capacity ? slot : slot - capacity;
}

// --- what is kept: halves, or signed bytes that count steps, one step for a position and head

template <int BYTES> struct Bits;  // that one load brings
template <> struct Bits<8> { typedef uint2 type; };
template <> struct Bits<16> { typedef uint4 type; };

__device__ __forceinline__ unsigned word_of(half2 two) { return *(const unsigned*)&two; }
__device__ __forceinline__ half2 two_of(unsigned word) { return *(const half2*)&word; }

// The lower halves of two words, and the upper ones.
__device__ __forceinline__ unsigned lower(unsigned a, unsigned b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ unsigned upper(unsigned a, unsigned b) { return __byte_perm(a, b, 0x7632); }

// Words of two halves each, from halves, and from bytes, which halves hold exactly: a byte behind 0x64 is 1024 more.
__device__ __forceinline__ void halves_of(unsigned (&word)[4], uint4 bits) {
  word[0] = bits.x, word[1] = bits.y, word[2] = bits.z, word[3] = bits.w;
}

__device__ __forceinline__ void halves_of_bytes(unsigned* word, unsigned four) {
  const unsigned above = four ^ 0x80808080u;  // -128 .. 127 becomes 0 .. 255
  const half2 zero = __float2half2_rn(1152.f);
  word[0] = word_of(__hsub2(two_of(__byte_perm(above, 0x64646464u, 0x4140)), zero));
  word[1] = word_of(__hsub2(two_of(__byte_perm(above, 0x64646464u, 0x4342)), zero));
}

__device__ __forceinline__ void halves_of(unsigned (&word)[4], uint2 bits) {
  halves_of_bytes(word, bits.x);
  halves_of_bytes(word + 2, bits.y);
}

__device__ __forceinline__ void halves_of(unsigned (&word)[8], uint4 bits) {
  halves_of_bytes(word, bits.x);
  halves_of_bytes(word + 2, bits.y);
  halves_of_bytes(word + 4, bits.z);
  halves_of_bytes(word + 6, bits.w);
}

__device__ __forceinline__ float value_of(half kept) { return __half2float(kept); }
__device__ __forceinline__ float value_of(signed char kept) { return kept; }

// What a step is worth; halves have none, and it costs them nothing.
__device__ __forceinline__ float step_of(const half*, const half*, size_t) { return 1.f; }
__device__ __forceinline__ float step_of(const signed char*, const half* scale, size_t slot) {
  return __half2float(scale[slot]);
}

// A weight is counted in steps of its value: what that adds to the score, and takes from the weight in a sum. Both are
// approximate by 2^-22, and make of one key that much more or less.
__device__ __forceinline__ float steps_more(float step) { return __log2f(fmaxf(step, LEAST_HALF)); }
__device__ __forceinline__ float steps_less(float step) { return __fdividef(1.f, fmaxf(step, LEAST_HALF)); }

// Halves end at 65504. What lies beyond stays there and finite; what is not a number stays none.
__device__ __forceinline__ float within_half(float x) { return fabsf(x) > 65504.f ? copysignf(65504.f, x) : x; }
__device__ __forceinline__ half2 kept_halves(float x, float y) {
  return __floats2half2_rn(within_half(x), within_half(y));
}

// Two halves that x and y round to, and two more of what that left.
__device__ __forceinline__ void halve(unsigned& high, unsigned& low, float x, float y) {
  const half2 two = kept_halves(x, y);
  const float2 near = __half22float2(two);
  high = word_of(two);
  low = word_of(kept_halves(x - near.x, y - near.y));
}

// --- splits become one: each query left (largest score, sum of exp2(score - largest)) in sums [B, K, S, R] and
// the sum of exp2(score - largest) * value in parts [B, K, S, R, D]

__device__ __forceinline__ size_t part_of(const Tile& tile, int split, int row, int rows, int splits) {
  return ((((size_t)blockIdx.z * tile.heads + tile.head) * splits) + split) * rows + row;
}

// Splits whose parts are on their way at once. Turing's split has no registers for more.
__device__ constexpr int gathered_at_once() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return 8;
#else
  return 16;
#endif
}

// Columns d .. d + 3 of the answer of one query, whose splits lie at `part`, part + rows, ...; zeros if none saw a key.
// Loads are in groups even where fewer splits are left: an unrolled loop would wait for each of the last ones alone.
__device__ __forceinline__ float4 gather(const float2* sums, const float* parts, size_t part, int rows, int live,
                                         int width, int d) {
  constexpr int TOGETHER = gathered_at_once();
  float most = LOWEST, sum = 0.f;
  float4 mix = make_float4(0.f, 0.f, 0.f, 0.f);
  for (int split = 0; split < live; split += TOGETHER) {
    float2 one[TOGETHER];  // splits that are not there weigh nothing
    float4 o[TOGETHER];
    float top = most;
#pragma unroll
    for (int u = 0; u < TOGETHER; ++u) {
      const size_t at = part + (size_t)(split + u) * rows;
      one[u] = split + u < live ? sums[at] : make_float2(LOWEST, 0.f);
      o[u] = split + u < live ? *(const float4*)(parts + at * width + d) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#pragma unroll
    for (int u = 0; u < TOGETHER; ++u) top = fmaxf(top, one[u].x);
    const float keep = exp2f(most - top);
    most = top;
    sum *= keep, mix.x *= keep, mix.y *= keep, mix.z *= keep, mix.w *= keep;
#pragma unroll
    for (int u = 0; u < TOGETHER; ++u) {
      const float gain = exp2f(one[u].x - top);
      sum += one[u].y * gain;
      mix.x += o[u].x * gain, mix.y += o[u].y * gain, mix.z += o[u].z * gain, mix.w += o[u].w * gain;
    }
  }
  const float inverse = sum > 0.f ? 1.f / sum : 0.f;
  return make_float4(mix.x * inverse, mix.y * inverse, mix.z * inverse, mix.w * inverse);
}

// The last block of a tile to come here gathers what all of them left; `tickets` [B, K * tiles] are 0 in between.
template <int D>
__device__ __forceinline__ void finish(float* out, unsigned* tickets, const float2* sums, const float* parts,
                                       const Tile& tile, int items, int group) {
  if (!last_to_come(tickets + (size_t)blockIdx.z * gridDim.x + blockIdx.x, tile.live)) return;
  const int all = items * group;
  for (int i = threadIdx.x; i < tile.rows * (D / 4); i += blockDim.x) {
    const int row = tile.first + i / (D / 4), d = i % (D / 4) * 4;
    const size_t part = part_of(tile, 0, row, all, gridDim.y);
    *(float4*)(out + head_of(tile, row, items, group) * D + d) = gather(sums, parts, part, all, tile.live, D, d);
  }
}
