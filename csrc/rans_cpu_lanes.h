// What rANS computes for one code, and the kernels of many lanes for one instruction set. Internal to rans_cpu*.cpp.
#pragma once

#include <cstdint>
#include <cstring>

#include "quantize_cpu_x86.h"

namespace lqray::cpu {

constexpr int kPrecision = 14;
constexpr uint32_t kTotal = 1u << kPrecision;
constexpr uint32_t kLow = 1u << 16;  // of a state; the highest is 2**32 - 1
constexpr int kCodes = 256;
constexpr int kSide = 64;   // lanes that kernels take side by side
constexpr int kSlack = 64;  // words before the first that a kernel may overwrite

// A quotient by the inverse of a width times this, in float32, is exact or one too small.
constexpr float kBelowOne = 1.0f - 0x1p-22f;

// Symbol s has the slots [begin, begin + width) of kTotal.
struct RansTables {
  alignas(64) uint32_t part[kCodes];  // width | begin << 16; begin never decreases
  alignas(64) float inverse[kCodes];       // kBelowOne / width
  alignas(64) uint8_t symbol[kTotal + 4];  // of each slot, and what a load of four bytes reads beyond
};

// A state below `width << (32 - kPrecision)` takes up a code; one at it or above first gives a word away, in front of
// `to`.
inline void encode_code(uint32_t part, uint32_t& state, uint16_t*& to) {
  const uint32_t width = part & 0xFFFF;
  if (state >> (32 - kPrecision) >= width) {
    *--to = static_cast<uint16_t>(state);
    state >>= 16;
  }
  state = ((state / width) << kPrecision) + state % width + (part >> 16);
}

// The inverse; false where it wants a word and there is none. Words, from `from` to `end`, need no alignment.
inline bool decode_code(const RansTables& tables, uint32_t& state, const uint8_t*& from, const uint8_t* end,
                        uint8_t& code) {
  const uint32_t slot = state & (kTotal - 1);
  code = tables.symbol[slot];
  const uint32_t part = tables.part[code];
  state = (part & 0xFFFF) * (state >> kPrecision) + slot - (part >> 16);
  if (state >= kLow) return true;
  if (from == end) return false;
  uint16_t word;
  std::memcpy(&word, from, 2);
  from += 2;
  state = state << 16 | word;
  return true;
}

// Decodes kSide codes of as many lanes one by one.
inline bool decode_side(const RansTables& tables, uint32_t* states, const uint8_t*& from, const uint8_t* end,
                        uint8_t* codes) {
  for (int lane = 0; lane < kSide; ++lane)
    if (!decode_code(tables, states[lane], from, end, codes[lane])) return false;
  return true;
}

#if LQRAY_X86

// Whole steps of `lanes`, a multiple of kSide: codes from the last to the first; where the words that they add, in
// front of `to`, begin.
uint16_t* rans_encode_avx2(const uint8_t* codes, int64_t steps, int64_t lanes, int bits, const RansTables& tables,
                           uint32_t* states, uint16_t* to);
uint16_t* rans_encode_avx512(const uint8_t* codes, int64_t steps, int64_t lanes, int bits, const RansTables& tables,
                             uint32_t* states, uint16_t* to);

// The inverse. `from` goes on to the first word that is not taken up; false where there are too few.
bool rans_decode_avx2(const RansTables& tables, int bits, int64_t steps, int64_t lanes, uint32_t* states,
                      const uint8_t*& from, const uint8_t* end, uint8_t* codes);
bool rans_decode_avx512(const RansTables& tables, int bits, int64_t steps, int64_t lanes, uint32_t* states,
                        const uint8_t*& from, const uint8_t* end, uint8_t* codes);

// How often each of up to 16 codes occurs; those of 16 and more are not counted.
void count_codes_avx2(const uint8_t* codes, int64_t n, int bits, int64_t* counts);

#endif

}  // namespace lqray::cpu
