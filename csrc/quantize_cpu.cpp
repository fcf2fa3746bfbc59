// CPU kernels. The body of each is plain C++ that compilers vectorize, compiled once for every x86-64 and once for
// AVX2; the two that decide the speed, encode and decode, are written for AVX-512 as well. All give the same bytes.
#include "quantize_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)
#define LQRAY_X86 1
#include <immintrin.h>
#define LQRAY_AVX2 __attribute__((target("avx2")))
#define LQRAY_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define LQRAY_X86 0
#endif
#define LQRAY_BODY inline __attribute__((always_inline))

namespace lqray::cpu {

namespace {

constexpr int kWideLanes = 16;  // partial sums in float64, the same on every machine

enum class Isa { portable, avx2, avx512 };

Isa detect() {
  Isa best = Isa::portable;
#if LQRAY_X86
  if (__builtin_cpu_supports("avx2")) best = Isa::avx2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    best = Isa::avx512;
#endif
  const char* wanted = std::getenv("LQRAY_CPU_ISA");
  if (wanted && !std::strcmp(wanted, "portable")) return Isa::portable;
  if (wanted && !std::strcmp(wanted, "avx2")) return std::min(best, Isa::avx2);
  return best;
}

Isa isa() {
  static const Isa found = detect();
  return found;
}

template <typename T>
LQRAY_BODY T load(const uint8_t* bytes, int64_t index) {
  T value;
  std::memcpy(&value, bytes + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// The lowest bits of eight bytes, the first byte's lowest; little-endian, as all that travels.
LQRAY_BODY uint32_t gather_bits(uint64_t eight) {
  return static_cast<uint32_t>(((eight & 0x0101010101010101u) * 0x0102040810204080u) >> 56);
}

struct Float32 {
  const float* p;
  LQRAY_BODY float operator[](int64_t i) const { return p[i]; }
};
struct Float16 {
  const uint16_t* p;
  LQRAY_BODY float operator[](int64_t i) const { return as_float(half_bits(p[i])); }
};
struct Bfloat16 {
  const uint16_t* p;
  LQRAY_BODY float operator[](int64_t i) const { return as_float(static_cast<uint32_t>(p[i]) << 16); }
};

template <typename F>
LQRAY_BODY void with_reader(Input x, F&& f) {
  switch (x.dtype) {
    case Dtype::f32:
      return f(Float32{static_cast<const float*>(x.data)});
    case Dtype::f16:
      return f(Float16{static_cast<const uint16_t*>(x.data)});
    case Dtype::bf16:
      return f(Bfloat16{static_cast<const uint16_t*>(x.data)});
  }
}

// Sum of f over [begin, end), in an order that is the same on every machine.
template <typename T, int lanes, typename F>
LQRAY_BODY T sum_of(int64_t begin, int64_t end, F f) {
  T sum[lanes] = {};
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes)
    for (int lane = 0; lane < lanes; ++lane) sum[lane] += f(i + lane);
  for (int lane = 0; i < end; ++i, ++lane) sum[lane] += f(i);
  for (int width = lanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  return sum[0];
}

// Sum of f in float32 as docs/wire-format.md has it: chunks of kSumChunk; above them, chunks of their sums.
template <int depth, typename F>
LQRAY_BODY float blocked(int64_t begin, int64_t end, F f) {
  if constexpr (depth == 0) {
    return sum_of<float, kSumLanes>(begin, end, f);
  } else {
    constexpr int64_t span = depth == 1 ? kSumChunk : int64_t{kSumChunk} * kSumChunk;
    float sums[kSumChunk];
    int count = 0;
    for (int64_t from = begin; from < end; from += span)
      sums[count++] = blocked<depth - 1>(from, std::min(end, from + span), f);
    const auto sum = [&](int64_t i) __attribute__((always_inline)) { return sums[i]; };
    return count == 1 ? sums[0] : sum_of<float, kSumLanes>(0, count, sum);
  }
}

template <typename Reader>
LQRAY_BODY float squares_of(Reader x, int64_t begin, int64_t end, float scale) {
  static_assert(int64_t{kSumChunk} * kSumChunk * kSumChunk >= kMaxBucket, "three depths are enough");
  return blocked<2>(begin, end, [&](int64_t i) __attribute__((always_inline)) {
    const float value = x[i] * scale;
    return value * value;
  });
}

template <typename Reader>
LQRAY_BODY double wide_squares_of(Reader x, int64_t begin, int64_t end) {
  return sum_of<double, kWideLanes>(begin, end, [&](int64_t i) __attribute__((always_inline)) {
    const double value = x[i];
    return value * value;
  });
}

// Largest magnitude; as integers, so that NaN, the largest of all bit patterns, wins.
template <typename Reader>
LQRAY_BODY float largest_of(Reader x, int64_t begin, int64_t end) {
  uint32_t most = 0;
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t bits = as_bits(x[i]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return as_float(most);
}

template <typename Reader>
LQRAY_BODY float l2_norm_of(Reader x, int64_t begin, int64_t end) {
  const float squares = squares_of(x, begin, end, 1.0f);
  if (squares_suffice(squares)) return root_of(squares, 1.0f);
  const Rescaling powers = rescaling_of(largest_of(x, begin, end));
  return root_of(squares_of(x, begin, end, powers.down), powers.up);
}

template <typename Reader>
LQRAY_BODY void norms_body(Reader x, int64_t n, int64_t bucket_size, Norm norm, uint8_t* norms, int64_t begin,
                           int64_t end) {
  for (int64_t bucket = begin; bucket < end; ++bucket) {
    const int64_t from = bucket * bucket_size, to = std::min(n, from + bucket_size);
    const float kept = norm == Norm::l2 ? l2_norm_of(x, from, to) : finite_or_nan(largest_of(x, from, to));
    std::memcpy(norms + 4 * bucket, &kept, 4);
  }
}

template <typename Reader>
LQRAY_BODY void statistics_body(Reader x, int64_t n, int64_t bucket_size, Norm norm, double* norms, double* means,
                                double* sigmas, int64_t begin, int64_t end) {
  for (int64_t bucket = begin; bucket < end; ++bucket) {
    const int64_t from = bucket * bucket_size, to = std::min(n, from + bucket_size);
    const double count = static_cast<double>(to - from);
    // Three short loops, the later ones over a bucket that is in the cache, are faster than one that does it all.
    const double squares = wide_squares_of(x, from, to);
    const double sum = sum_of<double, kWideLanes>(from, to, [&](int64_t i) __attribute__((always_inline)) { return double(x[i]); });
    const float value = norm == Norm::l2 ? static_cast<float>(std::sqrt(squares)) : largest_of(x, from, to);
    const double size = std::isfinite(squares) ? finite_or_nan(value) : std::numeric_limits<double>::quiet_NaN();
    const double mean = sum / count;
    double deviations = std::max(0.0, squares - sum * mean);
    if (deviations < 1e-9 * squares)  // the difference cancels
      deviations = sum_of<double, kWideLanes>(from, to, [&](int64_t i) __attribute__((always_inline)) {
        return (x[i] - mean) * (x[i] - mean);
      });
    const double divisor = size == 0.0 ? 1.0 : size;
    norms[bucket] = size;
    means[bucket] = mean / divisor;
    sigmas[bucket] = std::sqrt(deviations / std::max(1.0, count - 1.0)) / divisor;
  }
}

// The 32 Philox calls of a tile, a round for all of them at a time: simple loops, which compilers vectorize.
LQRAY_BODY void philox_tile(uint64_t tile, uint64_t offset, uint64_t seed, uint32_t (&word)[4][kGroup]) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int lane = 0; lane < kGroup; ++lane) {
    const uint64_t call = tile * kGroup + lane;
    word[0][lane] = static_cast<uint32_t>(call);
    word[1][lane] = static_cast<uint32_t>(call >> 32);
    word[2][lane] = static_cast<uint32_t>(offset);
    word[3][lane] = static_cast<uint32_t>(offset >> 32);
  }
  for (int round = 0; round < 10; ++round) {
    for (int lane = 0; lane < kGroup; ++lane) {
      const uint64_t p0 = static_cast<uint64_t>(word[0][lane]) * 0xD2511F53u;
      const uint64_t p1 = static_cast<uint64_t>(word[2][lane]) * 0xCD9E8D57u;
      word[0][lane] = static_cast<uint32_t>(p1 >> 32) ^ word[1][lane] ^ k0;
      word[1][lane] = static_cast<uint32_t>(p1);
      word[2][lane] = static_cast<uint32_t>(p0 >> 32) ^ word[3][lane] ^ k1;
      word[3][lane] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// r of a tile's coordinates, whose buckets may end within it; beyond the last coordinate a number of code 0.
template <typename Reader>
LQRAY_BODY void normalize_tile(Reader x, int64_t n, const uint8_t* norms, int64_t bucket_size, int64_t start,
                               float* r) {
  const int64_t stop = std::min(n, start + kTile);
  int64_t i = start;
  for (int64_t bucket = start / bucket_size; i < stop; ++bucket) {
    const Scale scale = scale_of(load<float>(norms, bucket));
    const int64_t to = std::min(stop, (bucket + 1) * bucket_size);
    if (scale.lift == 1.0f)
      for (; i < to; ++i) r[i - start] = x[i] * scale.inverse;
    else
      for (; i < to; ++i) r[i - start] = (x[i] * scale.lift) * scale.inverse;
  }
  for (; i < start + kTile; ++i) r[i - start] = -2.0f;
}

// The words of a tile's groups that hold coordinates.
LQRAY_BODY int groups_in_tile(int64_t n, int64_t start) {
  return static_cast<int>(std::min<int64_t>(kTile / kGroup, (n - start + kGroup - 1) / kGroup));
}

template <typename Reader>
LQRAY_BODY void encode_body(Reader x, int64_t n, const uint8_t* norms, const Levels& levels, int64_t bucket_size,
                            uint64_t seed, uint64_t offset, uint8_t* words, int64_t begin, int64_t end) {
  const int bits = levels.bits, inner = levels.count - 2;
  float r[kTile];
  uint32_t random[4][kGroup];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * kTile;
    normalize_tile(x, n, norms, bucket_size, start, r);
    philox_tile(static_cast<uint64_t>(tile), offset, seed, random);
    const int groups = groups_in_tile(n, start);
    for (int j = 0; j < groups; ++j) {
      int32_t code[kGroup];
      float below[kGroup], gap[kGroup];
      const float* at = r + j * kGroup;
      if (levels.count <= 32) {
        for (int lane = 0; lane < kGroup; ++lane) {
          code[lane] = 0;
          below[lane] = levels.below[0];
          gap[lane] = levels.gap[0];
        }
        for (int level = 0; level < inner; ++level)
          for (int lane = 0; lane < kGroup; ++lane) {
            const bool above = at[lane] >= levels.inner[level];
            code[lane] += above;
            below[lane] = above ? levels.below[level + 1] : below[lane];
            gap[lane] = above ? levels.gap[level + 1] : gap[lane];
          }
      } else {
        for (int lane = 0; lane < kGroup; ++lane) {
          code[lane] = cell_of(levels.inner, bits, at[lane]);
          below[lane] = levels.below[code[lane]];
          gap[lane] = levels.gap[code[lane]];
        }
      }
      const int turn = (j & 1) ? 16 : 0;
      for (int lane = 0; lane < kGroup; ++lane) {
        const uint32_t w = random[j >> 1][lane];
        const float u = uniform(turn ? (w << 16) | (w >> 16) : w);
        code[lane] += u * gap[lane] < at[lane] - below[lane];
      }
      uint8_t narrow[kGroup];
      for (int lane = 0; lane < kGroup; ++lane) narrow[lane] = static_cast<uint8_t>(code[lane]);
      for (int plane = 0; plane < bits; ++plane) {
        uint32_t word = 0;
        for (int byte = 0; byte < kGroup / 8; ++byte)
          word |= gather_bits(load<uint64_t>(narrow, byte) >> plane) << (8 * byte);
        std::memcpy(words + 4 * ((start / kGroup + j) * bits + plane), &word, 4);
      }
    }
  }
}

// norm * level of the coordinates of a group, added to `sum`.
template <bool add>
LQRAY_BODY void decode_group(Codes payload, const Levels& levels, int64_t n, int64_t bucket_size, int64_t group,
                             float* sum) {
  const int bits = levels.bits;
  uint32_t code[kGroup] = {};
  for (int plane = 0; plane < bits; ++plane) {
    const uint32_t word = load<uint32_t>(payload.words, group * bits + plane);
    for (int lane = 0; lane < kGroup; ++lane) code[lane] |= ((word >> lane) & 1u) << plane;
  }
  const int64_t start = group * kGroup, stop = std::min(n, start + kGroup);
  int64_t i = start;
  for (int64_t bucket = start / bucket_size; i < stop; ++bucket) {
    const float norm = load<float>(payload.norms, bucket);
    const int64_t to = std::min(stop, (bucket + 1) * bucket_size);
    for (; i < to; ++i) {
      const float value = norm * levels.value[code[i - start]];
      sum[i - start] = add ? sum[i - start] + value : value;
    }
  }
}

LQRAY_BODY void decode_body(Codes payload, const Levels& levels, int64_t n, int64_t bucket_size, float* out,
                            int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group)
    decode_group<false>(payload, levels, n, bucket_size, group, out + group * kGroup);
}

LQRAY_BODY void decode_sum_body(const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes,
                                const Levels& levels, int64_t n, int64_t bucket_size, float scale, const float* add,
                                float* out, int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) {
    float sum[kGroup] = {};
    for (int64_t row = 0; row < count; ++row) {
      const uint8_t* bytes = payloads + row * stride;
      decode_group<true>(Codes{bytes, bytes + norm_bytes}, levels, n, bucket_size, group, sum);
    }
    const int64_t start = group * kGroup, stop = std::min(n, start + kGroup);
    if (add)
      for (int64_t i = start; i < stop; ++i) out[i] = add[i] + sum[i - start] * scale;
    else
      for (int64_t i = start; i < stop; ++i) out[i] = sum[i - start] * scale;
  }
}

LQRAY_BODY void signs_body(const float* x, int64_t n, uint64_t seed, uint64_t offset, float* out, int64_t begin,
                           int64_t end) {
  uint32_t random[4][kGroup];
  for (int64_t tile = begin; tile < end; ++tile) {
    philox_tile(static_cast<uint64_t>(tile), offset, seed, random);
    const int64_t start = tile * kTile;
    const int size = static_cast<int>(std::min<int64_t>(kTile, n - start));
    for (int i = 0; i < size; ++i) {
      const uint32_t w = random[i >> 6][i & 31];
      const uint32_t top = (i & 32) ? (w << 16) : w;  // the rotated word's highest bit is bit 15
      out[start + i] = as_float(as_bits(x[start + i]) ^ (top & 0x80000000u));
    }
  }
}

LQRAY_BODY void hadamard_body(float* x, int64_t block_size, int64_t begin, int64_t end) {
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(block_size)));
  for (int64_t block = begin; block < end; ++block) {
    float* v = x + block * block_size;
    for (int64_t half = 1; half < block_size; half *= 2)
      for (int64_t pair = 0; pair < block_size; pair += 2 * half)
        for (int64_t i = pair; i < pair + half; ++i) {
          const float upper = v[i], lower = v[i + half];
          v[i] = upper + lower;
          v[i + half] = upper - lower;
        }
    for (int64_t i = 0; i < block_size; ++i) v[i] *= scale;
  }
}

#if LQRAY_X86

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

// Codes of 16 coordinates. Few levels: counted, then looked up in a register; many: searched in memory.
LQRAY_AVX512 inline __m512i codes16(__m512 r, __m512i word, const Levels& levels, __m512 below16, __m512 gap16) {
  const __m512i one = _mm512_set1_epi32(1);
  __m512i cell = _mm512_setzero_si512();
  __m512 below, gap;
  if (levels.count <= 16) {
    for (int level = 0; level < levels.count - 2; ++level) {
      const __mmask16 above = _mm512_cmp_ps_mask(r, _mm512_set1_ps(levels.inner[level]), _CMP_GE_OQ);
      cell = _mm512_mask_add_epi32(cell, above, cell, one);
    }
    below = _mm512_permutexvar_ps(cell, below16);
    gap = _mm512_permutexvar_ps(cell, gap16);
  } else {
    for (int step = 1 << (levels.bits - 1); step > 0; step >>= 1) {
      const __m512i probe = _mm512_add_epi32(cell, _mm512_set1_epi32(step - 1));
      const __mmask16 above = _mm512_cmp_ps_mask(r, _mm512_i32gather_ps(probe, levels.inner, 4), _CMP_GE_OQ);
      cell = _mm512_mask_add_epi32(cell, above, cell, _mm512_set1_epi32(step));
    }
    below = _mm512_i32gather_ps(cell, levels.below, 4);
    gap = _mm512_i32gather_ps(cell, levels.gap, 4);
  }
  const __m512 u = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(word, 8)), _mm512_set1_ps(kUnit));
  const __mmask16 up = _mm512_cmp_ps_mask(_mm512_mul_ps(u, gap), _mm512_sub_ps(r, below), _CMP_LT_OQ);
  return _mm512_mask_add_epi32(cell, up, cell, one);
}

