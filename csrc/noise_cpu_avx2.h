// Random words of tiles, for AVX2. Internal to *_avx2.cpp.
#pragma once

#include "quantize_cpu_avx2.h"
#include "slopes.h"

namespace lqray::cpu {

namespace {

LQRAY_AVX2 inline __m256i read8(const uint32_t* at) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
}

LQRAY_AVX2 inline void write8(uint32_t* at, __m256i value) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(at), value);
}

LQRAY_AVX2 inline void words_of_tile_avx2(uint64_t tile, uint64_t offset, uint64_t seed, uint32_t (&word)[kTile]) {
  alignas(32) uint32_t random[4][kGroup];
  philox_calls(tile, offset, seed, random);
  for (int m = 0; m < 4; ++m)
    for (int lane = 0; lane < kGroup; lane += 8) {
      const __m256i w = read8(random[m] + lane);
      write8(word + 2 * m * kGroup + lane, w);
      write8(word + (2 * m + 1) * kGroup + lane, _mm256_or_si256(_mm256_slli_epi32(w, 16), _mm256_srli_epi32(w, 16)));
    }
}

LQRAY_AVX2 inline __m256i multiply_high8(__m256i a, __m256i factor) {
  const __m256i even = _mm256_mul_epu32(a, factor), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), factor);
  return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}

LQRAY_AVX2 inline void noise_of_tile_avx2(uint64_t tile, const Noise& noise, uint32_t (&word)[kTile]) {
  words_of_tile_avx2(tile, noise.offset, noise.seed, word);
  if (noise.workers == 0) {
    const __m256i phase = _mm256_set1_epi32(static_cast<int>(noise.phase));
    for (int i = 0; i < kTile; i += 8) write8(word + i, _mm256_add_epi32(read8(word + i), phase));
    return;
  }
  alignas(32) uint32_t shared[kTile];
  words_of_tile_avx2(tile, noise.offset, noise.shared, shared);
  const uint32_t width = stratum_width(noise.workers);
  const __m256i last = _mm256_set1_epi32(static_cast<int>(noise.workers) - 1);
  const __m256i workers = _mm256_set1_epi32(static_cast<int>(noise.workers));
  const __m256i own = _mm256_set1_epi32(static_cast<int>(noise.worker)), wide = _mm256_set1_epi32(static_cast<int>(width));
  for (int i = 0; i < kTile; i += 8) {
    __m256i stratum = _mm256_add_epi32(multiply_high8(read8(shared + i), workers), own);
    stratum = _mm256_sub_epi32(stratum, _mm256_and_si256(_mm256_cmpgt_epi32(stratum, last), workers));
    const __m256i within = multiply_high8(read8(word + i), wide);
    write8(word + i, _mm256_add_epi32(_mm256_mullo_epi32(stratum, wide), within));
  }
}

}  // namespace

}  // namespace lqray::cpu
