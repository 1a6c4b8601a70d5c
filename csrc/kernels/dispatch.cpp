// Which instruction set is used. Compiled without any instruction-set flag.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "core/status.h"
#include "kernels/dense.h"
#include "kernels/kernels.h"
#include "kernels/tile_permission.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include "kernels/x86_prefetch.h"
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace bitdistill {
namespace {

#if defined(__x86_64__)

// Palette 1 of AMX as the kernels use it: 8 tiles of 16 rows of 64 bytes.
bool tiles_fit() {
  unsigned a, b, c, d;
  if (__get_cpuid_count(0x1d, 1, &a, &b, &c, &d) == 0) return false;
  return a >> 16 == 1024 && (b & 0xffff) == 64 && b >> 16 >= 8 && (c & 0xffff) >= 16;
}

bool ask_for_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  return tiles_permitted([](int what, unsigned long argument) { return syscall(SYS_arch_prctl, what, argument); });
#else
  return false;
#endif
}

bool is_amd() {
  unsigned a, b, c, d;
  return __get_cpuid(0, &a, &b, &c, &d) != 0 && b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx;
}

// What the CPU has and the system saves on a context switch.
struct Features {
  bool avx2 = false, avxvnni = false, avx512vnni = false, avx512vbmi = false, amx = false;

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
#if defined(BITDISTILL_EVEX_VNNI)
    avxvnni = avx512vnni;
    return;
#endif
#if defined(BITDISTILL_EMULATE_VNNI)
    avxvnni = avx512vnni = amx = avx2;
    return;
#endif
    constexpr unsigned kTileData = 3u << 17, kAmx = 3u << 24;  // AMX-TILE and AMX-INT8
    if (avx512vnni && (xcr0 & kTileData) == kTileData && (d & kAmx) == kAmx) amx = tiles_fit() && ask_for_tiles();
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
  if (std::strcmp(name, "amx") == 0) return features.amx;
  return std::strcmp(name, "scalar") == 0;
}

#elif defined(__aarch64__)

bool can_run(const char* name) {
  if (std::strcmp(name, "scalar") == 0) return true;
  const bool neon = std::strcmp(name, "neon") == 0, i8mm = std::strcmp(name, "i8mm") == 0;
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20, kMatrix = 1ul << 13;  // HWCAP_ASIMDDP, HWCAP2_I8MM
  const bool dot_product = (getauxval(AT_HWCAP) & kDotProduct) != 0;
  return dot_product && (neon || (i8mm && (getauxval(AT_HWCAP2) & kMatrix) != 0));
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return neon || (i8mm && sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has != 0);
#else
  return false;
#endif
}

#else

bool can_run(const char* name) { return std::strcmp(name, "scalar") == 0; }

#endif

constexpr int kMost = 7;

struct Choice {
  const Kernels* usable[kMost] = {};
  const char* names[kMost + 1] = {};
  int count = 0;
  std::atomic<const Kernels*> active{nullptr};

  Choice() {
    for (const Kernels* kernels : {amx_kernels(), avx512vnni_kernels(), avxvnni_kernels(), avx2_kernels(), i8mm_kernels(),
                                   neon_kernels(), scalar_kernels()}) {
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

#if defined(__x86_64__)
const int64_t plain_prefetch_bytes = is_amd() ? 0 : 8192;
#endif

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
