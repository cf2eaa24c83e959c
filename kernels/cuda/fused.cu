// The composite ops of fused.py over Q4_0 in fragment order, each the product of q4.cuh with its own ending:
//   qkv      norm, three products, RoPE, append: a pair of rows is rotated, or kept, by the thread that adds it up
//   residual x [R, N] += w @ h (+ bias);   gate_up  out = silu(gate @ norm(x)) * (up @ norm(x))
//   head     norm, the largest row of the table behind the guard, and the run of blanks
// *_4: up to 4 rows of x [R, K], which every block splits for itself; *_8 .. *_64: up to as many, which norm_split
// left in `terms`. Grid and `share` as in linear.cu: a warp owns 16 outputs of every row, or a part of their columns.
// All of a family take the same arguments; those of the other way to come by x are NULL. qkv ends at 32
// rows, and gate_up, with two matrices at once, at 16: there are no registers for more.
#include "attention.cuh"
#include "pointwise.cuh"
#include "q4.cuh"
#include "rope.cuh"
#include "select.cuh"

extern __shared__ __align__(16) float room[];

// q4_split of the norm of x.
// at most 64 registers
extern "C" __global__ void __launch_bounds__(512) norm_split(uint4* terms, float* unscale, const float* x,
                                                             const float* gain, const float* scale, float eps,
                                                             int columns, int width) {
  __shared__ float most[64];
  const int m = blockIdx.x;
  const NormedRows rows{x + (size_t)m * columns, columns, gain, scale, eps};
  q4_stage(terms + 8 * m, width, unscale + m, most, 1, columns, rows);
}

// Where a block keeps what it staged, and its partial sums.
template <int TILES, bool STAGED>
struct Room {
  uint4* terms;
  float* partial;
  __device__ __forceinline__ Room(int rows, int steps)
      : terms(reinterpret_cast<uint4*>(room)), partial(STAGED ? room + 64 * rows * steps + 4 : room) {}
  template <class Rows>
  __device__ __forceinline__ Q4Columns activations(const uint4* split, const float* unscale, int rows, int columns,
                                                   const Rows& from) const {
    if constexpr (STAGED) return q4_stage_here(terms, partial, rows, columns, from);
    return q4_from<TILES>(split, unscale);
  }
};

// --- norm + QKV + RoPE + append

struct Qkv {
  Q4 q, k, v;
  int q_tiles, k_tiles;
  __device__ __forceinline__ Q4 operator()(int tile, int) const {
    if (tile < q_tiles) return q.tile(tile);
    tile -= q_tiles;
    return tile < k_tiles ? k.tile(tile) : v.tile(tile - k_tiles);
  }
};

struct RotateAndKeep {
  float* q;               // [B, T, H, D]
  half *ring_k, *ring_v;  // [B, K, C, D], or NULL where a ring keeps bytes: `append` makes them of
  float *k, *v;           // [B, T, K, D]
  const int *count, *active;
  const float *q_bias, *k_bias, *v_bias;  // or NULL
  int items, heads, kept, width, capacity;
  double log2_step;  // see rope.cuh

  __device__ __forceinline__ void operator()(int row, int m, const float2 (&y)[1]) const {
    const int q_rows = (heads * width + 15) / 16 * 16, k_rows = (kept * width + 15) / 16 * 16;
    const bool is_q = row < q_rows, is_v = row >= q_rows + k_rows;
    row -= is_q ? 0 : is_v ? q_rows + k_rows : q_rows;
    const int outputs = (is_q ? heads : kept) * width;
    if (row >= outputs) return;
    const int lane = m / items, at = count[lane] + m % items;
    const float* const bias = is_q ? q_bias : is_v ? v_bias : k_bias;
    float2 pair = y[0];
    if (bias) pair.x += bias[row], pair.y += bias[row + 1];
    if (!is_v) pair = turn(pair, at, row % width / 2, log2_step);
    if (is_q || !ring_k) {
      *reinterpret_cast<float2*>((is_q ? q : is_v ? v : k) + (size_t)m * outputs + row) = pair;
    } else if (active[lane]) {
      const size_t slot = ((size_t)lane * kept + row / width) * capacity + at % capacity;
      *reinterpret_cast<half2*>((is_v ? ring_v : ring_k) + slot * width + row % width) = kept_halves(pair.x, pair.y);
    }
  }
};

