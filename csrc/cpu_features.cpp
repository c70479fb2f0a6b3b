#include "cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sterna {
namespace {

#if defined(__x86_64__)

struct Leaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(uint32_t leaf, uint32_t subleaf) {
  Leaf result;
  __get_cpuid_count(leaf, subleaf, &result.eax, &result.ebx, &result.ecx, &result.edx);
  return result;
}

// Register state that the operating system saves on a context switch.
uint64_t saved_state() {
  if ((cpuid(1, 0).ecx & (1u << 27)) == 0) return 0;
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

std::string missing(uint32_t flags, std::initializer_list<std::pair<int, const char*>> needed) {
  for (const auto& [bit, name] : needed) {
    if ((flags & (1u << bit)) == 0) return std::string("the CPU has no ") + name;
  }
  return "";
}

std::string avx2_reason() {
  std::string reason = missing(cpuid(1, 0).ecx, {{28, "AVX"}, {12, "FMA"}, {29, "F16C"}});
  if (reason.empty()) reason = missing(cpuid(7, 0).ebx, {{5, "AVX2"}});
  if (reason.empty() && (saved_state() & 0x6) != 0x6) reason = "the operating system does not save the AVX registers";
  return reason;
}

std::string avx2_vnni_reason() {
  std::string reason = avx2_reason();
  if (reason.empty()) reason = missing(cpuid(7, 1).eax, {{4, "AVX-VNNI"}});
  return reason;
}

std::string avx512_reason() {
  std::string reason = avx2_reason();
  if (reason.empty()) {
    reason = missing(cpuid(7, 0).ebx, {{16, "AVX-512F"}, {17, "AVX-512DQ"}, {30, "AVX-512BW"}, {31, "AVX-512VL"}});
  }
  if (reason.empty() && (saved_state() & 0xe6) != 0xe6) {
    reason = "the operating system does not save the AVX-512 registers";
  }
  return reason;
}

std::string avx512_vnni_reason() {
  std::string reason = avx512_reason();
  if (reason.empty()) reason = missing(cpuid(7, 0).ecx, {{11, "AVX-512 VNNI"}});
  return reason;
}

#else

std::string avx2_vnni_reason() { return "the CPU is not x86-64"; }
std::string avx512_vnni_reason() { return "the CPU is not x86-64"; }
std::string avx2_reason() { return "the CPU is not x86-64"; }
std::string avx512_reason() { return "the CPU is not x86-64"; }

#endif

std::vector<Variant> list_variants() {
  std::vector<Variant> list;
#if defined(STERNA_HAVE_WIDE)
  list.push_back({&wide_kernels(), "wide", "", true});
#endif
  list.push_back({&generic_kernels(), "generic", "", false});
  const std::string not_built = "this build does not contain it";
#if defined(STERNA_HAVE_AVX2)
  list.push_back({&avx2_kernels(), "avx2", avx2_reason(), false});
#else
  list.push_back({nullptr, "avx2", not_built, false});
#endif
#if defined(STERNA_HAVE_AVX2_VNNI)
  list.push_back({&avx2_vnni_kernels(), "avx2_vnni", avx2_vnni_reason(), false});
#else
  list.push_back({nullptr, "avx2_vnni", not_built, false});
#endif
#if defined(STERNA_HAVE_AVX512)
  list.push_back({&avx512_kernels(), "avx512", avx512_reason(), false});
#else
  list.push_back({nullptr, "avx512", not_built, false});
#endif
#if defined(STERNA_HAVE_AVX512_VNNI)
  list.push_back({&avx512_vnni_kernels(), "avx512_vnni", avx512_vnni_reason(), false});
#else
  list.push_back({nullptr, "avx512_vnni", not_built, false});
#endif
  return list;
}

}  // namespace

const std::vector<Variant>& variants() {
  static const std::vector<Variant> list = list_variants();
  return list;
}

}  // namespace sterna
