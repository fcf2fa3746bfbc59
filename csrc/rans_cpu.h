// rANS of codes on the CPU: pointers and sizes; no torch, no threads. docs/wire-format.md has the stream;
// lqray/ops/rans_reference.py defines it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace lqray::cpu {

// A stream is its head, then its words.
struct CodedStream {
  std::vector<uint8_t> head;
  std::unique_ptr<uint16_t[]> memory;
  const uint16_t* words = nullptr;  // within memory
  int64_t count = 0;
};

// What is wrong with a stream, in the order of the words for it in lqray/ops/rans.py.
enum class StreamFault : int64_t { none, too_short, frequencies, states, ends_early, goes_on, other_codes };

// The stream of n codes; false for a code of 2**bits or more.
bool rans_encode(const uint8_t* codes, int64_t n, int bits, CodedStream& stream);

// What can be seen from a stream's head alone, before memory for n codes is taken.
StreamFault rans_check(const uint8_t* stream, int64_t size, int64_t n, int bits);

// The n codes of a stream of `size` bytes, whatever these are; after a fault, what is in `codes` means nothing.
StreamFault rans_decode(const uint8_t* stream, int64_t size, int64_t n, int bits, uint8_t* codes);

}  // namespace lqray::cpu
