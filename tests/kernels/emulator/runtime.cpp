// One fiber per CUDA thread, blocks one after another. A fiber runs until it waits: at a barrier of its block or
// for the other lanes of a warp collective. Never built with a sanitizer itself; it tells them what happens.
#include "include/runtime.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "sanitizers.h"
#include "schedule.h"
#include "switch.h"

using namespace emulated;

extern "C" {
Thread* emulated_thread;
Index emulated_block_at, emulated_block_size, emulated_grid_size;
alignas(1024) unsigned char emulated_shared[SHARED_BYTES];
}

namespace {

constexpr size_t STACK = 64 * 1024, GUARD = 4096 * 16;  // one page on every machine, so that an overflow faults

enum class State { ready, at_barrier, in_warp, returned };

struct Fiber {
  Thread thread;
  Context context;
  char* stack;
  size_t stack_bytes;
  void* tsan;        // TSan's own notion of this fiber
  void* fake_stack;  // ASan's
  State state;
  Place place;  // where it waits
  int vote, votes;
};

struct Meeting {  // lanes of a warp on their way to one collective
  bool open;
  unsigned mask, arrived;
  Place place;
  Exchange exchange;
  char* tag;
  const void* in[LANES];
  void* out[LANES];
};

// One set of fibers, but two that take turns under TSan, for which a fiber is in order with itself: also with what
// it did in the block before. `outside` is the caller of the launch.
Fiber sets[2][MAX_THREADS], outside;
Fiber* fibers = sets[0];
Fiber *running, *came_from;
Schedule schedule;
Meeting meetings[MAX_WARPS][LANES];
unsigned threads, warps, waiting, returned;

const Launch* launch;
char* error_text;
size_t error_room;
bool failed;

// TSan orders what happens before a release of a tag with what happens after an acquire, and a tag keeps all it ever
// was given. So each meeting has another tag: a thread that is early at the next barrier must not look ordered with
// one that is late to leave this one, nor with another block. Nor does a thread that begins with one that has ended.
char begin_tag, end_tag, fence_tag, meeting_tags[1 << 20];
unsigned met;
char* barrier_tag;  // of the next barrier

char* next_tag() { return &meeting_tags[met++ % sizeof meeting_tags]; }

// --- switching

void switch_to(Fiber& next, bool for_good = false) {
  Fiber& here = *running;
  if (&next != &outside) schedule.runs((unsigned)(&next - fibers));
  if (&next == &here) return;  // its turn again: what it would resume at was saved some waits ago
  came_from = &here;
  running = &next;
  emulated_thread = &next.thread;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &here.fake_stack, next.stack, next.stack_bytes);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(next.tsan, NO_SYNC);
  switch_context(here.context, next.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(here.fake_stack, nullptr, nullptr);
}

void yield(bool for_good = false) {
  const int next = schedule.next(running == &outside ? threads - 1 : (unsigned)(running - fibers));
  switch_to(next == Schedule::NOBODY ? outside : fibers[next], for_good);
}

void make_ready(unsigned at) {
  fibers[at].state = State::ready;
  schedule.ready(at);
}

// Ends the launch from inside a fiber, leaving all of them as they are.
[[noreturn]] void end_launch() {
  failed = true;
  switch_to(outside, true);
  abort();  // not reached: nobody switches back
}

#define SAY(...) snprintf(error_text, error_room, __VA_ARGS__)

[[noreturn]] void differ(const char* who, Place one, Place other) {
  SAY("%s of block (%u, %u, %u) meet in different places: %s at %s:%d and %s at %s:%d", who, emulated_block_at.x,
      emulated_block_at.y, emulated_block_at.z, one.op, one.file, one.line, other.op, other.file, other.line);
  end_launch();
}

// --- barriers of a block

void open_full_barrier() {  // once all that have not returned are there
  if (!waiting || waiting != threads - returned) return;
  int votes = 0;
  const Fiber* first = nullptr;
  for (unsigned i = 0; i < threads; i++) {
    if (fibers[i].state != State::at_barrier) continue;
    if (!first) first = &fibers[i];
    const Place &a = first->place, &b = fibers[i].place;
    if (strcmp(a.op, b.op) || a.line != b.line || strcmp(a.file, b.file)) differ("threads", a, b);
    votes += fibers[i].vote != 0;
  }
  for (unsigned i = 0; i < threads; i++) {
    if (fibers[i].state != State::at_barrier) continue;
    fibers[i].votes = votes;
    make_ready(i);
  }
  waiting = 0;
  barrier_tag = next_tag();
}

// --- life of a fiber

void check_nobody_waits_for(const Thread& thread) {
  for (const Meeting& meeting : meetings[thread.warp]) {
    if (!meeting.open || !(meeting.mask >> thread.lane & 1)) continue;
    SAY("thread (%u, %u, %u) of block (%u, %u, %u) returns, but is in the mask %08x of %s at %s:%d", thread.index.x,
        thread.index.y, thread.index.z, emulated_block_at.x, emulated_block_at.y, emulated_block_at.z, meeting.mask,
        meeting.place.op, meeting.place.file, meeting.place.line);
    end_launch();
  }
}

void live() {
  if (__sanitizer_finish_switch_fiber) {
    const void* stack;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &came_from->stack_bytes);
    came_from->stack = (char*)stack;
  }
  acquire(&begin_tag);
  launch->call(launch->args);
  release(&end_tag);
  running->state = State::returned;
  returned++;
  check_nobody_waits_for(running->thread);
  open_full_barrier();
  yield(true);
  abort();  // not reached: a fiber that returned is never ready
}

