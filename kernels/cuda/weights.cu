// How matrices lie on the device: repack_* brings a file's blocks into one of our layouts (q4.cuh, q4_rows.cuh; Q8_0
// as a plane of bytes [N, K] and one of scales [N, K / 32]), dequantise_* widens rows of them to f16, embed_* looks
// rows up. raw is the file's bytes as 16-bit words, since its blocks of 18 or 34 bytes are aligned to no more.
// A thread owns a block of 32 or a vector of it, a warp a step of 16 x 64, a block of threads an id.
#include "q4.cuh"

// Eight nibbles of a raw block, columns 8t..8t+7, one per 4 bits: bytes 0-7 or 8-15, their low or their high half.
__device__ __forceinline__ unsigned raw_nibbles(const unsigned short* block, int t) {
  unsigned out = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned two = block[1 + 4 * (t & 1) + i] >> (t < 2 ? 0 : 4);
    out |= (two & 15 | two >> 4 & 0xf0) << 8 * i;
  }
  return out;
}

// A piece of Q4_0 rows that begins at a tile into fragment order (q4.cuh); a warp per step.
// at most 40 registers
extern "C" __global__ void __launch_bounds__(128) repack_fragment(
    uint4* nibbles, uint2* scales, const unsigned short* raw, int rows, int blocks, int tiles) {
  const int steps = (blocks + 1) / 2, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int at = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);  // tile * steps + step
  if (at >= tiles * steps) return;
  unsigned words[4] = {}, halves[2] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int b = i >> 1, upper = i & 1, row = at / steps * 16 + g + 8 * upper, block = at % steps * 2 + b;
    const bool real = row < rows && block < blocks;
    const unsigned short* from = raw + ((size_t)row * blocks + block) * 9;
    const unsigned eight = real ? raw_nibbles(from, t) : 0x88888888u;
    if (real) halves[b] |= (unsigned)from[0] << 16 * upper;
#pragma unroll
    for (int c = 0; c < 8; ++c) {  // columns 0 1 2 3 of a word stand at bits 0 16 8 24
      const int bit = 16 * (c & 1) + 8 * (c >> 1 & 1) + 4 * upper;
      words[2 * b + c / 4] |= (eight >> 4 * c & 15) << bit;
    }
  }
  nibbles[(size_t)at * 32 + lane] = make_uint4(words[0], words[1], words[2], words[3]);
  if (t == 0) scales[(size_t)at * 8 + g] = make_uint2(halves[0], halves[1]);
}

// Q4_0 blocks taken apart; a thread per block.
// at most 32 registers
extern "C" __global__ void __launch_bounds__(128) repack_rows(
    uint4* nibbles, half* scales, const unsigned short* raw, int blocks) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= blocks) return;
  const unsigned short* from = raw + (size_t)i * 9;
  scales[i] = __ushort_as_half(from[0]);
  nibbles[i] = make_uint4(from[1] | (unsigned)from[2] << 16, from[3] | (unsigned)from[4] << 16,
                          from[5] | (unsigned)from[6] << 16, from[7] | (unsigned)from[8] << 16);
}

// Q8_0 blocks taken apart; a thread per block.
// at most 40 registers
extern "C" __global__ void __launch_bounds__(128) repack_q8_0(
    uint4* q, half* scales, const unsigned short* raw, int blocks) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= blocks) return;
  const unsigned short* from = raw + (size_t)i * 17;
  scales[i] = __ushort_as_half(from[0]);
  unsigned words[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) words[j] = from[1 + 2 * j] | (unsigned)from[2 + 2 * j] << 16;
  q[2 * (size_t)i] = make_uint4(words[0], words[1], words[2], words[3]);
  q[2 * (size_t)i + 1] = make_uint4(words[4], words[5], words[6], words[7]);
}

// --- rows of f16

__device__ __forceinline__ uint4 eight_halves(const float (&v)[8]) {
  return make_uint4(as_bits(__floats2half2_rn(v[0], v[1])), as_bits(__floats2half2_rn(v[2], v[3])),
                    as_bits(__floats2half2_rn(v[4], v[5])), as_bits(__floats2half2_rn(v[6], v[7])));
}

// Columns 8t..8t+7 of block `b` of a lane's step, row g or g + 8.
__device__ __forceinline__ void fragment_weights(float (&out)[8], uint4 nibbles, uint2 scales, int b, int upper) {
  const unsigned words[2] = {b ? nibbles.z : nibbles.x, b ? nibbles.w : nibbles.y};
  const half2 pair = as_half2(b ? scales.y : scales.x);
  const float scale = upper ? __high2float(pair) : __low2float(pair);
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int bit = 16 * (c & 1) + 8 * (c >> 1 & 1) + 4 * upper;
    out[c] = scale * (float)((int)(words[c / 4] >> bit & 15) - 8);
  }
}

// out [rows, 32 * blocks] from the tiles that begin at the pointers; a warp per step.
// at most 48 registers
extern "C" __global__ void __launch_bounds__(128) dequantise_fragment(
    uint4* out, const uint4* nibbles, const uint2* scales, int rows, int blocks) {
  const int steps = (blocks + 1) / 2, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int at = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (at >= (rows + 15) / 16 * steps) return;
  const uint4 held = nibbles[(size_t)at * 32 + lane];
  const uint2 scale = scales[(size_t)at * 8 + g];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int b = i >> 1, upper = i & 1, row = at / steps * 16 + g + 8 * upper, block = at % steps * 2 + b;
    float v[8];
    fragment_weights(v, held, scale, b, upper);
    if (row < rows && block < blocks) out[((size_t)row * blocks + block) * 4 + t] = eight_halves(v);
  }
}

