// The kernels of training (training_kernels.h), written once on 16-lane vectors. Included by float_portable.h.
#pragma once

#include "kernels/float_vectors.h"

namespace bitdistill {
namespace {

// ---- Rows of either dtype ----------------------------------------------------------------------------------------------

struct Float32Row {
  typedef float Storage;
  static inline Floats load(const float* p) { return load_vector<Floats>(p); }
  static inline void store(float* p, const Floats& v) { store_vector(p, v); }
};

struct BFloat16Row {
  typedef uint16_t Storage;
  static inline Floats load(const uint16_t* p) { return BFloat16::load(p); }
  static inline void store(uint16_t* p, const Floats& v) {  // half to even
    const Bits bits = load_vector<Bits>(&v);
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Ints equal = v == v;
    const Bits is_number = load_vector<Bits>(&equal);
    store_vector(p, __builtin_convertvector((is_number & rounded) | (~is_number & 0x7fc0u), Halves));
  }
};

template <class T>
inline Floats load_row(const void* row, int64_t at, int lanes) {
  const typename T::Storage* p = static_cast<const typename T::Storage*>(row) + at;
  if (lanes == kLanes) return T::load(p);
  typename T::Storage room[kLanes] = {};
  memcpy(room, p, static_cast<size_t>(lanes) * sizeof room[0]);
  return T::load(room);
}

template <class T>
inline void store_row(void* row, int64_t at, const Floats& v, int lanes) {
  typename T::Storage* p = static_cast<typename T::Storage*>(row) + at;
  if (lanes == kLanes) return T::store(p, v);
  typename T::Storage room[kLanes];
  T::store(room, v);
  memcpy(p, room, static_cast<size_t>(lanes) * sizeof room[0]);
}

// Calls f with a value of the type of each row.
template <class F>
inline auto with_row(bd_dtype dtype, F&& f) {
  return dtype == BD_BFLOAT16 ? f(BFloat16Row{}) : f(Float32Row{});
}

template <class F>
inline void map_row(const void* x, bd_dtype x_dtype, int64_t n, void* out, bd_dtype out_dtype, F&& f) {
  with_row(x_dtype, [&](auto in) {
    with_row(out_dtype, [&](auto to) {
      in_vectors(n, [&](int64_t i, int lanes) {
        store_row<decltype(to)>(out, i, f(load_row<decltype(in)>(x, i, lanes), i, lanes), lanes);
      });
    });
  });
}

// Adding and subtracting 1.5 * 2^23 rounds half to even.
inline Floats rounded(const Floats& v) { return (v + 12582912.0f) - 12582912.0f; }

// ---- Kernels -----------------------------------------------------------------------------------------------------------

float round_activations(const void* x, bd_dtype x_dtype, int64_t n, void* out, bd_dtype out_dtype) {
  // The magnitude bits of floats order as the floats do, with infinity and NaN above all numbers.
  Ints greatest = {};
  with_row(x_dtype, [&](auto in) {
    in_vectors(n, [&](int64_t i, int lanes) {
      const Floats v = load_row<decltype(in)>(x, i, lanes);
      const Ints bits = load_vector<Ints>(&v) & 0x7fffffff;
      const Ints is_greater = bits > greatest;
      greatest = (is_greater & bits) | (~is_greater & greatest);
    });
  });
  int32_t most = 0;
  for (int i = 0; i < kLanes; ++i) most = greatest[i] > most ? greatest[i] : most;
  float largest;
  memcpy(&largest, &most, sizeof largest);
  largest = largest < 1e-5f ? 1e-5f : largest;  // (a NaN stays)
  const float s = (1.0f / largest) * 127.0f;
  map_row(x, x_dtype, n, out, out_dtype, [&](const Floats& v, int64_t, int) { return rounded(v * s); });
  return s;
}

void ternarize(const void* x, bd_dtype x_dtype, int64_t n, float scale, void* out, bd_dtype out_dtype) {
  map_row(x, x_dtype, n, out, out_dtype, [&](const Floats& v, int64_t, int) {
    Floats q = v / scale;
    q = select(q > spread(1.0f), spread(1.0f), q);
    q = select(q < spread(-1.0f), spread(-1.0f), q);
    return rounded(q);
  });
}

void scale_row(const void* x, bd_dtype x_dtype, int64_t n, float first, float second, void* out, bd_dtype out_dtype) {
  map_row(x, x_dtype, n, out, out_dtype, [&](const Floats& v, int64_t, int) { return (v * first) * second; });
}

void scale_row_by_columns(const void* x, bd_dtype x_dtype, int64_t n, const float* first, float second, void* out,
                          bd_dtype out_dtype) {
  map_row(x, x_dtype, n, out, out_dtype,
          [&](const Floats& v, int64_t i, int lanes) { return (v * load_some(first + i, lanes)) * second; });
}

float norm(const void* x, bd_dtype dtype, int64_t n, const float* weight, float eps, void* out) {
  return with_row(dtype, [&](auto type) {
    typedef decltype(type) Row;
    FourDoubles sums[4] = {};
    in_vectors(n, [&](int64_t i, int lanes) {
      const Floats v = load_row<Row>(x, i, lanes);
      for (int j = 0; j < 4; ++j) {
        const FourDoubles d =
            __builtin_convertvector(load_vector<FourFloats>(reinterpret_cast<const float*>(&v) + 4 * j), FourDoubles);
        sums[j] += d * d;
      }
    });
    const FourDoubles four = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    const double mean = ((four[0] + four[1]) + (four[2] + four[3])) / static_cast<double>(n);
    const float inverse = static_cast<float>(1.0 / __builtin_sqrt(mean + static_cast<double>(eps)));
    in_vectors(n, [&](int64_t i, int lanes) {
      store_row<Row>(out, i, load_row<Row>(x, i, lanes) * inverse * load_some(weight + i, lanes), lanes);
    });
    return inverse;
  });
}

void norm_backward(const void* grad, const void* x, bd_dtype dtype, int64_t n, const float* weight, float inverse_rms,
                   void* grad_x, float* weight_sums) {
  with_row(dtype, [&](auto type) {
    typedef decltype(type) Row;
    Floats sums = {};
    in_vectors(n, [&](int64_t i, int lanes) {
      const Floats of_result = load_row<Row>(grad, i, lanes) * (load_row<Row>(x, i, lanes) * inverse_rms);
      sums += of_result * load_some(weight + i, lanes);
      store_some(weight_sums + i, load_some(weight_sums + i, lanes) + of_result, lanes);
    });
    const float along = sum_of(sums) / static_cast<float>(n);
    in_vectors(n, [&](int64_t i, int lanes) {
      const Floats normalized = load_row<Row>(x, i, lanes) * inverse_rms;
      const Floats of_x = load_row<Row>(grad, i, lanes) * load_some(weight + i, lanes) - normalized * along;
      store_row<Row>(grad_x, i, of_x * inverse_rms, lanes);
    });
  });
}

constexpr TrainingKernels kTrainingKernels = {round_activations,    ternarize, scale_row,
                                              scale_row_by_columns, norm,      norm_backward};

}  // namespace
}  // namespace bitdistill