bool make_stacks() {
  if (sets[0][0].stack) return true;
  const size_t each = STACK + GUARD;
  void* all = mmap(nullptr, 2 * MAX_THREADS * each, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) return false;
  for (auto& set : sets) {
    for (unsigned i = 0; i < MAX_THREADS; i++) {
      char* low = (char*)all + (&set[i] - sets[0]) * each;
      if (mprotect(low, GUARD, PROT_NONE)) return false;
      set[i].stack = low + GUARD;
      set[i].stack_bytes = STACK;
    }
  }
  return true;
}

void start_block() {
  waiting = returned = 0;
  if (__tsan_create_fiber) fibers = fibers == sets[0] ? sets[1] : sets[0];
  barrier_tag = next_tag();
  schedule.begin_block();
  for (unsigned w = 0; w < warps; w++)
    for (Meeting& meeting : meetings[w]) meeting.open = false;
  for (unsigned i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    const unsigned x = launch->block[0], y = launch->block[1];
    fiber.thread = {{i % x, i / x % y, i / x / y}, i % LANES, i / LANES};
    fiber.fake_stack = nullptr;
    make_context(fiber.context, fiber.stack, fiber.stack_bytes, live);
    make_ready(i);
  }
  if (launch->poison) {
    memset(emulated_shared, 0xff, launch->shared_bytes);
    memset(launch->statics, 0xff, launch->static_bytes);
  }
}

void report_deadlock() {
  unsigned barrier = 0, warp = 0;
  const Fiber *at_barrier = nullptr, *in_warp = nullptr;
  for (unsigned i = 0; i < threads; i++) {
    if (fibers[i].state == State::at_barrier && !barrier++) at_barrier = &fibers[i];
    if (fibers[i].state == State::in_warp && !warp++) in_warp = &fibers[i];
  }
  int said = SAY("block (%u, %u, %u) is stuck: %u of %u threads returned", emulated_block_at.x, emulated_block_at.y,
                 emulated_block_at.z, returned, threads);
  for (const Fiber* fiber : {at_barrier, in_warp}) {
    if (!fiber || said < 0 || (size_t)said >= error_room) continue;
    said += snprintf(error_text + said, error_room - said, ", %u wait in %s at %s:%d (first: thread (%u, %u, %u))",
                     fiber == at_barrier ? barrier : warp, fiber->place.op, fiber->place.file, fiber->place.line,
                     fiber->thread.index.x, fiber->thread.index.y, fiber->thread.index.z);
  }
}

void order_after_all() {  // threads that never ended released nothing, but will not run again either
  if (!__tsan_switch_to_fiber) return;
  for (unsigned i = 0; i < threads; i++) {
    __tsan_switch_to_fiber(fibers[i].tsan, 0);
    __tsan_switch_to_fiber(outside.tsan, 0);
  }
}

bool run_block() {
  start_block();
  forget(emulated_shared, launch->shared_bytes);
  forget(launch->statics, launch->static_bytes);
  release(&begin_tag);
  running = &outside;
  yield();
  if (!failed && returned == threads) return true;
  if (!failed) report_deadlock();
  failed = true;
  order_after_all();
  return false;
}

// Blocks in order, or backwards with a seed: a kernel that needs one block before another shows it.
bool run_blocks() {
  const uint64_t x = launch->grid[0], y = launch->grid[1], blocks = x * y * launch->grid[2];
  for (uint64_t i = 0; i < blocks; i++) {
    const uint64_t at = launch->seed ? blocks - 1 - i : i;
    emulated_block_at = {(unsigned)(at % x), (unsigned)(at / x % y), (unsigned)(at / x / y)};
    if (!run_block()) return false;
  }
  acquire(&end_tag);  // not after each block: nothing orders them with each other
  return true;
}

}  // namespace

