// rANS for AVX-512: sixteen lanes a register. Tables of up to 32 codes are looked up in registers, and the code of a
// slot is searched there; larger ones are gathered from the cache.
#include "rans_cpu_lanes.h"

#if LQRAY_X86

#include <immintrin.h>

#include <type_traits>

namespace lqray::cpu {

namespace {

constexpr int kLanes = 16;

// Calls f with the bits of a code as a type: up to 5, whose tables registers hold, or 8.
template <typename F>
auto with_bits(int bits, F&& f) {
  if (bits <= 1) return f(std::integral_constant<int, 1>{});
  if (bits <= 2) return f(std::integral_constant<int, 2>{});
  if (bits <= 3) return f(std::integral_constant<int, 3>{});
  if (bits <= 4) return f(std::integral_constant<int, 4>{});
  if (bits <= 5) return f(std::integral_constant<int, 5>{});
  return f(std::integral_constant<int, 8>{});
}

// A table of 2**bits numbers of 32 bits.
template <int bits>
struct Table {
  const void* memory;
  __m512i low, high;

  LQRAY_AVX512 explicit Table(const void* table)
      : memory(table), low(_mm512_load_si512(table)), high(_mm512_load_si512(static_cast<const char*>(table) + 64)) {}

  LQRAY_AVX512 inline __m512i operator[](__m512i i) const {
    if constexpr (bits <= 4) return _mm512_permutexvar_epi32(i, low);
    if constexpr (bits == 5) return _mm512_permutex2var_epi32(low, i, high);
    return _mm512_i32gather_epi32(i, memory, 4);
  }
};

// The codes that have the slots. A begin of its own is below another's: the last that is not beyond a slot is right.
template <int bits>
LQRAY_AVX512 inline __m512i codes_of(const RansTables& tables, const Table<bits>& part, __m512i slot) {
  if constexpr (bits > 5) {
    return _mm512_and_si512(_mm512_i32gather_epi32(slot, tables.symbol, 1), _mm512_set1_epi32(0xFF));
  } else {
    const __m512i at = _mm512_or_si512(_mm512_slli_epi32(slot, 16), _mm512_set1_epi32(0xFFFF));  // as part has a begin
    __m512i code = _mm512_setzero_si512();
    for (int step = 1 << (bits - 1); step > 0; step >>= 1) {
      const __m512i probe = _mm512_add_epi32(code, _mm512_set1_epi32(step));
      code = _mm512_mask_mov_epi32(code, _mm512_cmpge_epu32_mask(at, part[probe]), probe);
    }
    return code;
  }
}

// As in RansTables. Where a table is in memory, a division is faster.
template <int bits>
LQRAY_AVX512 inline __m512 inverse_of(const Table<bits>& inverses, __m512i code, __m512i width) {
  if constexpr (bits <= 5) return _mm512_castsi512_ps(inverses[code]);
  return _mm512_div_ps(_mm512_set1_ps(kBelowOne), _mm512_cvtepi32_ps(width));
}

template <int bits>
LQRAY_AVX512 uint16_t* encode_lanes(const uint8_t* codes, int64_t steps, int64_t lanes, const RansTables& tables,
                                    uint32_t* states, uint16_t* to) {
  const Table<bits> parts(tables.part), inverses(tables.inverse);
  const __m512i low = _mm512_set1_epi32(0xFFFF);
  for (int64_t step = steps - 1; step >= 0; --step)
    for (int64_t lane = lanes - kLanes; lane >= 0; lane -= kLanes) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + step * lanes + lane));
      const __m512i code = _mm512_cvtepu8_epi32(bytes);
      const __m512i part = parts[code];
      const __m512i width = _mm512_and_si512(part, low);
      __m512i x = _mm512_loadu_si512(states + lane);
      const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(x, 32 - kPrecision), width);
      const int count = __builtin_popcount(full);
      // To the end of the register, so that what is below the words is yet to be written.
      const __m512i given = _mm512_maskz_compress_epi32(full, x);
      const __m512i last = _mm512_maskz_expand_epi32(static_cast<__mmask16>(0xFFFF0000u >> count), given);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to - kLanes), _mm512_cvtepi32_epi16(last));
      to -= count;
      x = _mm512_mask_srli_epi32(x, full, x, 16);
      const __m512 inverse = inverse_of(inverses, code, width);
      const __m512i quotient = _mm512_cvttps_epi32(_mm512_mul_ps(_mm512_cvtepu32_ps(x), inverse));
      const __m512i rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, width));
      const __mmask16 short_of = _mm512_cmpge_epu32_mask(rest, width);
      const __m512i within = _mm512_add_epi32(rest, _mm512_srli_epi32(part, 16));
      x = _mm512_add_epi32(_mm512_slli_epi32(quotient, kPrecision), within);
      x = _mm512_mask_add_epi32(x, short_of, x, _mm512_sub_epi32(_mm512_set1_epi32(kTotal), width));
      _mm512_storeu_si512(states + lane, x);
    }
  return to;
}

template <int bits>
LQRAY_AVX512 bool decode_lanes(const RansTables& tables, int64_t steps, int64_t lanes, uint32_t* states,
                               const uint8_t*& from, const uint8_t* end, uint8_t* codes) {
  const Table<bits> parts(tables.part);
  const __m512i low = _mm512_set1_epi32(0xFFFF), slots = _mm512_set1_epi32(kTotal - 1);
  for (int64_t step = 0; step < steps; ++step)
    for (int64_t side = 0; side < lanes; side += kSide) {
      uint8_t* to = codes + step * lanes + side;
      if (end - from < 2 * kSide) {
        if (!decode_side(tables, states + side, from, end, to)) return false;
        continue;
      }
      for (int lane = 0; lane < kSide; lane += kLanes) {
        __m512i x = _mm512_loadu_si512(states + side + lane);
        const __m512i slot = _mm512_and_si512(x, slots);
        const __m512i code = codes_of<bits>(tables, parts, slot);
        const __m512i part = parts[code];
        const __m512i within = _mm512_sub_epi32(slot, _mm512_srli_epi32(part, 16));
        const __m512i times = _mm512_mullo_epi32(_mm512_and_si512(part, low), _mm512_srli_epi32(x, kPrecision));
        x = _mm512_add_epi32(times, within);
        const __mmask16 wants = _mm512_cmple_epu32_mask(x, low);
        const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
        const __m512i own = _mm512_maskz_expand_epi32(wants, words);
        x = _mm512_mask_or_epi32(x, wants, _mm512_slli_epi32(x, 16), own);
        from += 2 * __builtin_popcount(wants);
        _mm512_storeu_si512(states + side + lane, x);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + lane), _mm512_cvtepi32_epi8(code));
      }
    }
  return true;
}

}  // namespace

uint16_t* rans_encode_avx512(const uint8_t* codes, int64_t steps, int64_t lanes, int bits, const RansTables& tables,
                             uint32_t* states, uint16_t* to) {
  return with_bits(bits, [&](auto of) { return encode_lanes<of.value>(codes, steps, lanes, tables, states, to); });
}

bool rans_decode_avx512(const RansTables& tables, int bits, int64_t steps, int64_t lanes, uint32_t* states,
                        const uint8_t*& from, const uint8_t* end, uint8_t* codes) {
  return with_bits(bits,
                   [&](auto of) { return decode_lanes<of.value>(tables, steps, lanes, states, from, end, codes); });
}

}  // namespace lqray::cpu

#endif  // LQRAY_X86