// The last block counts the items, once nobody reads the counts any more.
__device__ __forceinline__ void count_items(int* count, const int* active, unsigned* ticket, int lanes, int items) {
  if (!last_to_come(ticket, gridDim.x)) return;
  for (int lane = threadIdx.x; lane < lanes; lane += blockDim.x)
    if (active[lane]) count[lane] += items;
}

template <int TILES, bool STAGED>
__device__ __forceinline__ void qkv(
    float* q, half* ring_k, half* ring_v, float* k, float* v, int* count, const int* active, unsigned* ticket,
    const float* x, const float* gain, float eps, const uint4* terms, const float* unscale, const uint4* q_nibbles,
    const uint2* q_scales, const float* q_bias, const uint4* k_nibbles, const uint2* k_scales, const float* k_bias,
    const uint4* v_nibbles, const uint2* v_scales, const float* v_bias, int lanes, int items, int heads, int kept,
    int width, int capacity, double log2_step, int columns, int share) {
  const int steps = (columns + 63) / 64, q_tiles = (heads * width + 15) / 16, k_tiles = (kept * width + 15) / 16;
  const int rows = lanes * items;
  const Qkv w{{q_nibbles, q_scales, steps}, {k_nibbles, k_scales, steps}, {v_nibbles, v_scales, steps},
              q_tiles, k_tiles};
  const Room<TILES, STAGED> at(rows, steps);
  q4_product<1, TILES, TILES == 8 ? 2 : q4_ahead(1, TILES)>(  // with fewer the compiler spills for Blackwell
      q_tiles + 2 * k_tiles, steps, rows, share, at.partial, w,
      [&] { return at.activations(terms, unscale, rows, columns, NormedRows{x, columns, gain, NULL, eps}); },
      RotateAndKeep{q, ring_k, ring_v, k, v, count, active, q_bias, k_bias, v_bias, items, heads, kept, width,
                    capacity, log2_step});
  if (ring_k) count_items(count, active, ticket, lanes, items);
}

// at most 64 registers
extern "C" __global__ void __launch_bounds__(512, 2) qkv_4(
    float* q, half* ring_k, half* ring_v, float* k, float* v, int* count, const int* active, unsigned* ticket,
    const float* x, const float* gain, float eps, const uint4* terms, const float* unscale, const uint4* q_nibbles,
    const uint2* q_scales, const float* q_bias, const uint4* k_nibbles, const uint2* k_scales, const float* k_bias,
    const uint4* v_nibbles, const uint2* v_scales, const float* v_bias, int lanes, int items, int heads, int kept,
    int width, int capacity, double log2_step, int columns, int share) {
  qkv<1, true>(
      q, ring_k, ring_v, k, v, count, active, ticket, x, gain, eps, terms, unscale, q_nibbles, q_scales, q_bias,
      k_nibbles, k_scales, k_bias, v_nibbles, v_scales, v_bias, lanes, items, heads, kept, width, capacity,
      log2_step, columns, share);
}

// at most 96 registers
extern "C" __global__ void __launch_bounds__(128, 5) qkv_8(
    float* q, half* ring_k, half* ring_v, float* k, float* v, int* count, const int* active, unsigned* ticket,
    const float* x, const float* gain, float eps, const uint4* terms, const float* unscale, const uint4* q_nibbles,
    const uint2* q_scales, const float* q_bias, const uint4* k_nibbles, const uint2* k_scales, const float* k_bias,
    const uint4* v_nibbles, const uint2* v_scales, const float* v_bias, int lanes, int items, int heads, int kept,
    int width, int capacity, double log2_step, int columns, int share) {
  qkv<2, false>(
      q, ring_k, ring_v, k, v, count, active, ticket, x, gain, eps, terms, unscale, q_nibbles, q_scales, q_bias,
      k_nibbles, k_scales, k_bias, v_nibbles, v_scales, v_bias, lanes, items, heads, kept, width, capacity,
      log2_step, columns, share);
}

