// rANS for AVX2: eight lanes a register, as rans_cpu_avx512.cpp. What that instruction set does with words that some
// lanes give or want is here a permutation, of a table by which lanes they are.
#include "rans_cpu_lanes.h"

#if LQRAY_X86

#include <immintrin.h>

#include <algorithm>
#include <type_traits>

namespace lqray::cpu {

namespace {

constexpr int kLanes = 8;

// For each set of lanes: expand[set][lane], which word is the lane's; pack[set], the set's lanes at the end.
struct Moves {
  uint8_t expand[1 << kLanes][kLanes], pack[1 << kLanes][kLanes];

  constexpr Moves() : expand{}, pack{} {
    for (int set = 0; set < 1 << kLanes; ++set) {
      int count = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        expand[set][lane] = static_cast<uint8_t>(count);
        count += set >> lane & 1;
      }
      int at = kLanes - count;
      for (int lane = 0; lane < kLanes; ++lane)
        if (set >> lane & 1) pack[set][at++] = static_cast<uint8_t>(lane);
    }
  }
};
constexpr Moves kMoves;

LQRAY_AVX2 inline __m256i move(__m256i x, const uint8_t* order) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(order));
  return _mm256_permutevar8x32_epi32(x, _mm256_cvtepu8_epi32(bytes));
}

LQRAY_AVX2 inline int set_of(__m256i lanes) { return _mm256_movemask_ps(_mm256_castsi256_ps(lanes)); }

// Calls f with the bits of a code as a type: up to 4, whose tables registers hold, or 8.
template <typename F>
auto with_bits(int bits, F&& f) {
  if (bits <= 1) return f(std::integral_constant<int, 1>{});
  if (bits <= 2) return f(std::integral_constant<int, 2>{});
  if (bits <= 3) return f(std::integral_constant<int, 3>{});
  if (bits <= 4) return f(std::integral_constant<int, 4>{});
  return f(std::integral_constant<int, 8>{});
}

// A table of 2**bits numbers of 32 bits.
template <int bits>
struct Table {
  const int* memory;
  __m256i low, high;

  LQRAY_AVX2 explicit Table(const void* table)
      : memory(static_cast<const int*>(table)),
        low(_mm256_load_si256(static_cast<const __m256i*>(table))),
        high(_mm256_load_si256(static_cast<const __m256i*>(table) + 1)) {}

  LQRAY_AVX2 inline __m256i operator[](__m256i i) const {
    if constexpr (bits > 4) return _mm256_i32gather_epi32(memory, i, 4);
    const __m256i first = _mm256_permutevar8x32_epi32(low, i);
    if constexpr (bits <= 3) return first;
    const __m256 second = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(high, i));
    const __m256 choice = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));  // the index's highest bit, as a sign
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(first), second, choice));
  }
};

template <int bits>
LQRAY_AVX2 inline __m256i codes_of(const RansTables& tables, const Table<bits>& part, __m256i slot) {
  if constexpr (bits > 4) {
    const __m256i four = _mm256_i32gather_epi32(reinterpret_cast<const int*>(tables.symbol), slot, 1);
    return _mm256_and_si256(four, _mm256_set1_epi32(0xFF));
  } else {
    const __m256i at = _mm256_slli_epi32(slot, 16);
    __m256i code = _mm256_setzero_si256();
    for (int step = 1 << (bits - 1); step > 0; step >>= 1) {
      const __m256i probe = _mm256_add_epi32(code, _mm256_set1_epi32(step));
      const __m256i begin = _mm256_andnot_si256(_mm256_set1_epi32(0xFFFF), part[probe]);
      code = _mm256_blendv_epi8(probe, code, _mm256_cmpgt_epi32(begin, at));
    }
    return code;
  }
}

// Of unsigned numbers, rounded once.
LQRAY_AVX2 inline __m256 to_float(__m256i x) {
  const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(x, 16));
  const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xFFFF)));
  return _mm256_add_ps(_mm256_mul_ps(high, _mm256_set1_ps(65536.0f)), low);
}

// As in RansTables. Where a table is in memory, a division is faster.
template <int bits>
LQRAY_AVX2 inline __m256 inverse_of(const Table<bits>& inverses, __m256i code, __m256i width) {
  if constexpr (bits <= 4) return _mm256_castsi256_ps(inverses[code]);
  return _mm256_div_ps(_mm256_set1_ps(kBelowOne), _mm256_cvtepi32_ps(width));
}

