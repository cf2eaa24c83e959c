// What the sanitizers want to know about fibers. Their functions are absent unless one of them is preloaded.
#pragma once
#include <cstddef>

#define WEAK __attribute__((weak))
extern "C" {
WEAK void __sanitizer_start_switch_fiber(void** save, const void* stack, size_t bytes);
WEAK void __sanitizer_finish_switch_fiber(void* saved, const void** from_stack, size_t* from_bytes);
WEAK void __asan_poison_memory_region(const volatile void* at, size_t bytes);
WEAK void __asan_unpoison_memory_region(const volatile void* at, size_t bytes);
WEAK void* __tsan_get_current_fiber(void);
WEAK void* __tsan_create_fiber(unsigned flags);
WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
WEAK void __tsan_acquire(void* tag);
WEAK void __tsan_release(void* tag);
WEAK void __tsan_java_init(unsigned long heap, unsigned long bytes);
WEAK void __tsan_java_alloc(unsigned long at, unsigned long bytes);
WEAK void AnnotateIgnoreReadsBegin(const char* file, int line);
WEAK void AnnotateIgnoreReadsEnd(const char* file, int line);
WEAK void AnnotateIgnoreWritesBegin(const char* file, int line);
WEAK void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#undef WEAK

constexpr unsigned NO_SYNC = 1;  // a switch of fibers orders no memory: that is what is under test

inline void acquire(void* tag) {
  if (__tsan_acquire) __tsan_acquire(tag);
}
inline void release(void* tag) {
  if (__tsan_release) __tsan_release(tag);
}

// TSan forgets who touched these bytes before: they are the next block's own. (Meant for heaps of Java, hence `init`,
// which wants some heap to be told of; both count in eights.)
inline void forget(const void* at, size_t bytes) {
  if (!__tsan_java_alloc) return;
  alignas(64) static char heap[64];
  static bool begun = false;
  if (!begun) __tsan_java_init((unsigned long)heap, sizeof heap);
  begun = true;
  const unsigned long first = (unsigned long)at & ~7ul, end = ((unsigned long)at + bytes + 7) & ~7ul;
  if (end > first) __tsan_java_alloc(first, end - first);
}

struct UnseenByTsan {  // lanes read each other's stacks in here, which no kernel does
  UnseenByTsan() {
    if (!AnnotateIgnoreReadsBegin) return;
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~UnseenByTsan() {
    if (!AnnotateIgnoreReadsEnd) return;
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
