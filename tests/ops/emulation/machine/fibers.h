// Fibers: a stack and a place to go on from. Instructions for x86-64; ucontext, which calls the system for each change,
// elsewhere and with LQRAY_EMULATED_UCONTEXT.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && !defined(LQRAY_EMULATED_UCONTEXT)

struct Fiber {
  void* top = nullptr;
};

// Saves what a call preserves on this stack, and returns on the other one.
extern "C" void lqray_emulated_change(void** from, void* to);
asm(R"(
.text
.hidden lqray_emulated_change
lqray_emulated_change:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

inline void prepare(Fiber& fiber, char* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t{15});
  *--top = nullptr;  // aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.top = top;
}

inline void change(Fiber& from, Fiber& to) { lqray_emulated_change(&from.top, to.top); }

#else

#include <ucontext.h>

struct Fiber {
  ucontext_t context;
};

inline void prepare(Fiber& fiber, char* stack, size_t size, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = size;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

inline void change(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif
