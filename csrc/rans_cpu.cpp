// rANS on the CPU: tables, frequencies, the stream, and the plain kernels; which kernels this machine runs.
#include "rans_cpu.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "quantize_cpu.h"
#include "rans_cpu_lanes.h"

namespace lqray::cpu {

namespace {

constexpr int64_t kShortLane = 1 << 11;  // codes of a lane, up to kSide lanes
constexpr int64_t kLongLane = 1 << 13;   // about so many, of more lanes

int64_t lanes_of(int64_t n) {
  const int64_t few = ceil_divide(n, kShortLane);
  return few < kSide ? few : kSide * ceil_divide(n, kLongLane * kSide);
}

// Shares of kTotal, at least 1 for every code that occurs; the most frequent code bears what rounding leaves.
void make_widths(const int64_t* counts, int64_t n, uint32_t* widths) {
  const uint64_t all = static_cast<uint64_t>(n);
  int64_t excess = -static_cast<int64_t>(kTotal);
  for (int s = 0; s < kCodes; ++s) {
    const uint64_t share = (2 * kTotal * static_cast<uint64_t>(counts[s]) + all) / (2 * all);
    widths[s] = counts[s] ? std::max<uint32_t>(1, static_cast<uint32_t>(share)) : 0;
    excess += widths[s];
  }
  while (excess != 0) {
    uint32_t& largest = *std::max_element(widths, widths + kCodes);
    const int64_t moved = std::min<int64_t>(excess, largest - 1);
    largest = static_cast<uint32_t>(largest - moved);
    excess -= moved;
  }
}

void count_codes(const uint8_t* codes, int64_t n, int bits, int64_t* counts) {
#if LQRAY_X86
  if (bits <= 4 && isa() != Isa::portable) return count_codes_avx2(codes, n, bits, counts);
#endif
  int64_t side[4][kCodes] = {};  // equal codes in a row would wait for each other
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int k = 0; k < 4; ++k) ++side[k][codes[i + k]];
  for (; i < n; ++i) ++side[0][codes[i]];
  for (int s = 0; s < 1 << bits; ++s) counts[s] = side[0][s] + side[1][s] + side[2][s] + side[3][s];
}

void make_tables(const uint32_t* widths, RansTables& tables) {
  uint32_t begin = 0;
  for (int s = 0; s < kCodes; ++s) {
    const uint32_t width = widths[s];
    tables.part[s] = width | begin << 16;
    tables.inverse[s] = width ? kBelowOne / static_cast<float>(width) : 0.0f;
    std::memset(tables.symbol + begin, s, width);
    begin += width;
  }
  std::memset(tables.symbol + kTotal, 0, sizeof(tables.symbol) - kTotal);
}

template <typename T>
void append(std::vector<uint8_t>& bytes, const T* values, int64_t count) {
  const uint8_t* first = reinterpret_cast<const uint8_t*>(values);
  bytes.insert(bytes.end(), first, first + count * static_cast<int64_t>(sizeof(T)));
}

uint16_t* encode_steps(const uint8_t* codes, int64_t steps, int64_t lanes, int bits, const RansTables& tables,
                       uint32_t* states, uint16_t* to) {
#if LQRAY_X86
  if (lanes % kSide == 0 && isa() != Isa::portable)
    return (isa() == Isa::avx512 ? rans_encode_avx512 : rans_encode_avx2)(codes, steps, lanes, bits, tables, states,
                                                                          to);
#endif
  for (int64_t step = steps - 1; step >= 0; --step)
    for (int64_t lane = lanes - 1; lane >= 0; --lane)
      encode_code(tables.part[codes[step * lanes + lane]], states[lane], to);
  return to;
}

bool decode_steps(const RansTables& tables, int bits, int64_t steps, int64_t lanes, uint32_t* states,
                  const uint8_t*& from, const uint8_t* end, uint8_t* codes) {
#if LQRAY_X86
  if (lanes % kSide == 0 && isa() != Isa::portable)
    return (isa() == Isa::avx512 ? rans_decode_avx512 : rans_decode_avx2)(tables, bits, steps, lanes, states, from, end,
                                                                          codes);
#endif
  for (int64_t step = 0; step < steps; ++step)
    for (int64_t lane = 0; lane < lanes; ++lane)
      if (!decode_code(tables, states[lane], from, end, codes[step * lanes + lane])) return false;
  return true;
}

struct Head {
  StreamFault fault;
  uint32_t widths[kCodes];
  int used;        // codes that occur
  int64_t lanes;   // none where one code alone occurs
  int64_t states;  // where they begin
  int64_t size;    // words follow
};

// Of a stream of n >= 1 codes.
Head read_head(const uint8_t* stream, int64_t size, int64_t n, int bits) {
  Head head{StreamFault::too_short, {}, 0, 0, 2 * ceil_divide(1 << bits, 16), 0};
  const int64_t map = head.states;
  if (size < map || size % 2) return head;
  uint32_t sum = 0;
  for (int64_t s = 0; s < 8 * map; ++s) {
    if (!(stream[s / 8] >> (s % 8) & 1)) continue;
    if (size < head.states + 2) return head;
    uint16_t width;
    std::memcpy(&width, stream + head.states, 2);
    head.states += 2;
    ++head.used;
    const bool possible = s < 1 << bits && width > 0;
    sum += possible ? width : 2 * kTotal;
    if (possible) head.widths[s] = width;
  }
  head.lanes = head.used == 1 ? 0 : lanes_of(n);
  head.size = head.states + 4 * head.lanes;
  head.fault = sum != kTotal ? StreamFault::frequencies : size < head.size ? StreamFault::too_short : StreamFault::none;
  return head;
}

}  // namespace

bool rans_encode(const uint8_t* codes, int64_t n, int bits, CodedStream& stream) {
  if (n == 0) return true;
  int64_t counts[kCodes] = {};
  count_codes(codes, n, bits, counts);
  if (std::accumulate(counts, counts + (1 << bits), int64_t{0}) != n) return false;
  uint32_t widths[kCodes] = {};
  make_widths(counts, n, widths);
  uint8_t map[kCodes / 8] = {};
  std::vector<uint16_t> used;
  for (int s = 0; s < kCodes; ++s)
    if (widths[s]) {
      map[s / 8] |= static_cast<uint8_t>(1 << (s % 8));
      used.push_back(static_cast<uint16_t>(widths[s]));
    }
  append(stream.head, map, 2 * ceil_divide(1 << bits, 16));
  append(stream.head, used.data(), static_cast<int64_t>(used.size()));
  if (used.size() == 1) return true;
  const auto tables = std::make_unique<RansTables>();
  make_tables(widths, *tables);
  const int64_t lanes = lanes_of(n), steps = n / lanes, whole = steps * lanes;
  std::vector<uint32_t> states(static_cast<size_t>(lanes), kLow);
  stream.memory.reset(new uint16_t[static_cast<size_t>(n + kSlack)]);  // a code gives away a word at most
  uint16_t *const end = stream.memory.get() + n + kSlack, *to = end;
  for (int64_t lane = n - whole - 1; lane >= 0; --lane)
    encode_code(tables->part[codes[whole + lane]], states[static_cast<size_t>(lane)], to);
  to = encode_steps(codes, steps, lanes, bits, *tables, states.data(), to);
  append(stream.head, states.data(), lanes);
  stream.words = to;
  stream.count = end - to;
  return true;
}

StreamFault rans_check(const uint8_t* stream, int64_t size, int64_t n, int bits) {
  if (n == 0) return size ? StreamFault::goes_on : StreamFault::none;
  return read_head(stream, size, n, bits).fault;
}

StreamFault rans_decode(const uint8_t* stream, int64_t size, int64_t n, int bits, uint8_t* codes) {
  const StreamFault fault = rans_check(stream, size, n, bits);
  if (n == 0 || fault != StreamFault::none) return fault;
  const Head head = read_head(stream, size, n, bits);
  const uint32_t* end_of_widths = head.widths + (1 << bits);
  if (head.used == 1) {
    const auto only = std::max_element(head.widths, end_of_widths) - head.widths;
    std::memset(codes, static_cast<int>(only), static_cast<size_t>(n));
    return size == head.size ? StreamFault::none : StreamFault::goes_on;
  }
  std::vector<uint32_t> states(static_cast<size_t>(head.lanes));
  std::memcpy(states.data(), stream + head.states, 4 * states.size());
  if (*std::min_element(states.begin(), states.end()) < kLow) return StreamFault::states;
  const auto tables = std::make_unique<RansTables>();
  make_tables(head.widths, *tables);
  const uint8_t *from = stream + head.size, *const end = stream + size;
  const int64_t steps = n / head.lanes, whole = steps * head.lanes;
  if (!decode_steps(*tables, bits, steps, head.lanes, states.data(), from, end, codes)) return StreamFault::ends_early;
  for (int64_t lane = 0; lane < n - whole; ++lane)
    if (!decode_code(*tables, states[static_cast<size_t>(lane)], from, end, codes[whole + lane]))
      return StreamFault::ends_early;
  if (from != end) return StreamFault::goes_on;
  int64_t counts[kCodes] = {};
  uint32_t theirs[kCodes] = {};
  count_codes(codes, n, bits, counts);
  make_widths(counts, n, theirs);
  const bool same = std::equal(head.widths, end_of_widths, theirs) &&
                    std::all_of(states.begin(), states.end(), [](uint32_t state) { return state == kLow; });
  return same ? StreamFault::none : StreamFault::other_codes;
}

}  // namespace lqray::cpu
