// append: k, v [B, T, K, D] into rings [B, K, C, D] at slots (count + t) % C, then count += T; a warp owns one row of D
// attend: out = softmax(q k^T / sqrt(D)) v                q, out [B, T, H, D]; item t stands at count - T + t and sees
//         the `window` positions up to its own. For D = 64 and 128 a block owns a tile of queries of one key head
//         over a range of keys: split.cuh for 8 queries, chunk.cuh for 64. Else `attend_any`: a warp owns a query.
#include "chunk.cuh"
#include "split.cuh"

// --- append: grid (blocks of 8 rows, B), 256 threads

__device__ __forceinline__ void keep(half* row, half*, const float* x, int width, int lane) {
  for (int d = lane; d < width; d += 32) row[d] = __float2half_rn(within_half(x[d]));
}

// A step is a half, and bytes are counted in the half that is kept: its rounding costs nothing.
__device__ __forceinline__ void keep(signed char* row, half* scale, const float* x, int width, int lane) {
  float most = 0.f;
  for (int d = lane; d < width; d += 32) most = fmaxf(most, fabsf(x[d]));
  const half step = __float2half_rn(within_half(warp_max(most) / 127.f));
  const float by = __half2float(step);
  for (int d = lane; d < width; d += 32) {
    const float steps = by > 0.f ? rintf(x[d] / by) : 0.f;
    row[d] = (signed char)fminf(fmaxf(steps, -127.f), 127.f);
  }
  if (lane == 0) *scale = step;
}

// The last block of a lane counts: all have then read where to write. A ticket costs an atomic add per block, a
// kernel of its own a launch.
template <class Kept>
__device__ __forceinline__ void append(Kept* ring_k, Kept* ring_v, half* k_scale, half* v_scale, int* count,
                                       unsigned* tickets, const float* k, const float* v, const int* active, int items,
                                       int heads, int capacity, int width) {
  const int b = blockIdx.y, lane = threadIdx.x & 31, rows = items * heads;
  if (!active[b]) return;
  const int first = count[b];
  const int row = blockIdx.x * 8 + (threadIdx.x >> 5);  // keys, then values
  if (row < 2 * rows) {
    const bool values = row >= rows;
    const int item = (values ? row - rows : row) / heads, head = (values ? row - rows : row) % heads;
    const float* const x = (values ? v : k) + (((size_t)b * items + item) * heads + head) * width;
    const size_t slot = ((size_t)b * heads + head) * capacity + (first % capacity + item) % capacity;
    keep((values ? ring_v : ring_k) + slot * width, (values ? v_scale : k_scale) + slot, x, width, lane);
  }
  if (last_to_come(tickets + b, gridDim.x) && threadIdx.x == 0) count[b] = first + items;
}

// at most 40 registers
extern "C" __global__ void __launch_bounds__(256) append_f16(
    half* ring_k, half* ring_v, half* k_scale, half* v_scale, int* count, unsigned* tickets, const float* k,
    const float* v, const int* active, int items, int heads, int capacity, int width) {
  append(ring_k, ring_v, k_scale, v_scale, count, tickets, k, v, active, items, heads, capacity, width);
}

// at most 56 registers
extern "C" __global__ void __launch_bounds__(256) append_q8(
    signed char* ring_k, signed char* ring_v, half* k_scale, half* v_scale, int* count, unsigned* tickets,
    const float* k, const float* v, const int* active, int items, int heads, int capacity, int width) {
  append(ring_k, ring_v, k_scale, v_scale, count, tickets, k, v, active, items, heads, capacity, width);
}

// --- attend, any width: grid (blocks of 4 queries, B), 128 threads. A lane scores four keys, then owns every 32nd
// column; the sums stand in `out` meanwhile. Correct before fast.

template <class Kept>
__device__ __forceinline__ void attend_any(float* out, const float* q, const Kept* k, const Kept* v,
                                           const half* k_scale, const half* v_scale, const int* count, int items,
                                           int heads, int group, int capacity, int window, int width) {
  __shared__ float weights[4][128];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, b = blockIdx.y;
  const int query = blockIdx.x * 4 + warp, item = query / (heads * group), head = query % (heads * group);
  if (item >= items) return;
  const int own = count[b] - items + item, oldest = max(0, own - window + 1), seen = max(0, own - oldest + 1);
  const int start = oldest % capacity;
  const size_t stream = ((size_t)b * heads + head / group) * capacity;
  q += (((size_t)b * items + item) * heads * group + head) * width;
  out += (((size_t)b * items + item) * heads * group + head) * width;
  const float scale = LOG2_E / sqrtf(width);
  float most = LOWEST, sum = 0.f;
  for (int d = lane; d < width; d += 32) out[d] = 0.f;
  for (int at = 0; at < seen; at += 128) {
    const int here = min(128, seen - at);
    float score[4], top = most;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const int key = 32 * u + lane;
      score[u] = NOTHING;
      if (key >= here) continue;
      const size_t slot = stream + (start + at + key) % capacity;
      float dot = 0.f;
      for (int d = 0; d < width; ++d) dot += q[d] * value_of(k[slot * width + d]);
      score[u] = dot * scale * step_of(k, k_scale, slot);
      top = fmaxf(top, score[u]);
    }
    top = warp_max(top);
    const float keep = exp2f(most - top);
    most = top;
    sum *= keep;
    __syncwarp();
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      weights[warp][32 * u + lane] = exp2f(score[u] - top);
      sum += weights[warp][32 * u + lane];
    }
    __syncwarp();
    for (int d = lane; d < width; d += 32) {
      float mixed = out[d] * keep;
      for (int key = 0; key < here; ++key) {
        const size_t slot = stream + (start + at + key) % capacity;
        mixed += weights[warp][key] * step_of(v, v_scale, slot) * value_of(v[slot * width + d]);
      }
      out[d] = mixed;
    }
  }
  sum = warp_sum(sum);
  for (int d = lane; d < width; d += 32) out[d] *= sum > 0.f ? 1.f / sum : 0.f;
}