// at most 96 registers
extern "C" __global__ void __launch_bounds__(128) qkv_16(
    float* q, half* ring_k, half* ring_v, float* k, float* v, int* count, const int* active, unsigned* ticket,
    const float* x, const float* gain, float eps, const uint4* terms, const float* unscale, const uint4* q_nibbles,
    const uint2* q_scales, const float* q_bias, const uint4* k_nibbles, const uint2* k_scales, const float* k_bias,
    const uint4* v_nibbles, const uint2* v_scales, const float* v_bias, int lanes, int items, int heads, int kept,
    int width, int capacity, double log2_step, int columns, int share) {
  qkv<4, false>(
      q, ring_k, ring_v, k, v, count, active, ticket, x, gain, eps, terms, unscale, q_nibbles, q_scales, q_bias,
      k_nibbles, k_scales, k_bias, v_nibbles, v_scales, v_bias, lanes, items, heads, kept, width, capacity,
      log2_step, columns, share);
}

// at most 128 registers
extern "C" __global__ void __launch_bounds__(128) qkv_32(
    float* q, half* ring_k, half* ring_v, float* k, float* v, int* count, const int* active, unsigned* ticket,
    const float* x, const float* gain, float eps, const uint4* terms, const float* unscale, const uint4* q_nibbles,
    const uint2* q_scales, const float* q_bias, const uint4* k_nibbles, const uint2* k_scales, const float* k_bias,
    const uint4* v_nibbles, const uint2* v_scales, const float* v_bias, int lanes, int items, int heads, int kept,
    int width, int capacity, double log2_step, int columns, int share) {
  qkv<8, false>(
      q, ring_k, ring_v, k, v, count, active, ticket, x, gain, eps, terms, unscale, q_nibbles, q_scales, q_bias,
      k_nibbles, k_scales, k_bias, v_nibbles, v_scales, v_bias, lanes, items, heads, kept, width, capacity,
      log2_step, columns, share);
}

// --- x += w @ h + bias

struct AddRows {
  float* x;           // [R, N]
  const float* bias;  // or NULL
  int outputs;
  __device__ __forceinline__ void operator()(int row, int m, const float2 (&y)[1]) const {
    float* at = x + (size_t)m * outputs + row;
    if (row < outputs) at[0] += bias ? y[0].x + bias[row] : y[0].x;
    if (row + 1 < outputs) at[1] += bias ? y[0].y + bias[row + 1] : y[0].y;
  }
};

// at most 64 registers
extern "C" __global__ void __launch_bounds__(512, 2) residual_4(
    float* x, const float* h, const uint4* nibbles, const uint2* scales, const float* bias, int rows, int columns,
    int outputs, int share) {
  const int steps = (columns + 63) / 64;
  const Q4 w{nibbles, scales, steps};
  const Room<1, true> at(rows, steps);
  q4_product<1, 1>(
      (outputs + 15) / 16, steps, rows, share, at.partial, [&](int tile, int) { return w.tile(tile); },
      [&] { return at.activations(NULL, NULL, rows, columns, PlainRows{h, columns}); }, AddRows{x, bias, outputs});
}

// x += the parts [parts, R, N] of a product of q4_product_*, which cut its columns: a narrow matrix has too few
// tiles to fill a GPU. One thread per value.
// at most 32 registers
extern "C" __global__ void __launch_bounds__(256) add_parts(
    float* x, const float* product, const float* bias, int parts, int size, int outputs) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= size) return;
  float sum = bias ? bias[at % outputs] : 0.f;
#pragma unroll 4
  for (int part = 0; part < parts; ++part) sum += product[(size_t)part * size + at];
  x[at] += sum;
}

// --- out = silu(gate @ norm(x)) * (up @ norm(x))

struct GateRows {
  float* out;  // [R, N]
  int outputs;
  __device__ __forceinline__ void operator()(int row, int m, const float2 (&y)[2]) const {
    float* at = out + (size_t)m * outputs + row;
    if (row < outputs) at[0] = silu_of(y[0].x) * y[1].x;
    if (row + 1 < outputs) at[1] = silu_of(y[0].y) * y[1].y;
  }
};

