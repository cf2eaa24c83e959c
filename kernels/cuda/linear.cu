// out [R, N] = x [R, K] @ w [N, K]^T + bias [N]; K is called columns, N outputs.
//   q4_*     Q4_0 in fragment order (q4.cuh): a warp owns 16 outputs of every row, over some or all columns
//   dp4a_*   Q4_0 by rows (q4_rows.cuh): a warp owns 2 outputs of every row at a time; any grid
//   gemv_*   dense and Q8_0 (gemv.cuh): a warp owns 2 or 4 outputs of every row; grid N / outputs of a block
//   q4_split, terms_*, finish   before and behind them and cuBLAS: a block owns a row of x, or 256 columns of out
#include "gemv.cuh"
#include "q4.cuh"
#include "q4_rows.cuh"

extern __shared__ __align__(16) float room[];

// --- Q4_0 in fragment order

struct StoreRows {
  float* out;
  const float* bias;  // or NULL
  int outputs;
  __device__ __forceinline__ void operator()(int row, int m, const float2 (&y)[1]) const {
    float* at = out + (size_t)m * outputs + row;
    if (row < outputs) at[0] = bias ? y[0].x + bias[row] : y[0].x;
    if (row + 1 < outputs) at[1] = bias ? y[0].y + bias[row + 1] : y[0].y;
  }
};

// Up to 4 rows of x in one launch: every block splits them for itself while its first weights are on their way.
// at most 64 registers
extern "C" __global__ void __launch_bounds__(512, 2) q4_staged(float* out, const float* x, const uint4* nibbles,
    const uint2* scales, const float* bias, int rows, int columns, int outputs, int share) {
  const Q4 w{nibbles, scales, (columns + 63) / 64};
  float* partial = room + 64 * rows * w.steps + 4;
  q4_product<1, 1>(
      (outputs + 15) / 16, w.steps, rows, share, partial, [&](int tile, int) { return w.tile(tile); },
      [&] {
        return q4_stage_here(reinterpret_cast<uint4*>(room), partial, rows, columns, PlainRows{x, columns});
      },
      StoreRows{out, bias, outputs});
}

// One block per row: what q4_product_* read. width: columns of their operand.
// at most 40 registers
extern "C" __global__ void __launch_bounds__(512) q4_split(
    uint4* terms, float* unscale, const float* x, int columns, int width) {
  __shared__ float most[64];
  const int m = blockIdx.x;
  q4_stage(terms + 8 * m, width, unscale + m, most, 1, columns, PlainRows{x + (size_t)m * columns, columns});
}

// Behind q4_split. grid.y cuts the columns: each part leaves a product of its own in out [grid.y * rows, outputs].
template <int TILES>
__device__ __forceinline__ void q4_split_product(float* out, const uint4* terms, const float* unscale, const Q4& w,
                                                 const float* bias, int rows, int outputs, int share) {
  const int part = (w.steps + gridDim.y - 1) / gridDim.y, start = blockIdx.y * part;
  const Q4 from{w.nibbles + start * 32, w.scales + start * 8, w.steps};
  q4_product<1, TILES>(
      (outputs + 15) / 16, min(part, w.steps - start), rows, share, room,
      [&](int tile, int) { return from.tile(tile); },
      [&] { return q4_from<TILES>(terms + start * 64 * TILES, unscale); },
      StoreRows{out + (size_t)blockIdx.y * rows * outputs, bias, outputs});
}

// at most 96 registers
extern "C" __global__ void __launch_bounds__(128, 5) q4_product_8(float* out, const uint4* terms,
    const float* unscale, const uint4* nibbles, const uint2* scales, const float* bias, int rows, int columns,
    int outputs, int share) {
  q4_split_product<2>(out, terms, unscale, Q4{nibbles, scales, (columns + 63) / 64}, bias, rows, outputs,
                       share);
}

// at most 96 registers
extern "C" __global__ void __launch_bounds__(128) q4_product_16(float* out, const uint4* terms,
    const float* unscale, const uint4* nibbles, const uint2* scales, const float* bias, int rows, int columns,
    int outputs, int share) {
  q4_split_product<4>(out, terms, unscale, Q4{nibbles, scales, (columns + 63) / 64}, bias, rows, outputs,
                       share);
}

// at most 120 registers
extern "C" __global__ void __launch_bounds__(128) q4_product_32(float* out, const uint4* terms,
    const float* unscale, const uint4* nibbles, const uint2* scales, const float* bias, int rows, int columns,
    int outputs, int share) {
  q4_split_product<8>(out, terms, unscale, Q4{nibbles, scales, (columns + 63) / 64}, bias, rows, outputs,
                       share);
}

