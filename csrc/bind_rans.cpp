// The operators of bit planes and of their entropy coding for CPU tensors; as bind_cpu.cpp.
#include <cstring>
#include <tuple>

#include "bind_cpu.h"
#include "rans_cpu.h"

namespace lqray::bind {

namespace {

void check_bytes(const char* op, const char* name, const Tensor& bytes) {
  STD_TORCH_CHECK(bytes.dim() == 1 && bytes.scalar_type() == ScalarType::Byte, op, ": ", name,
                  " must be uint8 of 1 dimension");
  check_coordinates(op, bytes.numel());
}

Tensor pack(const Tensor& codes, int64_t bits) {
  check_bytes("pack", "codes", codes);
  check_bits("pack", bits);
  const Tensor flat = dense(codes);
  Tensor planes = empty(codes, {code_bytes(codes.numel(), bits)}, ScalarType::Byte);
  cpu::pack(const_bytes_of(flat), codes.numel(), static_cast<int>(bits), bytes_of(planes));
  return planes;
}

Tensor unpack(const Tensor& codes, int64_t n, int64_t bits) {
  check_coordinates("unpack", n);
  check_bits("unpack", bits);
  check_bytes("unpack", "codes", codes);
  STD_TORCH_CHECK(codes.numel() == code_bytes(n, bits), "unpack: codes must be ", code_bytes(n, bits),
                  " bytes, which n=", n, ", bits=", bits, " make");
  const Tensor flat = dense(codes);
  Tensor out = empty(codes, {n}, ScalarType::Byte);
  cpu::unpack(const_bytes_of(flat), n, static_cast<int>(bits), bytes_of(out));
  return out;
}

// The stream; 1 where a code is 2**bits or more, and there is none.
std::tuple<Tensor, int64_t> rans_encode(const Tensor& codes, int64_t bits) {
  check_bytes("rans_encode", "codes", codes);
  check_bits("rans_encode", bits);
  const Tensor flat = dense(codes);
  cpu::CodedStream stream;
  const bool sound = cpu::rans_encode(const_bytes_of(flat), codes.numel(), static_cast<int>(bits), stream);
  const int64_t head = static_cast<int64_t>(stream.head.size());
  Tensor out = empty(codes, {head + 2 * stream.count}, ScalarType::Byte);
  if (head) std::memcpy(bytes_of(out), stream.head.data(), stream.head.size());
  if (stream.count) std::memcpy(bytes_of(out) + head, stream.words, static_cast<size_t>(2 * stream.count));
  return {out, sound ? 0 : 1};
}

// The codes; what is wrong with the stream, and there are none, or none that mean anything.
std::tuple<Tensor, int64_t> rans_decode(const Tensor& stream, int64_t n, int64_t bits) {
  check_bytes("rans_decode", "stream", stream);
  check_coordinates("rans_decode", n);
  check_bits("rans_decode", bits);
  const Tensor flat = dense(stream);
  const uint8_t* bytes = const_bytes_of(flat);
  const int64_t size = flat.numel();
  const int width = static_cast<int>(bits);
  cpu::StreamFault fault = cpu::rans_check(bytes, size, n, width);
  const bool sound = fault == cpu::StreamFault::none;
  Tensor codes = empty(stream, {sound ? n : 0}, ScalarType::Byte);
  if (sound) fault = cpu::rans_decode(bytes, size, n, width, bytes_of(codes));
  return {codes, static_cast<int64_t>(fault)};
}

}  // namespace

}  // namespace lqray::bind

STABLE_TORCH_LIBRARY_IMPL(lqray, CPU, m) {
  m.impl("pack", TORCH_BOX(&lqray::bind::pack));
  m.impl("unpack", TORCH_BOX(&lqray::bind::unpack));
  m.impl("rans_encode", TORCH_BOX(&lqray::bind::rans_encode));
  m.impl("rans_decode", TORCH_BOX(&lqray::bind::rans_decode));
}