template <int TILES, bool STAGED>
__device__ __forceinline__ void gate_up(
    float* out, const float* x, const float* gain, const float* scale, float eps, const uint4* terms,
    const float* unscale, const uint4* gate_nibbles, const uint2* gate_scales, const uint4* up_nibbles,
    const uint2* up_scales, int rows, int columns, int outputs, int share) {
  const int steps = (columns + 63) / 64;
  const Q4 gate{gate_nibbles, gate_scales, steps}, up{up_nibbles, up_scales, steps};
  const Room<TILES, STAGED> at(rows, steps);
  q4_product<2, TILES>(
      (outputs + 15) / 16, steps, rows, share, at.partial,
      [&](int tile, int i) { return (i ? up : gate).tile(tile); },
      [&] { return at.activations(terms, unscale, rows, columns, NormedRows{x, columns, gain, scale, eps}); },
      GateRows{out, outputs});
}

// at most 80 registers
extern "C" __global__ void __launch_bounds__(256, 3) gate_up_4(
    float* out, const float* x, const float* gain, const float* scale, float eps, const uint4* terms,
    const float* unscale, const uint4* gate_nibbles, const uint2* gate_scales, const uint4* up_nibbles,
    const uint2* up_scales, int rows, int columns, int outputs, int share) {
  gate_up<1, true>(
      out, x, gain, scale, eps, terms, unscale, gate_nibbles, gate_scales, up_nibbles, up_scales, rows, columns,
      outputs, share);
}

// at most 160 registers
extern "C" __global__ void __launch_bounds__(128, 3) gate_up_8(
    float* out, const float* x, const float* gain, const float* scale, float eps, const uint4* terms,
    const float* unscale, const uint4* gate_nibbles, const uint2* gate_scales, const uint4* up_nibbles,
    const uint2* up_scales, int rows, int columns, int outputs, int share) {
  gate_up<2, false>(
      out, x, gain, scale, eps, terms, unscale, gate_nibbles, gate_scales, up_nibbles, up_scales, rows, columns,
      outputs, share);
}

// at most 224 registers
extern "C" __global__ void __launch_bounds__(128, 2) gate_up_16(
    float* out, const float* x, const float* gain, const float* scale, float eps, const uint4* terms,
    const float* unscale, const uint4* gate_nibbles, const uint2* gate_scales, const uint4* up_nibbles,
    const uint2* up_scales, int rows, int columns, int outputs, int share) {
  gate_up<4, false>(
      out, x, gain, scale, eps, terms, unscale, gate_nibbles, gate_scales, up_nibbles, up_scales, rows, columns,
      outputs, share);
}

// --- the largest row of table @ norm(x), behind the guard; best [R] keys, 0 before the launch and after it

struct BestRows {
  Key* found;        // [R, 8] in shared memory, one for each pair of a tile's rows
  const float* off;  // [R], what is taken off the blank's logit
  int blank, outputs;
  __device__ __forceinline__ void operator()(int row, int m, const float2 (&y)[1]) const {
    if (row >= outputs) return;
    Key key = key_of(row == blank ? y[0].x - off[m] : y[0].x, row);
    const Key other = key_of(row + 1 == blank ? y[0].y - off[m] : y[0].y, row + 1);
    if (row + 1 < outputs && other > key) key = other;
    // 64 bits of shared memory are compared and swapped until nobody was faster: few of a warp meet here.
    atomicMax(found + 8 * m + row % 16 / 2, key);
  }
};

