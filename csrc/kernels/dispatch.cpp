// Which instruction set is used. Compiled without any instruction-set flag.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "core/status.h"
#include "kernels/dense.h"
#include "kernels/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace bitdistill {
namespace {

#if defined(__x86_64__)

// What the CPU has and the system saves on a context switch.
struct Features {
  bool avx2 = false, avxvnni = false, avx512vnni = false, avx512vbmi = false;

  Features() {
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) return;
    unsigned xcr0, high;
    asm volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    const bool fused = (c & bit_FMA) != 0 && (c & bit_F16C) != 0;
    const bool ymm = (xcr0 & 0x06) == 0x06;
    const bool zmm = (xcr0 & 0xe6) == 0xe6;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return;
    const bool avx512 = (b & bit_AVX512F) && (b & bit_AVX512BW) && (b & bit_AVX512VL) && (b & bit_AVX512DQ);
    const unsigned subleaves = a;
    avx2 = ymm && fused && (b & bit_AVX2) != 0;
    avx512vnni = zmm && avx2 && avx512 && (c & bit_AVX512VNNI) != 0;
    avx512vbmi = avx512vnni && (c & bit_AVX512VBMI) != 0;
#if defined(BITDISTILL_EMULATE_VNNI)
    avxvnni = avx512vnni = avx2;
    return;
#endif
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) avxvnni = avx2 && (a & (1u << 4)) != 0;
  }
};

const Features& features_of_cpu() {
  static const Features features;
  return features;
}

bool can_run(const char* name) {
  const Features& features = features_of_cpu();
  if (std::strcmp(name, "avx2") == 0) return features.avx2;
  if (std::strcmp(name, "avxvnni") == 0) return features.avxvnni;
  if (std::strcmp(name, "avx512vnni") == 0) return features.avx512vnni;
  return std::strcmp(name, "scalar") == 0;
}

#elif defined(__aarch64__)

bool can_run(const char* name) {
  if (std::strcmp(name, "scalar") == 0) return true;
  if (std::strcmp(name, "neon") != 0) return false;
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#elif defined(__APPLE__)
  return true;
#else
  return false;
#endif
}

#else

bool can_run(const char* name) { return std::strcmp(name, "scalar") == 0; }

#endif

constexpr int kMost = 5;

struct Choice {
  const Kernels* usable[kMost] = {};
  const char* names[kMost + 1] = {};
  int count = 0;
  std::atomic<const Kernels*> active{nullptr};

  Choice() {
    for (const Kernels* kernels :
         {avx512vnni_kernels(), avxvnni_kernels(), avx2_kernels(), neon_kernels(), scalar_kernels()}) {
      if (kernels == nullptr || !can_run(kernels->name)) continue;
      names[count] = kernels->name;
      usable[count++] = kernels;
    }
    const char* forced = std::getenv("HF_BITDISTILL_ISA");
    active = forced == nullptr || *forced == '\0' ? usable[0] : find(forced);
  }

  const Kernels* find(const char* name) const {
    for (int i = 0; i < count; ++i) {
      if (std::strcmp(names[i], name) == 0) return usable[i];
    }
    return nullptr;
  }
};

Choice& choice() {
  static Choice instance;
  return instance;
}

}  // namespace

int active_kernels(const Kernels** kernels) {
  *kernels = choice().active.load(std::memory_order_relaxed);
  return *kernels != nullptr ? BD_OK : BD_ERROR_ISA;
}

int set_active_kernels(const char* name) {
  const Kernels* kernels = choice().find(name);
  if (kernels == nullptr) return BD_ERROR_ISA;
  choice().active = kernels;
  return BD_OK;
}

bool can_run_avx512vbmi() {
#if defined(__x86_64__)
  return features_of_cpu().avx512vbmi;
#else
  return false;
#endif
}

const char* const* supported_kernels() { return choice().names; }

}  // namespace bitdistill
