// Which thread of a block runs next, of those that could. Results must not depend on it.
#pragma once
#include "include/runtime.h"

class Schedule {
 public:
  static constexpr int NOBODY = -1;

  // seed 0: threads take turns; else as drawn: one warp far ahead of the others, and now and then another in between
  void begin_launch(unsigned threads, uint64_t seed) {
    warps_ = (threads + emulated::LANES - 1) / emulated::LANES;
    drawn_ = seed != 0;
    random_ = seed * 0x9e3779b97f4a7c15ull;
  }

  void begin_block() {
    for (unsigned w = 0; w < warps_; w++) ready_[w] = 0, favour_[w] = (unsigned char)w;
    if (!drawn_) return;
    for (unsigned w = warps_ - 1; w > 0; w--) {
      const unsigned other = draw(w + 1);
      const unsigned char swapped = favour_[w];
      favour_[w] = favour_[other], favour_[other] = swapped;
    }
  }

  void ready(unsigned thread) { ready_[thread / emulated::LANES] |= 1u << thread % emulated::LANES; }
  void runs(unsigned thread) { ready_[thread / emulated::LANES] &= ~(1u << thread % emulated::LANES); }

  // The next thread after `at`, or NOBODY.
  int next(unsigned at) { return drawn_ ? next_drawn() : next_in_turn(at); }

 private:
  int next_in_turn(unsigned at) const {
    const unsigned warp = at / emulated::LANES, lane = at % emulated::LANES;
    const unsigned later = lane == emulated::LANES - 1 ? 0 : ready_[warp] & (0xffffffffu << (lane + 1));
    if (later) return first_of(warp, later);
    for (unsigned i = 1; i <= warps_; i++) {
      const unsigned other = (warp + i) % warps_;
      if (ready_[other]) return first_of(other, ready_[other]);
    }
    return NOBODY;
  }

  int next_drawn() {
    const unsigned skip = draw(64) == 0 ? draw(warps_) : 0;
    for (unsigned i = 0; i < warps_; i++) {
      const unsigned warp = favour_[(i + skip) % warps_];
      if (!ready_[warp]) continue;
      const unsigned after = ready_[warp] & (0xffffffffu << draw(emulated::LANES));
      return first_of(warp, after ? after : ready_[warp]);
    }
    return NOBODY;
  }

  static int first_of(unsigned warp, unsigned lanes) { return (int)(warp * emulated::LANES) + __builtin_ctz(lanes); }

  unsigned draw(unsigned below) {  // xorshift64*
    random_ ^= random_ >> 12;
    random_ ^= random_ << 25;
    random_ ^= random_ >> 27;
    return (unsigned)((random_ * 0x2545f4914f6cdd1dull >> 32) % below);
  }

  unsigned ready_[emulated::MAX_WARPS];  // lanes that could run
  unsigned char favour_[emulated::MAX_WARPS];  // warps, the one that runs ahead first
  unsigned warps_;
  bool drawn_;
  uint64_t random_;
};
