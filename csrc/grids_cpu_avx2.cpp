// Kernels of grids.h for AVX2.
#include "grids_cpu.h"

#if LQRAY_X86

#include "noise_cpu_avx2.h"

namespace lqray::cpu {

namespace {

struct Avx2 {
  LQRAY_AVX2 static inline void words(uint64_t tile, uint64_t offset, uint64_t seed, uint32_t (&word)[kTile]) {
    words_of_tile_avx2(tile, offset, seed, word);
  }
  LQRAY_AVX2 static inline void noise(uint64_t tile, const Noise& noise, uint32_t (&word)[kTile]) {
    noise_of_tile_avx2(tile, noise, word);
  }
  LQRAY_AVX2 static inline void pack(const int32_t* code, int bits, uint8_t* to) {
    __m256i eight[kEights];
    for (int i = 0; i < kEights; ++i) eight[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(code + 8 * i));
    store_planes(eight, bits, to);
  }
  LQRAY_AVX2 static inline void unpack(const uint8_t* from, int bits, int32_t* code) {
    alignas(32) uint8_t narrow[kGroup];
    _mm256_store_si256(reinterpret_cast<__m256i*>(narrow), codes_of(from, bits));
    for (int lane = 0; lane < kGroup; ++lane) code[lane] = narrow[lane];
  }
  template <int tables>
  LQRAY_AVX2 static inline void look_up_in(const float* table, const int32_t* code, float* found) {
    for (int lane = 0; lane < kGroup; lane += 8) {
      const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(code + lane));
      _mm256_storeu_ps(found + lane, cpu::look_up<tables>(table, at));
    }
  }
  LQRAY_AVX2 static inline void look_up(const float* table, int bits, const int32_t* code, float* found) {
    if (bits <= 3) return look_up_in<1>(table, code, found);
    if (bits == 4) return look_up_in<2>(table, code, found);
    look_up_in<0>(table, code, found);
  }
  LQRAY_AVX2 static inline void search(const float* r, const float* inner, int bits, int32_t* code) {
    for (int lane = 0; lane < kGroup; lane += 8) {
      const __m256 at = _mm256_loadu_ps(r + lane);
      __m256i cell = _mm256_setzero_si256();
      for (int step = 1 << (bits - 1); step > 0; step >>= 1) {
        const __m256i probe = _mm256_add_epi32(cell, _mm256_set1_epi32(step - 1));
        const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(at, _mm256_i32gather_ps(inner, probe, 4), _CMP_GE_OQ));
        cell = _mm256_add_epi32(cell, _mm256_and_si256(above, _mm256_set1_epi32(step)));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(code + lane), cell);
    }
  }
};

}  // namespace

LQRAY_AVX2 void grid_encode_avx2(Input x, BlockRow row, const GridLevels* levels, int64_t block_size,
                                 const Noise& noise, uint8_t* codes, int64_t begin, int64_t end) {
  with_reader(x, [&](auto reader) __attribute__((always_inline)) {
    grid_encode_body<Avx2>(reader, x.n, row, levels, block_size, noise, codes, begin, end);
  });
}

LQRAY_AVX2 void grid_decode_sum_avx2(const GridRows& from, int64_t n, int64_t block_size, float scale, float* out,
                                     int64_t begin, int64_t end) {
  grid_decode_body<Avx2>(from, n, block_size, scale, out, begin, end);
}

}  // namespace lqray::cpu

#endif  // LQRAY_X86