template <typename Reader>
LQRAY_AVX512 void encode_avx512(Reader x, int64_t n, const uint8_t* norms, const Levels& levels, int64_t bucket_size,
                                uint64_t seed, uint64_t offset, uint8_t* words, int64_t begin, int64_t end) {
  const int bits = levels.bits;
  const __m512 below16 = _mm512_loadu_ps(levels.below), gap16 = _mm512_loadu_ps(levels.gap);
  alignas(64) float r[kTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * kTile;
    normalize_tile(x, n, norms, bucket_size, start, r);
    const uint64_t call = static_cast<uint64_t>(tile) * kGroup;
    const Philox16 left = philox16(call, offset, seed), right = philox16(call + 16, offset, seed);
    const int groups = groups_in_tile(n, start);
    for (int j = 0; j < groups; ++j) {
      __m512i first = left.w[j >> 1], second = right.w[j >> 1];
      if (j & 1) {
        first = _mm512_rol_epi32(first, 16);
        second = _mm512_rol_epi32(second, 16);
      }
      const float* at = r + j * kGroup;
      const __m512i low = codes16(_mm512_load_ps(at), first, levels, below16, gap16);
      const __m512i high = codes16(_mm512_load_ps(at + 16), second, levels, below16, gap16);
      uint8_t* group = words + 4 * ((start / kGroup + j) * bits);
      for (int plane = 0; plane < bits; ++plane) {
        const __m512i bit = _mm512_set1_epi32(1 << plane);
        const uint32_t word = static_cast<uint32_t>(_mm512_test_epi32_mask(low, bit)) |
                              static_cast<uint32_t>(_mm512_test_epi32_mask(high, bit)) << 16;
        std::memcpy(group + 4 * plane, &word, 4);
      }
    }
  }
}

