// Kernels of grids.h for AVX-512.
#include "grids_cpu.h"

#if LQRAY_X86

#include "noise_cpu_avx512.h"

namespace lqray::cpu {

namespace {

struct Avx512 {
  LQRAY_AVX512 static inline void words(uint64_t tile, uint64_t offset, uint64_t seed, uint32_t (&word)[kTile]) {
    words_of_tile_avx512(tile, offset, seed, word);
  }
  LQRAY_AVX512 static inline void noise(uint64_t tile, const Noise& noise, uint32_t (&word)[kTile]) {
    noise_of_tile_avx512(tile, noise, word);
  }
  LQRAY_AVX512 static inline void pack(const int32_t* code, int bits, uint8_t* to) {
    store_planes(_mm512_loadu_si512(code), _mm512_loadu_si512(code + 16), bits, to);
  }
  LQRAY_AVX512 static inline void unpack(const uint8_t* from, int bits, int32_t* code) {
    _mm512_storeu_si512(code, codes_of_half(from, 0, bits));
    _mm512_storeu_si512(code + 16, codes_of_half(from, 1, bits));
  }
  LQRAY_AVX512 static inline void look_up(const float* table, int bits, const int32_t* code, float* found) {
    for (int lane = 0; lane < kGroup; lane += 16) {
      const __m512i at = _mm512_loadu_si512(code + lane);
      // Beyond the table of a width that has fewer than 16 entries are those of the next.
      _mm512_storeu_ps(found + lane, bits <= 4 ? _mm512_permutexvar_ps(at, _mm512_loadu_ps(table))
                                               : _mm512_i32gather_ps(at, table, 4));
    }
  }
  LQRAY_AVX512 static inline void search(const float* r, const float* inner, int bits, int32_t* code) {
    for (int lane = 0; lane < kGroup; lane += 16) {
      const __m512 at = _mm512_loadu_ps(r + lane);
      __m512i cell = _mm512_setzero_si512();
      for (int step = 1 << (bits - 1); step > 0; step >>= 1) {
        const __m512i probe = _mm512_add_epi32(cell, _mm512_set1_epi32(step - 1));
        const __mmask16 above = _mm512_cmp_ps_mask(at, _mm512_i32gather_ps(probe, inner, 4), _CMP_GE_OQ);
        cell = _mm512_mask_add_epi32(cell, above, cell, _mm512_set1_epi32(step));
      }
      _mm512_storeu_si512(code + lane, cell);
    }
  }
};

}  // namespace

LQRAY_AVX512 void grid_encode_avx512(Input x, BlockRow row, const GridLevels* levels, int64_t block_size,
                                     const Noise& noise, uint8_t* codes, int64_t begin, int64_t end) {
  with_reader(x, [&](auto reader) __attribute__((always_inline)) {
    grid_encode_body<Avx512>(reader, x.n, row, levels, block_size, noise, codes, begin, end);
  });
}

LQRAY_AVX512 void grid_decode_sum_avx512(const GridRows& from, int64_t n, int64_t block_size, float scale, float* out,
                                         int64_t begin, int64_t end) {
  grid_decode_body<Avx512>(from, n, block_size, scale, out, begin, end);
}

}  // namespace lqray::cpu

#endif  // LQRAY_X86
