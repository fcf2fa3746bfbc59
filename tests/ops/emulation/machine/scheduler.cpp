// The scheduler: every thread is a fiber, some blocks are on the machine at a time, and which thread goes on, wherever
// one waits for others, is the order's choice.
#include "scheduler.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

namespace emulated {

namespace {

constexpr int kMostResident = 3;
constexpr int kSeconds = 20;  // of CPU time, for one launch
constexpr int64_t kMostStaticShared = 48 * 1024, kMostShared = 227 * 1024;
constexpr size_t kBlockStacks = kMostThreads * kStack;

Settings settings;
int64_t allowed_shared = kMostStaticShared;

struct Run {  // one launch
  const char* kernel = "";
  const std::function<void()>* thread = nullptr;
  Index grid, size;
  size_t dynamic_shared = 0;
  int order = kRandom;
  std::vector<uint64_t> waiting;  // numbers of blocks that have not begun, the next one last
  std::vector<Block*> resident;
  int finished = 0;
};

Run run;
Block slots[kMostResident];
char* stacks = nullptr;
Fiber host;
Thread* now = nullptr;
struct { uint64_t launches = 0, blocks = 0, threads = 0; } totals;

uint64_t pick(uint64_t below) { return (settings.random() >> 32) * below >> 32; }  // below 2**32
int64_t number(Index size) { return static_cast<int64_t>(size.x) * size.y * size.z; }

Index place(uint64_t at, Index size) {
  return {static_cast<unsigned>(at % size.x), static_cast<unsigned>(at / size.x % size.y),
          static_cast<unsigned>(at / size.x / size.y)};
}

void say(const char* text) {
  if (write(2, text, std::strlen(text)) < 0) std::abort();
}

void out_of_time(int) {
  say("emulated CUDA: a launch does not end: ");
  say(run.kernel);
  say("\n");
  std::abort();
}

// The warp whose turn it is, or nullptr where every thread waits. At random, it is mostly the one of before, whose
// stacks the caches hold.
Warp* next_warp(Warp* before) {
  const size_t blocks = run.resident.size();
  if (!blocks) return nullptr;
  if (run.order == kRandom && before && before->ready && pick(16)) return before;
  const size_t warps = run.resident[0]->warps.size(), all = blocks * warps;
  const size_t begin = run.order == kRandom ? pick(all) : 0;
  for (size_t i = 0; i < all; ++i) {
    size_t at = (begin + i) % all;
    if (run.order == kHighest) at = all - 1 - at;
    Warp& warp = run.resident[at / warps]->warps[at % warps];
    if (warp.ready) return &warp;
  }
  return nullptr;
}

int lane_of(unsigned ready) {
  if (run.order == kHighest) return kLanes - 1 - __builtin_clz(ready);
  if (run.order == kLowest) return __builtin_ctz(ready);
  const unsigned from = static_cast<unsigned>(pick(kLanes));
  const unsigned later = ready >> from << from;
  return __builtin_ctz(later ? later : ready);
}

Thread* next() {
  Warp* const warp = next_warp(now ? now->warp : nullptr);
  if (!warp) return nullptr;
  const int lane = lane_of(warp->ready);
  warp->ready &= ~(1u << lane);
  return warp->lanes[lane];
}

// Leaves this fiber for `thread`, or, where there is none, for the host.
void go_to(Fiber& from, Thread* thread) {
  now = thread;
  change(from, thread ? thread->fiber : host);
}

void wait() {
  Thread* const self = now;
  Thread* const other = next();
  if (other == self) return;
  go_to(self->fiber, other);
}

void wake(Thread* thread) {
  thread->waits_at = nullptr;
  thread->warp->ready |= 1u << (thread->index % kLanes);
}

void leave() {
  Thread* const self = now;
  Block& block = *self->block;
  self->exited = true;
  self->warp->exited |= 1u << (self->index % kLanes);
  for (const Meeting& meeting : self->warp->meetings)
    if (meeting.mask >> (self->index % kLanes) & 1)
      die("a lane of the mask returns while others wait for it in %s, line %d", meeting.call, meeting.line);
  if (block.arrived) die("a thread returns while others wait for it in %s, line %d", block.call, block.line);
  if (--block.left == 0) go_to(self->fiber, nullptr);
  go_to(self->fiber, next());
}

void thread_main() {
  (*run.thread)();
  leave();
}

void begin_block(Block& block, uint64_t which) {
  const int size = static_cast<int>(number(run.size));
  block.number = which;
  block.threads.assign(size, Thread{});
  block.warps.assign((size + kLanes - 1) / kLanes, Warp{});
  block.arrived = block.trues = 0;
  block.left = size;
  block.barriers = 0;
  for (int i = 0; i < size; ++i) {
    Thread& thread = block.threads[i];
    thread.block = &block;
    thread.warp = &block.warps[i / kLanes];
    thread.index = i;
    thread.own_time() = 1;
    thread.warp->lanes[i % kLanes] = &thread;
    thread.warp->existing |= 1u << (i % kLanes);
    prepare(thread.fiber, block.stacks + i * kStack, kStack, thread_main);
    thread.warp->ready |= 1u << (i % kLanes);
  }
  ++totals.blocks;
  totals.threads += size;
}

void end_block(Block& block) {
  for (auto& [site, shared] : block.shared) std::free(shared.memory);
  block.shared.clear();
}

void explain_deadlock() {
  std::string waits;
  for (const Block* block : run.resident)
    for (const Thread& thread : block->threads)
      if (thread.waits_at && waits.size() < 400)
        waits += std::string(waits.empty() ? "" : ", ") + "thread " + std::to_string(thread.index) + " in " +
                 thread.waits_at + " of line " + std::to_string(thread.waits_line);
  die("deadlock: %s", waits.c_str());
}

void run_blocks(size_t most_resident) {
  while (true) {
    for (Block*& block : run.resident)
      if (block->left == 0) {
        end_block(*block);
        if (!run.waiting.empty()) {
          begin_block(*block, run.waiting.back());
          run.waiting.pop_back();
        }
      }
    auto& resident = run.resident;
    resident.erase(std::remove_if(resident.begin(), resident.end(), [](Block* block) { return block->left == 0; }),
                   resident.end());
    for (Block& slot : slots) {
      if (run.waiting.empty() || resident.size() >= most_resident) break;
      if (slot.left > 0) continue;
      begin_block(slot, run.waiting.back());
      run.waiting.pop_back();
      resident.push_back(&slot);
    }
    if (resident.empty()) return;
    Thread* const thread = next();
    if (!thread) explain_deadlock();
    go_to(host, thread);
  }
}

void check_config(const Config& config) {
  const int64_t threads = number(config.block);
  if (number(config.grid) < 1 || config.grid.x > 2147483647u || config.grid.y > 65535 || config.grid.z > 65535)
    die("a grid of %u x %u x %u blocks", config.grid.x, config.grid.y, config.grid.z);
  if (config.stream != current_stream()) die("a launch on another stream than torch's current one");
  if (threads < 1 || threads > kMostThreads || config.block.z > 64) die("blocks of %lld threads", (long long)threads);
  if (static_cast<int64_t>(config.shared) > allowed_shared)
    die("%zu bytes of dynamic shared memory; allowed here: %lld", config.shared, (long long)allowed_shared);
}

std::vector<uint64_t> order_of_blocks(uint64_t grid) {
  const uint64_t count = settings.last_blocks ? std::min<uint64_t>(grid, settings.last_blocks) : grid;
  std::vector<uint64_t> blocks(count);
  for (uint64_t i = 0; i < count; ++i) blocks[i] = grid - count + i;
  if (run.order == kRandom) std::shuffle(blocks.begin(), blocks.end(), settings.random);
  if (run.order == kLowest) std::reverse(blocks.begin(), blocks.end());  // the last one begins first
  return blocks;
}

void make_stacks() {
  const size_t size = kMostResident * kBlockStacks;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) die("no memory for stacks");
  stacks = static_cast<char*>(memory);
  for (int i = 0; i < kMostResident; ++i) slots[i].stacks = stacks + i * kBlockStacks;
  signal(SIGPROF, out_of_time);
}

}  // namespace

