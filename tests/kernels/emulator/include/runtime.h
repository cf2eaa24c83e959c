// What kernels built for the CPU ask of runtime.cpp: who runs, where shared memory lies, how threads meet.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulated {

struct Index {
  unsigned x, y, z;
};

struct Thread {  // one CUDA thread: a fiber
  Index index;
  unsigned lane, warp;
};

struct Place {  // where a thread waits, for the reports
  const char* op;
  const char* file;
  int line;
};

constexpr size_t SHARED_BYTES = 227 * 1024;  // the most that any GPU gives one block
constexpr unsigned MAX_THREADS = 1024, LANES = 32, MAX_WARPS = MAX_THREADS / LANES;

// Done once by the last lane that arrives: from what each lane brought to what each takes away.
using Exchange = void (*)(const void* const* in, void* const* out, unsigned mask);

struct Launch {  // mirrored field by field in launch.py
  void (*call)(void** args);
  void** args;
  unsigned grid[3], block[3];
  size_t shared_bytes;    // dynamic
  unsigned char* statics;  // the static shared arrays of the file
  size_t static_bytes;
  int poison;     // fill shared memory with 0xff before each block
  uint64_t seed;  // 0: threads take turns; else a drawn order, one warp far ahead, and blocks backwards
};

}  // namespace emulated

extern "C" {
extern emulated::Thread* emulated_thread;
extern emulated::Index emulated_block_at, emulated_block_size, emulated_grid_size;
extern unsigned char emulated_shared[];  // dynamic shared memory, always at this address

// Waits for every thread of the block that has not returned; how many of them voted.
int emulated_barrier(emulated::Place place, int vote);
// Waits for the lanes in `mask`; `orders` says whether their memory accesses are ordered by it.
void emulated_meet(emulated::Place place, unsigned mask, const void* in, void* out, emulated::Exchange exchange,
                   bool orders);
void emulated_fence(void);
unsigned emulated_lanes_running(void);
[[noreturn]] void emulated_fail(const char* what);
int emulated_launch(const emulated::Launch* launch, char* error, size_t error_bytes);
}

#define EMULATED_PLACE(op) (emulated::Place{op, file, line})
#define EMULATED_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
