// argmax: out[r] = index of the largest of x[r] [N]; pick: the same behind the guard against runs of blanks;
// nearest: out[r] = row of codebook [N, C] with the least sum((x[r] - row)^2); the first on ties, all three.
// grid (rows, blocks): a thread owns every so many columns; thread 0 of a block leaves the block's best key
// in `parts` [rows, blocks], and the last block to come, told by `tickets` [rows], takes the best of the row.
// advance: token[b] = prompt[position[b]] while inside [P], else picked[b]; one thread per lane.
#include "select.cuh"

constexpr int TOGETHER = 4;  // rows of x that share one reading of the codebook

// The best key of x [columns], whose every gridDim.y-th stretch this block takes; x[blank] counts less `off`.
__device__ __forceinline__ Key best_of_row(const float* x, int columns, int blank, float off, Key* room) {
  Key best = 0;
  const int stride = gridDim.y * blockDim.x;
  for (int first = blockIdx.y * blockDim.x + threadIdx.x; first < columns; first += 4 * stride) {
#pragma unroll
    for (int u = 0; u < 4; ++u) {  // on their way at once; behind the last column it comes again, and changes nothing
      const int n = min(first + u * stride, columns - 1);
      const Key key = key_of(n == blank ? x[n] - off : x[n], n);
      best = key > best ? key : best;
    }
  }
  return block_best(best, room);
}

// at most 40 registers
extern "C" __global__ void __launch_bounds__(256) argmax(int* out, const float* x, int columns, Key* parts,
                                                         unsigned* tickets) {
  __shared__ Key room[32];
  const size_t row = blockIdx.x;
  const Key own = best_of_row(x + row * columns, columns, -1, 0.f, room);
  if (threadIdx.x == 0) parts[row * gridDim.y + blockIdx.y] = own;
  if (!last_to_come(tickets + row, gridDim.y)) return;
  const Key best = best_of_parts(parts + row * gridDim.y, gridDim.y, room);
  if (threadIdx.x == 0) out[row] = index_of(best);
}

// An idle lane keeps its run; its choice is 0, which is an index of any table.
// at most 40 registers
extern "C" __global__ void __launch_bounds__(256) pick(int* out, const float* x, int* run, int blank,
                                                       int patience, double slope, double limit,
                                                       const int* active, int columns, Key* parts,
                                                       unsigned* tickets) {
  __shared__ Key room[32];
  const size_t lane = blockIdx.x;
  if (!active[lane]) {
    if (threadIdx.x == 0 && blockIdx.y == 0) out[lane] = 0;
    return;
  }
  const int blanks = run[lane];
  const float off = blank_penalty(blanks, patience, slope, limit);
  const Key own = best_of_row(x + lane * columns, columns, blank, off, room);
  if (threadIdx.x == 0) parts[lane * gridDim.y + blockIdx.y] = own;
  if (!last_to_come(tickets + lane, gridDim.y)) return;
  const int choice = index_of(best_of_parts(parts + lane * gridDim.y, gridDim.y, room));
  if (threadIdx.x == 0) {
    out[lane] = choice;
    run[lane] = choice == blank ? blanks + 1 : 0;
  }
}

// A warp owns a row of the codebook at a time, a lane the columns lane, lane + 32, ... of it; blockIdx.x
// counts groups of TOGETHER rows of x. Differences are squared as they are: |c|^2 - 2 x.c would cancel.
// at most 64 registers
extern "C" __global__ void __launch_bounds__(256) nearest(int* out, const float* x, const float* codebook,
                                                          int rows, int columns, int points, Key* parts,
                                                          unsigned* tickets) {
  __shared__ Key room[32];
  const int lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  const int first = blockIdx.x * TOGETHER;
  const float* point[TOGETHER];
  Key best[TOGETHER];
#pragma unroll
  for (int i = 0; i < TOGETHER; i++) {
    point[i] = x + (size_t)min(first + i, points - 1) * columns;  // the last group repeats the last one
    best[i] = 0;
  }
  for (int n = blockIdx.y * warps + (threadIdx.x >> 5); n < rows; n += gridDim.y * warps) {
    const float* row = codebook + (size_t)n * columns;
    float gap[TOGETHER] = {};
#pragma unroll 4
    for (int c = lane; c < columns; c += 32)
#pragma unroll
      for (int i = 0; i < TOGETHER; i++) gap[i] += (point[i][c] - row[c]) * (point[i][c] - row[c]);
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      const Key key = key_of(-warp_sum(gap[i]), n);
      best[i] = key > best[i] ? key : best[i];
    }
  }
  parts += (size_t)first * gridDim.y;  // [TOGETHER, blocks]
#pragma unroll
  for (int i = 0; i < TOGETHER; i++) {
    const Key own = block_best(best[i], room);
    if (threadIdx.x == 0) parts[i * gridDim.y + blockIdx.y] = own;
  }
  if (!last_to_come(tickets + blockIdx.x, gridDim.y)) return;
  for (int i = 0; i < TOGETHER && first + i < points; i++) {
    const Key key = best_of_parts(parts + i * gridDim.y, gridDim.y, room);
    if (threadIdx.x == 0) out[first + i] = index_of(key);
  }
}

// at most 20 registers
extern "C" __global__ void __launch_bounds__(64) advance(int* token, const int* picked, const int* prompt,
                                                         const int* position, const int* active, int lanes,
                                                         int length) {
  const int lane = blockIdx.x * blockDim.x + threadIdx.x;
  if (lane >= lanes || !active[lane]) return;
  const int at = position[lane];
  token[lane] = at >= 0 && at < length ? prompt[at] : picked[lane];
}