void die(const char* format, ...) {
  char text[1000];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  char where[200] = "";
  if (now) std::snprintf(where, sizeof where, " (block %llu, thread %d)", (unsigned long long)now->block->number, now->index);
  say(("emulated CUDA: " + std::string(run.kernel) + ": " + text + where + "\n").c_str());
  std::abort();
}

void run_grid(const char* kernel, const Config& config, const std::function<void()>& thread) {
  static std::mutex one;
  const std::lock_guard<std::mutex> alone(one);
  if (!stacks) make_stacks();
  run = Run{};
  run.kernel = kernel;
  run.thread = &thread;
  check_config(config);
  run.grid = config.grid;
  if (settings.most_blocks && number(config.grid) == config.grid.x)
    run.grid.x = static_cast<unsigned>(std::min<int64_t>(config.grid.x, settings.most_blocks));
  run.size = config.block;
  run.dynamic_shared = config.shared;
  run.order = settings.order == kMixed ? static_cast<int>(pick(kMixed)) : settings.order;
  run.waiting = order_of_blocks(number(run.grid));
  forget_accesses();
  ++totals.launches;
  const itimerval limit{{0, 0}, {kSeconds, 0}}, none{};
  setitimer(ITIMER_PROF, &limit, nullptr);
  run_blocks(1 + pick(kMostResident));
  setitimer(ITIMER_PROF, &none, nullptr);
}

void check_launch_bounds(int64_t most_threads) {
  if (number(run.size) > most_threads)
    die("%lld threads of a block, more than __launch_bounds__(%lld)", (long long)number(run.size), (long long)most_threads);
}