// Levels of 16 coordinates: bit planes are masks, so codes need no unpacking.
LQRAY_AVX512 inline __m512 values16(const uint8_t* group, int half, const Levels& levels, __m512 value16) {
  __m512i code = _mm512_setzero_si512();
  for (int plane = 0; plane < levels.bits; ++plane) {
    const __mmask16 set = load<uint16_t>(group, 2 * plane + half);
    code = _mm512_mask_or_epi32(code, set, code, _mm512_set1_epi32(1 << plane));
  }
  return levels.bits <= 4 ? _mm512_permutexvar_ps(code, value16) : _mm512_i32gather_ps(code, levels.value, 4);
}

LQRAY_AVX512 void decode_sum_avx512(const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes,
                                    const Levels& levels, int64_t n, int64_t bucket_size, float scale, const float* add,
                                    bool single, float* out, int64_t begin, int64_t end) {
  const __m512 value16 = _mm512_loadu_ps(levels.value), factor = _mm512_set1_ps(scale);
  int64_t bucket = begin * kGroup / bucket_size;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t start = group * kGroup;
    while ((bucket + 1) * bucket_size <= start) ++bucket;
    float* to = out + start;
    if (start + kGroup > n || (bucket + 1) * bucket_size < start + kGroup) {  // several buckets in a group, or the end
      if (single)
        decode_group<false>(Codes{payloads, payloads + norm_bytes}, levels, n, bucket_size, group, to);
      else
        decode_sum_body(payloads, count, stride, norm_bytes, levels, n, bucket_size, scale, add, out, group,
                        group + 1);
      continue;
    }
    const int64_t word = 4 * group * levels.bits;
    if (single) {
      const __m512 norm = _mm512_set1_ps(load<float>(payloads, bucket));
      const uint8_t* codes = payloads + norm_bytes + word;
      _mm512_storeu_ps(to, _mm512_mul_ps(norm, values16(codes, 0, levels, value16)));
      _mm512_storeu_ps(to + 16, _mm512_mul_ps(norm, values16(codes, 1, levels, value16)));
      continue;
    }
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    for (int64_t row = 0; row < count; ++row) {
      const uint8_t* bytes = payloads + row * stride;
      const __m512 norm = _mm512_set1_ps(load<float>(bytes, bucket));
      const uint8_t* codes = bytes + norm_bytes + word;
      low = _mm512_add_ps(low, _mm512_mul_ps(norm, values16(codes, 0, levels, value16)));
      high = _mm512_add_ps(high, _mm512_mul_ps(norm, values16(codes, 1, levels, value16)));
    }
    low = _mm512_mul_ps(low, factor);
    high = _mm512_mul_ps(high, factor);
    if (add) {
      low = _mm512_add_ps(_mm512_loadu_ps(add + start), low);
      high = _mm512_add_ps(_mm512_loadu_ps(add + start + 16), high);
    }
    _mm512_storeu_ps(to, low);
    _mm512_storeu_ps(to + 16, high);
  }
}