// at most 168 registers
extern "C" __global__ void __launch_bounds__(128) q4_product_64(float* out, const uint4* terms,
    const float* unscale, const uint4* nibbles, const uint2* scales, const float* bias, int rows, int columns,
    int outputs, int share) {
  q4_split_product<16>(out, terms, unscale, Q4{nibbles, scales, (columns + 63) / 64}, bias, rows, outputs,
                        share);
}

// --- Q4_0 by rows

// at most 64 registers
extern "C" __global__ void __launch_bounds__(256, 4) dp4a_1(float* out, const float* x, const uint4* nibbles,
    const half* scales, const float* bias, int outputs, int columns) {
  q4_rows_product<1, 2>(out, x, nibbles, scales, bias, room, outputs, columns);
}

// at most 80 registers
extern "C" __global__ void __launch_bounds__(256, 3) dp4a_2(float* out, const float* x, const uint4* nibbles,
    const half* scales, const float* bias, int outputs, int columns) {
  q4_rows_product<2, 2>(out, x, nibbles, scales, bias, room, outputs, columns);
}

// at most 128 registers
extern "C" __global__ void __launch_bounds__(256, 2) dp4a_3(float* out, const float* x, const uint4* nibbles,
    const half* scales, const float* bias, int outputs, int columns) {
  q4_rows_product<3, 2>(out, x, nibbles, scales, bias, room, outputs, columns);
}

// at most 128 registers
extern "C" __global__ void __launch_bounds__(256, 2) dp4a_4(float* out, const float* x, const uint4* nibbles,
    const half* scales, const float* bias, int outputs, int columns) {
  q4_rows_product<4, 2>(out, x, nibbles, scales, bias, room, outputs, columns);
}

// --- dense and Q8_0

// at most 80 registers
extern "C" __global__ void __launch_bounds__(128, 6) gemv_f32_1(float* out, const float* x, const float* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<1, 4>(out, x, F32Rows{w, columns}, bias, rows, outputs, columns);
}

// at most 96 registers
extern "C" __global__ void __launch_bounds__(128, 5) gemv_f32_2(float* out, const float* x, const float* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<2, 4>(out, x, F32Rows{w, columns}, bias, rows, outputs, columns);
}

// at most 128 registers
extern "C" __global__ void __launch_bounds__(128, 4) gemv_f32_4(float* out, const float* x, const float* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<4, 2>(out, x, F32Rows{w, columns}, bias, rows, outputs, columns);
}

// at most 128 registers
extern "C" __global__ void __launch_bounds__(128, 4) gemv_f32_8(float* out, const float* x, const float* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<8, 2>(out, x, F32Rows{w, columns}, bias, rows, outputs, columns);
}

// at most 80 registers
extern "C" __global__ void __launch_bounds__(128, 6) gemv_f16_1(float* out, const float* x, const half* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<1, 4>(out, x, HalfRows<half>{w, columns}, bias, rows, outputs, columns);
}

// at most 96 registers
extern "C" __global__ void __launch_bounds__(128, 5) gemv_f16_2(float* out, const float* x, const half* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<2, 4>(out, x, HalfRows<half>{w, columns}, bias, rows, outputs, columns);
}

// at most 128 registers
extern "C" __global__ void __launch_bounds__(128, 4) gemv_f16_4(float* out, const float* x, const half* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<4, 2>(out, x, HalfRows<half>{w, columns}, bias, rows, outputs, columns);
}

// at most 128 registers
extern "C" __global__ void __launch_bounds__(128, 4) gemv_f16_8(float* out, const float* x, const half* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<8, 2>(out, x, HalfRows<half>{w, columns}, bias, rows, outputs, columns);
}

// at most 80 registers
extern "C" __global__ void __launch_bounds__(128, 6) gemv_bf16_1(float* out, const float* x, const bf16* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<1, 4>(out, x, HalfRows<bf16>{w, columns}, bias, rows, outputs, columns);
}

// at most 96 registers
extern "C" __global__ void __launch_bounds__(128, 5) gemv_bf16_2(float* out, const float* x, const bf16* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<2, 4>(out, x, HalfRows<bf16>{w, columns}, bias, rows, outputs, columns);
}

// at most 128 registers
extern "C" __global__ void __launch_bounds__(128, 4) gemv_bf16_4(float* out, const float* x, const bf16* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<4, 2>(out, x, HalfRows<bf16>{w, columns}, bias, rows, outputs, columns);
}