void allow_shared(int64_t bytes) {
  if (bytes > kMostShared) die("%lld bytes of shared memory are more than any device has", (long long)bytes);
  allowed_shared = std::max(allowed_shared, bytes);
}

Thread* current() { return now; }
bool on_a_stack(const void* address) {
  const char* const at = static_cast<const char*>(address);
  return at >= stacks && at < stacks + kMostResident * kBlockStacks;
}

Index thread_index() { return place(now->index, run.size); }
Index block_index() { return place(now->block->number, run.grid); }
Index block_size() { return run.size; }
Index grid_size() { return run.grid; }
int lane() { return now->index % kLanes; }

int meet_block(const char* call, int line, bool value) {
  Block& block = *now->block;
  if (block.left != static_cast<int>(block.threads.size())) die("%s, line %d, after a thread of the block has returned", call, line);
  if (!block.arrived) {
    block.call = call;
    block.line = line;
    block.trues = 0;
  } else if (block.call != call || block.line != line) {
    die("%s of line %d meets %s of line %d", call, line, block.call, block.line);
  }
  block.trues += value;
  now->waits_at = call;
  now->waits_line = line;
  if (++block.arrived == block.left) {
    block.arrived = 0;
    ++block.barriers;
    for (Thread& thread : block.threads) {
      thread.result = block.trues;
      wake(&thread);
    }
  }
  Thread* const self = now;
  wait();
  return static_cast<int>(self->result);
}

uint64_t meet_warp(const char* call, int line, unsigned mask, uint64_t value, int argument, Resolve resolve,
                   bool orders_memory) {
  Warp& warp = *now->warp;
  const int lane = now->index % kLanes;
  if (!(mask >> lane & 1)) die("%s, line %d: lane %d is not in its own mask %08x", call, line, lane, mask);
  if (mask & ~warp.existing) die("%s, line %d: mask %08x names lanes that the warp does not have", call, line, mask);
  if (mask & warp.exited) die("%s, line %d: mask %08x names a lane that has returned", call, line, mask);
  auto& meetings = warp.meetings;
  auto found = std::find_if(meetings.begin(), meetings.end(), [&](const Meeting& m) { return m.mask == mask; });
  if (found == meetings.end()) {
    meetings.push_back(Meeting{call, line, mask, 0, {}, {}});
    found = meetings.end() - 1;
  } else if (found->call != call || found->line != line) {
    die("%s of line %d meets %s of line %d", call, line, found->call, found->line);
  }
  found->arrived |= 1u << lane;
  found->given[lane] = value;
  found->argument[lane] = argument;
  now->waits_at = call;
  now->waits_line = line;
  Thread* const self = now;
  if (found->arrived == mask) {
    const Meeting all = *found;
    meetings.erase(found);
    if (orders_memory) order_lanes(warp, mask);
    const uint64_t same = argument == kSameForAll ? resolve(all.given, mask, argument) : 0;
    for (int i = 0; i < kLanes; ++i)
      if (mask >> i & 1) {
        warp.lanes[i]->result = argument == kSameForAll ? same : resolve(all.given, mask, all.argument[i]);
        wake(warp.lanes[i]);
      }
  }
  wait();
  return self->result;
}

void* shared_memory(const void* site, size_t size) {
  Block& block = *now->block;
  if (!site) size = run.dynamic_shared;
  const auto found = block.shared.find(site);
  if (found != block.shared.end()) return found->second.memory;
  size_t fixed = site ? size : 0, all = size;
  for (const auto& [other, shared] : block.shared) {
    fixed += other ? shared.size : 0;
    all += shared.size;
  }
  if (static_cast<int64_t>(fixed) > kMostStaticShared || static_cast<int64_t>(all) > allowed_shared)
    die("%zu bytes of shared memory, %zu of them static", all, fixed);
  char* memory = nullptr;
  if (posix_memalign(reinterpret_cast<void**>(&memory), 16, size ? size : 1)) die("no memory");
  std::memset(memory, 0xCD, size);
  forget_accesses(memory, size);
  block.shared[site] = {memory, size};
  return memory;
}

}  // namespace emulated

// order: 0 random, 1 the highest warp goes as far as it gets, 2 the lowest one, 3 another of these for each launch.
extern "C" __attribute__((visibility("default"))) void lqray_emulated_settings(int order, int64_t most_blocks,
                                                                               int64_t last_blocks, uint64_t seed) {
  emulated::settings.order = order;
  emulated::settings.most_blocks = most_blocks;
  emulated::settings.last_blocks = last_blocks;
  emulated::settings.random.state = seed;
}

extern "C" __attribute__((visibility("default"))) const char* lqray_emulated_totals() {
  static char text[100];
  std::snprintf(text, sizeof text, "%llu launches, %llu blocks, %llu threads", (unsigned long long)emulated::totals.launches,
                (unsigned long long)emulated::totals.blocks, (unsigned long long)emulated::totals.threads);
  return text;
}

extern "C" __attribute__((visibility("default"))) const char* lqray_cpu_instruction_set() { return "emulated CUDA"; }