extern "C" {

void emulated_fail(const char* what) {
  const Index &at = emulated_block_at, &thread = running->thread.index;
  SAY("%s (block (%u, %u, %u), thread (%u, %u, %u), %s at %s:%d)", what, at.x, at.y, at.z, thread.x, thread.y, thread.z,
      running->place.op, running->place.file, running->place.line);
  end_launch();
}

int emulated_barrier(Place place, int vote) {
  Fiber& here = *running;
  char* tag = barrier_tag;
  here.place = place;
  here.vote = vote;
  here.state = State::at_barrier;
  waiting++;
  release(tag);
  open_full_barrier();
  yield();
  acquire(tag);
  return here.votes;
}

void emulated_fence(void) {  // what came before any fence is seen after every later one, whoever asks
  acquire(&fence_tag);
  release(&fence_tag);
}

unsigned emulated_lanes_running(void) {
  const unsigned first = running->thread.warp * LANES;
  unsigned lanes = 0;
  for (unsigned l = 0; l < LANES && first + l < threads; l++)
    if (fibers[first + l].state != State::returned) lanes |= 1u << l;
  return lanes;
}

void emulated_meet(Place place, unsigned mask, const void* in, void* out, Exchange exchange, bool orders) {
  Fiber& here = *running;
  const unsigned lane = here.thread.lane, first = here.thread.warp * LANES;
  here.place = place;
  if (!(mask >> lane & 1)) emulated_fail("a lane is not in the mask it gives");
  if (mask & ~emulated_lanes_running()) emulated_fail("the mask names a lane that has returned or never was");

  Meeting *meeting = nullptr, *unused = nullptr;
  for (Meeting& other : meetings[here.thread.warp]) {
    if (!other.open && !unused) unused = &other;
    if (other.open && other.mask == mask) {
      meeting = &other;
      break;
    }
  }
  if (!meeting) {
    meeting = unused;  // there is one: open meetings have each their own waiting lane
    meeting->open = true;
    meeting->mask = mask;
    meeting->arrived = 0;
    meeting->place = place;
    meeting->exchange = exchange;
    meeting->tag = orders ? next_tag() : nullptr;
  }
  if (strcmp(meeting->place.op, place.op)) differ("lanes of one warp", meeting->place, place);
  meeting->in[lane] = in;
  meeting->out[lane] = out;
  meeting->arrived |= 1u << lane;
  char* tag = meeting->tag;
  if (orders) release(tag);
  if (meeting->arrived == mask) {
    {
      UnseenByTsan unseen;
      meeting->exchange(meeting->in, meeting->out, mask);
    }
    meeting->open = false;
    for (unsigned l = 0; l < LANES; l++)
      if (l != lane && (mask >> l & 1)) make_ready(first + l);
  } else {
    here.state = State::in_warp;
    yield();
  }
  if (orders) acquire(tag);
}

// 0, or 1 with the reason in `error`.
__attribute__((visibility("default"))) int emulated_launch(const Launch* asked, char* error, size_t error_bytes) {
  launch = asked;
  error_text = error;
  error_room = error_bytes;
  threads = asked->block[0] * asked->block[1] * asked->block[2];
  warps = (threads + LANES - 1) / LANES;
  schedule.begin_launch(threads, asked->seed);
  emulated_block_size = {asked->block[0], asked->block[1], asked->block[2]};
  emulated_grid_size = {asked->grid[0], asked->grid[1], asked->grid[2]};
  if (!make_stacks()) {
    SAY("no memory for the stacks of %u threads", MAX_THREADS);
    return 1;
  }
  if (__tsan_get_current_fiber) outside.tsan = __tsan_get_current_fiber();
  for (auto& set : sets)
    for (unsigned i = 0; i < threads; i++)
      if (!set[i].tsan && __tsan_create_fiber) set[i].tsan = __tsan_create_fiber(0);
  if (__asan_poison_memory_region) {  // what lies behind the asked bytes is out of bounds
    if (failed)
      for (Fiber& fiber : sets[0]) __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
    __asan_unpoison_memory_region(emulated_shared, SHARED_BYTES);
    __asan_poison_memory_region(emulated_shared + asked->shared_bytes, SHARED_BYTES - asked->shared_bytes);
  }
  failed = false;
  return run_blocks() ? 0 : 1;
}

}