#endif  // LQRAY_X86

// Each body once for every machine and once for AVX2 (which AVX-512 machines have too).
#if LQRAY_X86
#define LQRAY_VARIANTS(name, parameters, call)                     \
  void name##_portable parameters { call; }                        \
  LQRAY_AVX2 void name##_avx2 parameters { call; }
#define LQRAY_CALL(name, arguments) (isa() == Isa::portable ? name##_portable arguments : name##_avx2 arguments)
#else
#define LQRAY_VARIANTS(name, parameters, call) \
  void name##_portable parameters { call; }
#define LQRAY_CALL(name, arguments) name##_portable arguments
#endif

LQRAY_VARIANTS(norms, (Input x, int64_t bucket_size, Norm norm, uint8_t* out, int64_t begin, int64_t end),
               with_reader(x, [&](auto reader) __attribute__((always_inline)) {
                 norms_body(reader, x.n, bucket_size, norm, out, begin, end);
               }))
LQRAY_VARIANTS(statistics,
               (Input x, int64_t bucket_size, Norm norm, double* norms, double* means, double* sigmas, int64_t begin,
                int64_t end),
               with_reader(x, [&](auto reader) __attribute__((always_inline)) {
                 statistics_body(reader, x.n, bucket_size, norm, norms, means, sigmas, begin, end);
               }))