template <int TILES, bool STAGED>
__device__ __forceinline__ void head(
    int* picked, const float* x, const float* gain, float eps, const uint4* terms, const float* unscale,
    const uint4* nibbles, const uint2* scales, int* run, int blank, int patience, double slope, double limit,
    const int* active, Key* best, unsigned* ticket, int rows, int columns, int outputs, int share) {
  constexpr int MOST_ROWS = 4 * TILES;
  __shared__ Key found[8 * MOST_ROWS];
  __shared__ float off[MOST_ROWS];
  const int steps = (columns + 63) / 64;
  const Q4 w{nibbles, scales, steps};
  const Room<TILES, STAGED> at(rows, steps);
  const int m = threadIdx.x;  // there are more threads than rows
  for (int i = m; i < 8 * rows; i += blockDim.x) found[i] = 0;
  if (m < rows) off[m] = blank_penalty(run[m], patience, slope, limit);
  __syncthreads();
  q4_product<1, TILES>(
      (outputs + 15) / 16, steps, rows, share, at.partial, [&](int tile, int) { return w.tile(tile); },
      [&] { return at.activations(terms, unscale, rows, columns, NormedRows{x, columns, gain, NULL, eps}); },
      BestRows{found, off, blank, outputs});
  if (m < rows) {
    Key key = 0;
    for (int i = 0; i < 8; ++i) key = found[8 * m + i] > key ? found[8 * m + i] : key;
    atomicMax(best + m, key);
  }
  if (!last_to_come(ticket, gridDim.x) || m >= rows) return;
  const int choice = index_of(atomicExch(best + m, (Key)0));
  picked[m] = active[m] ? choice : 0;
  if (active[m]) run[m] = choice == blank ? run[m] + 1 : 0;
}

// at most 64 registers
extern "C" __global__ void __launch_bounds__(512, 2) head_4(
    int* picked, const float* x, const float* gain, float eps, const uint4* terms, const float* unscale,
    const uint4* nibbles, const uint2* scales, int* run, int blank, int patience, double slope, double limit,
    const int* active, Key* best, unsigned* ticket, int rows, int columns, int outputs, int share) {
  head<1, true>(
      picked, x, gain, eps, terms, unscale, nibbles, scales, run, blank, patience, slope, limit, active, best,
      ticket, rows, columns, outputs, share);
}

// at most 96 registers
extern "C" __global__ void __launch_bounds__(128, 5) head_8(
    int* picked, const float* x, const float* gain, float eps, const uint4* terms, const float* unscale,
    const uint4* nibbles, const uint2* scales, int* run, int blank, int patience, double slope, double limit,
    const int* active, Key* best, unsigned* ticket, int rows, int columns, int outputs, int share) {
  head<2, false>(
      picked, x, gain, eps, terms, unscale, nibbles, scales, run, blank, patience, slope, limit, active, best,
      ticket, rows, columns, outputs, share);
}

// at most 96 registers
extern "C" __global__ void __launch_bounds__(128) head_16(
    int* picked, const float* x, const float* gain, float eps, const uint4* terms, const float* unscale,
    const uint4* nibbles, const uint2* scales, int* run, int blank, int patience, double slope, double limit,
    const int* active, Key* best, unsigned* ticket, int rows, int columns, int outputs, int share) {
  head<4, false>(
      picked, x, gain, eps, terms, unscale, nibbles, scales, run, blank, patience, slope, limit, active, best,
      ticket, rows, columns, outputs, share);
}

// at most 120 registers
extern "C" __global__ void __launch_bounds__(128) head_32(
    int* picked, const float* x, const float* gain, float eps, const uint4* terms, const float* unscale,
    const uint4* nibbles, const uint2* scales, int* run, int blank, int patience, double slope, double limit,
    const int* active, Key* best, unsigned* ticket, int rows, int columns, int outputs, int share) {
  head<8, false>(
      picked, x, gain, eps, terms, unscale, nibbles, scales, run, blank, patience, slope, limit, active, best,
      ticket, rows, columns, outputs, share);
}

// at most 152 registers
extern "C" __global__ void __launch_bounds__(128) head_64(
    int* picked, const float* x, const float* gain, float eps, const uint4* terms, const float* unscale,
    const uint4* nibbles, const uint2* scales, int* run, int blank, int patience, double slope, double limit,
    const int* active, Key* best, unsigned* ticket, int rows, int columns, int outputs, int share) {
  head<16, false>(
      picked, x, gain, eps, terms, unscale, nibbles, scales, run, blank, patience, slope, limit, active, best,
      ticket, rows, columns, outputs, share);
}
