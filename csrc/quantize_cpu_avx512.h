// What kernels for AVX-512 have in common. Internal to *_avx512.cpp.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "quantize_cpu_x86.h"

namespace lqray::cpu {

namespace {

struct Philox16 {
  __m512i w[4];
};

LQRAY_AVX512 inline void multiply16(__m512i a, __m512i factor, __m512i* high, __m512i* low) {
  const __m512i even = _mm512_mul_epu32(a, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor);
  *high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
  *low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}

// Calls first, first + 1, ..., first + 15; first is a multiple of 16.
LQRAY_AVX512 inline Philox16 philox16(uint64_t first, uint64_t offset, uint64_t seed) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)), lane);
  __m512i c1 = _mm512_set1_epi32(static_cast<int>(first >> 32));
  __m512i c2 = _mm512_set1_epi32(static_cast<int>(offset));
  __m512i c3 = _mm512_set1_epi32(static_cast<int>(offset >> 32));
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  const __m512i f0 = _mm512_set1_epi64(0xD2511F53), f1 = _mm512_set1_epi64(0xCD9E8D57);
  for (int round = 0; round < 10; ++round) {
    __m512i high0, low0, high1, low1;
    multiply16(c0, f0, &high0, &low0);
    multiply16(c2, f1, &high1, &low1);
    c0 = _mm512_ternarylogic_epi32(high1, c1, _mm512_set1_epi32(static_cast<int>(k0)), 0x96);
    c1 = low1;
    c2 = _mm512_ternarylogic_epi32(high0, c3, _mm512_set1_epi32(static_cast<int>(k1)), 0x96);
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox16{{c0, c1, c2, c3}};
}

// The words of a group's bit planes, of the codes of its halves.
LQRAY_AVX512 inline void store_planes(__m512i low, __m512i high, int bits, uint8_t* words) {
  for (int plane = 0; plane < bits; ++plane) {
    const __m512i bit = _mm512_set1_epi32(1 << plane);
    const uint32_t word = static_cast<uint32_t>(_mm512_test_epi32_mask(low, bit)) |
                          static_cast<uint32_t>(_mm512_test_epi32_mask(high, bit)) << 16;
    std::memcpy(words + 4 * plane, &word, 4);
  }
}

// Codes of half a group: bit planes are masks.
LQRAY_AVX512 inline __m512i codes_of_half(const uint8_t* group, int half, int bits) {
  __m512i code = _mm512_setzero_si512();
  for (int plane = 0; plane < bits; ++plane) {
    uint16_t set;
    std::memcpy(&set, group + 4 * plane + 2 * half, 2);
    code = _mm512_mask_or_epi32(code, set, code, _mm512_set1_epi32(1 << plane));
  }
  return code;
}

}  // namespace

}  // namespace lqray::cpu