LQRAY_VARIANTS(encode,
               (Input x, const uint8_t* norms, const Levels& levels, int64_t bucket_size, uint64_t seed,
                uint64_t offset, uint8_t* words, int64_t begin, int64_t end),
               with_reader(x, [&](auto reader) __attribute__((always_inline)) {
                 encode_body(reader, x.n, norms, levels, bucket_size, seed, offset, words, begin, end);
               }))
LQRAY_VARIANTS(decode,
               (Codes payload, const Levels& levels, int64_t n, int64_t bucket_size, float* out, int64_t begin,
                int64_t end),
               decode_body(payload, levels, n, bucket_size, out, begin, end))
LQRAY_VARIANTS(decode_sum,
               (const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes, const Levels& levels,
                int64_t n, int64_t bucket_size, float scale, const float* add, float* out, int64_t begin, int64_t end),
               decode_sum_body(payloads, count, stride, norm_bytes, levels, n, bucket_size, scale, add, out, begin,
                               end))
LQRAY_VARIANTS(signs,
               (const float* x, int64_t n, uint64_t seed, uint64_t offset, float* out, int64_t begin, int64_t end),
               signs_body(x, n, seed, offset, out, begin, end))
LQRAY_VARIANTS(hadamard, (float* x, int64_t block_size, int64_t begin, int64_t end),
               hadamard_body(x, block_size, begin, end))

}  // namespace

