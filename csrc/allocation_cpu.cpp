// Norms of blocks in a byte each, and widths that follow from them: a pass or two over one number for each block.
#include <algorithm>

#include "eden.h"

namespace lqray::cpu {

void draw_dithers(int64_t blocks, uint64_t seed, uint64_t offset, uint8_t* drawn, int64_t begin, int64_t end) {
  const RoundKeys keys = round_keys(seed ^ kDitherSeed);
  for (int64_t block = begin; block < end; block += 4) {
    const Words words = philox(static_cast<uint64_t>(block) / 4, offset, keys);
    for (int64_t i = block; i < std::min(blocks, block + 4); ++i) drawn[i] = static_cast<uint8_t>(dither_of(words.w[i - block]));
  }
}

void norm_eighths(const float* norms, int64_t blocks, NormTables tables, uint64_t seed, uint64_t offset,
                  int32_t* eighths, uint8_t* drawn, int64_t begin, int64_t end) {
  draw_dithers(blocks, seed, offset, drawn, begin, end);
  for (int64_t block = begin; block < end; ++block) eighths[block] = eighths_of(norms[block], drawn[block], tables);
}

void block_widths(const uint8_t* codes, int64_t blocks, const int64_t* order, int64_t count, int64_t planes,
                  uint8_t* widths, int64_t* begins) {
  int64_t counts[256] = {};
  for (int64_t block = 0; block < blocks; ++block) ++counts[codes[block]];
  int64_t left = planes - (blocks - counts[0]), extra = 0;
  uint8_t width[256];
  for (int code = 0; code < 256; ++code) width[code] = code > 0;
  int partly = -1;
  for (int64_t step = 0; step < count; ++step) {
    const int code = static_cast<int>(order[step]);
    if (counts[code] > left) {
      partly = code;
      extra = left;
      break;
    }
    left -= counts[code];
    ++width[code];
  }
  int64_t begin = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    int own = width[codes[block]];
    if (codes[block] == partly && extra > 0) {
      ++own;
      --extra;
    }
    widths[block] = static_cast<uint8_t>(own);
    begins[block] = begin;
    begin += own;
  }
}

}  // namespace lqray::cpu