// at most 64 registers
extern "C" __global__ void __launch_bounds__(128) attend_any_f16(
    float* out, const float* q, const half* k, const half* v, const half* k_scale, const half* v_scale,
    const int* count, int items, int heads, int group, int capacity, int window, int width) {
  attend_any(out, q, k, v, k_scale, v_scale, count, items, heads, group, capacity, window, width);
}

// at most 64 registers
extern "C" __global__ void __launch_bounds__(128) attend_any_q8(
    float* out, const float* q, const signed char* k, const signed char* v, const half* k_scale, const half* v_scale,
    const int* count, int items, int heads, int group, int capacity, int window, int width) {
  attend_any(out, q, k, v, k_scale, v_scale, count, items, heads, group, capacity, window, width);
}

// --- few queries: grid (K * tiles of 8, splits, B), 128 threads, room for 4 warps * 8 queries * (D + 2) floats

// at most 168 registers
extern "C" __global__ void __launch_bounds__(128, 3) split_f16_64(
    float* out, unsigned* tickets, float2* sums, float* parts, const float* q, const half* k,
    const half* v, const half* k_scale, const half* v_scale, const int* count, int items, int group,
    int capacity, int window) {
  split<64>(out, tickets, sums, parts, q, k, v, k_scale, v_scale, count, items, group, capacity, window);
}

// at most 168 registers
extern "C" __global__ void __launch_bounds__(128, 3) split_f16_128(
    float* out, unsigned* tickets, float2* sums, float* parts, const float* q, const half* k,
    const half* v, const half* k_scale, const half* v_scale, const int* count, int items, int group,
    int capacity, int window) {
  split<128>(out, tickets, sums, parts, q, k, v, k_scale, v_scale, count, items, group, capacity, window);
}

// at most 168 registers
extern "C" __global__ void __launch_bounds__(128, 3) split_q8_64(
    float* out, unsigned* tickets, float2* sums, float* parts, const float* q, const signed char* k,
    const signed char* v, const half* k_scale, const half* v_scale, const int* count, int items, int group,
    int capacity, int window) {
  split<64>(out, tickets, sums, parts, q, k, v, k_scale, v_scale, count, items, group, capacity, window);
}

// at most 168 registers
extern "C" __global__ void __launch_bounds__(128, 3) split_q8_128(
    float* out, unsigned* tickets, float2* sums, float* parts, const float* q, const signed char* k,
    const signed char* v, const half* k_scale, const half* v_scale, const int* count, int items, int group,
    int capacity, int window) {
  split<128>(out, tickets, sums, parts, q, k, v, k_scale, v_scale, count, items, group, capacity, window);
}

// --- many queries: grid (K * tiles of 64, splits, B), 128 threads, room for 64 keys and values

// at most 168 registers
extern "C" __global__ void __launch_bounds__(128, 3) chunk_f16_64(
    float* out, unsigned* tickets, float2* sums, float* parts, const float* q, const half* k,
    const half* v, const half* k_scale, const half* v_scale, const int* count, int items, int group,
    int capacity, int window) {
  chunk<64>(out, tickets, sums, parts, q, k, v, k_scale, v_scale, count, items, group, capacity, window);
}

// at most 240 registers
extern "C" __global__ void __launch_bounds__(128, 2) chunk_f16_128(
    float* out, unsigned* tickets, float2* sums, float* parts, const float* q, const half* k,
    const half* v, const half* k_scale, const half* v_scale, const int* count, int items, int group,
    int capacity, int window) {
  chunk<128>(out, tickets, sums, parts, q, k, v, k_scale, v_scale, count, items, group, capacity, window);
}

// at most 200 registers
extern "C" __global__ void __launch_bounds__(128, 2) chunk_q8_64(
    float* out, unsigned* tickets, float2* sums, float* parts, const float* q, const signed char* k,
    const signed char* v, const half* k_scale, const half* v_scale, const int* count, int items, int group,
    int capacity, int window) {
  chunk<64>(out, tickets, sums, parts, q, k, v, k_scale, v_scale, count, items, group, capacity, window);
}

// at most 255 registers
extern "C" __global__ void __launch_bounds__(128, 2) chunk_q8_128(
    float* out, unsigned* tickets, float2* sums, float* parts, const float* q, const signed char* k,
    const signed char* v, const half* k_scale, const half* v_scale, const int* count, int items, int group,
    int capacity, int window) {
  chunk<128>(out, tickets, sums, parts, q, k, v, k_scale, v_scale, count, items, group, capacity, window);
}