Levels make_levels(const float* levels, int count, int bits) {
  Levels tables;
  tables.count = count;
  tables.bits = bits;
  for (int i = 0; i < kMaxLevels; ++i) {
    tables.inner[i] = i < count - 2 ? levels[i + 1] : std::numeric_limits<float>::quiet_NaN();
    const int cell = std::min(i, count - 2);
    tables.below[i] = levels[cell];
    tables.gap[i] = levels[cell + 1] - levels[cell];
    tables.value[i] = levels[std::min(i, count - 1)];
  }
  return tables;
}

void bucket_norms(Input x, int64_t bucket_size, Norm norm, uint8_t* norms, int64_t begin, int64_t end) {
  LQRAY_CALL(norms, (x, bucket_size, norm, norms, begin, end));
}

void bucket_statistics(Input x, int64_t bucket_size, Norm norm, double* norms, double* means, double* sigmas,
                       int64_t begin, int64_t end) {
  LQRAY_CALL(statistics, (x, bucket_size, norm, norms, means, sigmas, begin, end));
}

void encode(Input x, const uint8_t* norms, const Levels& levels, int64_t bucket_size, uint64_t seed, uint64_t offset,
            uint8_t* words, int64_t begin, int64_t end) {
#if LQRAY_X86
  if (isa() == Isa::avx512)
    return with_reader(x, [&](auto reader) {
      encode_avx512(reader, x.n, norms, levels, bucket_size, seed, offset, words, begin, end);
    });
#endif
  LQRAY_CALL(encode, (x, norms, levels, bucket_size, seed, offset, words, begin, end));
}

