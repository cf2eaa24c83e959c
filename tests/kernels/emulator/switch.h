// A context is one stack and where it stopped. Switching costs a few nanoseconds where it is written by hand,
// and two system calls elsewhere.
#pragma once
#include <cstddef>

#if defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))

struct Context {
  void* stack_pointer;
};

extern "C" void emulated_switch(void** save, void* load);  // callee-saved registers lie on the stack

#if defined(__x86_64__)
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch, . - emulated_switch
)");
constexpr size_t FRAME = 8, RETURN = 6;  // six registers, the address `ret` takes, one word that aligns the stack
#else
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, %function
emulated_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulated_switch, . - emulated_switch
)");
constexpr size_t FRAME = 20, RETURN = 11;  // twelve registers, the last of them x30, and eight of floats
#endif

inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  void** frame = (void**)(stack + bytes) - FRAME;  // `stack` and `bytes` are multiples of 16
  for (size_t i = 0; i < FRAME; i++) frame[i] = nullptr;
  frame[RETURN] = (void*)entry;
  context.stack_pointer = frame;
}

inline void switch_context(Context& from, Context& to) { emulated_switch(&from.stack_pointer, to.stack_pointer); }

#else
#include <ucontext.h>

struct Context {
  ucontext_t state;
};

inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#endif
