// Words of CUDA C++ that the emulator spells itself, each against what NumPy says in test_emulator.py.
#include <cuda_fp16.h>

extern "C" __global__ void halves(
    float* wide, unsigned short* narrow, const unsigned short* bits, const float* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  wide[i] = __half2float(__ushort_as_half(bits[i]));
  narrow[i] = __half_as_ushort(__float2half_rn(x[i]));
}

// c [16 x 8] = a [16 x 16] @ b [16 x 8] by one warp.
extern "C" __global__ void product(float* c, const half* a, const half* b) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto pair = [](half low, half high) {
    return __half_as_ushort(low) | (unsigned)__half_as_ushort(high) << 16;
  };
  unsigned of_a[4], of_b[2];
  for (int i = 0; i < 4; i++) {
    const half* at = a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
    of_a[i] = pair(at[0], at[1]);
  }
  for (int i = 0; i < 2; i++) {
    const half* at = b + (2 * t + 8 * i) * 8 + g;
    of_b[i] = pair(at[0], at[8]);
  }
  float of_c[4] = {};
  emulated_mma(of_c, of_a, of_b);
  for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = of_c[i];
}

// One row per word, 32 columns, one warp.
extern "C" __global__ void words(int* out, const int* x, const int* y) {
  const int l = threadIdx.x, a = x[l], b = y[l];
  const unsigned all = 0xffffffffu;
  const int found[] = {
      __dp4a(a, b, 7),
      (int)__byte_perm((unsigned)a, (unsigned)b, 0x7531u),
      __popc((unsigned)a),
      __clz(a),
      __ffs(a),
      min(a, b),
      max(a, b),
      (int)max((unsigned)a, (unsigned)b),
      __shfl_sync(all, a, 5),
      __shfl_sync(all, a, 5, 8),
      __shfl_up_sync(all, a, 3),
      __shfl_down_sync(all, a, 3),
      __shfl_xor_sync(all, a, 12),
      (int)__ballot_sync(all, a > 0),
      __any_sync(all, l == 40),
      __all_sync(all, l < 40),
      __float2int_rn(__int_as_float(a)),
  };
  for (int row = 0; row < (int)(sizeof found / sizeof *found); row++) out[row * 32 + l] = found[row];
}

// Votes of a block of 96: or, and, count of `x > 0`, and the order in which atomics handed out tickets.
extern "C" __global__ void votes(int* out, const int* x, unsigned* tickets) {
  const int vote = x[threadIdx.x] > 0;
  const int any = __syncthreads_or(vote), all = __syncthreads_and(vote), count = __syncthreads_count(vote);
  if (threadIdx.x == 95) out[0] = any, out[1] = all, out[2] = count;
  out[3 + threadIdx.x] = (int)atomicAdd(tickets, 1u);
  atomicMax(tickets + 1, threadIdx.x);
  if (atomicInc(tickets + 2, 95u) == 95u) out[99] = (int)tickets[2];
}

// Thread i meets those that are still there i times, and then leaves; the last is alone with its barriers.
extern "C" __global__ void leaving(int* out) {
  int met = 0;
  for (unsigned i = 0; i < threadIdx.x; i++) met += __syncthreads_count(1);
  out[threadIdx.x] = met;
}

// Every thread of a grid in three dimensions marks the place it owns.
extern "C" __global__ void places(int* out) {
  const size_t block = blockIdx.x + (size_t)gridDim.x * (blockIdx.y + (size_t)gridDim.y * blockIdx.z);
  const size_t thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * (blockDim.x * blockDim.y * blockDim.z) + thread] += 1;
}