// at most 128 registers
extern "C" __global__ void __launch_bounds__(128, 4) gemv_bf16_8(float* out, const float* x, const bf16* w,
    const float* bias, int rows, int outputs, int columns) {
  gemv<8, 2>(out, x, HalfRows<bf16>{w, columns}, bias, rows, outputs, columns);
}

// at most 80 registers
extern "C" __global__ void __launch_bounds__(128, 6) gemv_q8_0_1(float* out, const float* x, const signed char* w,
    const half* scales, const float* bias, int rows, int outputs, int columns) {
  gemv<1, 2>(out, x, Q8Rows{w, scales, columns}, bias, rows, outputs, columns);
}

// at most 96 registers
extern "C" __global__ void __launch_bounds__(128, 5) gemv_q8_0_2(float* out, const float* x, const signed char* w,
    const half* scales, const float* bias, int rows, int outputs, int columns) {
  gemv<2, 2>(out, x, Q8Rows{w, scales, columns}, bias, rows, outputs, columns);
}

// at most 128 registers
extern "C" __global__ void __launch_bounds__(128, 4) gemv_q8_0_4(float* out, const float* x, const signed char* w,
    const half* scales, const float* bias, int rows, int outputs, int columns) {
  gemv<4, 2>(out, x, Q8Rows{w, scales, columns}, bias, rows, outputs, columns);
}

// at most 128 registers
extern "C" __global__ void __launch_bounds__(128, 4) gemv_q8_0_8(float* out, const float* x, const signed char* w,
    const half* scales, const float* bias, int rows, int outputs, int columns) {
  gemv<8, 2>(out, x, Q8Rows{w, scales, columns}, bias, rows, outputs, columns);
}

// --- around a product of cuBLAS

// x [R, columns] as `terms` halves stacked [terms * R, columns], each row times a power of two that `unscale`
// undoes (see row_exponent). grid R.
// at most 40 registers
extern "C" __global__ void __launch_bounds__(256) terms_f16(
    half* out, float* unscale, const float* x, int columns, int terms) {
  __shared__ float most[33];
  const size_t row = (size_t)blockIdx.x * columns, next = (size_t)gridDim.x * columns;
  float found = 0.f;
  for (int k = threadIdx.x; k < columns; k += 8 * blockDim.x) {  // eight on their way at once, the last one repeated
#pragma unroll
    for (int u = 0; u < 8; ++u) found = fmaxf(found, fabsf(x[row + min(k + u * (int)blockDim.x, columns - 1)]));
  }
  const int e = row_exponent(block_max(found, most));
  if (threadIdx.x == 0) unscale[blockIdx.x] = power_of_two(254 - e);
  for (int k = threadIdx.x; k < columns; k += blockDim.x) {
    const float v = x[row + k] * power_of_two(e);
    const half hi = __float2half_rn(v);
    out[row + k] = hi;
    if (terms > 1) out[next + row + k] = __float2half_rn(v - __half2float(hi));
  }
}

// The same as bf16, which has the range of f32: cut off rather than rounded until the last term, so that the
// largest numbers stay finite; three terms are all 24 bits. grid R.
// at most 40 registers
extern "C" __global__ void __launch_bounds__(256) terms_bf16(bf16* out, const float* x, int columns, int terms) {
  for (int k = threadIdx.x; k < columns; k += blockDim.x) {
    float rest = x[(size_t)blockIdx.x * columns + k];
    for (int term = 0; term < terms; ++term) {
      unsigned bits = __float_as_uint(rest);
      if (term == terms - 1) bits += 0x7fff + (bits >> 16 & 1);  // to nearest even
      out[((size_t)term * gridDim.x + blockIdx.x) * columns + k] = bits >> 16;
      rest -= __uint_as_float(bits & 0xffff0000u);
    }
  }
}

// out [R, outputs] at columns offset.. = sum of terms of product [terms * R, width], * unscale [R], + bias; in place
// where product is out. grid (R, width / 256): a thread owns one sum.
// at most 40 registers
extern "C" __global__ void __launch_bounds__(256) finish(
    float* out, const float* product, const float* unscale, const float* bias, int width, int outputs, int offset,
    int terms) {
  const int n = blockIdx.y * blockDim.x + threadIdx.x;
  if (n >= width) return;
  float y = 0.f;
#pragma unroll 4
  for (int term = terms - 1; term >= 0; --term)  // of several halves the small ones first
    y += product[((size_t)term * gridDim.x + blockIdx.x) * width + n];
  if (unscale) y *= unscale[blockIdx.x];
  out[(size_t)blockIdx.x * outputs + offset + n] = bias ? y + bias[offset + n] : y;
}
