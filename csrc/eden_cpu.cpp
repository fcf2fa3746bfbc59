// Rotated blocks, in vectors of the compiler's, which it lowers to what the function's instruction set has.
#include "eden.h"

#include "quantize_cpu_bodies.h"
#include "quantize_cpu_x86.h"

namespace lqray::cpu {

namespace {

constexpr int kWide = 16;
typedef float Floats __attribute__((vector_size(4 * kWide)));
typedef int32_t Ints __attribute__((vector_size(4 * kWide)));

#if defined(__clang__)
#define LQRAY_SHUFFLE(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define LQRAY_SHUFFLE(x, ...) __builtin_shuffle(x, Ints{__VA_ARGS__})
#endif

constexpr int32_t kSign = INT32_MIN;

// Sums and differences of neighbours at a distance within a vector: those of which the bit is set get upper - lower.
#define LQRAY_WITHIN(x, flips, ...) ((Floats)((Ints)(x) ^ (flips)) + LQRAY_SHUFFLE(x, __VA_ARGS__))

// v (size) times the Walsh-Hadamard matrix of entries 1 and -1; size is a power of two from kLeastBlock on.
LQRAY_BODY void butterflies(float* v, int64_t size) {
  const Ints one = {0, kSign, 0, kSign, 0, kSign, 0, kSign, 0, kSign, 0, kSign, 0, kSign, 0, kSign};
  const Ints two = {0, 0, kSign, kSign, 0, 0, kSign, kSign, 0, 0, kSign, kSign, 0, 0, kSign, kSign};
  const Ints four = {0, 0, 0, 0, kSign, kSign, kSign, kSign, 0, 0, 0, 0, kSign, kSign, kSign, kSign};
  const Ints eight = {0, 0, 0, 0, 0, 0, 0, 0, kSign, kSign, kSign, kSign, kSign, kSign, kSign, kSign};
  for (int64_t i = 0; i < size; i += kWide) {
    Floats x;
    std::memcpy(&x, v + i, sizeof x);
    x = LQRAY_WITHIN(x, one, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    x = LQRAY_WITHIN(x, two, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    x = LQRAY_WITHIN(x, four, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    x = LQRAY_WITHIN(x, eight, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    std::memcpy(v + i, &x, sizeof x);
  }
  for (int64_t half = kWide; half < size; half *= 2)
    for (int64_t pair = 0; pair < size; pair += 2 * half)
      for (int64_t i = pair; i < pair + half; i += kWide) {
        Floats upper, lower;
        std::memcpy(&upper, v + i, sizeof upper);
        std::memcpy(&lower, v + i + half, sizeof lower);
        const Floats sum = upper + lower, difference = upper - lower;
        std::memcpy(v + i, &sum, sizeof sum);
        std::memcpy(v + i + half, &difference, sizeof difference);
      }
}

// f(i, sign bit of coordinate start + i, at the top of a word) for the size coordinates of a tile.
template <typename F>
LQRAY_BODY void with_signs(int64_t start, int64_t size, uint64_t seed, uint64_t offset, F&& f) {
  uint32_t random[4][kGroup];
  for (int64_t from = 0; from < size; from += kSignTile) {
    philox_tile(static_cast<uint64_t>((start + from) / kSignTile), offset, seed, random);
    for (int64_t row = 0; row < kSignTile / kGroup; ++row)
      for (int lane = 0; lane < kGroup; ++lane)
        f(from + row * kGroup + lane, (random[row / 32][lane] << (31 - row % 32)) & 0x80000000u);
  }
}

// Codes of a block's coordinates: how many edges of its width are at most v * factor, which replaces v.
LQRAY_BODY void round_block(float* v, int64_t size, float factor, int width, const Centroids& centroids,
                            uint8_t* codes) {
  const float* edge = centroids.edge + (1 << width) - 2;
  const int edges = (1 << width) - 1;
  for (int64_t i = 0; i < size; ++i) v[i] *= factor;
  if (width > 4) {
    for (int64_t i = 0; i < size; ++i) codes[i] = static_cast<uint8_t>(cell_of(edge, width, v[i]));
    return;
  }
  for (int64_t i = 0; i < size; i += kWide) {
    Floats x;
    std::memcpy(&x, v + i, sizeof x);
    Ints code = {};
    for (int j = 0; j < edges; ++j) code -= (Ints)(x >= edge[j]);
    for (int lane = 0; lane < kWide; ++lane) codes[i + lane] = static_cast<uint8_t>(code[lane]);
  }
}

LQRAY_BODY void pack_block(const uint8_t* codes, int64_t size, int width, uint8_t* to) {
  for (int64_t group = 0; group < size / kGroup; ++group)
    for (int plane = 0; plane < width; ++plane) {
      uint32_t word = 0;
      for (int byte = 0; byte < kGroup / 8; ++byte)
        word |= gather_bits(load<uint64_t>(codes + group * kGroup, byte) >> plane) << (8 * byte);
      std::memcpy(to + 4 * (group * width + plane), &word, 4);
    }
}

// Eight bits as the lowest ones of eight bytes: the inverse of gather_bits.
LQRAY_BODY uint64_t spread_bits(uint32_t eight) {
  const uint64_t chosen = (eight * 0x0101010101010101u) & 0x8040201008040201u;
  return ((chosen + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
}

LQRAY_BODY void unpack_block(const uint8_t* from, int64_t size, int width, const Centroids& centroids, float* v) {
  const float* value = centroids.value + (1 << width) - 2;
  for (int64_t group = 0; group < size / kGroup; ++group) {
    uint64_t codes[kGroup / 8] = {};
    for (int plane = 0; plane < width; ++plane) {
      const uint32_t word = load<uint32_t>(from, group * width + plane);
      for (int byte = 0; byte < kGroup / 8; ++byte) codes[byte] |= spread_bits((word >> (8 * byte)) & 0xffu) << plane;
    }
    uint8_t narrow[kGroup];
    std::memcpy(narrow, codes, sizeof narrow);
    for (int lane = 0; lane < kGroup; ++lane) v[group * kGroup + lane] = value[narrow[lane]];
  }
}

template <typename Reader>
LQRAY_BODY void encode_tiles(Reader x, int64_t n, BlockRow row, const Centroids& centroids, int64_t block_size,
                             uint64_t seed, uint64_t offset, uint8_t* codes, float* dots, int64_t begin, int64_t end) {
  alignas(64) float v[kMostBlock];
  uint8_t narrow[kMostBlock];
  const int64_t tile_size = tile_of(block_size);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * tile_size, size = std::min(tile_size, n - start);
    for (int64_t i = 0; i < size; ++i) v[i] = x[start + i];
    for (int64_t i = size; i < tile_size; ++i) v[i] = 0.0f;
    with_signs(start, tile_size, seed, offset, [&](int64_t i, uint32_t sign) __attribute__((always_inline)) {
      v[i] = as_float(as_bits(v[i]) ^ sign);
    });
    for (int64_t at = 0; at < size; at += block_size) {
      const int64_t block = (start + at) / block_size;
      const int width = row.widths[block];
      if (!width) {
        dots[block] = 0.0f;
        continue;
      }
      float* y = v + at;
      butterflies(y, block_size);
      round_block(y, block_size, row.numbers[block], width, centroids, narrow);
      const float* value = centroids.value + (1 << width) - 2;
      dots[block] = blocked<1>(0, block_size, [&](int64_t i) __attribute__((always_inline)) {
        return y[i] * value[narrow[i]];
      });
      pack_block(narrow, block_size, width, codes + row.begins[block] * (block_size / 8));
    }
  }
}

LQRAY_BODY void decode_tiles(const uint8_t* codes, int64_t count, int64_t stride, BlockRow rows, int64_t blocks,
                             const Centroids& centroids, int64_t n, int64_t block_size, const int64_t* seeds,
                             uint64_t offset, float scale, float* out, int64_t begin, int64_t end) {
  alignas(64) float v[kMostBlock], sum[kMostBlock];
  const int64_t tile_size = tile_of(block_size);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * tile_size, size = std::min(tile_size, n - start);
    for (int64_t i = 0; i < tile_size; ++i) sum[i] = 0.0f;
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t at = 0; at < size; at += block_size) {
        const int64_t block = row * blocks + (start + at) / block_size;
        const int width = rows.widths[block];
        float* y = v + at;
        if (!width) {
          for (int64_t i = 0; i < block_size; ++i) y[i] = 0.0f;
        } else {
          unpack_block(codes + row * stride + rows.begins[block] * (block_size / 8), block_size, width, centroids, y);
          butterflies(y, block_size);
        }
        const float factor = rows.numbers[block];
        for (int64_t i = 0; i < block_size; ++i) y[i] *= factor;
      }
      for (int64_t i = ceil_divide(size, block_size) * block_size; i < tile_size; ++i) v[i] = 0.0f;
      with_signs(start, tile_size, static_cast<uint64_t>(seeds[row]), offset,
                 [&](int64_t i, uint32_t sign) __attribute__((always_inline)) {
                   sum[i] += as_float(as_bits(v[i]) ^ sign);
                 });
    }
    for (int64_t i = 0; i < size; ++i) out[start + i] = sum[i] * scale;
  }
}

#define LQRAY_ENCODE_PARAMETERS                                                                                     \
  (Input x, BlockRow row, const Centroids& centroids, int64_t block_size, uint64_t seed, uint64_t offset,           \
   uint8_t* codes, float* dots, int64_t begin, int64_t end)
#define LQRAY_ENCODE_BODY                                                                                           \
  with_reader(x, [&](auto reader) __attribute__((always_inline)) {                                                  \
    encode_tiles(reader, x.n, row, centroids, block_size, seed, offset, codes, dots, begin, end);                   \
  })
#define LQRAY_DECODE_PARAMETERS                                                                                     \
  (const uint8_t* codes, int64_t count, int64_t stride, BlockRow rows, int64_t blocks, const Centroids& centroids,  \
   int64_t n, int64_t block_size, const int64_t* seeds, uint64_t offset, float scale, float* out, int64_t begin,    \
   int64_t end)
#define LQRAY_DECODE_BODY \
  decode_tiles(codes, count, stride, rows, blocks, centroids, n, block_size, seeds, offset, scale, out, begin, end)

void encode_blocks LQRAY_ENCODE_PARAMETERS { LQRAY_ENCODE_BODY; }
void decode_blocks LQRAY_DECODE_PARAMETERS { LQRAY_DECODE_BODY; }
#if LQRAY_X86
LQRAY_AVX2 void encode_blocks_avx2 LQRAY_ENCODE_PARAMETERS { LQRAY_ENCODE_BODY; }
LQRAY_AVX2 void decode_blocks_avx2 LQRAY_DECODE_PARAMETERS { LQRAY_DECODE_BODY; }
LQRAY_AVX512 void encode_blocks_avx512 LQRAY_ENCODE_PARAMETERS { LQRAY_ENCODE_BODY; }
LQRAY_AVX512 void decode_blocks_avx512 LQRAY_DECODE_PARAMETERS { LQRAY_DECODE_BODY; }
#endif

}  // namespace

Centroids make_centroids(const float* values) {
  Centroids found;
  for (int width = 1; width <= kMostWidth; ++width) {
    const int from = (1 << width) - 2, count = 1 << width;
    for (int i = 0; i < count; ++i) {
      found.value[from + i] = values[from + i];
      found.edge[from + i] =
          i + 1 < count ? (values[from + i + 1] + values[from + i]) * 0.5f : std::numeric_limits<float>::quiet_NaN();
    }
  }
  return found;
}

void eden_encode(Input x, BlockRow row, const Centroids& centroids, int64_t block_size, uint64_t seed, uint64_t offset,
                 uint8_t* codes, float* dots, int64_t begin, int64_t end) {
  auto* chosen = encode_blocks;
#if LQRAY_X86
  chosen = isa() == Isa::avx512 ? encode_blocks_avx512 : isa() == Isa::avx2 ? encode_blocks_avx2 : encode_blocks;
#endif
  chosen(x, row, centroids, block_size, seed, offset, codes, dots, begin, end);
}

void eden_decode_sum(const uint8_t* codes, int64_t count, int64_t stride, BlockRow rows, int64_t blocks,
                     const Centroids& centroids, int64_t n, int64_t block_size, const int64_t* seeds, uint64_t offset,
                     float scale, float* out, int64_t begin, int64_t end) {
  auto* chosen = decode_blocks;
#if LQRAY_X86
  chosen = isa() == Isa::avx512 ? decode_blocks_avx512 : isa() == Isa::avx2 ? decode_blocks_avx2 : decode_blocks;
#endif
  chosen(codes, count, stride, rows, blocks, centroids, n, block_size, seeds, offset, scale, out, begin, end);
}

}  // namespace lqray::cpu
