// Random words of tiles, for AVX-512. Internal to *_avx512.cpp.
#pragma once

#include "quantize_cpu_avx512.h"
#include "slopes.h"

namespace lqray::cpu {

namespace {

LQRAY_AVX512 inline void store_words(__m512i word, int m, int half, uint32_t* out) {
  _mm512_store_si512(out + 2 * m * kGroup + 16 * half, word);
  _mm512_store_si512(out + (2 * m + 1) * kGroup + 16 * half, _mm512_rol_epi32(word, 16));
}

LQRAY_AVX512 inline void words_of_tile_avx512(uint64_t tile, uint64_t offset, uint64_t seed,
                                              uint32_t (&word)[kTile]) {
  for (int half = 0; half < 2; ++half) {
    const Philox16 calls = philox16(tile * kGroup + 16 * half, offset, seed);
    for (int m = 0; m < 4; ++m) store_words(calls.w[m], m, half, word);
  }
}

LQRAY_AVX512 inline __m512i multiply_high16(__m512i a, __m512i factor) {
  __m512i high, low;
  multiply16(a, factor, &high, &low);
  return high;
}

LQRAY_AVX512 inline void noise_of_tile_avx512(uint64_t tile, const Noise& noise, uint32_t (&word)[kTile]) {
  words_of_tile_avx512(tile, noise.offset, noise.seed, word);
  if (noise.workers == 0) {
    const __m512i phase = _mm512_set1_epi32(static_cast<int>(noise.phase));
    for (int i = 0; i < kTile; i += 16)
      _mm512_store_si512(word + i, _mm512_add_epi32(_mm512_load_si512(word + i), phase));
    return;
  }
  alignas(64) uint32_t shared[kTile];
  words_of_tile_avx512(tile, noise.offset, noise.shared, shared);
  const uint32_t width = stratum_width(noise.workers);
  const __m512i workers = _mm512_set1_epi32(static_cast<int>(noise.workers));
  const __m512i own = _mm512_set1_epi32(static_cast<int>(noise.worker));
  const __m512i many = _mm512_set1_epi64(noise.workers), wide = _mm512_set1_epi64(width);
  for (int i = 0; i < kTile; i += 16) {
    __m512i stratum = _mm512_add_epi32(multiply_high16(_mm512_load_si512(shared + i), many), own);
    const __mmask16 beyond = _mm512_cmpge_epu32_mask(stratum, workers);
    stratum = _mm512_mask_sub_epi32(stratum, beyond, stratum, workers);
    const __m512i from = _mm512_mullo_epi32(stratum, _mm512_set1_epi32(static_cast<int>(width)));
    const __m512i within = multiply_high16(_mm512_load_si512(word + i), wide);
    _mm512_store_si512(word + i, _mm512_add_epi32(from, within));
  }
}

}  // namespace

}  // namespace lqray::cpu