void decode(Codes payload, const Levels& levels, int64_t n, int64_t bucket_size, float* out, int64_t begin,
            int64_t end) {
#if LQRAY_X86
  if (isa() == Isa::avx512)
    return decode_sum_avx512(payload.norms, 1, 0, payload.words - payload.norms, levels, n, bucket_size, 1.0f,
                             nullptr, true, out, begin, end);
#endif
  LQRAY_CALL(decode, (payload, levels, n, bucket_size, out, begin, end));
}

void decode_sum(const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes, const Levels& levels,
                int64_t n, int64_t bucket_size, float scale, const float* add, float* out, int64_t begin, int64_t end) {
#if LQRAY_X86
  if (isa() == Isa::avx512)
    return decode_sum_avx512(payloads, count, stride, norm_bytes, levels, n, bucket_size, scale, add, false, out,
                             begin, end);
#endif
  LQRAY_CALL(decode_sum, (payloads, count, stride, norm_bytes, levels, n, bucket_size, scale, add, out, begin, end));
}

void apply_signs(const float* x, int64_t n, uint64_t seed, uint64_t offset, float* out, int64_t begin, int64_t end) {
  LQRAY_CALL(signs, (x, n, seed, offset, out, begin, end));
}

void hadamard_blocks(float* x, int64_t block_size, int64_t begin, int64_t end) {
  LQRAY_CALL(hadamard, (x, block_size, begin, end));
}

const char* instruction_set() {
  switch (isa()) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace lqray::cpu
