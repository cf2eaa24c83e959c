// Where threads meet: barriers of a block, collectives of a warp, and the tensor core's product.
#pragma once

static inline void __syncthreads(EMULATED_HERE) { emulated_barrier(EMULATED_PLACE("__syncthreads"), 0); }
static inline int __syncthreads_or(int vote, EMULATED_HERE) {
  return emulated_barrier(EMULATED_PLACE("__syncthreads_or"), vote) > 0;
}
static inline int __syncthreads_and(int vote, EMULATED_HERE) {
  return emulated_barrier(EMULATED_PLACE("__syncthreads_and"), !vote) == 0;
}
static inline int __syncthreads_count(int vote, EMULATED_HERE) {
  return emulated_barrier(EMULATED_PLACE("__syncthreads_count"), vote);
}

// The one warp collective that orders memory; the others below only carry values.
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATED_HERE) {
  char none = 0;
  emulated_meet(EMULATED_PLACE("__syncwarp"), mask, &none, &none,
                [](const void* const*, void* const*, unsigned) {}, true);
}
static inline unsigned __activemask() { return emulated_lanes_running(); }

static inline unsigned __ballot_sync(unsigned mask, int vote, EMULATED_HERE) {
  unsigned votes = 0;
  emulated_meet(EMULATED_PLACE("__ballot_sync"), mask, &vote, &votes,
                [](const void* const* in, void* const* out, unsigned lanes) {
                  unsigned all = 0;
                  for (unsigned l = 0; l < 32; l++)
                    if ((lanes >> l & 1) && *(const int*)in[l]) all |= 1u << l;
                  for (unsigned l = 0; l < 32; l++)
                    if (lanes >> l & 1) *(unsigned*)out[l] = all;
                },
                false);
  return votes;
}
static inline int __any_sync(unsigned mask, int vote, EMULATED_HERE) {
  return __ballot_sync(mask, vote, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int vote, EMULATED_HERE) {
  return __ballot_sync(mask, vote, file, line) == mask;
}

namespace emulated {

enum class From { lane, above, below, crossed };

template <class T> struct Shuffled {
  T value;
  int of, width;
};

template <From from> inline int source(int lane, int of, int width) {
  const int first = lane & ~(width - 1), end = first + width;
  int at = from == From::lane    ? first + (of & (width - 1))
           : from == From::above ? lane - of
           : from == From::below ? lane + of
                                 : lane ^ of;
  return at < first || (from != From::crossed && at >= end) || (from == From::crossed && at >= end) ? lane : at;
}

template <From from, class T> inline T shuffle(Place place, unsigned mask, T value, int of, int width) {
  const Shuffled<T> mine{value, of, width};
  T taken{};
  emulated_meet(place, mask, &mine, &taken,
                [](const void* const* in, void* const* out, unsigned lanes) {
                  for (int l = 0; l < 32; l++) {
                    if (!(lanes >> l & 1)) continue;
                    const auto* asked = (const Shuffled<T>*)in[l];
                    const int at = source<from>(l, asked->of, asked->width);
                    if (!(lanes >> at & 1)) emulated_fail("a shuffle reads a lane that is not in its mask");
                    *(T*)out[l] = ((const Shuffled<T>*)in[at])->value;
                  }
                },
                false);
  return taken;
}

}  // namespace emulated

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMULATED_HERE) {
  return emulated::shuffle<emulated::From::lane>(EMULATED_PLACE("__shfl_sync"), mask, value, lane, width);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned step, int width = 32, EMULATED_HERE) {
  return emulated::shuffle<emulated::From::above>(EMULATED_PLACE("__shfl_up_sync"), mask, value, (int)step, width);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned step, int width = 32, EMULATED_HERE) {
  return emulated::shuffle<emulated::From::below>(EMULATED_PLACE("__shfl_down_sync"), mask, value, (int)step,
                                                  width);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATED_HERE) {
  return emulated::shuffle<emulated::From::crossed>(EMULATED_PLACE("__shfl_xor_sync"), mask, value, bits, width);
}

// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32, fragments as the PTX manual lays them out (see `mma` in
// primitives.cuh); sums in double and rounded once, which is closer than any tensor core.
static inline void emulated_mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATED_HERE) {
  struct Fragments {
    unsigned a[4], b[2];
    float c[4];
  };
  const Fragments mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  emulated_meet(EMULATED_PLACE("mma"), 0xffffffffu, &mine, c,
                [](const void* const* in, void* const* out, unsigned) {
                  double a[16][16], b[16][8];
                  for (int l = 0; l < 32; l++) {
                    const auto* held = (const Fragments*)in[l];
                    const int g = l / 4, t = l % 4;
                    for (int e = 0; e < 2; e++) {  // the lower half of a word is the earlier column
                      const auto value = [e](unsigned word) { return emulated::widened((uint16_t)(word >> 16 * e)); };
                      a[g][2 * t + e] = value(held->a[0]);
                      a[g + 8][2 * t + e] = value(held->a[1]);
                      a[g][2 * t + 8 + e] = value(held->a[2]);
                      a[g + 8][2 * t + 8 + e] = value(held->a[3]);
                      b[2 * t + e][g] = value(held->b[0]);
                      b[2 * t + 8 + e][g] = value(held->b[1]);
                    }
                  }
                  for (int l = 0; l < 32; l++) {
                    for (int i = 0; i < 4; i++) {
                      const int row = l / 4 + (i < 2 ? 0 : 8), column = l % 4 * 2 + i % 2;
                      double sum = ((const Fragments*)in[l])->c[i];
                      for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
                      ((float*)out[l])[i] = (float)sum;
                    }
                  }
                },
                false);
}