// Columns 8t..8t+7 of a block by rows: bytes 0-7 or 8-15, their low or their high half.
__device__ __forceinline__ void row_weights(float (&out)[8], uint4 nibbles, half scale, int t) {
  const unsigned words[2] = {t & 1 ? nibbles.z : nibbles.x, t & 1 ? nibbles.w : nibbles.y};
#pragma unroll
  for (int c = 0; c < 8; ++c)
    out[c] = __half2float(scale) * (float)((int)(words[c / 4] >> (8 * (c & 3) + (t < 2 ? 0 : 4)) & 15) - 8);
}

// at most 32 registers
extern "C" __global__ void __launch_bounds__(128) dequantise_rows(
    uint4* out, const uint4* nibbles, const half* scales, int blocks) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, block = i >> 2;  // four threads per block
  if (block >= blocks) return;
  float v[8];
  row_weights(v, nibbles[block], scales[block], i & 3);
  out[i] = eight_halves(v);
}

__device__ __forceinline__ void byte_weights(float (&out)[8], uint2 q, half scale) {
#pragma unroll
  for (int c = 0; c < 8; ++c)
    out[c] = __half2float(scale) * (float)(signed char)((c < 4 ? q.x : q.y) >> 8 * (c & 3) & 255);
}

// at most 32 registers
extern "C" __global__ void __launch_bounds__(128) dequantise_q8_0(
    uint4* out, const uint2* q, const half* scales, int blocks) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;  // four threads per block
  if (i >> 2 >= blocks) return;
  float v[8];
  byte_weights(v, q[i], scales[i >> 2]);
  out[i] = eight_halves(v);
}

// --- rows of f32, by id

// Ids come from the device, where nobody can refuse them: outside the table they give its first or last row.
__device__ __forceinline__ int row_of(const int* ids, int rows) { return min(max(ids[blockIdx.x], 0), rows - 1); }

__device__ __forceinline__ void store_eight(float* out, const float (&v)[8]) {
  float4* at = reinterpret_cast<float4*>(out);
  at[0] = make_float4(v[0], v[1], v[2], v[3]), at[1] = make_float4(v[4], v[5], v[6], v[7]);
}

template <class T>
__device__ __forceinline__ void embed_dense(float* out, const int* ids, const T* table, int rows, int columns) {
  const T* from = table + (size_t)row_of(ids, rows) * columns;
  for (int k = threadIdx.x; k < columns; k += blockDim.x) out[(size_t)blockIdx.x * columns + k] = widen(from[k]);
}

// at most 32 registers
extern "C" __global__ void __launch_bounds__(512) embed_f32(
    float* out, const int* ids, const float* table, int rows, int columns) {
  embed_dense(out, ids, table, rows, columns);
}

// at most 32 registers
extern "C" __global__ void __launch_bounds__(512) embed_f16(
    float* out, const int* ids, const half* table, int rows, int columns) {
  embed_dense(out, ids, table, rows, columns);
}

// at most 32 registers
extern "C" __global__ void __launch_bounds__(512) embed_bf16(
    float* out, const int* ids, const bf16* table, int rows, int columns) {
  embed_dense(out, ids, table, rows, columns);
}

// at most 40 registers
extern "C" __global__ void __launch_bounds__(512) embed_q8_0(
    float* out, const int* ids, const uint2* q, const half* scales, int rows, int columns) {
  const size_t row = row_of(ids, rows), blocks = columns / 32;
  for (int i = threadIdx.x; i < columns / 8; i += blockDim.x) {
    float v[8];
    byte_weights(v, q[row * blocks * 4 + i], scales[row * blocks + i / 4]);
    store_eight(out + (size_t)blockIdx.x * columns + 8 * i, v);
  }
}

// at most 40 registers
extern "C" __global__ void __launch_bounds__(512) embed_rows(
    float* out, const int* ids, const uint4* nibbles, const half* scales, int rows, int columns) {
  const size_t first = (size_t)row_of(ids, rows) * (columns / 32);
  for (int i = threadIdx.x; i < columns / 8; i += blockDim.x) {
    float v[8];
    row_weights(v, nibbles[first + i / 4], scales[first + i / 4], i & 3);
    store_eight(out + (size_t)blockIdx.x * columns + 8 * i, v);
  }
}

// at most 48 registers
extern "C" __global__ void __launch_bounds__(512) embed_fragment(
    float* out, const int* ids, const uint4* nibbles, const uint2* scales, int rows, int columns) {
  const int row = row_of(ids, rows), steps = (columns + 63) / 64, g = row & 7;
  for (int i = threadIdx.x; i < columns / 8; i += blockDim.x) {
    const size_t step = (size_t)(row / 16) * steps + i / 8;
    float v[8];
    fragment_weights(v, nibbles[step * 32 + 4 * g + (i & 3)], scales[step * 8 + g], i >> 2 & 1, row >> 3 & 1);
    store_eight(out + (size_t)blockIdx.x * columns + 8 * i, v);
  }
}