template <int bits>
LQRAY_AVX2 uint16_t* encode_lanes(const uint8_t* codes, int64_t steps, int64_t lanes, const RansTables& tables,
                                  uint32_t* states, uint16_t* to) {
  const Table<bits> parts(tables.part), inverses(tables.inverse);
  const __m256i low = _mm256_set1_epi32(0xFFFF);
  for (int64_t step = steps - 1; step >= 0; --step)
    for (int64_t lane = lanes - kLanes; lane >= 0; lane -= kLanes) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + step * lanes + lane));
      const __m256i code = _mm256_cvtepu8_epi32(bytes);
      const __m256i part = parts[code];
      const __m256i width = _mm256_and_si256(part, low), less = _mm256_sub_epi32(width, _mm256_set1_epi32(1));
      __m256i* const state = reinterpret_cast<__m256i*>(states + lane);
      __m256i x = _mm256_loadu_si256(state);
      const __m256i full = _mm256_cmpgt_epi32(_mm256_srli_epi32(x, 32 - kPrecision), less);
      const int set = set_of(full);
      const __m256i last = _mm256_and_si256(move(x, kMoves.pack[set]), low);
      const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(last), _mm256_extracti128_si256(last, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to - kLanes), words);
      to -= __builtin_popcount(static_cast<unsigned>(set));
      x = _mm256_blendv_epi8(x, _mm256_srli_epi32(x, 16), full);
      const __m256i quotient = _mm256_cvttps_epi32(_mm256_mul_ps(to_float(x), inverse_of(inverses, code, width)));
      const __m256i rest = _mm256_sub_epi32(x, _mm256_mullo_epi32(quotient, width));
      const __m256i more = _mm256_sub_epi32(_mm256_set1_epi32(kTotal), width);
      const __m256i missed = _mm256_and_si256(_mm256_cmpgt_epi32(rest, less), more);
      const __m256i within = _mm256_add_epi32(rest, _mm256_srli_epi32(part, 16));
      x = _mm256_add_epi32(_mm256_slli_epi32(quotient, kPrecision), within);
      _mm256_storeu_si256(state, _mm256_add_epi32(x, missed));
    }
  return to;
}

template <int bits>
LQRAY_AVX2 bool decode_lanes(const RansTables& tables, int64_t steps, int64_t lanes, uint32_t* states,
                             const uint8_t*& from, const uint8_t* end, uint8_t* codes) {
  const Table<bits> parts(tables.part);
  const __m256i low = _mm256_set1_epi32(0xFFFF), slots = _mm256_set1_epi32(kTotal - 1);
  const __m256i bytes = _mm256_set1_epi32(0x0C080400);  // the lowest of each number, in both halves
  for (int64_t step = 0; step < steps; ++step)
    for (int64_t side = 0; side < lanes; side += kSide) {
      uint8_t* to = codes + step * lanes + side;
      if (end - from < 2 * kSide) {
        if (!decode_side(tables, states + side, from, end, to)) return false;
        continue;
      }
      for (int lane = 0; lane < kSide; lane += kLanes) {
        __m256i* const state = reinterpret_cast<__m256i*>(states + side + lane);
        __m256i x = _mm256_loadu_si256(state);
        const __m256i slot = _mm256_and_si256(x, slots);
        const __m256i code = codes_of<bits>(tables, parts, slot);
        const __m256i part = parts[code];
        const __m256i within = _mm256_sub_epi32(slot, _mm256_srli_epi32(part, 16));
        const __m256i times = _mm256_mullo_epi32(_mm256_and_si256(part, low), _mm256_srli_epi32(x, kPrecision));
        x = _mm256_add_epi32(times, within);
        const __m256i wants = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
        const int set = set_of(wants);
        const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        const __m256i renewed = _mm256_or_si256(_mm256_slli_epi32(x, 16), move(words, kMoves.expand[set]));
        _mm256_storeu_si256(state, _mm256_blendv_epi8(x, renewed, wants));
        from += 2 * __builtin_popcount(static_cast<unsigned>(set));
        const __m256i narrow = _mm256_shuffle_epi8(code, bytes);
        const __m128i eight = _mm_unpacklo_epi32(_mm256_castsi256_si128(narrow), _mm256_extracti128_si256(narrow, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to + lane), eight);
      }
    }
  return true;
}

}  // namespace

uint16_t* rans_encode_avx2(const uint8_t* codes, int64_t steps, int64_t lanes, int bits, const RansTables& tables,
                           uint32_t* states, uint16_t* to) {
  return with_bits(bits, [&](auto of) { return encode_lanes<of.value>(codes, steps, lanes, tables, states, to); });
}

bool rans_decode_avx2(const RansTables& tables, int bits, int64_t steps, int64_t lanes, uint32_t* states,
                      const uint8_t*& from, const uint8_t* end, uint8_t* codes) {
  return with_bits(bits,
                   [&](auto of) { return decode_lanes<of.value>(tables, steps, lanes, states, from, end, codes); });
}

LQRAY_AVX2 void count_codes_avx2(const uint8_t* codes, int64_t n, int bits, int64_t* counts) {
  constexpr int64_t kMost = 32 * 255;  // a byte of a register counts so far
  for (int64_t begin = 0; begin < n; begin += kMost) {
    const int64_t stop = std::min(n, begin + kMost), whole = begin + (stop - begin) / 32 * 32;
    for (int s = 0; s < 1 << bits; s += 2) {
      const __m256i first = _mm256_set1_epi8(static_cast<char>(s)), second = _mm256_set1_epi8(static_cast<char>(s + 1));
      __m256i ones = _mm256_setzero_si256(), twos = _mm256_setzero_si256();
      for (int64_t i = begin; i < whole; i += 32) {
        const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
        ones = _mm256_sub_epi8(ones, _mm256_cmpeq_epi8(code, first));
        twos = _mm256_sub_epi8(twos, _mm256_cmpeq_epi8(code, second));
      }
      int64_t four[4];
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(four), _mm256_sad_epu8(ones, _mm256_setzero_si256()));
      counts[s] += four[0] + four[1] + four[2] + four[3];
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(four), _mm256_sad_epu8(twos, _mm256_setzero_si256()));
      counts[s + 1] += four[0] + four[1] + four[2] + four[3];
    }
    for (int64_t i = whole; i < stop; ++i)
      if (codes[i] < 1 << bits) ++counts[codes[i]];
  }
}

}  // namespace lqray::cpu

#endif  // LQRAY_X86
