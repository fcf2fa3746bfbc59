// Every load and store of a kernel that was compiled with -fsanitize=thread arrives here (the compiler's calls are
// those of ThreadSanitizer, whose library is not linked), and is held against what other threads did to the same bytes
// in the same launch. Two accesses, one of them a store, must be ordered: by a barrier of the block, or by __syncwarp.
// Nothing orders the accesses of different blocks; atomic operations order nothing but themselves.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>

#include "scheduler.h"

namespace emulated {

namespace {

constexpr size_t kPage = 256;

struct Access {
  uint64_t thread = 0;  // one more than its number in the grid; 0: there was none
  uint32_t barriers = 0, time : 31, atomic : 1;

  uint64_t block() const { return (thread - 1) / kMostThreads; }
  int index() const { return static_cast<int>((thread - 1) % kMostThreads); }
};

struct Byte {
  Access store{}, loads[2]{};  // the latest; of loads those of two threads
  bool shared = false;
};

using Page = Byte[kPage];

// Where the kernel stands, for addr2line.
std::string place_of(const void* where) {
  Dl_info info{};
  if (!dladdr(where, &info) || !info.dli_fname) return "at an unknown place";
  char text[300];
  std::snprintf(text, sizeof text, "at %s+0x%zx", info.dli_fname,
                static_cast<size_t>(static_cast<const char*>(where) - static_cast<const char*>(info.dli_fbase)) - 1);
  return text;
}

struct Pages {
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> all;
  uintptr_t last = ~uintptr_t{0};
  Byte* bytes = nullptr;

  Byte& at(uintptr_t address) {
    if (address / kPage != last) {
      last = address / kPage;
      auto& page = all[last];
      if (!page) page.reset(reinterpret_cast<Page*>(new Page[1]));
      bytes = *page;
    }
    return bytes[address % kPage];
  }
};

Pages pages;

bool ordered(const Access& before, const Access& now, const Thread& thread) {
  if (!before.thread || before.thread == now.thread || (before.atomic && now.atomic)) return true;
  if (before.block() != now.block()) return false;
  if (before.barriers < now.barriers) return true;
  if (before.index() / kLanes != now.index() / kLanes) return false;
  return before.time <= thread.known[before.index() % kLanes];
}

[[noreturn]] void race(const Byte& byte, const Access& before, bool stored, bool store, size_t size, const void* where) {
  die("race: it %s %zu bytes of %s memory that thread %d of block %llu %s, and nothing orders the two; %s",
      store ? "stores" : "loads", size, byte.shared ? "shared" : "global", before.index(),
      (unsigned long long)before.block(), stored ? "stored" : "loaded", place_of(where).c_str());
}

void check_byte(Byte& byte, const Access& access, const Thread& thread, bool store, bool whole, size_t size,
                const void* where) {
  if (!ordered(byte.store, access, thread)) race(byte, byte.store, true, store, size, where);
  if (store) {
    for (const Access& load : byte.loads)
      if (!ordered(load, access, thread)) race(byte, load, false, store, size, where);
    byte.store = access;
    return;
  }
  // Padding within a struct that is copied whole has no value, and needs none.
  if (byte.shared && !byte.store.thread && !whole)
    die("loads shared memory that nobody has stored; %s", place_of(where).c_str());
  if (byte.loads[0].thread != access.thread) byte.loads[1] = byte.loads[0];
  byte.loads[0] = access;
}

void check(uintptr_t address, size_t size, bool store, bool atomic, bool whole, const void* where) {
  const Thread* const thread = current();
  if (!thread || on_a_stack(reinterpret_cast<void*>(address))) return;
  const Block& block = *thread->block;
  Access access;
  access.thread = block.number * kMostThreads + thread->index + 1;
  access.barriers = block.barriers;
  access.time = thread->known[thread->index % kLanes];
  access.atomic = atomic;
  for (size_t i = 0; i < size; ++i)
    check_byte(pages.at(address + i), access, *thread, store, whole, size, where);
}

}  // namespace

void forget_accesses() { pages = Pages{}; }

void forget_accesses(const void* shared, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    Byte& byte = pages.at(reinterpret_cast<uintptr_t>(shared) + i);
    byte = Byte{};
    byte.shared = true;
  }
}

void order_lanes(Warp& warp, unsigned mask) {
  uint32_t latest[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane)
    for (int other = 0; other < kLanes && (mask >> lane & 1); ++other)
      if (warp.lanes[lane]->known[other] > latest[other]) latest[other] = warp.lanes[lane]->known[other];
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    std::memcpy(warp.lanes[lane]->known, latest, sizeof latest);
    ++warp.lanes[lane]->own_time();
  }
}

void touch_atomically(const void* address, size_t size) {
  const void* const where = __builtin_return_address(0);
  check(reinterpret_cast<uintptr_t>(address), size, false, true, true, where);
  check(reinterpret_cast<uintptr_t>(address), size, true, true, true, where);
}

}  // namespace emulated

// What g++ and clang++ call for loads and stores; a kernel reads the padding of a struct only in ranges.
#define ACCESS(name, size, store, whole)                                                                        \
  extern "C" void __tsan_##name(void* address) {                                                                \
    emulated::check(reinterpret_cast<uintptr_t>(address), size, store, false, whole, __builtin_return_address(0)); \
  }
#define ACCESSES(size)                         \
  ACCESS(read##size, size, false, false)       \
  ACCESS(write##size, size, true, false)       \
  ACCESS(unaligned_read##size, size, false, false) \
  ACCESS(unaligned_write##size, size, true, false) \
  ACCESS(volatile_read##size, size, false, false) \
  ACCESS(volatile_write##size, size, true, false)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* address, size_t size) {
  emulated::check(reinterpret_cast<uintptr_t>(address), size, false, false, true, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t size) {
  emulated::check(reinterpret_cast<uintptr_t>(address), size, true, false, true, __builtin_return_address(0));
}
}
