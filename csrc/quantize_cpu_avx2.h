// What kernels for AVX2 have in common. Internal to *_avx2.cpp.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "quantize_cpu_bodies.h"
#include "quantize_cpu_x86.h"

namespace lqray::cpu {

namespace {

constexpr int kEights = kGroup / 8;

// Calls f with how many registers hold a table of so many entries: 1, 2 or 4 as a type, or 0: it stays in memory.
template <typename F>
void with_tables(int entries, F&& f) {
  if (entries <= 8) return f(std::integral_constant<int, 1>{});
  if (entries <= 16) return f(std::integral_constant<int, 2>{});
  if (entries <= 32) return f(std::integral_constant<int, 4>{});
  f(std::integral_constant<int, 0>{});
}

// table[i], i < 8 * tables.
template <int tables>
LQRAY_AVX2 inline __m256 look_up(const float* table, __m256i i) {
  if constexpr (tables == 0) {
    return _mm256_i32gather_ps(table, i, 4);
  } else if constexpr (tables == 1) {
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), i);
  } else {
    const __m256 low = look_up<tables / 2>(table, i), high = look_up<tables / 2>(table + 4 * tables, i);
    const __m256i top = _mm256_slli_epi32(i, tables == 2 ? 28 : 27);  // the bit that chooses, as a sign
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(top));
  }
}

// Four Philox calls, each word the lower half of a 64-bit lane: what is in the upper halves does not matter.
struct Philox4 {
  __m256i w[4];
};

LQRAY_AVX2 inline void turn(Philox4& call, __m256i k0, __m256i k1) {
  const __m256i p0 = _mm256_mul_epu32(call.w[0], _mm256_set1_epi64x(0xD2511F53));
  const __m256i p1 = _mm256_mul_epu32(call.w[2], _mm256_set1_epi64x(0xCD9E8D57));
  call.w[0] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), k0), call.w[1]);
  call.w[2] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), k1), call.w[3]);
  call.w[1] = p1;
  call.w[3] = p0;
}

// Word m of the tile's call for a lane is word[m][lane].
LQRAY_AVX2 inline void philox_calls(uint64_t tile, uint64_t offset, uint64_t seed, uint32_t (&word)[4][kGroup]) {
  const uint64_t first = tile * kGroup;
  const __m256i c1 = _mm256_set1_epi64x(static_cast<int64_t>(first >> 32));
  const __m256i c2 = _mm256_set1_epi64x(static_cast<int64_t>(offset));
  const __m256i c3 = _mm256_set1_epi64x(static_cast<int64_t>(offset >> 32));
  const __m256i step0 = _mm256_set1_epi32(static_cast<int>(0x9E3779B9u));
  const __m256i step1 = _mm256_set1_epi32(static_cast<int>(0xBB67AE85u));
  for (int eight = 0; eight < kEights; ++eight) {
    const __m256i start = _mm256_set1_epi64x(static_cast<int64_t>(first + 8 * eight));
    Philox4 even{{_mm256_add_epi64(start, _mm256_setr_epi64x(0, 2, 4, 6)), c1, c2, c3}};
    Philox4 odd{{_mm256_add_epi64(start, _mm256_setr_epi64x(1, 3, 5, 7)), c1, c2, c3}};
    __m256i k0 = _mm256_set1_epi32(static_cast<int>(seed)), k1 = _mm256_set1_epi32(static_cast<int>(seed >> 32));
    for (int round = 0; round < 10; ++round) {
      turn(even, k0, k1);
      turn(odd, k0, k1);
      k0 = _mm256_add_epi32(k0, step0);
      k1 = _mm256_add_epi32(k1, step1);
    }
    for (int m = 0; m < 4; ++m) {
      const __m256i both = _mm256_blend_epi32(even.w[m], _mm256_slli_epi64(odd.w[m], 32), 0xAA);
      _mm256_store_si256(reinterpret_cast<__m256i*>(word[m] + 8 * eight), both);
    }
  }
}

// The cells of a group's r. Few levels are counted, many searched.
template <int tables>
LQRAY_AVX2 inline void cells_of(const __m256 (&r)[kEights], const Levels& levels, __m256i (&cell)[kEights]) {
  for (int eight = 0; eight < kEights; ++eight) cell[eight] = _mm256_setzero_si256();
  if constexpr (tables > 0) {
    for (int level = 0; level < levels.count - 2; ++level) {
      const __m256 at = _mm256_broadcast_ss(levels.inner + level);
      for (int eight = 0; eight < kEights; ++eight) {
        const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(r[eight], at, _CMP_GE_OQ));
        cell[eight] = _mm256_sub_epi32(cell[eight], above);
      }
    }
  } else {
    for (int step = 1 << (levels.bits - 1); step > 0; step >>= 1)
      for (int eight = 0; eight < kEights; ++eight) {
        const __m256i probe = _mm256_add_epi32(cell[eight], _mm256_set1_epi32(step - 1));
        const __m256 at = _mm256_i32gather_ps(levels.inner, probe, 4);
        const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(r[eight], at, _CMP_GE_OQ));
        cell[eight] = _mm256_add_epi32(cell[eight], _mm256_and_si256(above, _mm256_set1_epi32(step)));
      }
  }
}

// A group's codes, one in each byte or each number, as the words of its bit planes.
LQRAY_AVX2 inline void store_planes(__m256i bytes, int bits, uint8_t* words) {
  bytes = _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(8 - bits));
  for (int plane = bits - 1; plane >= 0; --plane) {
    const uint32_t word = static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
    std::memcpy(words + 4 * plane, &word, 4);
    bytes = _mm256_add_epi8(bytes, bytes);
  }
}

LQRAY_AVX2 inline void store_planes(const __m256i (&code)[kEights], int bits, uint8_t* words) {
  const __m256i first = _mm256_packs_epi32(code[0], code[1]), second = _mm256_packs_epi32(code[2], code[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packs work in each half of a register
  store_planes(_mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order), bits, words);
}

// The codes of a group, as bytes.
LQRAY_AVX2 inline __m256i codes_of(const uint8_t* group, int bits) {
  const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i own = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));  // each byte's bit
  __m256i code = _mm256_setzero_si256(), value = _mm256_set1_epi8(1);
  for (int plane = 0; plane < bits; ++plane) {
    const __m256i word = _mm256_set1_epi32(static_cast<int>(load<uint32_t>(group, plane)));
    const __m256i set = _mm256_and_si256(_mm256_shuffle_epi8(word, spread), own);
    code = _mm256_or_si256(code, _mm256_and_si256(_mm256_cmpeq_epi8(set, own), value));
    value = _mm256_add_epi8(value, value);
  }
  return code;
}

}  // namespace

}  // namespace lqray::cpu
